"""What expansion and a low-rank branch buy, against the same bits spent on the rate of the codes.

Post-training model expansion (Franco et al. 2025, arXiv:2503.17513) and low-rank correction (`saab_2026_intrinsic`) are
shown at a fixed width of codes. Here all bits count, per weight of the matrix before expansion: codes of every channel,
scales and zero points or the step, both factors of a branch in float16. Two ways of storing codes:

- `Width`: integers of b bits with a scale and a zero point for every row (`suite`'s `Integer`, range searched). Rates
  between two widths are had by mixing: a share of the rows at b + 1 bits. Rows do not know of each other, so bits and
  errors of a mixture are straight lines between those of the widths.
- `Entropy`: whole multiples of one step, at the empirical entropy of the codes and 32 bits for the step. Any rate is
  had by the step.

**At high rate.** With r = K' / K the weights of a row, whose norm T keeps, are sqrt(r) times smaller, and R bits per
weight are R / r per code. At equal true bits expansion therefore multiplies the error by

    (sum d' / sum d) / r * 4^(R (1 - 1 / r)),

which is below 1 only for R < r / (2 (r - 1)) log2(r sum d / sum d'): what it saves is a factor that no rate enters,
what it costs grows with the rate. `break_even_bits` is that rate. A random basis is also a rotation, so that a
square one is measured beside the expanding ones: what it gains is not expansion's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from theory.bounds.instances import power_law, rounded
from theory.expansion.franco_2025_null_space import CONSTRUCTIONS, Spread, random_basis
from theory.expansion.saab_2026_intrinsic import after_the_fact, intrinsic, stiffest, stored
from theory.experiment import Experiment, Point, Setting
from theory.layers import layer
from theory.replication import INTERVAL, interval, seeds_of

_DAMPING = 1e-2  # the suite's; with less, weights that feedback has moved grow and their codes cost more
_RATIOS = (1.125, 1.5)
_RANKS = (1, 4)
_LAYER = "self_attn.o_proj"
_STEPS = tuple(2.0 ** (0.25 * k) for k in range(-9, 8))  # of the weights' deviation: 0.2 to 4.3 bits of entropy or so
_KNOBS = {"width": (2, 3, 4), "entropy": (2.0, 1.0, 0.5, 0.25)}


class Storage(Protocol):
    """How codes are chosen by error feedback and stored."""

    def __call__(self, W: np.ndarray, H: np.ndarray, knob: float) -> tuple[np.ndarray, float]:
        """Q (out, in) for `W` and `H` (in, in), and the bits that all of it takes."""


def width(W: np.ndarray, H: np.ndarray, knob: float) -> tuple[np.ndarray, float]:
    """Integers of `knob` bits under error feedback, a scale and a zero point for every row."""
    import torch

    from suite.grids import Integer, ShrinkSearch
    from suite.quantize import quantize_layer
    from suite.recipe import Target
    from suite.rounding import Feedback

    grid = Integer(bits=int(knob), group="row", clip=ShrinkSearch(norm=2.0, steps=20))
    target = Target(grid, Feedback(groups="static", damping=_DAMPING))
    wide, gram = torch.from_numpy(np.array(W)), torch.from_numpy(np.array(H))
    found = quantize_layer(wide, target, gram, torch.Generator())
    assert not found.fallbacks, found.fallbacks
    return found.dequantize().double().numpy(), found.n_bits


def entropy(W: np.ndarray, H: np.ndarray, knob: float) -> tuple[np.ndarray, float]:
    """Whole multiples of a step of `knob` deviations under error feedback, at the entropy of the codes."""
    import torch

    from suite.coding import entropy_bits

    step = float(np.float32(knob * np.sqrt(np.mean(W**2))))
    Q = rounded(W, H, step, damping=_DAMPING)
    codes = np.rint(Q / step).astype(np.int64)
    return Q, entropy_bits(torch.from_numpy(codes - codes.min())) + 32


STORAGES: dict[str, Storage] = {"width": width, "entropy": entropy}


def output_error(E: np.ndarray, H: np.ndarray) -> float:
    """The squared error of outputs, tr E H E^T."""
    return float(np.sum((E @ H) * E))


@dataclass(frozen=True, slots=True)
class Outcome:
    """True bits per weight of the matrix, and tr E H E^T over tr W H W^T."""

    bits: float
    error: float


def plain(storage: Storage, W: np.ndarray, H: np.ndarray, knob: float) -> Outcome:
    """Codes and nothing else."""
    Q, bits = storage(W, H, knob)
    return Outcome(bits / W.size, output_error(W - Q, H) / output_error(W, H))


def expanded(storage: Storage, W: np.ndarray, H: np.ndarray, knob: float, T: np.ndarray) -> Outcome:
    """Codes of W T, of which the network reads Q' T^T: T itself follows from a seed or from sizes."""
    Q, bits = storage(W @ T, T.T @ H @ T, knob)
    return Outcome(bits / W.size, output_error(W - Q @ T.T, H) / output_error(W, H))


def branched(storage: Storage, W: np.ndarray, H: np.ndarray, knob: float, rank: int, known: bool) -> Outcome:
    """Codes and a branch in float16, `known` to feedback or fitted after the fact."""
    V, rest = stiffest(H, rank)
    Q, bits = storage(W, rest if known else H, knob)
    damped = H + _DAMPING * np.mean(np.diag(H)) * np.eye(len(H))
    side, side_bits = stored(*(intrinsic(W - Q, V) if known else after_the_fact(W - Q, damped, rank)))
    return Outcome((bits + side_bits) / W.size, output_error(W - Q - side, H) / output_error(W, H))


def at_equal_bits(curve: Sequence[Outcome], bits: float, straight: bool) -> float:
    """The error of plain codes at `bits`: between two of the `curve`, ascending in bits.

    `straight` lines mix rows of two widths; else logarithms of errors are interpolated, between steps close together.
    `ValueError` beyond the curve's ends.
    """
    x = [one.bits for one in curve]
    if not x[0] <= bits <= x[-1]:
        raise ValueError(f"{bits:.3f} bits: plain codes were measured from {x[0]:.3f} to {x[-1]:.3f}")
    y = np.array([one.error for one in curve])
    return float(np.interp(bits, x, y) if straight else np.exp(np.interp(bits, x, np.log(y))))


def high_rate_ratio(bits: float, ratio: float, sums: float) -> float:
    """What expansion by `ratio` multiplies the error by at equal true `bits`; `sums` is sum d' over sum d.

    >>> high_rate_ratio(2.0, 2.0, 0.5)  # half the sum, half the squared step, and one bit for a code instead of two
    1.0
    """
    return sums / ratio * 4.0 ** (bits * (1 - 1 / ratio))


def break_even_bits(ratio: float, sums: float) -> float:
    """The rate below which expansion by `ratio` > 1 pays, at high rate: where `high_rate_ratio` is 1.

    >>> break_even_bits(2.0, 0.5)
    2.0
    """
    return ratio / (2 * (ratio - 1)) * float(np.log2(ratio / sums))


def synthetic(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian W (128, 64) and H of eigenvalues k^-1.5."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((128, 64)), power_law(64, 1.5, rng)


def comparison(W: np.ndarray, H: np.ndarray, storage: str, seed: int) -> dict[tuple[str, float], tuple[float, float]]:
    """For every way and knob its true bits per weight, and its error over that of plain codes at the same bits.

    "predicted" is `high_rate_ratio` at the bits of the random bases.
    """
    store, knobs, rng = STORAGES[storage], _KNOBS[storage], np.random.default_rng(seed)
    curve = [plain(store, W, H, knob) for knob in (range(2, 8) if storage == "width" else _STEPS[::-1])]
    ways: dict[str, Callable[[float], Outcome]] = {}
    turn = random_basis(W.shape[1], W.shape[1], rng)
    ways["rotated alone"] = lambda knob: expanded(store, W, H, knob, turn)
    sums = {}
    for ratio in _RATIOS:
        for name, construction in CONSTRUCTIONS.items():
            T = construction(W.shape[1], round(W.shape[1] * ratio), rng)
            ways[f"{name}, {ratio:g} times"] = lambda knob, T=T: expanded(store, W, H, knob, T)  # type: ignore[misc]
            if construction is random_basis:
                wide = Spread.of_feedback(T.T @ H @ T, _DAMPING).output_error
                sums[f"{name}, {ratio:g} times"] = ratio, wide / Spread.of_feedback(H, _DAMPING).output_error
    for rank in _RANKS:
        for known, name in ((True, "branch known to feedback"), (False, "branch after the fact")):
            ways[f"{name}, rank {rank}"] = lambda knob, rank=rank, known=known: branched(  # type: ignore[misc]
                store, W, H, knob, rank, known
            )
    found = {}
    for name, way in ways.items():
        for knob in knobs:
            outcome = way(knob)
            if not curve[0].bits <= outcome.bits <= curve[-1].bits:
                continue
            found[name, knob] = outcome.bits, outcome.error / at_equal_bits(curve, outcome.bits, storage == "width")
            if name in sums:
                ratio, reduced = sums[name]
                found[f"predicted, {ratio:g} times", knob] = outcome.bits, high_rate_ratio(outcome.bits, ratio, reduced)
    return found


def _measure(setting: Setting, storage: str, real: bool) -> list[Point]:
    found = []
    for seed in seeds_of(setting, 3 if real else 5):
        W, H = layer(setting.model, _LAYER, seed) if real else synthetic(seed)
        found.append(comparison(W, H, storage, seed))
    points = []
    for name, knob in found[0]:
        pairs = [each[name, knob] for each in found if (name, knob) in each]
        x = float(np.mean([bits for bits, _ in pairs]))
        y, low, high = interval([ratio for _, ratio in pairs])
        if name.startswith("predicted"):
            points.append(Point(series=name, x=x, y=y, predicted=True))
        else:
            points.append(Point(series=name, x=x, y=y, low=low, high=high))
    return points


def _sentence(points: Sequence[Point]) -> str:
    measured = [p for p in points if not p.predicted]
    groups = {
        "a rotation alone": [p for p in measured if "alone" in p.series],
        "expansion": [p for p in measured if "times" in p.series],
        "a branch known to feedback": [p for p in measured if "known" in p.series],
        "a branch after the fact": [p for p in measured if "after" in p.series],
    }
    parts = []
    for name, group in groups.items():
        won = sorted(p.x for p in group if p.high is not None and p.high < 1)
        best = min(group, key=lambda p: p.y)
        where = f", between {won[0]:.2f} and {won[-1]:.2f} bits" if won else ""
        parts.append(
            f"{name} leaves less error than plain codes of the same true bits in {len(won)} of {len(group)} cases"
            f"{where} (at best {best.y:.2f} times: {best.series}, {best.x:.2f} bits; median "
            f"{np.median([p.y for p in group]):.2f})"
        )
    found = "; ".join(parts)
    return found[0].upper() + found[1:] + "."


def _experiment(storage: str, real: bool) -> Experiment:
    what = f"the first block's {_LAYER}" if real else "Gaussian weights, inputs of spectrum k^-1.5"
    how = "mixed widths" if storage == "width" else "codes at their entropy"
    return Experiment(
        name=f"expansion-equal-bits-{storage}{'-layer' if real else ''}",
        title=f"Expansion and low-rank branches against the rate, at equal true bits: {what}, {how}",
        source="Franco et al. 2025, arXiv:2503.17513; Saab, Zhang 2026, arXiv:2606.01412; closed form of the module",
        x="true bits per weight before expansion",
        y="squared output error over that of plain codes",
        measure=lambda setting: _measure(setting, storage, real),
        sentence=_sentence,
        log="y",
        interval=INTERVAL,
    )


EXPERIMENTS = tuple(_experiment(storage, real) for real in (False, True) for storage in ("width", "entropy"))
