"""What an entropy coder takes off 4-bit codes, by how many weights share a scale.

**Closed form.** g independent unit Gaussians share the scale s = M / 7, M = max |x|, codes round(x / s) from -7 to 7
(`full-range`, `narrow`). Given M = m the largest has code 7 or -7, and the other g - 1 are Gaussians cut to |x| <= m:

    P(k) = int f_M(m) [(1/g) P(k | largest) + (1 - 1/g) P(k | cut to m)] dm,   f_M(m) = 2 g phi(m) (2 Phi(m) - 1)^(g-1),

by Gauss-Legendre nodes between quantiles of M; scales are not rounded. The entropy of P is what codes of order 0 need:
larger groups have larger maxima, and their codes crowd about zero.

**A gain** is the size at fixed width over the size coded, both with scales and with the coder's tables: 16 bits of
scale for 32 weights are half a bit that no coder of codes takes off.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.special import log_ndtr, ndtr

from theory.entropy.weights import Matrices, noise, some_rows, trained
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

Group = int | Literal["row", "tensor"]
GROUPS: tuple[Group, ...] = (32, 64, 128, "row", "tensor")
_SCALE_BITS = 16
_SHARE = 0.25  # of each matrix's rows, for a seed
_NODES = 200


def code_masses(group: int, bits: int = 4) -> np.ndarray:
    """P(k) for k from -(2^(bits - 1) - 1) up, (2^bits - 1,), of Gaussians in groups of 2 values or more.

    `ValueError` for other groups and for less than 2 bits.

    >>> P = code_masses(128)
    >>> round(float(P.sum()), 9), round(float(-P @ np.log2(P)), 3)
    (1.0, 3.385)
    """
    if group < 2 or bits < 2:
        raise ValueError(f"groups of {group} at {bits} bits: expected 2 values and 2 bits at least")
    most = 2 ** (bits - 1) - 1
    places = np.linspace(0, 12, 20001)[1:]
    log_below = group * np.log1p(-2 * ndtr(-places))  # of P(M <= m)
    low, high = (float(np.interp(level, log_below, places)) for level in (np.log(1e-14), np.log1p(-1e-13)))
    z, w = np.polynomial.legendre.leggauss(_NODES)
    m = low + (high - low) * (z + 1) / 2
    log_phi = -(m**2) / 2 - np.log(2 * np.pi) / 2
    f = np.exp(np.log(2 * group) + log_phi + (group - 1) * np.log1p(-2 * ndtr(-m))) * w * (high - low) / 2
    ends = np.clip((np.arange(-most, most + 2) - 0.5) / most, -1, 1)  # (2 most + 2,) of the largest
    cut = np.diff(ndtr(np.outer(m, ends)), axis=1) / (1 - 2 * np.exp(log_ndtr(-m)))[:, None]
    P: np.ndarray = (1 - 1 / group) * (f @ cut)
    P[[0, -1]] += f.sum() / (2 * group)
    P /= f.sum()
    return P


def gaussian_entropy(group: int, bits: int = 4) -> float:
    """Bits of entropy of a code of `code_masses`."""
    P = code_masses(group, bits)
    return float(-P @ np.log2(P))


def gaussian_gain(group: int, bits: int = 4) -> float:
    """The size at fixed width over that at the codes' entropy, scales of 16 bits in both."""
    return (bits + _SCALE_BITS / group) / (gaussian_entropy(group, bits) + _SCALE_BITS / group)


def gains(matrices: Matrices, group: Group, convention: str = "full-range") -> dict[str, float]:
    """Of all matrices together at 4 bits: fixed over coded size with everything in it, and the codes' mean entropy."""
    import torch

    from suite.coding import Ans
    from suite.grids import Integer
    from suite.quantize import quantize_matrix
    from suite.recipe import Recipe, Target

    recipe = Recipe(weights=Target(Integer(bits=4, group=group, convention=convention)), coding=Ans())  # type: ignore[arg-type]
    fixed = coded = codes = 0.0
    for W in matrices.values():
        found = quantize_matrix(torch.from_numpy(W), recipe=recipe)
        fixed += 4 * W.size + found.grid.beside_bits
        coded += found.n_bits
        codes += found.entropy_bits - found.grid.beside_bits
    n = sum(W.size for W in matrices.values())
    return {"gain": fixed / coded, "entropy": codes / n, "gain of codes alone": 4 * n / codes}


def by_group(setting: Setting) -> Mapping[str, float]:
    """N3: what coding gains on rows of a trained model that the seed draws, by group, and on absmax of other kinds."""
    drawn = some_rows(trained(setting.model), setting.seed, _SHARE)
    found: dict[str, float] = {}
    for group in GROUPS:
        one = gains(drawn, group)
        found |= {f"gain, {_said(group)}": one["gain"], f"codes alone, {_said(group)}": one["gain of codes alone"]}
    return found | {"gain, groups of 128, asymmetric": gains(drawn, 128, "asymmetric")["gain"]}


def _said(group: Group) -> str:
    return f"groups of {group}" if isinstance(group, int) else f"one scale a {group}"


def _measure(setting: Setting) -> list[Point]:
    points = [Point(series="Gaussian, closed form", x=g, y=gaussian_gain(g), predicted=True)
              for g in (16, 32, 64, 128, 256, 768, 4096, 1 << 14, 1 << 16)]  # fmt: skip
    found: dict[tuple[str, float], list[float]] = {}
    for seed in seeds_of(setting):
        known = {"Gaussian noise": noise(setting.model, seed), "trained": trained(setting.model)}
        for kind, matrices in known.items():
            drawn = some_rows(matrices, seed, _SHARE)
            rows = float(np.mean([W.shape[1] for W in drawn.values()]))
            whole = float(np.mean([W.size for W in drawn.values()]))
            for group in GROUPS:
                x = float(group) if isinstance(group, int) else rows if group == "row" else whole
                found.setdefault((kind, x), []).append(gains(drawn, group)["gain"])
    return points + [replicated(kind, x, values) for (kind, x), values in found.items()]


def _sentence(points: Sequence[Point]) -> str:
    rows = [f"{p.y:.3f} at {p.x:.0f}" for p in points if p.series == "trained"]
    ideal = [f"{p.y:.3f} at {p.x:.0f}" for p in points if p.predicted and p.x in (32, 128, 4096)]
    return (
        f"Sizes of 4-bit codes over entropy-coded ones, everything stored, by weights that share a scale: trained "
        f"weights {', '.join(rows)} (rows and matrices by their mean); Gaussian by closed form {', '.join(ideal)}."
    )


EXPERIMENT = Experiment(
    name="entropy-of-codes",
    title="What entropy coding takes off 4-bit codes, by group",
    source="derivation of the module",
    x="weights that share a scale",
    y="size at fixed width over size coded",
    measure=_measure,
    sentence=_sentence,
    log="x",
    interval=INTERVAL,
    on_model=True,
)
