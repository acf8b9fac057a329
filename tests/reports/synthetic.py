"""Records, spectra and stores made up for the tests of the reports."""

import numpy as np

from reports.frontier import Point, Study
from suite.store import Record, Spectrum, Store

LOSS = {"rtn": 1.0, "hqq": 0.7, "awq": 0.55, "gptq": 0.35, "gptq-stochastic": 0.6}
SPECIAL = 'group of 48 < 64 & "short" <b>bold</b>'


def record(**changes):
    """A finished record; whatever a test needs otherwise goes in `changes`."""
    values = dict(
        cell="cell", code="1.0+abc", env="cpu", status="ok", model="tiny", model_sha256="a" * 64, data_sha256="d",
        method="rtn", recipe="Rtn(bits=3)", bits=3, bpw=3.25, bpw_entropy=3.0, model_bytes=1_234_567, ppl=9.0,
        ppl_se=0.1, ppl_base=7.5, kl=0.1, kl_se=0.01, kl_p99=1.0, top1=0.9, top1_se=0.01, nmse=0.03, hnmse=0.02,
        seconds=1.5, seed=0, command="bitfrontier run tiny --bits 3", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return Record(**{**values, **changes})


def measured(model, method, bits, seed=0, scale=1.0, **changes):
    """A record as realistic as a formula allows: KL falls by 4.5 per bit, hnmse and nmse by 4."""
    noise = np.random.default_rng([bits, seed, *method.encode()]).normal(1, 0.05)
    kl = 12 * LOSS[method] * scale * noise * 4.5**-bits
    nmse = (1.9 if method == "rtn" else 1.6 if method == "hqq" else 3.5) * 4.0**-bits * noise
    values = dict(
        cell=f"{model}/{method}/{bits}/{seed}", model=model, model_sha256=f"{hash_of(model)}", method=method,
        data_sha256=f"data-{seed}", seed=seed, recipe=f"{method.capitalize()}(bits={bits}, group=64, zero_point=True)",
        bits=bits, bpw=bits + (0.25 if method != "hqq" else 0.5), bpw_entropy=bits - 0.12, kl=kl, kl_se=kl / 12,
        kl_p99=9 * kl, ppl=7.5 * np.exp(0.8 * kl), ppl_se=0.4 * kl, top1=np.exp(-kl), top1_se=0.004, nmse=nmse,
        hnmse=1.6 * LOSS[method] * 4.0**-bits * noise,
        command=f"bitfrontier run {model} --methods {method} --seed {seed}",
    )  # fmt: skip
    return record(**{**values, **changes})


def hash_of(model):
    return (model.encode().hex() * 64)[:64]


def spectra():
    eigenvalues = np.sort(np.arange(1, 65, dtype=float) ** -1.2)
    eigenvalues[0] = -1e-17  # what a singular Gram matrix gives
    return [
        Spectrum(layer=f"layer.{i}", n_out=32 + 32 * i, variance=0.02, energy=0.02 * (32 + 32 * i) * eigenvalues.sum(),
                 eigenvalues=eigenvalues) for i in range(2)
    ]  # fmt: skip


def records():
    """Two models, five methods, four widths, three seeds of gptq, and one of everything that can go wrong."""
    found = []
    for model, scale in (("tiny", 1.0), ("org/Larger-1B", 0.4)):
        for method in LOSS:
            for bits in (2, 3, 4, 8):
                seeds = range(3 if method.startswith("gptq") and model == "tiny" else 1)
                found += [measured(model, method, bits, seed, scale) for seed in seeds]
    nothing = dict.fromkeys(("bpw", "bpw_entropy", "ppl", "ppl_se", "ppl_base", "kl", "kl_se", "kl_p99", "top1",
                             "top1_se", "nmse", "hnmse", "model_bytes"))  # fmt: skip
    found += [
        measured("tiny", "awq", 5, cell="skip", status="skipped", reason=SPECIAL, **nothing),
        measured("tiny", "gptq", 5, cell="fail", status="failed", reason="LinAlgError: H is singular", **nothing),
        measured("tiny", "gptq", 6, cell="fell", fallbacks=("layer.0: damping 0.01 -> 0.1", "layer.1: dead channel 7")),
        measured("tiny", "rtn", 1, cell="burst", recipe="Rtn(bits=1, broken)", kl=np.inf, kl_se=None, ppl=np.inf),
        measured("tiny", "rtn", 3, code="0.9+old", started="2025-01-01T00:00:00Z", kl=0.777),
    ]
    return found


def fill(path, found):
    with Store(path) as store:
        for r in found:
            store.put(r)
        for model in dict.fromkeys((r.model_sha256, r.data_sha256) for r in found):
            store.put_spectra(*model, spectra())
    return path


def study_of(*records, spectra=()):
    """A study of single records, without a store."""
    points = tuple(Point(r.method, r.recipe, r.bits, (r,)) for r in records)
    return Study(model="tiny", model_sha256="a", ppl_base=7.5, points=points, unmeasured=(), superseded=(),
                 spectra=spectra)  # fmt: skip
