"""How small the squared error of a Gaussian can be at a given rate, and what a scalar quantizer loses to that limit.

Sources: Shannon (1959), Coding theorems for a discrete source with a fidelity criterion, for `gaussian_distortion`;
Kolmogorov (1956) and Cover and Thomas (2006), Theorem 10.3.3, for `reverse_waterfilling`; Gish and Pierce (1968),
Asymptotically efficient quantizing, for the entropy-coded quantizer; Panter and Dite (1951) for the fixed-rate one.

Rates `R` are in bits per component, distortions are mean squared errors; unless a source or variances are given, the
source is the Gaussian of unit variance. The constants are what reports draw as floors: factors over `4^-R`, bits and
decibels to it. Imports no torch, so that reports can draw these curves.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import entr

from theory.sources import Source, gaussian

ECSQ_FACTOR_HIGHRATE = float(2 * np.pi * np.e / 12)  # 1.423289: Gish and Pierce (1968), eq. 31
ECSQ_GAP_BITS_HIGHRATE = float(np.log2(ECSQ_FACTOR_HIGHRATE) / 2)  # 0.254614
SHAPING_GAIN_DB_UPPER = float(10 * np.log10(ECSQ_FACTOR_HIGHRATE))  # 1.532931: of a ball of many dimensions over a cube
PANTER_DITE_FACTOR_HIGHRATE = float(np.pi * np.sqrt(3) / 2)  # 2.720699: Panter and Dite (1951)
SECOND_MOMENT_LOWER = float(1 / (2 * np.pi * np.e))  # 0.0585498: of a ball of many dimensions, Zador (1982)
_HIGHRATE = 9.0  # bits; the Gaussian's curve has met its asymptote to 2.5e-11, and rounding parts them further up
_GAUSSIAN = gaussian()


def gaussian_distortion(rate: ArrayLike) -> np.ndarray:
    """Shannon's distortion-rate function `D(R) = 4^-R` of a unit Gaussian; shape of `rate`, which is >= 0 bits.

    >>> gaussian_distortion([0, 1, 2]).tolist()
    [1.0, 0.25, 0.0625]
    """
    return 4.0 ** -_checked(rate)


def panter_dite_highrate(rate: ArrayLike) -> np.ndarray:
    """Asymptote `(pi sqrt(3) / 2) 4^-R` of the best fixed-rate scalar quantizer; too large at low rates.

    >>> round(float(panter_dite_highrate(2)), 5)
    0.17004
    """
    return PANTER_DITE_FACTOR_HIGHRATE * 4.0 ** -_checked(rate)


def panter_dite_factor(source: Source) -> float:
    """What `4^-R` is multiplied by in the best fixed-rate scalar quantizer of `source`: `(int p^(1/3))^3 / 12`.

    Of n levels, `n m(x) dx` lie within dx; the error is `int p / (12 n^2 m^2)`, and least for `m ~ p^(1/3)` (Hoelder).
    The density must have no corners but at zero: the integral is adaptive, to 1e-8 relative.

    >>> from theory.sources import Laplace
    >>> round(panter_dite_factor(Laplace()), 6)
    4.5
    """
    half, _ = quad(lambda z: source.density(z * source.scale) ** (1 / 3), 0, np.inf, limit=200)
    return float((2 * half * source.scale) ** 3 / 12)


def ecsq_point(step: float, source: Source = _GAUSSIAN) -> tuple[float, float]:
    """Entropy (bits) and squared error of the uniform midtread quantizer of a source, centroids as outputs.

    Cells are `[(k - 1/2) step, (k + 1/2) step]` for integers k; `step` > 0. Those beyond the source's reach, of a mass
    of 1e-14, count as one without error.

    >>> rate, distortion = ecsq_point(2.42162)
    >>> round(rate, 4), round(distortion, 4)
    (1.0, 0.3483)
    """
    if not step > 0:
        raise ValueError(f"the step must be positive, got {step}")
    edges = (np.arange(int(source.reach / step) + 1) + 0.5) * step  # upper ends of the cells k >= 0 but for the last
    tail = np.append(source.tail(edges), 0.0)  # upper tails do not cancel as 1 - small does
    p = np.append(1 - 2 * tail[0], -np.diff(tail))
    first_moment = np.append(0.0, -np.diff(np.append(source.tail_moment(edges), 0.0)))
    copies = np.where(np.arange(len(p)) == 0, 1, 2)  # those below zero mirror those above
    explained = np.divide(first_moment**2, p, out=np.zeros_like(p), where=p > 0)
    inside = source.variance - 2 * float(source.tail_square(edges[-1]))
    return float(copies @ entr(p) / np.log(2)), float(inside - copies[:-1] @ explained[:-1])


def ecsq_distortion(rate: ArrayLike, source: Source = _GAUSSIAN) -> np.ndarray:
    """Squared error of the quantizer of `ecsq_point` whose entropy is `rate` bits >= 0; shape of `rate`.

    The step is found by Brent's method to 1e-14; from 9 bits on the high-rate law `2^(2 h) 4^-R / 12` is used instead,
    which for the Gaussian is exact there to ten digits. Rate 0 gives the variance.

    >>> np.round(ecsq_distortion([1, 2]), 4).tolist()
    [0.3483, 0.0889]
    """
    rates = _checked(rate)
    return np.array([_ecsq_distortion(R, source) for R in rates.ravel()]).reshape(rates.shape)


def _ecsq_distortion(R: float, source: Source) -> float:
    """One point of the curve; cells wider than twice the reach have no entropy that float64 can tell from 0."""
    if R >= _HIGHRATE:
        return float(4.0 ** (source.entropy_bits - R) / 12)
    widest = 2 * source.reach
    if ecsq_point(widest, source)[0] >= R:
        return source.variance
    finest = 2.0 ** (source.entropy_bits - R - 1)  # h <= H + log2 step: here H >= R + 1
    log_step = brentq(lambda s: ecsq_point(np.exp(s), source)[0] - R, np.log(finest), np.log(widest), xtol=1e-14)
    return ecsq_point(np.exp(log_step), source)[1]


def gaussian_vector_distortion(covariance: ArrayLike, rate: ArrayLike) -> np.ndarray:
    """Least mean squared error per component of a Gaussian vector of `covariance` (n, n); shape of `rate`.

    An orthogonal turn changes neither errors nor information and makes the components independent, with the eigenvalues
    as variances: water is filled over those. At high rates it is `det^(1/n) 4^-R`. `rate` is in bits per component.

    >>> gaussian_vector_distortion([[1, 0.6], [0.6, 1]], [0, 1]).round(6).tolist()  # sqrt(1 - 0.36) / 4
    [1.0, 0.2]
    """
    C = np.asarray(covariance, dtype=float)
    if C.ndim != 2 or C.shape[0] != C.shape[1] or not np.allclose(C, C.T):
        raise ValueError(f"expected a symmetric covariance, got shape {C.shape}")
    v = np.linalg.eigvalsh(C)
    if v[0] < -1e-9 * abs(v[-1]):
        raise ValueError(f"expected a covariance without negative eigenvalues, got one of {v[0]:g}")
    return reverse_waterfilling(np.maximum(v, 0), rate) / len(v)


def reverse_waterfilling(variances: ArrayLike, rate: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Least total squared error of independent Gaussians, `sum_i w_i min(theta, v_i)`; shape of `rate`.

    `variances` (n,) are >= 0; `weights` (n,) says how many components have each (default 1); `rate` is in bits per
    component, averaged over all of them, those of variance 0 included. The water level theta solves
    `rate * sum w = sum_i w_i max(0, log2(v_i / theta) / 2)`, exactly: the variances are sorted, and between two of
    them log theta is linear in the rate. Rate 0 gives `sum w v`; no or only zero variances give 0.

    >>> reverse_waterfilling([1, 1], 1).item()  # equal variances: n 4^-R
    0.5
    >>> reverse_waterfilling([4, 1], 0.5).item()  # one bit on the first component, none on the second
    2.0
    """
    rates, v, w = _checked(rate), _checked(variances, "variance"), np.ones_like(variances, dtype=float)
    w = w if weights is None else _checked(weights, "weight")
    if v.ndim != 1 or w.shape != v.shape:
        raise ValueError(f"variances and weights must be two vectors of one length, got {v.shape} and {w.shape}")
    components = w.sum()
    order = np.argsort(-v, kind="stable")
    order = order[(v[order] > 0) & (w[order] > 0)]
    v, w = v[order], w[order]
    if not len(v):
        return np.zeros_like(rates)
    log_v = np.log2(v) / 2
    wet = np.cumsum(w)  # components above the water once it has sunk to v_k
    bits = np.cumsum(w * log_v)
    bits_at = np.maximum.accumulate(bits - wet * log_v)  # what they cost then; rounding must not unsort it
    k = np.searchsorted(bits_at, rates * components, side="right") - 1
    theta = 4.0 ** ((bits[k] - rates * components) / wet[k])
    drowned = np.append(np.cumsum((w * v)[::-1])[::-1][1:], 0.0)
    return wet[k] * theta + drowned[k]


def reverse_waterfilling_rate(variances: ArrayLike, distortion: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Least bits per component at a mean squared error of `distortion` > 0: the inverse of `reverse_waterfilling`.

    `variances` and `weights` (n,) as there; `distortion` is an average over the components. It is also the rate of a
    Gaussian variance mixture whose decoder is told every sample's variance, and with that a lower bound on the rate
    of the mixture itself: `I(X; Y) = I(X, V; Y) >= I(X; Y | V)` for any channel from X to Y and X of variance V.
    The level theta solves `sum_i w_i min(theta, v_i) = D sum w`; between two variances its left side is linear.

    >>> reverse_waterfilling_rate([4, 1], [1.0, 2.5], [1, 1]).tolist()
    [0.5, 0.0]
    """
    v, w = _checked(variances, "variance"), _checked(weights, "weight")
    total = _checked(distortion, "distortion") * w.sum()
    if v.ndim != 1 or w.shape != v.shape or not w.sum():
        raise ValueError(f"variances and weights must be two vectors of one length, got {v.shape} and {w.shape}")
    if not (total > 0).all():
        raise ValueError(f"every distortion must be positive, got {np.min(distortion)}")
    order = np.argsort(v)
    levels, under = np.append(0.0, v[order]), np.cumsum(w[order])
    filled = np.append(0.0, np.cumsum(w[order] * v[order]) + v[order] * (under[-1] - under))
    theta = np.interp(total, filled, levels)
    wet = np.log2(np.maximum(np.divide.outer(v, theta), 1)) / 2
    return np.tensordot(w, wet, axes=1) / w.sum()


def _checked(values: ArrayLike, name: str = "rate") -> np.ndarray:
    """`values` in float64; `ValueError` naming the first that is negative, infinite or NaN."""
    array = np.asarray(values, dtype=float)
    bad = array[~((array >= 0) & np.isfinite(array))]
    if bad.size:
        raise ValueError(f"every {name} must be finite and not negative, got {bad[0]}")
    return array
