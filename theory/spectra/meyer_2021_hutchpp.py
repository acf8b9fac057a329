"""The trace of a matrix that is known by its products alone, by Hutchinson's estimator and by Hutch++.

Hutchinson 1990, Communications in Statistics 19(2): for random signs x, E[x^T A x] = tr A, and for symmetric A the
variance is 2 sum_{i != j} A_ij^2 <= 2 |A|_F^2. A few large eigenvalues make it large. Meyer, Musco, Musco, Woodruff
2021, "Hutch++: Optimal Stochastic Trace Estimation", arXiv:2010.09649, Algorithm 1, takes those out exactly: with Q an
orthonormal basis of A S for random signs S,

    tr A = tr Q^T A Q + tr P A P,     P = I - Q Q^T,

and only the second trace is estimated. A third of the products goes to A S, to A Q and to the estimate each, and the
relative error for positive semi-definite A falls as 1 / products instead of as its square root. Imports no torch.
"""

import numpy as np
from scipy.sparse.linalg import LinearOperator

from theory.spectra.ubaru_2017_quadrature import Estimate, random_signs


def hutchinson_trace(A: LinearOperator, products: int, rng: np.random.Generator) -> Estimate:
    """The trace of A (n, n) from as many products with random signs; the error bar is the standard error over them."""
    n = A.shape[0]
    return Estimate.of([x @ A.matvec(x) for x in (random_signs(n, rng, A.dtype) for _ in range(products))])


def hutchpp_trace(A: LinearOperator, products: int, rng: np.random.Generator) -> Estimate:
    """The trace of A (n, n) from at most that many products; the error bar is that of the part that is estimated.

    The error is zero to rounding where the rank is a third of `products` or less. `ValueError` for fewer than 6, which
    give no error bar.
    """
    if products < 6:
        raise ValueError(f"{products} products: expected at least 6, two for each third")
    n, third = A.shape[0], products // 3
    S = np.stack([random_signs(n, rng, A.dtype) for _ in range(third)], axis=1)
    Q = np.linalg.qr(A.matmat(S))[0]
    known = float(np.sum(Q * A.matmat(Q)))
    rest = []
    for _ in range(third):
        x = random_signs(n, rng, A.dtype)
        x = x - Q @ (Q.T @ x)
        rest.append(float(x @ A.matvec(x)))
    left = Estimate.of(rest)
    return Estimate(known + left.value, left.se)
