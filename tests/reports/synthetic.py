"""Records, spectra, histograms, coded sizes and stores made up for the tests of the reports."""

from dataclasses import replace
from itertools import chain

import numpy as np

from reports.frontier import Point, Study
from suite.store import (
    CodedSize,
    Histogram,
    LayerRecord,
    OutlierRow,
    Record,
    SalienceRow,
    SmoothingRow,
    Spectrum,
    SpeedRow,
    Store,
    WeightShape,
)

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
        bits=bits, bpw=bits + (0.25 if method != "hqq" else 0.5), bpw_entropy=bits - 0.12, bpw_coded=bits - 0.1,
        kl=kl, kl_se=kl / 12, kl_p99=9 * kl, ppl=7.5 * np.exp(0.8 * kl), ppl_se=0.4 * kl,
        top1=np.exp(-kl), top1_se=0.004, nmse=nmse, hnmse=1.6 * LOSS[method] * 4.0**-bits * noise,
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


STAGES = {"tiny/initial": "Gaussian", "tiny/half": "both", "tiny": "Laplace"}
LAYERS = [f"model.layers.{i}.{kind}" for i in (0, 1, 10) for kind in ("mlp.up_proj", "self_attn.q_proj")]
GROUPS = ("32", "256", "row", "tensor")


def weights(stage, layer, n=4096):
    """Samples of unit mean square, Gaussian at first, then Laplacian."""
    rng = np.random.default_rng([*stage.encode(), *layer.encode()])
    normal, laplace = rng.normal(size=n), rng.laplace(size=n)
    w = {"Gaussian": normal, "Laplace": laplace, "both": np.where(rng.random(n) < 0.5, normal, laplace)}[STAGES[stage]]
    return w / np.sqrt((w**2).mean())


def entropy_of(codes):
    p = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-p @ np.log2(p))


def coded_size(**changes):
    """What a layer takes in one format under one coder; whatever a test needs otherwise goes in `changes`."""
    values = dict(
        model="tiny", model_sha256=hash_of("tiny"), layer=LAYERS[0], format="rtn", recipe="Rtn(bits=4)", bits=4.0,
        group="32", coder="fixed", n_weights=4096, n_bits=4.5 * 4096, beside_bits=2048, nmse=0.01, code="1.0+abc",
        env="cpu", command="bitfrontier entropy tiny", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return CodedSize(**{**values, **changes})


def coded_sizes():
    """Three stages, six layers: FP32, BF16, FP8, integers of three widths, one of them in every group."""
    found = []
    for stage in STAGES:
        for layer in LAYERS:
            x = weights(stage, layer)
            one = dict(model=stage, model_sha256=hash_of(stage), layer=layer, command=f"bitfrontier entropy {stage}")
            for kind, bits, parts in (("fp32", 32, (2.6, 22.8, 1.0)), ("bf16", 16, (2.6, 6.97, 1.0)),
                                      ("fp8", 8, (2.5, 2.9, 1.0))):  # fmt: skip
                jitter = entropy_of(np.floor(np.log2(np.abs(x) + 1e-9))) - 2.6
                left = {"fixed": bits, "entropy": sum(parts) + jitter, "huffman": sum(parts) + jitter + 0.05,
                        "ans": sum(parts) + jitter + 0.01, "exponents": sum(parts) + jitter + 0.15,
                        "zstd": 0.9 * bits, "gzip": 0.92 * bits, "lzma": 0.87 * bits,
                        "sign": parts[2], "exponent": parts[0] + jitter, "mantissa": parts[1]}  # fmt: skip
                plain, nmse = bits > 8, {32: 0.0, 16: 2.7e-6, 8: 6e-4}[bits]
                found += [coded_size(**one, format=kind, bits=float(bits), recipe="" if plain else "Fp8()", nmse=nmse,
                                     group="" if plain else "row", beside_bits=0, coder=coder, n_bits=4096 * b)
                          for coder, b in left.items()]  # fmt: skip
            found += [size for bits in (3, 4, 8) for group in (GROUPS if bits == 4 else ("32",))
                      for size in _integers(x, bits, group, one)]  # fmt: skip
    return found


def _integers(x, bits, group, one):
    """Rounding to nearest with a scale for each group, coded by formula."""
    groups = x.reshape(-1, {"32": 32, "256": 256, "row": 1024, "tensor": 4096}[group])
    step = np.abs(groups).max(1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    codes = np.clip(np.rint(groups / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    entropy, beside = entropy_of(codes.ravel()), 16 * len(groups)
    left = {"fixed": bits, "entropy": entropy, "huffman": entropy + 0.03, "ans": entropy + 0.003}
    if group == "32":
        left |= {"zstd": entropy * 1.06 + 0.1, "gzip": entropy * 1.08 + 0.1, "lzma": entropy * 1.1 + 0.1}
    nmse = float(((groups - codes * step) ** 2).mean() / (x**2).mean())
    return [coded_size(**one, recipe=f"Rtn(bits={bits}, group={group})", bits=float(bits), group=group, coder=coder,
                       beside_bits=beside, n_bits=4096 * b + beside, nmse=nmse)
            for coder, b in left.items()]  # fmt: skip


def weight_shapes():
    edges = np.linspace(-16, 16, 1025)
    return [WeightShape(model=stage, model_sha256=hash_of(stage), layer=layer, n_weights=4096, rms=0.02,
                        counts=np.histogram(weights(stage, layer), edges)[0])
            for stage in STAGES for layer in LAYERS]  # fmt: skip


def histograms(r):
    """Codes of a Gaussian on integers of the record's width; two alphabets for hqq."""
    levels = np.arange(-(2.0 ** (r.bits - 1)), 2.0 ** (r.bits - 1))
    counts = np.rint(1e6 * np.exp(-((levels / levels[0]) ** 2) * 4)).astype(np.int64)
    return [Histogram(stream=i, levels=levels, counts=counts) for i in range(2 if r.method == "hqq" else 1)]


def layer_records(r):
    """Two layers of unequal size and error, of the record's mean."""
    one = dict(group_size=64, n_bits=1000, entropy_bits=900.0, coded_bits=950, hnmse=r.hnmse, weight_energy=1.0,
               output_energy=1.0)  # fmt: skip
    return [LayerRecord(layer=f"layer.{i}", n_out=32 * (1 + 2 * i), n_in=64, nmse=(1.5, 5 / 6)[i] * r.nmse, **one)
            for i in range(2)]  # fmt: skip


def fill_entropy(path, found):
    """A store of records with histograms, coded sizes and the shapes of weights."""
    fill(path, found)
    with Store(path) as store:
        for r in found:
            if r.status == "ok" and r.bits and r.bits <= 8:
                store.put(r, layers=layer_records(r), histograms=histograms(r))
        store.put_rows(*coded_sizes())
        store.put_shapes(weight_shapes())
    return path


SITES = {"self_attn.q_proj": ("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj": (),
         "mlp.gate_proj": ("mlp.up_proj",), "mlp.down_proj": ()}  # fmt: skip
EVENNESS = {"none": 1.0, "smoothquant": 0.6, "hadamard": 0.15, "quarot": 0.12, "spinquant": 0.1, "duquant": 0.08}
KEPT = (0.001, 0.01, 0.1)
ROTATED = ("quarot", "spinquant", "duquant")


def outlier_row(**changes):
    """A row of inputs; whatever a test needs otherwise goes in `changes`."""
    values = dict(
        model="tiny", model_sha256=hash_of("tiny"), data_sha256="d", layer="model.layers.0.mlp.down_proj",
        coordinates="none", transforms="()", tensor="inputs", n_channels=64, kurtosis=12.0, max_to_median=30.0,
        incoherence=6.0, dynamic_range=20.0, normal=1, massive=0, code="1.0+abc", env="cpu",
        command="bitfrontier outliers tiny", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return OutlierRow(**{**values, **changes})


def _origin(row):
    names = ("model", "model_sha256", "data_sha256", "layer", "code", "env", "command", "started")
    return {name: getattr(row, name) for name in names}


def coordinate_rows(model="tiny", size=1.0):
    """Three blocks in six coordinates, outliers of `size`; ranges over alpha and saliences."""
    rng, outliers, smoothing, salience = np.random.default_rng(0), [], [], []
    for block in (0, 1, 10):
        for first, others in SITES.items():
            base = outlier_row(model=model, model_sha256=hash_of(model), layer=f"model.layers.{block}.{first}",
                               command=f"bitfrontier outliers {model}")  # fmt: skip
            for k, (coordinates, left) in enumerate(EVENNESS.items()):
                here = dict(coordinates=coordinates, transforms="()" if k == 0 else f"({coordinates.title()}(),)")
                x = 1 + left * size * rng.lognormal(0, 0.2)
                outliers.append(replace(base, **here, kurtosis=10 * x - 11, max_to_median=5 * x, incoherence=3 * x,
                                        dynamic_range=4 * x, normal=int(x > 8), massive=int(x > 16)))  # fmt: skip
                for layer in (first, *others):
                    name = f"model.layers.{block}.{layer}"
                    outliers.append(replace(base, **here, layer=name, tensor="weights", kurtosis=2 * x - 2.4,
                                            max_to_median=x + 1, normal=None, massive=None))  # fmt: skip
                    for j, criterion in enumerate(("salient weights", "worst weights", "large inputs")):
                        salience += [SalienceRow(**{**_origin(base), "layer": name}, **here, criterion=criterion,
                                                 fraction=f, bits=3, protected=f, share=f ** (0.3 + 0.2 * j))
                                     for f in KEPT]  # fmt: skip
            for alpha in np.linspace(0, 1, 11):
                inputs, weights = 4 + 9 * size * (1 - alpha) ** 2, 4 + 12 * alpha**2
                smoothing.append(SmoothingRow(**_origin(base), alpha=float(alpha), bits=4, inputs=inputs,
                                              weights=weights, error=(inputs**2 + weights**2) / 1e4))  # fmt: skip
    return outliers, smoothing, salience


def dosed_records(base="tiny"):
    """Five methods at W4A4 and W4A8 over doses: norms' outliers leave rotations alone, the others hurt all."""
    found = []
    for bits, scale in ((4, 1.0), (8, 0.2)):
        for k, method in enumerate(("rtn", "smoothquant", *ROTATED)):
            for name, kind, factor in [(base, "", 1)] + [
                (f"{base}+outliers:{kind}:{f}", kind, f) for kind in ("norm", "linear", "both") for f in (8, 64)
            ]:
                felt = 1.0 if method in ROTATED and kind == "norm" else factor ** (0.4 / (1 + k))
                kl = 0.2 * scale * felt * (1 + 0.01 * k)
                found.append(record(
                    cell=f"{name}/{method}/{bits}", model=name, model_sha256=hash_of(name), method=method, bits=4,
                    recipe=f"Recipe(weights=Target(Integer(bits=4)), activations=Target(Integer(bits={bits})))",
                    kl=kl, kl_se=kl / 15, command=f"bitfrontier outliers {base} --doses",
                ))  # fmt: skip
    return found


def cached_records(model="tiny"):
    """Records of quantized caches."""
    return [record(cell=f"{method}/{bits}", model=model, model_sha256=hash_of(model), method=method, bits=bits,
                   recipe=f"Recipe(cache=CacheTarget({method}, bits={bits}))", kl=0.02 * 4.0**-bits, kl_se=1e-5,
                   cache_bytes=65536 * bits + 4096, command=f"bitfrontier run {model} --methods {method}")
            for method in ("kivi", "kvquant") for bits in (2, 4)]  # fmt: skip


def fill_coordinates(path):
    """A store of doses, caches, and two models' rows."""
    fill(path, [*dosed_records(), *cached_records()])
    with Store(path) as store:
        store.put_rows(*chain(*coordinate_rows()))
        store.put_rows(*chain(*coordinate_rows("tiny+outliers", 20.0)))
    return path


def speed_row(**changes):
    """A packed model that decodes at 120 tokens/s of the 200 that 10 GB/s and 50 MB allow; `changes` as elsewhere."""
    values = dict(
        model="tiny-packed", model_sha256="p" * 64, base_sha256=hash_of("tiny"), method="rtn",
        recipe="Rtn(bits=4, group=64)", bits=4, seed=0, device="cpu", threads=2, product="auto",
        products='{"taken": [{"products": "Int4Pack, Dense from 32 rows on", "layers": 21}], "measured": []}',
        prompt=128, tokens=64, rounds=7, prefill=900.0, prefill_low=850.0, prefill_high=950.0, decode=120.0,
        decode_low=110.0, decode_high=130.0, base_prefill=1000.0, base_decode=60.0, prefill_ratio=0.9, decode_ratio=2.0,
        decode_ratio_low=1.8, decode_ratio_high=2.2, token_bytes=50_000_000, base_token_bytes=180_000_000,
        bandwidth=10e9, overhead=0.05, fallbacks="[]", code="1.0+abc", env="cpu",
        command="bitfrontier speed tiny-packed", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return SpeedRow(**{**values, **changes})


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
