"""The rate-distortion function of a scalar source under squared error, between two certified bounds.

Source: Blahut (1972), Computation of channel capacity and rate-distortion functions, theorems 5 to 7; Arimoto (1972).
The lower bound in its general form is Gallager (1968), Information theory and reliable communication, theorem 9.4.1.

For a slope `s > 0` (nats per unit of squared error) and a distribution q of outputs y, let

    k(x, y) = exp(-s (x - y)^2),   Z(x) = sum_y q(y) k(x, y),   c(y) = E[k(X, y) / Z(X)].

The test channel `q(y) k(x, y) / Z(x)` has the distortion `D = E[sum_y q(y) k (X - y)^2 / Z]` and the output
distribution `q c`. R(D) cannot exceed its mutual information, so that in nats

    R(D) <= -s D - E[log Z(X)] - sum_y q(y) c(y) log c(y).                                              (upper)

From below, take any `l(x) >= 0` with `E[l(X) k(X, y)] <= 1` for all real y. For a channel Q(y|x) with outputs q, by
Jensen's inequality `E[log (l(X) k(X, Y) q(Y) / Q(Y|X))] <= log sum_y q(y) E[l(X) k(X, y)] <= 0`. The left side is
`E[log l(X)] - s E[(X - Y)^2] - I(X; Y)`; with Blahut's choice `l = 1 / (Z max c)` therefore

    R(D) >= -s D - E[log Z(X)] - log max_y c(y).                                                        (lower)

The maximum is over all real y. It is found on a fine grid: since `d^2 k / dy^2 >= -2 s k`, c exceeds its two values
at a distance h by no more than the factor `1 / cos(h sqrt(s / 2))` in between (Sturm's comparison). Shannon's lower
bound is taken where it is the larger.

Blahut's and Arimoto's iteration, q becomes `q c`, descends on the convex `F(q) = -E[log Z(X)]`. At high rates a few
steps close the bounds. At low rates the best q is a handful of atoms, to which the iteration creeps, and in the tails
c is the last to fall to 1; there Newton's method goes on with the same problem, `min F(q)` over distributions: its
optimality conditions `q >= 0`, `1 - c >= 0`, `q (1 - c) = 0` are relaxed to `q (1 - c) = mu` and mu is driven to zero
(a primal-dual interior-point method). Either way, what is returned are the two bounds at the q that was reached.

Outputs lie on a grid, which only makes the upper bound larger. The expectations are Gauss-Legendre sums: that and the
source's tails of 1e-13 are what the certificate rests on. A symmetric source has a symmetric best q, so both half-axes
are folded into one. Imports no torch, so that reports can draw these curves.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicHermiteSpline
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_array

from theory.sources import Source, quadrature, shannon_lower

_BAND = 8.0  # standard deviations 1 / sqrt(2 s) at which k is cut off: exp(-32) is as little as the source's tails
_PANEL = 5.0  # widest panel of the quadrature in the same unit: its 20 nodes integrate k to 1e-13
_FINE = 16  # points between two outputs where c is bounded: 3e-5 or 1.8e-4 bits by Sturm's comparison
_FEWEST_OUTPUTS, _MANY_OUTPUTS = 40, 300
_MOST_NEWTON_OUTPUTS = 800  # a Newton step costs the cube of it
_ITERATIONS, _NEWTON_STEPS, _LOOK_EVERY = 30, 60, 5
_CLOSED_BITS = 2e-4  # bounds this close end the iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class RateDistortion:
    """R(D) of a source of `variance`: at each of n slopes, by falling distortion, bounds on the rate in bits.

    `lower[i] <= R(distortion[i]) <= upper[i]`, and the curve's derivative there is `-slope[i]` nats.
    """

    variance: float
    slope: np.ndarray
    distortion: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def rate(self, distortion: ArrayLike) -> np.ndarray:
        """R at these squared errors > 0, bits, interpolated between the upper bounds; shape of `distortion`.

        A cubic through values and slopes, over the logarithm of the distortion. Errors of the variance and above need
        no bits; below the last point the curve goes on with Shannon's half bit for each factor of two, which it
        exceeds there by less than the last two bounds differ, and by less and less.
        """
        wanted = np.asarray(distortion, dtype=float)
        if not (wanted > 0).all():
            raise ValueError(f"every distortion must be positive, got {wanted.min()}")
        inside = self.distortion < self.variance * (1 - 1e-6)
        D = np.append(self.variance, self.distortion[inside])[::-1]
        s = np.append(self.slope[inside][0], self.slope[inside])[::-1]
        R = np.append(0.0, self.upper[inside])[::-1]
        curve = CubicHermiteSpline(np.log(D), R, -s * D / np.log(2))
        beyond = np.maximum(np.log2(D[0] / wanted) / 2, 0)
        return np.maximum(curve(np.log(np.clip(wanted, D[0], self.variance))), 0) + beyond


def default_slopes(source: Source, points: int = 28, finest_bits: float = 7.0) -> np.ndarray:
    """Slopes from where the curve leaves rate 0 to a distortion of `4^-finest_bits` variances; (points,) ascending."""
    return np.geomspace(0.1, 4.0**finest_bits / 2, points) / source.variance


def rate_distortion(source: Source, slopes: ArrayLike | None = None) -> RateDistortion:
    """R(D) of a symmetric scalar source at `slopes` (n,) > 0 in nats per unit of squared error.

    Slopes at which the best is to send nothing give the variance and rate 0. `ValueError` for other slopes.

    >>> from theory.sources import gaussian
    >>> curve = rate_distortion(gaussian(), [2.0])  # the Gaussian's D at slope s is 1 / (2 s)
    >>> round(curve.distortion.item(), 4), round(curve.lower.item(), 3), round(curve.upper.item(), 3)
    (0.25, 1.0, 1.0)
    """
    s = np.sort(np.asarray(default_slopes(source) if slopes is None else slopes, dtype=float))
    if s.ndim != 1 or not s.size or not (np.isfinite(s) & (s > 0)).all():
        raise ValueError(f"expected positive, finite slopes in a vector, got {slopes!r}")
    points = [_Problem(source, slope).solve() for slope in s]
    D, lower, upper = (np.array(column) for column in zip(*points, strict=True))
    return RateDistortion(variance=source.variance, slope=s, distortion=D, lower=lower, upper=upper)


class _Problem:
    """Source, outputs and kernel at one slope: `k[i, j]` is the mean of k(x_i, y_j) and k(x_i, -y_j)."""

    def __init__(self, source: Source, s: float):
        self.source, self.s, self.width = source, s, np.sqrt(1 / (2 * s))
        self.x, self.p = quadrature(source, _PANEL * self.width)
        many = source.reach > _MANY_OUTPUTS * self.width / 4
        self.step = min(self.width / (2 if many else 4), source.reach / _FEWEST_OUTPUTS)
        self.n = int(source.reach / self.step) + 1
        self.k = self.kernel()
        self.k_transposed = self.k.T.tocsr()

    def kernel(self, offset: float = 0.0, power: int = 0) -> csr_array:
        """The folded k, times the squared distance if `power` is 1, to outputs moved by `offset` steps."""
        reach = int(np.ceil(_BAND * self.width / self.step))
        halves = []
        for side in (1, -1):
            j = np.rint(side * self.x / self.step - offset).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
            kept = (j >= 0) & (j < self.n)
            row, column = np.broadcast_to(np.arange(len(self.x))[:, None], j.shape)[kept], j[kept]
            squared = (self.x[row] - side * (column + offset) * self.step) ** 2
            entries = np.exp(-self.s * squared) / 2 * squared**power
            halves.append(csr_array((entries, (row, column)), shape=(len(self.x), self.n)))
        return halves[0] + halves[1]

    def solve(self) -> tuple[float, float, float]:
        """Distortion, lower and upper bound on the rate there, in bits."""
        q = self.source.density(np.arange(self.n) * self.step)
        q /= q.sum()
        for _ in range(_ITERATIONS):
            q = q * self.response(q)[1]
        D, upper = self.upper(q)
        shannon = max(float(np.log2(shannon_lower(self.source, 0) / D)) / 2, 0.0)
        if upper - shannon > _CLOSED_BITS and self.n <= _MOST_NEWTON_OUTPUTS:
            q = self.newton(q)
            D, upper = self.upper(q)
            shannon = max(float(np.log2(shannon_lower(self.source, 0) / D)) / 2, 0.0)
        lower = shannon if upper - shannon <= _CLOSED_BITS else max(shannon, self.lower(q, D))
        return D, lower, max(upper, lower)

    def response(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z (m,) and c (n,)."""
        Z = np.maximum(self.k @ q, np.finfo(float).tiny)
        return Z, self.k_transposed @ (self.p / Z)

    def upper(self, q: np.ndarray) -> tuple[float, float]:
        """Distortion and mutual information, in bits, of the test channel of q."""
        Z, c = self.response(q)
        D = float((self.p / Z) @ (self.kernel(power=1) @ q))
        reached = (q > 0) & (c > 0)
        output = (q * c)[reached]
        return D, float(-self.s * D - self.p @ np.log(Z) - output @ np.log(c[reached])) / np.log(2)

    def lower(self, q: np.ndarray, D: float) -> float:
        """Blahut's lower bound at D, bits."""
        Z, _ = self.response(q)
        fine = (self.kernel(offset).T @ (self.p / Z) for offset in np.arange(_FINE) / _FINE)
        between = np.cos(self.step / _FINE * np.sqrt(self.s / 2))
        highest = max(float(c.max()) for c in fine) / between
        return float(-self.s * D - self.p @ np.log(Z) - np.log(highest)) / np.log(2)

    def newton(self, q: np.ndarray) -> np.ndarray:
        """Goes on from q: a primal-dual interior-point method for `min -E[log Z]`, scaled by sqrt(q)."""
        k = self.k.toarray()
        q = np.maximum(q, 1e-18)
        slack = np.maximum(1 - self.response(q)[1], 1e-3)
        for step in range(_NEWTON_STEPS):
            Z, c = self.response(q)
            mu = 0.1 * (q @ slack) / self.n
            root = np.sqrt(q)
            weighted = k * (np.sqrt(self.p) / Z)[:, None] * root
            H = weighted.T @ weighted
            H[np.diag_indices(self.n)] += slack
            try:
                dq = root * cho_solve(cho_factor(H), root * (c - 1 + mu / q))
            except LinAlgError:  # as near to the optimum as float64 tells
                break
            dslack = mu / q - slack - slack / q * dq
            q, slack = q + _stride(q, dq) * dq, slack + _stride(slack, dslack) * dslack
            if step % _LOOK_EVERY == 0 and self.closed(q / q.sum()):
                break
        return q / q.sum()

    def closed(self, q: np.ndarray) -> bool:
        """Whether the bounds on the outputs themselves meet to a quarter of what ends the iteration."""
        _, c = self.response(q)
        return bool(np.log2(c.max()) - (q * c) @ np.log2(np.maximum(c, 1e-300)) < _CLOSED_BITS / 4)


def _stride(v: np.ndarray, dv: np.ndarray) -> float:
    """The largest step up to 1 that keeps v positive, by 1% of what it was."""
    falling = dv < 0
    return min(1.0, float(0.99 * np.min(-v[falling] / dv[falling]))) if falling.any() else 1.0
