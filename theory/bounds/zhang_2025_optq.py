r"""Error feedback leaves sum_j d_j e_j^2: an identity, and four bounds and means that differ in a constant alone.

Zhang, Zhang, Colbert, Saab 2025, "Provable Post-Training Quantization: Theoretical Analysis of OPTQ and Qronos",
arXiv:2508.04853, give the first bounds for OPTQ (GPTQ) that name calibration data and damping. Derived here from the
identity, which holds whatever picks the codes, with constants that can be asserted.

**Identity.** With H + lambda I = R R^T, R upper triangular, and E = W - Q, column j is rounded from
W_j + E_{<j} R_{<j,j} / R_jj. So it misses by e_j = (E R)_j / R_jj, and

    tr E (H + lambda I) E^T = |E R|^2 = sum_j d_j |e_j|^2,    d_j = R_jj^2 the pivots (`theory.bounds.pivots`).

The error in H itself is lambda |E|^2 less. What is left to say is how large e_j may be, for steps s without clipping:

    nearest                 |e| <= s / 2          at most s^2 / 4, and no less: see `attaining`
    nearest, dispersed      e uniform             s^2 / 12 in the mean (weights uniform over whole steps: exactly)
    stochastic              E e^2 = s^2 f (1-f)   at most s^2 / 4 in the mean over draws, f the place between levels
    stochastic, dispersed   f uniform             s^2 / 6 in the mean: twice the nearest's
    stochastic, any draw    |e| < s               at most s^2

times sum_j d_j, for every row of W. Without feedback R = I takes the place of R, and what was a sum of squares has
cross terms: in the mean over dispersed weights, tr H in place of sum_j d_j.

Imports no torch.
"""

from collections.abc import Sequence

import numpy as np

from theory.bounds.instances import adversarial, dispersed, power_law, rounded
from theory.bounds.pivots import Factored, Order, factored
from theory.experiment import Experiment, Point, Setting

NEAREST_UPPER = 1 / 4
NEAREST_MEAN = 1 / 12
STOCHASTIC_MEAN_UPPER = 1 / 4
STOCHASTIC_MEAN = 1 / 6
STOCHASTIC_UPPER = 1.0

# variances of e^2 in s^4 over dispersed weights: 1/80 - 1/144, and 1/15 - 1/36 from E f(1-f)(1 - 3 f(1-f))
NEAREST_VARIANCE = 1 / 180
STOCHASTIC_VARIANCE = 7 / 180

_STEP = 0.25
_N = 32
_EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)


def squared_error(
    constant: float, H: np.ndarray, steps: np.ndarray | float, *, order: Order = "given", damping: float = 0.0
) -> np.ndarray:
    """`constant` sum_j s_j^2 d_j for every row: (rows,), or () where all rows have the same steps.

    `H` (in, in); `steps` broadcast to (rows, in) or (in,), by input channel; `order` and `damping` as in `Feedback`.
    A bound on e (H + lambda I) e^T, and with that on e H e^T, for rows e of W - Q, where `constant` is one of
    `NEAREST_UPPER`, `STOCHASTIC_UPPER`; a mean, or a bound on it, where it is one of the others.

    >>> squared_error(NEAREST_UPPER, np.eye(3), 2.0).item()
    3.0
    """
    d = factored(H, order, damping).by_channel
    return constant * (np.square(np.asarray(steps, dtype=float)) * d).sum(-1)


def standard_deviation(variance: float, d: np.ndarray, step: float) -> float:
    """That of a row's error over dispersed weights, whose e_j^2 are independent, `variance` s^4 each."""
    return step**2 * float(np.sqrt(variance * (d**2).sum()))


def attaining(found: Factored, step: float, rng: np.random.Generator, short: float = 1e-6) -> np.ndarray:
    """A row w (in,) that nearest rounding misses by (1/2 - `short`) steps in every column: the bound is met.

    Choose misses e of this size and any signs, and any q on the grid; w - q = e D R^-1 with D = diag(R_jj) undoes the
    feedback, so that rounding w gives q and misses by e. `short` keeps clear of ties.
    """
    n = len(found.perm)
    missed = (0.5 - short) * step * rng.choice([-1.0, 1.0], n)
    row = np.empty(n)
    row[found.perm] = np.linalg.solve(found.R.T, missed * np.diag(found.R))
    return step * rng.integers(-8, 9, n) + row


def error_rows(E: np.ndarray, H: np.ndarray) -> np.ndarray:
    """The errors e H e^T of every row e of `E` (rows, in): (rows,)."""
    return np.einsum("ij,jk,ik->i", E, H, E)


def _measure(setting: Setting) -> list[Point]:
    rng, points = np.random.default_rng(setting.seed), []
    rows = max(2, round(1500 * setting.effort))
    for exponent in _EXPONENTS:
        H = power_law(_N, exponent, rng)
        found = factored(H)
        unit = _STEP**2 * found.d.sum()
        W = dispersed(rows, _N, _STEP, rng)
        hard = np.concatenate([adversarial(_N, _STEP, rng) for _ in range(16)])
        worst = np.stack([attaining(found, _STEP, rng) for _ in range(16)])
        for name, stochastic, variance in (
            ("nearest", False, NEAREST_VARIANCE),
            ("stochastic", True, STOCHASTIC_VARIANCE),
        ):
            error = error_rows(W - rounded(W, H, _STEP, stochastic=stochastic, seed=setting.seed), H) / unit
            spread = 1.96 * standard_deviation(variance, found.d, _STEP) / unit / np.sqrt(rows)
            mean = float(error.mean())
            points.append(Point(series=f"{name}, mean", x=exponent, y=mean, low=mean - spread, high=mean + spread))
            against = hard if stochastic else np.concatenate([hard, worst])
            Q = rounded(against, H, _STEP, stochastic=stochastic, seed=setting.seed)
            most = error_rows(against - Q, H).max() / unit
            points.append(Point(series=f"{name}, worst row", x=exponent, y=max(float(most), float(error.max()))))
    constants = {"1/12": NEAREST_MEAN, "1/6": STOCHASTIC_MEAN, "1/4": NEAREST_UPPER, "1": STOCHASTIC_UPPER}
    points += [Point(series=name, x=x, y=y, predicted=True) for name, y in constants.items() for x in _EXPONENTS]
    return points


def _sentence(points: Sequence[Point]) -> str:
    def values(series: str) -> np.ndarray:
        return np.array([p.y for p in points if p.series == series])

    means = [np.abs(values(f"{name}, mean") * k - 1).max() for name, k in (("nearest", 12), ("stochastic", 6))]
    worst, drawn = values("nearest, worst row").max(), values("stochastic, worst row").max()
    violated = int((values("nearest, worst row") > NEAREST_UPPER * (1 + 1e-9)).sum())
    violated += int((values("stochastic, worst row") > STOCHASTIC_UPPER * (1 + 1e-9)).sum())
    return (
        f"Means are within {means[0]:.1%} (nearest) and {means[1]:.1%} (stochastic) of 1/12 and 1/6 of step² Σd; the "
        f"worst row has {worst:.4f} to nearest, {worst / NEAREST_UPPER:.1%} of the bound 1/4, and {drawn:.3f} "
        f"stochastically, {drawn:.0%} of the bound 1; {violated} of {len(_EXPONENTS) * 2} worst rows are above theirs."
    )


EXPERIMENT = Experiment(
    name="optq-constants",
    title="Error of error feedback over step² times the sum of pivots",
    source="Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853; constants derived in the module",
    x="decay a of the spectrum k^-a",
    y="error / (step² Σ d)",
    measure=_measure,
    sentence=_sentence,
    log="y",
    interval="95% of the mean over rows, from the closed form of its variance",
)
