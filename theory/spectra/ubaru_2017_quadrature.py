"""Spectra of a symmetric matrix that is known by its products alone: stochastic Lanczos quadrature.

Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM Journal on Matrix Analysis
and Applications 38(4), Algorithm 1; Golub, Meurant 2010, "Matrices, Moments and Quadrature with Applications", ch. 6.

Let A = V diag(lambda) V^T be (n, n) and u a unit vector. The *spectral measure* of u has mass (v_i . u)^2 at lambda_i:
it says at which eigenvalues u lies, and u^T f(A) u is the integral of f over it. m steps of Lanczos from u give an
orthonormal Q (n, m) with first column u and a tridiagonal T = Q^T A Q = S diag(theta) S^T. For powers p < m one has
A^p u = Q T^p e_1, hence u^T A^p u = e_1^T T^p e_1 up to p = 2 m - 1: the nodes theta_k with weights S_1k^2 are the
Gauss rule of the measure. What follows from that, and is tested:

- polynomials up to degree 2 m - 1 are integrated exactly, the Rayleigh quotient u^T A u and its square included;
- between the rule's cumulated weights below and up to a node lies the measure below that node (Chebyshev, Markov,
  Stieltjes);
- an eigenvalue of A lies within |beta_m S_mk| of theta_k, as the residual of the Ritz vector Q S_k has that length.

Of another vector w the same run gives u^T f(A) w = e_1^T f(T) Q^T w, exactly for polynomials up to degree m - 1: the
weights S_1k (S^T Q^T w)_k say how much of u^T w is at which eigenvalue.

For random u with E[u u^T] = I / n the mean of the measures is the spectral density of A, and n times the integral of
f an unbiased estimate of tr f(A) where the rule is exact. The error bar is the standard error over starts.

Lanczos loses orthogonality as soon as a Ritz value converges. Every new vector is therefore orthogonalized against all
earlier ones, twice (Giraud, Langou, Rozloznik 2005: twice is enough); m is tens here, so that Q is what is to be paid.
Imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over random starts, and its standard error; NaN for a single start."""

    value: float
    se: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Estimate":
        """From one value for each start, (starts,)."""
        found = np.asarray(values, dtype=float)
        se = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.nan
        return cls(float(found.mean()), float(se))


@dataclass(frozen=True, slots=True)
class SpectralMeasure:
    """The Gauss rule of a vector's spectral measure: `nodes` (m,) ascending, `weights` (m,) >= 0 that sum to 1.

    `residuals` (m,): an eigenvalue lies within so much of each node. `cross` (m,), where another vector w was given, is
    the rule of u^T f(A) w.
    """

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    cross: np.ndarray | None = None

    def integral(self, f: Callable[[np.ndarray], np.ndarray]) -> float:
        """Of f over the measure: u^T f(A) u for the unit vector u."""
        return float(self.weights @ f(self.nodes))

    @property
    def rayleigh(self) -> float:
        """u^T A u, exact but for rounding."""
        return self.integral(lambda x: x)

    def above(self, x: ArrayLike) -> np.ndarray:
        """The measure of [x, infinity), a node's own weight counted by half; shape of `x`."""
        return self._weighted(x, self.weights)

    def bounds_above(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Between what the measure of [x, infinity) is bound to lie: a node's weight on either side; shape of `x`."""
        after = np.append(np.cumsum(self.weights[::-1])[::-1], [0.0, 0.0])  # after[k]: of node k and those beyond
        k = np.searchsorted(self.nodes, x)
        return after[k + 1], after[np.maximum(k - 1, 0)]

    def rayleigh_above(self, x: ArrayLike) -> np.ndarray:
        """The part of u^T A u that is due to eigenvalues of `x` and more; shape of `x`."""
        return self._weighted(x, self.weights * self.nodes)

    def cross_above(self, x: ArrayLike) -> np.ndarray:
        """The part of u^T w along eigenvectors whose eigenvalues are `x` and more; shape of `x`."""
        assert self.cross is not None, "no other vector was given"
        return self._weighted(x, self.cross)

    def _weighted(self, x: ArrayLike, values: np.ndarray) -> np.ndarray:
        return (np.heaviside(np.subtract.outer(self.nodes, x), 0.5).T @ values).T


def spectral_measure(
    A: LinearOperator, start: np.ndarray, steps: int, other: np.ndarray | None = None
) -> SpectralMeasure:
    """The rule of `steps` nodes for `start` (n,), which is taken at unit length, by as many products with A (n, n).

    With an `other` vector (n,) the rule between the two besides.

    Fewer nodes where the start lies in the span of fewer eigenvectors, whose measure is then exact. `ValueError` for a
    start of zeros or of another length, and for no steps.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> rule = spectral_measure(aslinearoperator(np.diag([1.0, 2.0, 5.0])), np.array([1.0, 0.0, 1.0]), 3)
    >>> rule.nodes.round(12).tolist(), rule.weights.round(12).tolist()
    ([1.0, 5.0], [0.5, 0.5])
    """
    diagonal, beside, Q = _lanczos(A, start, steps)
    nodes, S = eigh_tridiagonal(diagonal, beside[:-1])
    cross = None if other is None else S[0] * (S.T @ (Q @ other))
    return SpectralMeasure(nodes, S[0] ** 2, np.abs(beside[-1] * S[-1]), cross)


def _lanczos(A: LinearOperator, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T's diagonal (m,), what is beside it (m,) and Q's columns (m, n); beta_m is the length of what was left over."""
    norm = float(np.linalg.norm(start))
    if start.shape != (A.shape[0],) or not norm > 0 or steps < 1:
        raise ValueError(f"start of shape {start.shape} and length {norm:g}, {steps} steps: expected a vector of "
                         f"{A.shape[0]} that is not zero, and at least 1 step")  # fmt: skip
    steps = min(steps, A.shape[0])
    Q = np.empty((steps, len(start)), dtype=A.dtype)
    alpha, beta = np.empty(steps), np.zeros(steps)
    q, negligible = start / norm, 0.0
    for j in range(steps):
        Q[j] = q
        r = np.asarray(A.matvec(Q[j]))
        alpha[j] = float(Q[j] @ r)
        for _ in range(2):
            r = r - Q[: j + 1].T @ (Q[: j + 1] @ r)
        beta[j] = float(np.linalg.norm(r))
        negligible = max(negligible, (abs(alpha[j]) + beta[j]) * np.finfo(A.dtype).eps * len(start) ** 0.5)
        if beta[j] <= negligible:  # the span is invariant: what is left over is rounding
            return alpha[: j + 1], np.append(beta[:j], 0.0), Q[: j + 1]
        q = r / beta[j]
    return alpha, beta, Q


@dataclass(frozen=True, slots=True)
class Density:
    """The spectral density of an (n, n) matrix: the mean over random starts of their measures."""

    n: int
    measures: Sequence[SpectralMeasure]

    def trace(self, f: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Estimate:
        """The trace of f(A), by default of A itself."""
        return Estimate.of([self.n * measure.integral(f) for measure in self.measures])

    def above(self, x: float) -> Estimate:
        """The share of eigenvalues that are `x` and more."""
        return Estimate.of([measure.above(x) for measure in self.measures])

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest node: the spectrum reaches at least as far."""
        return min(m.nodes[0] for m in self.measures), max(m.nodes[-1] for m in self.measures)


def density(A: LinearOperator, *, starts: int, steps: int, rng: np.random.Generator) -> Density:
    """The density of A (n, n) from as many `starts` of random signs, each by `steps` products."""
    n = A.shape[0]
    return Density(n, [spectral_measure(A, random_signs(n, rng, A.dtype), steps) for _ in range(starts)])


def random_signs(n: int, rng: np.random.Generator, dtype: np.dtype) -> np.ndarray:
    """A vector (n,) of independent signs, whose covariance is the identity."""
    return (2 * rng.integers(0, 2, n, dtype=np.int8) - 1).astype(dtype)
