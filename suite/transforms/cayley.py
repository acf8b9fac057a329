"""Cayley SGD: gradient descent that stays on the orthogonal matrices.

Li, Fuxin, Todorovic 2020, "Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley Transform",
arXiv:2002.01113, algorithm 1, as SpinQuant (Liu et al. 2024, arXiv:2405.16406, section 3.2) uses it, without momentum.
At an orthogonal X with Euclidean gradient G the steepest direction is -X A with the skew matrix

    A = (X^T G - G^T X) / 2,

the Riemannian gradient of the metric that the matrices inherit; a step of length t is X (I + t/2 A)^-1 (I - t/2 A),
which is orthogonal whatever t, and X - t X A to first order. t is at most 1 / |A|_1, the largest column sum: then the
fixed-point iteration Y <- X - t/2 (X + Y) A halves its error each time, since |A|_2 <= |A|_1 for a skew A.

This file solves for the step (to 1e-15 in float64, however many steps); the paper and SpinQuant's release iterate. The
release starts at X - t G where the paper has X - t X A, normalizes the rows first, takes five iterations, which leaves
X orthogonal to 1e-5, and makes it orthogonal again by a QR decomposition at one step in 101, drawn at random;
`fixed_point` is that without the draw.
"""

import torch

RELEASE_ITERATIONS = 5  # SpinQuant's train_utils/optimizer.py, Cayley_loop
_SMALL = 1e-8  # there too: keeps the cap finite where the gradient vanishes


def direction(X: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """The skew A (n, n) of an orthogonal `X` (n, n) and the Euclidean gradient `G` (n, n) there.

    Of an `X` that has drifted away from orthogonality it is algorithm 1's, which reads X^T X.
    """
    M = X.T @ G
    M = M - M @ (X.T @ X) / 2
    return M - M.T


def length(A: torch.Tensor, rate: float) -> float:
    """The step's length: `rate`, or 1 / |A|_1 where that is less."""
    return min(rate, 1 / (float(A.abs().sum(0).max()) + _SMALL))


def cayley(S: torch.Tensor) -> torch.Tensor:
    """The Cayley transform (I - S/2)^-1 (I + S/2) of a skew `S` (n, n): orthogonal, and I + S to first order.

    >>> cayley(torch.tensor([[0.0, -2.0], [2.0, 0.0]]))  # tan of half the angle is 1
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    identity = torch.eye(len(S), dtype=S.dtype)
    return torch.linalg.solve(identity - S / 2, identity + S / 2)


def descend(X: torch.Tensor, G: torch.Tensor, rate: float) -> torch.Tensor:
    """One step of Cayley SGD from `X` (n, n), orthogonal, against the Euclidean gradient `G` (n, n)."""
    A = direction(X, G)
    return X @ cayley(-length(A, rate) * A)


def fixed_point(X: torch.Tensor, G: torch.Tensor, rate: float, iterations: int = RELEASE_ITERATIONS) -> torch.Tensor:
    """The same step as SpinQuant's release takes it: close to `descend`, and orthogonal to about 1e-5."""
    X = X / (X.norm(dim=1, keepdim=True) + _SMALL)
    A = direction(X, G)
    t = length(A, rate)
    Y = X - t * G
    for _ in range(iterations):
        Y = X - t / 2 * (X + Y) @ A
    return Y


def polar(X: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix nearest to `X` (n, n), in the Frobenius norm."""
    U, _, Vh = torch.linalg.svd(X)
    return U @ Vh
