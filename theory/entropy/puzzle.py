"""The entropy puzzle: what general coders make of weights, and how much a training adds to their entropy.

Formats follow Hershcovitch et al. 2024, arXiv:2411.05239 (ZipNN): a word's bytes as they lie in a file, or in planes,
the exponent first. Shares are of the size without coding, frames and checksums included.

**What a Gaussian gives.** Of 32 bits, the sign and the 23 of the mantissa are nearly uniform; the exponent has 2.54
bits, so that no code without memory gets below (1 + 2.54 + 23) / 32 = 82.9%. DEFLATE sees bytes, of which the highest
holds the sign and seven bits of the exponent, and the second the exponent's last bit: it gets to about 93%.

**Entropy at a step.** H(round(W / step)) = h(W) - log2 step at small steps. Of all densities of one variance the
Gaussian has the largest h. Initial weights are Gaussian; so at a step that is a fixed share of a matrix's spread, a
training can only lower it, by the negentropy of what it makes. At a fixed step it adds the growth of the spread:

    H_trained - H_initial = log2(sigma_trained / sigma_initial) - (negentropy, at least 0).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from theory.entropy.weights import MATERIALS, Matrices, check_kept_in_fp32, material, some_rows, spread
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

_SHARE = 0.25  # of each matrix's rows, for a seed
_FEW = 1 / 16  # of them, where coders of level 9 see their bytes
_STEPS = 2.0 ** -np.arange(0.0, 6.0)  # of the spread
_OCTAVE = 1 / 8  # of the spread: the step of the claim
FORMATS = {"FP32": 32, "BF16": 16, "4-bit codes, groups of 128": 4}


def words(matrices: Matrices, form: str) -> np.ndarray:
    """All weights in a row in one of `FORMATS`: int32, int16, or uint8 that hold two codes each.

    Codes are those of the suite's `full-range` integers; `ValueError` for another format.
    """
    import torch

    flat = np.concatenate([W.ravel() for W in matrices.values()])
    if form == "FP32":
        return flat.view(np.int32)
    if form == "BF16":
        return torch.from_numpy(flat).bfloat16().view(torch.int16).numpy()
    if form != "4-bit codes, groups of 128":
        raise ValueError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    from suite.grids import Integer

    grid = Integer(bits=4, group=128, convention="full-range")
    codes = [grid.fit(W).nearest(W).numpy().astype(np.uint8).ravel() for W in map(torch.from_numpy, matrices.values())]
    joined = np.concatenate(codes)
    joined = np.append(joined, np.zeros(len(joined) % 2, np.uint8))
    return joined[::2] | joined[1::2] << 4


def share_left(values: np.ndarray, coder: str, planes: bool = False) -> float:
    """What gzip, zstd or lzma leaves of these words, of their size; in `planes` of bytes, each coded for itself."""
    from suite.coding import Gzip, Lzma, Zstd
    from suite.entropy import byte_planes

    known: dict[str, Gzip | Zstd | Lzma] = {"gzip": Gzip(), "zstd": Zstd(level=9), "lzma": Lzma()}
    parts = byte_planes(values) if planes else [values.view(np.uint8)]
    return sum(len(known[coder].encode(part)) for part in parts) / values.nbytes


def entropy_at(W: np.ndarray, step: float) -> float:
    """Entropy in bits of `round(W / step)`, from the counts: too low by about (values - 1) / (2 n ln 2).

    >>> entropy_at(np.array([0.0, 1.0, 2.0, 3.0]), 1.0)
    2.0
    """
    counts = np.unique(np.rint(W.ravel() / step), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-p @ np.log2(p)) + 0.0


def gained(before: Matrices, after: Matrices, share: float) -> Mapping[str, float]:
    """Bits of entropy per weight of `after` less `before`, means over weights; steps are a `share` of spreads.

    "share of the spread" takes each matrix's own, "fixed step" that of `before` for both; "growth of the spread" is
    what log2 of the spreads' ratio would give alone.
    """
    sizes = np.array([W.size for W in after.values()], dtype=float)
    pairs = [(before[name], W) for name, W in after.items()]
    low = [entropy_at(b, share * spread(b)) for b, _ in pairs]
    own = [entropy_at(a, share * spread(a)) for _, a in pairs]
    fixed = [entropy_at(a, share * spread(b)) for b, a in pairs]
    growth = [np.log2(spread(a) / spread(b)) for b, a in pairs]
    weigh = sizes / sizes.sum()
    return {"share of the spread": float(weigh @ np.subtract(own, low)),
            "fixed step": float(weigh @ np.subtract(fixed, low)),
            "growth of the spread": float(weigh @ growth)}  # fmt: skip


@lru_cache(maxsize=32)
def _drawn(kind: str, model: str, seed: int, share: float = _SHARE) -> Matrices:
    return some_rows(material(kind, model, seed), seed, share)


def shares(setting: Setting) -> Mapping[str, float]:
    """N1: what coders leave of trained weights in FP32, and of what they are held against, in shares of the size."""
    check_kept_in_fp32(setting.model)
    found = {}
    for kind in MATERIALS:
        matrices = _drawn(kind, setting.model, setting.seed, _FEW)
        found[f"gzip on FP32, {kind}"] = share_left(words(matrices, "FP32"), "gzip")
        found[f"gzip on planes of FP32, {kind}"] = share_left(words(matrices, "FP32"), "gzip", planes=True)
    kept = _drawn("trained", setting.model, setting.seed, _FEW)
    found["zstd on FP32, trained"] = share_left(words(kept, "FP32"), "zstd")
    found["gzip on BF16, trained"] = share_left(words(kept, "BF16"), "gzip")
    widened = words(kept, "FP32").view(np.uint32) & np.uint32(0xFFFF0000)
    return found | {"gzip on BF16 widened to FP32": share_left(widened[::4].copy(), "gzip")}  # runs of zeros are slow


def growth(setting: Setting) -> Mapping[str, float]:
    """N2: entropy of trained less initial weights at a step of an eighth of the spread, and what gzip says of it.

    A seed draws an initialization and rows.
    """
    before, after = (_drawn(kind, setting.model, setting.seed) for kind in ("initial", "trained"))
    left = {kind: share_left(words(_drawn(kind, setting.model, setting.seed), "FP32"), "gzip") for kind in MATERIALS}
    found = gained(before, after, _OCTAVE)
    return {f"bits, {name}": bits for name, bits in found.items()} | {
        "gzip's share, trained less initial": left["trained"] - left["initial"],
        "gzip's share, trained less noise": left["trained"] - left["noise"]}  # fmt: skip


def _measure(setting: Setting) -> list[Point]:
    points = []
    for kind in MATERIALS:
        for form, bits in FORMATS.items():
            found = [words(_drawn(kind, setting.model, seed, _FEW), form) for seed in seeds_of(setting)]
            for coder in ("gzip", "zstd"):
                left = [100 * share_left(values, coder) for values in found]
                points.append(replicated(f"{coder}, {kind}", bits, left))
            if bits > 8:
                left = [100 * share_left(values, "gzip", planes=True) for values in found]
                points.append(replicated(f"gzip on planes, {kind}", bits, left))
    return points


def _sentence(points: Sequence[Point]) -> str:
    y = {(p.series, p.x): p.y for p in points}
    parts = [f"{y[f'gzip, {kind}', 32]:.1f}% of FP32, {y[f'gzip, {kind}', 16]:.1f}% of BF16 and "
             f"{y[f'gzip, {kind}', 4]:.1f}% of 4-bit codes of {kind} weights" for kind in MATERIALS]  # fmt: skip
    planes = f"in planes of bytes {y['gzip on planes, trained', 32]:.1f}% of trained weights in FP32"
    return f"gzip leaves {'; '.join(parts)}; {planes}."


def _parts(setting: Setting) -> list[Point]:
    """The entropy of each plane of FP32's bytes: exponents, then mantissas from their top, the sign at the end."""
    from suite.entropy import byte_planes

    points = []
    for kind in MATERIALS:
        found = [byte_planes(words(_drawn(kind, setting.model, seed), "FP32")) for seed in seeds_of(setting)]
        for place in range(4):
            bits = [entropy_at(planes[place].astype(float), 1.0) for planes in found]
            points.append(replicated(kind, place, bits))
    return points


def _of_parts(points: Sequence[Point]) -> str:
    y = {(p.series, p.x): p.y for p in points}
    parts = [f"{kind}: {', '.join(f'{y[kind, place]:.3f}' for place in range(4))}" for kind in MATERIALS]
    return f"Bits of entropy in FP32's exponents and in the three bytes of mantissa and sign, of 8; {'; '.join(parts)}."


def _by_step(setting: Setting) -> list[Point]:
    points = []
    for share in _STEPS:
        found = [gained(_drawn("initial", setting.model, seed), _drawn("trained", setting.model, seed), float(share))
                 for seed in seeds_of(setting)]  # fmt: skip
        for name in ("share of the spread", "fixed step"):
            points.append(replicated(name, float(share), [one[name] for one in found]))
        alone = float(np.mean([one["growth of the spread"] for one in found]))
        points.append(Point(series="growth of the spread alone", x=float(share), y=alone, predicted=True))
    return points


def _of_steps(points: Sequence[Point]) -> str:
    at = {p.series: p.y for p in points if p.x == _OCTAVE}
    return (
        f"At a step of an eighth of the spread, training adds {at['share of the spread']:+.3f} bits per weight where "
        f"the step goes with the spread, and {at['fixed step']:+.3f} at a fixed step, of which the growth of the "
        f"spread gives {at['growth of the spread alone']:+.3f}."
    )


EXPERIMENTS = (
    Experiment(name="entropy-puzzle", title="What general coders leave of weights, by format", on_model=True,
               source="Hershcovitch et al. 2024, arXiv:2411.05239", x="bits of a weight as stored",
               y="size left, %", measure=_measure, sentence=_sentence, log="x", interval=INTERVAL),
    Experiment(name="entropy-planes", title="Entropy of the bytes of FP32 weights", on_model=True,
               source="Hershcovitch et al. 2024, arXiv:2411.05239", x="byte: 0 exponent, 1 to 3 mantissa and sign",
               y="entropy, bits of 8", measure=_parts, sentence=_of_parts, interval=INTERVAL),
    Experiment(name="entropy-of-training", title="Entropy that training adds to weights, by step", on_model=True,
               source="derivation of the module", x="step, of the spread", y="entropy, trained less initial, bits",
               measure=_by_step, sentence=_of_steps, log="x", interval=INTERVAL),
)  # fmt: skip
