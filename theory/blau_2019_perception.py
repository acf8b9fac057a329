"""The price of outputs that are distributed as the source: rate, distortion and perception of a unit Gaussian.

Blau, Michaeli 2019, "Rethinking Lossy Compression: The Rate-Distortion-Perception Tradeoff", arXiv:1901.07821, whose
theorem 2 says that perfect perception at most doubles the least distortion. Perception is P = W2^2, the squared
Wasserstein distance of the outputs' distribution from the source's: the least mean square |Y - X'|^2 over couplings.

**With common randomness.** For jointly Gaussian X and Y of correlation rho, I = -log2(1 - rho^2) / 2, and deviation s,
E (X - Y)^2 = (1 - rho^2) + (s - rho)^2 and W2 = |1 - s|. The first is least at s = rho, so that at rate R

    D(R, P) = 4^-R + (s - rho)^2,    rho = sqrt(1 - 4^-R),   s = max(rho, 1 - sqrt P),

with D(R, 0) = 2 (1 - rho): twice 4^-R as R falls to 0, and less and less above it as R grows.

**A scalar quantizer without common randomness.** Let cells be intervals, X* the mean of X in its cell, D* the mean of
(X - X*)^2, and Y anything made from the code and the decoder's own randomness. Given the code, Y and X are independent:

    E (X - Y)^2 = D* + E (X* - Y)^2 >= D* + W2(X*, Y)^2 >= D* + max(0, W2(X*, X) - W2(Y, X))^2.

X* is a nondecreasing function of X, and such a coupling is the best there is on a line: W2(X*, X)^2 = D*. So

    D >= D* + max(0, sqrt D* - sqrt P)^2,

which is met by Y = (1 - t) X* + t Z, Z a fresh sample of the source in the cell and t = 1 - sqrt(P / D*): exactly twice
D* for perfect perception, at every rate and for every source and quantizer. (Freirich, Michaeli, Meir 2021,
arXiv:2107.02555, derive this form for the Gaussian's best encoders.)

**A scalar quantizer with common randomness.** With a dither U, uniform over a step and known to both, the code k =
round((X + U) / step) gives k step - U = X + N, N uniform over the step and independent of X (Schuchman 1964), at
H(k | U) = I(X; X + N) = h(X + N) - log2 step bits (Zamir, Feder 1992). Scaled by c, D = (1 - c)^2 + c^2 step^2 / 12.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from theory.experiment import Experiment, Point, Setting
from theory.rate_distortion import ecsq_point
from theory.replication import INTERVAL, replicated, seeds_of

_RATES = (1.0, 2.0, 3.0)
_KEPT = (1.0, 0.5, 0.0)  # of the deviation from X*: t = 1 is perfect perception
_SAMPLES = 200_000


def perception_distortion(rate: ArrayLike, perception: ArrayLike) -> np.ndarray:
    """D(R, P) of a unit Gaussian with common randomness; `rate` in bits and `perception` = W2^2, both >= 0.

    >>> perception_distortion([1.0, 1.0], [0.0, 1.0]).round(6).tolist()  # 2 - sqrt 3, and 1 / 4
    [0.267949, 0.25]
    """
    R, P = np.asarray(rate, dtype=float), np.asarray(perception, dtype=float)
    if not ((R >= 0).all() and (P >= 0).all()):
        raise ValueError(f"expected rates and perceptions that are not negative, got {np.min(R)} and {np.min(P)}")
    rho = np.sqrt(1 - 4.0**-R)
    return 4.0**-R + np.maximum(0, 1 - np.sqrt(P) - rho) ** 2


def scalar_distortion(least: ArrayLike, perception: ArrayLike) -> np.ndarray:
    """The least D of a scalar quantizer's decoder at `perception` = W2^2, where centroids leave `least` = D*.

    >>> scalar_distortion(0.1, [0.0, 0.1]).tolist()
    [0.2, 0.1]
    """
    D, P = np.asarray(least, dtype=float), np.asarray(perception, dtype=float)
    return D + np.maximum(0, np.sqrt(D) - np.sqrt(P)) ** 2


def dithered_rate(step: float) -> float:
    """H(k | U) = h(X + N) - log2 step in bits, of a unit Gaussian and a dither over `step` > 0; by quadrature.

    >>> bool(abs(dithered_rate(1e-3) - np.log2(2 * np.pi * np.e) / 2 + np.log2(1e-3)) < 1e-4)
    True
    """

    def surprise(x: float) -> float:
        mass = ndtr(step / 2 - x) - ndtr(-(step / 2) - x)  # x >= 0: the lower tails do not cancel
        return float(-mass * np.log2(mass)) if mass > 0 else 0.0

    # h(X + N) is the integral of -f log2 f with f = mass / step, and log2 f = log2 mass - log2 step
    return 2 * quad(surprise, 0, 9 + step / 2, limit=200)[0] / step


def step_of(rate: float, dithered: bool) -> float:
    """The step whose codes have `rate` > 0 bits of entropy, given the dither where there is one."""

    def off(log_step: float) -> float:
        step = float(np.exp(log_step))
        return (dithered_rate(step) if dithered else ecsq_point(step)[0]) - rate

    return float(np.exp(brentq(off, np.log(4.0) - np.log(2.0) * (rate + 1), np.log(12.0))))


def squared_wasserstein(y: np.ndarray) -> float:
    """W2^2 of samples `y` (n,) from the unit Gaussian: sorted ones against its quantiles; too large by about 2 / n."""
    n = len(y)
    return float(np.mean((np.sort(y) - ndtri((np.arange(n) + 0.5) / n)) ** 2))


def sampled(rate: float, kept: float, dithered: bool, seed: int) -> tuple[float, float]:
    """Of one seed, P and D of 200,000 samples through a scalar quantizer of `rate` bits.

    Without dither, Y is moved from X* to a fresh sample of its cell by the share `kept`; with dither, c goes by that
    share from the best for D to that which restores the variance.
    """
    rng, step = np.random.default_rng(seed), step_of(rate, dithered)
    x = rng.standard_normal(_SAMPLES)
    if dithered:
        u = step * (rng.random(_SAMPLES) - 0.5)
        y = step * np.rint((x + u) / step) - u
        best = 1 / (1 + step**2 / 12)
        y = y * (best + kept * (np.sqrt(best) - best))
    else:
        k = np.rint(x / step)
        low, high = ndtr((k - 0.5) * step), ndtr((k + 0.5) * step)
        density = [np.exp(-(((k + side) * step) ** 2) / 2) / np.sqrt(2 * np.pi) for side in (-0.5, 0.5)]
        center = (density[0] - density[1]) / (high - low)
        fresh = ndtri(low + (high - low) * rng.random(_SAMPLES))
        y = center + kept * (fresh - center)
    return squared_wasserstein(y), float(np.mean((x - y) ** 2))


def _measure(setting: Setting) -> list[Point]:
    points = []
    for rate in _RATES:
        unit = 4.0**rate
        least = ecsq_point(step_of(rate, False))[1]
        for P in np.linspace(0, 1.2 * np.sqrt(least), 13) ** 2:
            y = unit * float(perception_distortion(rate, P))
            points.append(Point(series=f"common randomness, {rate:g} bits", x=unit * P, y=y, predicted=True))
            y = unit * float(scalar_distortion(least, P))
            points.append(Point(series=f"scalar without, {rate:g} bits", x=unit * P, y=y, predicted=True))
        for dithered, name in ((False, "scalar, centroids to samples"), (True, "scalar, dithered")):
            for kept in _KEPT:
                found = [sampled(rate, kept, dithered, seed) for seed in seeds_of(setting)]
                x = unit * float(np.mean([P for P, _ in found]))
                points.append(replicated(f"{name}, {rate:g} bits", x, [unit * D for _, D in found]))
    return points


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for rate in _RATES:
        by = {name: sorted((p for p in points if p.series == f"{name}, {rate:g} bits"), key=lambda p: p.x)
              for name in ("common randomness", "scalar, centroids to samples", "scalar, dithered")}  # fmt: skip
        shared = by["common randomness"]
        limit = shared[0].y / min(p.y for p in shared)
        alone, dither = by["scalar, centroids to samples"], by["scalar, dithered"]
        parts.append(
            f"at {rate:g} bits {limit:.3f} times with common randomness at the limit, {alone[0].y / alone[-1].y:.3f} "
            f"times for a scalar quantizer without, and {dither[0].y / min(p.y for p in alone):.3f} times its least "
            f"error with a dither (which leaves W2^2 = {dither[0].x:.2g} · 4^-R)"
        )
    return f"Matching the Gaussian's distribution costs in squared error, {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="perception",
    title="Squared error against distance from the source's distribution, of a Gaussian at equal rates",
    source="Blau, Michaeli 2019, arXiv:1901.07821; Zamir, Feder 1992; derivation of the module",
    x="W2² of outputs from the source · 4^R",
    y="mean squared error · 4^R",
    measure=_measure,
    sentence=_sentence,
    interval=INTERVAL,
)
