"""Symmetric alpha-stable laws: their density, their samples, and two estimates of alpha.

The law of index alpha and scale 1 has the characteristic function exp(-|t|^alpha): at 2 a Gaussian of variance 2, at 1
Cauchy's. Sums of m independent ones are m^(1/alpha) times as wide and of the same law. Sources: Nolan 2020, Univariate
Stable Distributions, theorem 1.2 and section 3.5; Press 1972, Estimation in univariate and multivariate stable
distributions, JASA 67, for the regression on the characteristic function; Hill 1975, Annals of Statistics 3.

**The density.** f(x) = (1/pi) int_0^inf cos(x t) exp(-t^alpha) dt, by Gauss-Legendre nodes in u, t = u^4, where the
integrand is smooth; beyond |x| = 12 by the series (1/pi) sum_k (-1)^(k+1) Gamma(alpha k + 1) / k! sin(k pi alpha / 2)
|x|^(-alpha k - 1), which converges below alpha = 1 and is asymptotic above. Imports no torch.
"""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

_NEAR = 12.0  # up to here by the integral
_NODES = 800
_LEAST = 1.0  # of alpha: below it the integral would have to go further
_TERMS = 8  # of the series, as long as they shrink
_FREQUENCIES = (0.2, 0.8)  # of the characteristic function, of the median size over that of the Gaussian's


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes t (n,), their weights (n,), places x (m,) and cos(x t) (m, n)."""
    z, w = np.polynomial.legendre.leggauss(_NODES)
    most = 36.0**0.25  # exp(-36) at alpha = 1
    u = most * (z + 1) / 2
    t, weights = u**4, most / 2 * w * 4 * u**3
    x = np.linspace(0, _NEAR, 481)
    return t, weights, x, np.cos(np.outer(x, t))


def log_density(x: ArrayLike, alpha: float) -> np.ndarray:
    """Log f(x), in nats, of the law of scale 1 and index 1 <= `alpha` <= 2; shape of `x`; `ValueError` for others.

    Between places of the integral, apart by 1/40, the logarithm is linear.

    >>> bool(np.allclose(log_density([0.0, 20.0], 1.0), -np.log(np.pi * np.array([1.0, 401.0])), atol=1e-3))
    True
    """
    if not _LEAST <= alpha <= 2:
        raise ValueError(f"alpha {alpha}: expected {_LEAST:g} to 2")
    size = np.abs(np.asarray(x, dtype=float))
    if alpha == 2:
        return np.asarray(-(size**2) / 4 - np.log(4 * np.pi) / 2)
    t, weights, places, cosines = _nodes()
    near = np.maximum(cosines @ (weights * np.exp(-(t**alpha))) / np.pi, np.exp(_log_tail(places + 1e-3, alpha) - 40))
    inside = np.interp(size, places, np.log(near))
    return np.where(size < _NEAR, inside, _log_tail(np.maximum(size, _NEAR), alpha))


def _log_tail(size: np.ndarray, alpha: float) -> np.ndarray:
    k = np.arange(1, _TERMS + 1)[:, None]
    log_terms = gammaln(alpha * k + 1) - gammaln(k + 1) - (alpha * k + 1) * np.log(size)
    terms = -((-1.0) ** k) * np.sin(k * np.pi * alpha / 2) * np.exp(log_terms)
    used = np.minimum.accumulate(np.vstack([np.ones_like(log_terms[:1], bool), np.diff(log_terms, axis=0) < 0]), axis=0)
    total = (terms * used).sum(0) / np.pi
    return np.asarray(np.log(np.maximum(total, np.abs(terms[0]) / np.pi * 1e-3)))


def draw(alpha: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Samples of this `shape`, of scale 1, by Chambers, Mallows and Stuck 1976 (JASA 71, eq. 2.3 at beta = 0)."""
    V, E = rng.uniform(-np.pi / 2, np.pi / 2, shape), rng.exponential(size=shape)
    return np.sin(alpha * V) / np.cos(V) ** (1 / alpha) * (np.cos((1 - alpha) * V) / E) ** ((1 - alpha) / alpha)


def hill(values: ArrayLike, share: float) -> float:
    """Hill's tail index of |values| from the `share` of them that is largest: 1 / mean log(x_i / x_(k+1)).

    P(|X| > x) ~ x^-index gives that index; of lighter tails, a number that grows as the share shrinks. A stable law's
    index is alpha below 2. `ValueError` where fewer than 10 values, or zeros, would be used.
    """
    size = np.sort(np.abs(np.asarray(values, dtype=float)).ravel())[::-1]
    k = round(share * len(size))
    if not 10 <= k < len(size) or size[k] == 0:
        raise ValueError(f"share {share} of {len(size)} values: expected 10 to {len(size) - 1} of them, above zero")
    return float(1 / np.mean(np.log(size[:k] / size[k])))


def by_characteristic_function(values: ArrayLike) -> float:
    """The alpha of |phi(t)| = exp(-|c t|^alpha) at two t (Press 1972): logarithms' log-ratio over that of the t's.

    Values are scaled by the median of their size first. It is no test: of a law that is not stable it gives a number
    as well, 1.77 of Student's t of 4, 1.71 of Laplace's.
    """
    x = np.asarray(values, dtype=float).ravel()
    x = x / (np.median(np.abs(x)) / 0.9538725524)  # sqrt 2 times the Gaussian's .67449: scale 1 at alpha = 2
    logs = [-np.log(np.abs(np.mean(np.exp(1j * t * x)))) for t in _FREQUENCIES]
    return float(np.log(logs[1] / logs[0]) / np.log(_FREQUENCIES[1] / _FREQUENCIES[0]))


def summed(values: ArrayLike, m: int) -> np.ndarray:
    """Sums of `m` values after another, (n // m,), those left over dropped."""
    x = np.asarray(values, dtype=float).ravel()
    return np.asarray(x[: len(x) // m * m].reshape(-1, m).sum(1))
