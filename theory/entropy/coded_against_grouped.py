"""Two ways to spend bytes on a matrix: entropy-coded steps without groups, or codes of fixed width in groups.

At high rate an entropy-coded scalar quantizer is within 0.2546 bits of the rate-distortion function of any source
(Gish, Pierce 1968), while a fixed width has to cover the range: 4.35 dB above the limit for the best levels on a
Gaussian (Panter, Dite 1951), and more for even steps that reach the largest of a group. Groups adapt the range, for 16
bits of scale each. The comparison is at equal bytes: a rival takes what it takes, and ECSQ is asked for that rate,
tables and checksums included. Below some rate a zero cell cannot shrink with the others; steps are searched all the
same. Errors are |W - Q|^2 / |W|^2, or tr (W - Q) H (W - Q)^T over tr W H W^T with a layer's Gram matrix H.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.grids.measured import LAYER, SOURCES, matrix
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch

    from suite.quantized import Quantized

BITS = (2, 3, 4)
_SHAPE = (64, 512)


def rivals() -> dict[str, dict[str, Any]]:
    """Fixed width in groups: what `quantize_matrix` is told beside the bits."""
    from suite.grids import ShrinkSearch

    return {
        "RTN, groups of 128": {"method": "rtn", "group": 128},
        "RTN, ranges searched, groups of 32": {"method": "rtn", "group": 32, "clip": ShrinkSearch()},
        "RTN, ranges searched, groups of 128": {"method": "rtn", "group": 128, "clip": ShrinkSearch()},
        "Lloyd-Max, groups of 128": {"method": "lloyd-max", "group": 128},
    }


@lru_cache(maxsize=64)
def _pairs(
    source: str, bits: int, model: str, seed: int
) -> "tuple[torch.Tensor, dict[str, tuple[Quantized, Quantized]]]":
    """The matrix, and for each rival what it makes of it and what ECSQ does at the same rate."""
    import torch

    from suite.methods.ecsq import build as ecsq
    from suite.quantize import quantize_matrix

    W = torch.from_numpy(matrix(source, _SHAPE, model, seed)[: _SHAPE[0]]).float()  # a layer's first rows
    found = {}
    for name, how in rivals().items():
        other = quantize_matrix(W, bits=bits, **how)
        found[name] = other, quantize_matrix(W, recipe=ecsq(bits=other.n_bits / W.numel()))
    return W, found


def ratios(
    source: str, bits: int, model: str, seed: int, H: "torch.Tensor | None" = None
) -> dict[str, tuple[float, float]]:
    """By rival, its bits per weight, and ECSQ's error over its own, below 1 where ECSQ wins; `H` weighs errors.

    Raises `ValueError` where ECSQ takes more bytes than the rival, by more than a thousandth.
    """
    from suite.quantize import relative_errors, squared_error

    W, found = _pairs(source, bits, model, seed)
    result = {}
    for name, (other, coded) in found.items():
        if coded.n_bits > 1.001 * other.n_bits:
            raise ValueError(f"{source} at {bits} bits: ECSQ takes {coded.n_bits} bits, {name} {other.n_bits}")
        errors = [squared_error(W, q.dequantize()) if H is None else relative_errors(W, q.dequantize(), H)[1]
                  for q in (coded, other)]  # fmt: skip
        result[name] = other.n_bits / W.numel(), errors[0] / errors[1]
    return result


def worst(setting: Setting) -> Mapping[str, float]:
    """N5: ECSQ's error over its own of the rival that does best, by source and bits; of a layer with its inputs too.

    A seed draws samples, and of the layer the calibration text that H is of.
    """
    import torch

    from theory.layers import layer

    found = {f"{source}, {bits} bits": max(ratio for _, ratio in ratios(source, bits, "", setting.seed).values())
             for source in SOURCES for bits in BITS}  # fmt: skip
    H = torch.from_numpy(layer(setting.model, seed=setting.seed)[1])
    for bits in BITS:
        one = ratios(LAYER, bits, setting.model, 0)
        weighed = ratios(LAYER, bits, setting.model, 0, H)
        found[f"a layer, {bits} bits"] = max(ratio for _, ratio in one.values())
        found[f"a layer's outputs, {bits} bits"] = max(ratio for _, ratio in weighed.values())
    return found


def _measure(setting: Setting) -> list[Point]:
    points = []
    for source in (*SOURCES, LAYER):
        seeds = seeds_of(setting) if source in SOURCES else range(1)  # weights are what they are
        for bits in BITS:
            found = [ratios(source, bits, setting.model, seed) for seed in seeds]
            for name in found[0]:
                x = float(np.mean([one[name][0] for one in found]))
                points.append(replicated(f"{name}, {source}", x, [10 * np.log10(one[name][1]) for one in found]))
    return points


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for source in (*SOURCES, LAYER):
        mine = [p for p in points if p.series.endswith(f", {source}")]
        best = max(mine, key=lambda p: p.y)
        rival = best.series.removesuffix(f", {source}")
        parts.append(f"{source}: at best {best.y:+.2f} dB ({rival}, {best.x:.2f} bits), "
                     f"at worst {min(p.y for p in mine):+.2f} dB")  # fmt: skip
    return f"Error of entropy-coded steps over that of as many bytes at fixed width in groups; {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="entropy-coded-against-grouped",
    title="Entropy-coded steps against fixed widths in groups, at equal bytes",
    source="Gish, Pierce 1968; Panter, Dite 1951",
    x="bits per weight, everything stored",
    y="error of entropy-coded steps over the rival's, dB",
    measure=_measure,
    sentence=_sentence,
    interval=INTERVAL,
    on_model=True,
)
