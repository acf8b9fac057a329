"""Scalar sources whose rate-distortion functions real weights are held against: Gaussian, Laplace, Student, mixtures.

All are symmetric about zero. `GaussianMixture` is the variance mixture: a zero-mean Gaussian whose variance is drawn
anew for each sample, from a few values. Sources: Shannon (1959) for the lower bound; Kotz, Kozubowski and Podgorski
(2001), The Laplace distribution and generalizations, table 2.2, and Cover and Thomas (2006), table 17.1, for entropies.

What a scalar quantizer does to a source follows from three of its functions, the mass `P(X > x)` and the moments
`E[X; X > x]` and `E[X^2; X > x]` of a tail: those of a cell are differences between its ends.

Units: densities are per unit of the sample, entropies and rates in bits. Imports no torch, so that reports can draw.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln, digamma, log_ndtr, logsumexp, ndtr, stdtr, stdtrit

_LOG_TAIL = -32.0  # natural logarithm of the two tails' mass beyond `reach`: 1.3e-14
_NODES = 20  # Gauss-Legendre nodes of one panel; exact for polynomials of degree 39
_PANEL = 1.5  # a panel ends at this multiple of where it began
_SMOOTH = np.array([])  # the corners of a density that has none above zero


class Source(Protocol):
    """A density symmetric about zero: what `blahut_arimoto`, bounds and scalar quantizers need to know of it."""

    def __hash__(self) -> int:
        """Sources are keys of caches."""
        ...

    @property
    def variance(self) -> float:
        """Mean square, the distortion at rate 0."""
        ...

    @property
    def scale(self) -> float:
        """Length over which the density changes near zero, its finest structure."""
        ...

    @property
    def reach(self) -> float:
        """Beyond this on both sides lies a mass of less than 1e-13."""
        ...

    @property
    def entropy_bits(self) -> float:
        """Differential entropy `h = -E[log2 p(X)]`."""
        ...

    @property
    def corners(self) -> np.ndarray:
        """Where, above zero, the density is not smooth; (n,)."""
        ...

    def density(self, x: ArrayLike) -> np.ndarray:
        """The density at `x`; shape of `x`."""
        ...

    def tail(self, x: ArrayLike) -> np.ndarray:
        """`P(X > x)` at `x` >= 0; shape of `x`."""
        ...

    def tail_moment(self, x: ArrayLike) -> np.ndarray:
        """`E[X; X > x]` at `x` >= 0; shape of `x`."""
        ...

    def tail_square(self, x: ArrayLike) -> np.ndarray:
        """`E[X^2; X > x]` at `x` >= 0; shape of `x`."""
        ...

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent samples of this `shape`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Laplace:
    """The density `exp(-|x| / b) / (2 b)` with `b = sqrt(variance / 2)`.

    Its entropy is `log2(2 e b)`: `-E log p = log(2 b) + E|x| / b`, and `E|x| = b`.

    >>> round(Laplace(variance=2.0).entropy_bits, 6), Laplace(variance=2.0).density(0.0).item()
    (2.442695, 0.5)
    """

    variance: float = 1.0

    corners = _SMOOTH

    def __post_init__(self) -> None:
        _check_positive("variance", [self.variance])

    @property
    def scale(self) -> float:
        """The decay length b."""
        return float(np.sqrt(self.variance / 2))

    @property
    def reach(self) -> float:
        """`P(|X| > x) = exp(-x / b)`."""
        return -_LOG_TAIL * self.scale

    @property
    def entropy_bits(self) -> float:
        """`log2(2 e b)`, exact."""
        return float(np.log2(2 * np.e * self.scale))

    def density(self, x: ArrayLike) -> np.ndarray:
        """The density at `x`; shape of `x`."""
        return np.exp(-np.abs(np.asarray(x, dtype=float)) / self.scale) / (2 * self.scale)

    def tail(self, x: ArrayLike) -> np.ndarray:
        """`exp(-x / b) / 2`."""
        return np.exp(-np.asarray(x, dtype=float) / self.scale) / 2

    def tail_moment(self, x: ArrayLike) -> np.ndarray:
        """`(x + b) exp(-x / b) / 2`."""
        x = np.asarray(x, dtype=float)
        return (x + self.scale) * self.tail(x)

    def tail_square(self, x: ArrayLike) -> np.ndarray:
        """`(x^2 + 2 b x + 2 b^2) exp(-x / b) / 2`."""
        x = np.asarray(x, dtype=float)
        return (x**2 + 2 * self.scale * (x + self.scale)) * self.tail(x)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent samples of this `shape`."""
        return rng.laplace(scale=self.scale, size=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """Student's t of more than 2 `degrees` n of freedom, scaled to `variance`: a tail that falls like `x^-(n + 1)`.

    Its scale t is that of `f(x) = (1 + (x / t)^2 / n)^(-(n + 1) / 2) / (t sqrt(n) B(n / 2, 1 / 2))`. The derivative of
    `(n t^2 + x^2) f` is `-(n - 1) x f`, which gives the moment of its tail. At 3 degrees `reach` is 3 * 10^4 standard
    deviations and the fourth moment infinite: the Shannon lower bound is at hand, `blahut_arimoto` is not.

    >>> student = Student(degrees=3)
    >>> round(student.entropy_bits, 6), round(student.tail(1.0).item(), 6)
    (1.766106, 0.090845)
    """

    degrees: float
    variance: float = 1.0

    corners = _SMOOTH

    def __post_init__(self) -> None:
        _check_positive("variance", [self.variance])
        if not (np.isfinite(self.degrees) and self.degrees > 2):
            raise ValueError(f"degrees {self.degrees!r}: expected more than 2, below which there is no variance")

    @property
    def scale(self) -> float:
        """The scale t."""
        return float(np.sqrt(self.variance * (self.degrees - 2) / self.degrees))

    @property
    def reach(self) -> float:
        """The quantile."""
        return float(-stdtrit(self.degrees, np.exp(_LOG_TAIL) / 2)) * self.scale

    @property
    def entropy_bits(self) -> float:
        """Exact: `E log(1 + T^2 / n)` is a difference of digamma functions."""
        n = self.degrees
        nats = (n + 1) / 2 * (digamma((n + 1) / 2) - digamma(n / 2)) + np.log(n) / 2 + betaln(n / 2, 0.5)
        return float((nats + np.log(self.scale)) / np.log(2))

    def density(self, x: ArrayLike) -> np.ndarray:
        """The density at `x`; shape of `x`."""
        n, z = self.degrees, np.asarray(x, dtype=float) / self.scale
        return np.exp(-(n + 1) / 2 * np.log1p(z**2 / n) - np.log(n) / 2 - betaln(n / 2, 0.5)) / self.scale

    def tail(self, x: ArrayLike) -> np.ndarray:
        """Student's distribution function, from below."""
        return stdtr(self.degrees, -np.asarray(x, dtype=float) / self.scale)

    def tail_moment(self, x: ArrayLike) -> np.ndarray:
        """`(n t^2 + x^2) f(x) / (n - 1)`."""
        x, n = np.asarray(x, dtype=float), self.degrees
        return (n * self.scale**2 + x**2) * self.density(x) / (n - 1)

    def tail_square(self, x: ArrayLike) -> np.ndarray:
        """`Z^2 / (n + Z^2)` of Student's Z is a beta variable of 1/2 and n/2, and its tail an incomplete integral."""
        n, z = self.degrees, np.asarray(x, dtype=float) / self.scale
        return self.variance / 2 * betaincc(1.5, n / 2 - 1, z**2 / (n + z**2))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent samples of this `shape`."""
        return rng.standard_t(self.degrees, size=shape) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianMixture:
    """Zero-mean Gaussians of `variances`, all positive, drawn with probabilities `weights`, which sum to 1.

    One component is the Gaussian itself.

    >>> mixture = GaussianMixture(weights=(0.5, 0.5), variances=(1.0, 3.0))
    >>> mixture.variance, round(GaussianMixture(weights=(1.0,), variances=(1.0,)).entropy_bits, 6)
    (2.0, 2.047096)
    """

    weights: tuple[float, ...]
    variances: tuple[float, ...]

    corners = _SMOOTH

    def __post_init__(self) -> None:
        _check_positive("variance", self.variances)
        _check_positive("weight", self.weights)
        if len(self.weights) != len(self.variances) or not np.isclose(sum(self.weights), 1, rtol=0, atol=1e-9):
            raise ValueError(f"expected as many weights as variances, of sum 1, got {self.weights}, {self.variances}")

    @property
    def variance(self) -> float:
        """The mean of the variances."""
        return float(np.dot(self.weights, self.variances))

    @property
    def scale(self) -> float:
        """The smallest standard deviation."""
        return float(np.sqrt(min(self.variances)))

    @property
    def reach(self) -> float:
        """Where the heaviest of the weighted tails `w P(|N(0, v)| > x)` has sunk to the limit."""
        z = np.linspace(0, 9, 901)  # standard deviations; log P(|N| > 9) = -43
        log_tail = np.log(2) + log_ndtr(-z)
        reached = [np.interp(np.log(w) - _LOG_TAIL, -log_tail, z) if np.log(w) > _LOG_TAIL else 0 for w in self.weights]
        return float(max(z * np.sqrt(v) for z, v in zip(reached, self.variances, strict=True)))

    @property
    def entropy_bits(self) -> float:
        """`-E[log2 p(X)]` by Gauss-Legendre quadrature; exact for one component."""
        if len(self.variances) == 1:
            return float(np.log2(2 * np.pi * np.e * self.variances[0]) / 2)
        x, mass = quadrature(self)
        return float(-mass @ self._log_density(x) / np.log(2))

    def density(self, x: ArrayLike) -> np.ndarray:
        """The density at `x`; shape of `x`."""
        return np.exp(self._log_density(np.asarray(x, dtype=float)))

    def tail(self, x: ArrayLike) -> np.ndarray:
        """The weighted sum of the Gaussians' tails."""
        return ndtr(-np.asarray(x, dtype=float)[..., None] / np.sqrt(self.variances)) @ np.array(self.weights)

    def tail_moment(self, x: ArrayLike) -> np.ndarray:
        """`sum_k w_k v_k f_k(x)`: a Gaussian density's derivative is `-x f / v`."""
        v = np.array(self.variances)
        f = np.exp(-(np.asarray(x, dtype=float)[..., None] ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        return f @ (v * self.weights)

    def tail_square(self, x: ArrayLike) -> np.ndarray:
        """`sum_k w_k v_k (P(N_k > x) + x f_k(x))`, by parts."""
        z = np.asarray(x, dtype=float)[..., None] / np.sqrt(self.variances)
        inside = ndtr(-z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        return inside @ (np.array(self.weights) * self.variances)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent samples of this `shape`."""
        sigma = np.sqrt(self.variances)[rng.choice(len(self.weights), size=shape, p=self.weights)]
        return sigma * rng.standard_normal(shape)

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        w, v = np.array(self.weights), np.array(self.variances)
        return logsumexp(-(x[..., None] ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2, axis=-1, b=w)


def gaussian(variance: float = 1.0) -> GaussianMixture:
    """The Gaussian, as a mixture of one component."""
    return GaussianMixture(weights=(1.0,), variances=(variance,))


def quadrature(source: Source, widest: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `x` >= 0 (n,) and masses (n,) such that `E[f(X)] = mass @ f(x)` for a smooth even `f`.

    Gauss-Legendre on panels that start at zero, where a density may have a corner, and grow with the distance from it,
    no wider than `widest`, and end where it has other corners; `f` must be smooth over such a width. The masses sum to
    1 less the tails beyond `reach`.
    """
    ends = [0.0, min(source.scale, widest)]
    while ends[-1] < source.reach:
        ends.append(ends[-1] + min(max((_PANEL - 1) * ends[-1], source.scale), widest))
    edges = np.union1d(np.minimum(ends, source.reach), source.corners)
    t, w = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half * (1 + t)).ravel()
    return x, 2 * (half * w).ravel() * source.density(x)


def shannon_lower(source: Source, rate: ArrayLike) -> np.ndarray:
    """Shannon's lower bound `D >= 2^(2 h) 4^-R / (2 pi e)` on the squared error at `rate` bits; shape of `rate`.

    It follows from `I(X; Y) >= h(X) - h(X - Y)`, since no error of mean square D has more entropy than the Gaussian's
    `log2(2 pi e D) / 2`. For the Gaussian it is met at every rate, for others as the rate grows.

    >>> shannon_lower(gaussian(), [0, 1]).tolist()
    [1.0, 0.25]
    """
    return 4.0 ** (source.entropy_bits - np.asarray(rate, dtype=float)) / (2 * np.pi * np.e)


def _check_positive(name: str, values: ArrayLike) -> None:
    found = np.asarray(values, dtype=float)
    if not found.size or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(f"every {name} must be positive and finite, and there must be one, got {values!r}")
