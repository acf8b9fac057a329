r"""In which order should channels be rounded? The bound is sum_j d_j, and what an order changes is that sum.

Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853, justify the usual heuristic, decreasing norms ("act-order"), by
their bound: min(m, N) max_j |P X_j|^2 is smaller where the large columns come first and are projected off many others.

Three facts that say how much there is to gain (letters of `theory.bounds.pivots`):

- prod_j d_j = det (H + lambda I) in every order, so that sum_j d_j >= N det^(1/N), arithmetic over geometric mean;
- the pivot of the channel rounded last is its own H_jj, that of the channel rounded first what no other explains;
- for N = 2, H = [[a, c], [c, b]], the sum is b + a - c^2 / b with the first rounded first: smaller where a > b. So
  decreasing norms are optimal for two channels, and for more a heuristic: see `exhaustive`.

"pivot" (Chen et al. 2025, arXiv:2507.18553) is greedy on the Schur complements themselves, from the end.

Imports no torch.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from theory.bounds.instances import power_law, rounded
from theory.bounds.pivots import ORDERS, Order, factored
from theory.bounds.zhang_2025_optq import NEAREST_MEAN, error_rows
from theory.experiment import Experiment, Point, Setting

_N, _STEP = 48, 0.25
_SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0)
_NAMES: dict[Order, str] = {"given": "as given", "reversed": "reversed", "decreasing": "decreasing norm",
                            "pivot": "smallest pivot last"}  # fmt: skip


def pivot_sum(H: np.ndarray, order: Order, damping: float = 0.0) -> float:
    """sum_j d_j of `H` (in, in) in this order."""
    return float(factored(H, order, damping).d.sum())


def least_lower(H: np.ndarray) -> float:
    """N det^(1/N), which sum_j d_j reaches in no order unless all pivots are alike."""
    return len(H) * float(np.exp(np.linalg.slogdet(H)[1] / len(H)))


def exhaustive(H: np.ndarray) -> float:
    """The least sum_j d_j over all orders of `H` (in, in), in <= 8: in! factorizations."""
    if len(H) > 8:
        raise ValueError(f"{len(H)} channels have too many orders: at most 8")
    orders = (np.array(p) for p in permutations(range(len(H))))
    return min(float(factored(H[p[:, None], p]).d.sum()) for p in orders)


def unequal(n: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """H (n, n) of a power law k^-1 in a random basis whose channels are scaled by exp(`spread` N(0, 1) / 2)."""
    scale = np.exp(spread / 2 * rng.standard_normal(n))
    H = power_law(n, 1.0, rng) * np.outer(scale, scale)
    return H * n / np.trace(H)


def _measure(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(4, round(12 * setting.effort))
    points = []
    for spread in _SPREADS:
        grams = [unequal(_N, spread, rng) for _ in range(draws)]
        W = _STEP * rng.uniform(-32, 32, (128, _N))
        base = np.array([pivot_sum(H, "given") for H in grams])
        for order in ORDERS:
            predicted = np.array([pivot_sum(H, order) for H in grams]) / base
            errors = [error_rows(W - rounded(W, H, _STEP, order=order), H).mean() for H in grams]
            ratio = np.array(errors) / (NEAREST_MEAN * _STEP**2 * base)
            half = 1.96 * ratio.std(ddof=1) / np.sqrt(draws)
            mean = float(ratio.mean())
            points.append(Point(series=_NAMES[order], x=spread, y=mean, low=mean - half, high=mean + half))
            points.append(Point(series=f"{_NAMES[order]}: pivots", x=spread, y=float(predicted.mean()), predicted=True))
        floor = float(np.mean([least_lower(H) for H in grams] / base))
        points.append(Point(series="N det^(1/N)", x=spread, y=floor, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for spread in (min(p.x for p in points), max(p.x for p in points)):
        at = {p.series: p.y for p in points if p.x == spread}
        ranked = sorted(_NAMES.values(), key=lambda name: at[f"{name}: pivots"])
        values = ", ".join(f"{name} {at[f'{name}: pivots']:.3f}" for name in ranked)
        parts.append(f"with norms spread by exp({spread:g} N(0,1)): {values} (no order below {at['N det^(1/N)']:.3f})")
    pairs = [(p.y, q.y) for p in points for q in points if q.series == f"{p.series}: pivots" and q.x == p.x]
    off = max(abs(measured / predicted - 1) for measured, predicted in pairs)
    return (
        f"Sum of pivots over that of the given order, {'; '.join(parts)}; measured errors are within {off:.1%} of it."
    )


EXPERIMENT = Experiment(
    name="order",
    title="Error by the order of channels, over that of the given order",
    source="Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853",
    x="spread of channels' norms (standard deviation of the logarithm of their squares)",
    y="error over (step² / 12) Σ d in the given order",
    measure=_measure,
    sentence=_sentence,
    interval="95% of the mean over Gram matrices",
)
