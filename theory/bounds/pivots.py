"""Pivots: how much of each input channel is left once the channels rounded after it have explained what they can.

With H + lambda I = R R^T and R upper triangular, channels in the order in which they are rounded, the pivots are

    d_j = R_jj^2 = |P X_j|^2 / tokens,    P the projection off the span of the channels after j,

where X is [X; sqrt(tokens lambda) I] with damping. Column j of R^-T R^T = I says so: the rows of R are coordinates of
channels in an orthonormal basis that starts from the last. Hence prod d_j = det (H + lambda I), which no order changes,
and sum d_j <= tr (H + lambda I), with equality for orthogonal channels, which is what an order can change.

This is `suite.rounding.feedback.factor` once more, in numpy, without its fallbacks. Imports no torch.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Order = Literal["given", "reversed", "decreasing", "pivot"]
ORDERS: tuple[Order, ...] = ("given", "reversed", "decreasing", "pivot")


@dataclass(frozen=True, slots=True)
class Factored:
    """(H + lambda I)[perm][:, perm] = R R^T, R (in, in) upper triangular, float64; `perm[0]` is rounded first."""

    R: np.ndarray
    perm: np.ndarray

    @property
    def d(self) -> np.ndarray:
        """The pivots (in,), in the order in which channels are rounded."""
        return np.diag(self.R) ** 2

    @property
    def by_channel(self) -> np.ndarray:
        """The pivots (in,) by input channel."""
        found = np.empty(len(self.perm))
        found[self.perm] = self.d
        return found


def factored(H: np.ndarray, order: Order = "given", damping: float = 0.0) -> Factored:
    """Factor `H` (in, in), symmetric, with lambda = `damping` times the mean diagonal; an H of zeros counts as 1.

    Raises `ValueError` where that is not positive definite, for another shape, and for an unknown order.

    >>> factored(np.array([[2.0, 1.0], [1.0, 1.0]])).d.tolist()  # 2 - 1^2 / 1, and 1
    [1.0, 1.0]
    """
    H = np.asarray(H, dtype=float)
    if H.ndim != 2 or H.shape[0] != H.shape[1]:
        raise ValueError(f"expected a square Gram matrix, found shape {H.shape}")
    damped = H + damping * (float(np.diag(H).mean()) or 1.0) * np.eye(len(H))
    perm = permutation(damped, order)
    try:
        R = np.linalg.cholesky(damped[perm[::-1][:, None], perm[::-1]])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the Gram matrix is not positive definite with damping {damping:g}") from error
    return Factored(R, perm)


def permutation(H: np.ndarray, order: Order) -> np.ndarray:
    """Which channel comes when: int64 (in,), of a damped `H` (in, in).

    "pivot" takes from the end the channel of the smallest pivot, again and again; ties go to the lower channel.
    """
    if order == "given":
        return np.arange(len(H))
    if order == "reversed":
        return np.arange(len(H))[::-1]
    if order == "decreasing":
        return np.argsort(-np.diag(H), kind="stable")
    if order != "pivot":
        raise ValueError(f"order {order!r}: expected one of {', '.join(ORDERS)}")
    S, left, perm = H.copy(), np.diag(H).copy(), np.empty(len(H), dtype=np.int64)
    for place in reversed(range(len(H))):
        perm[place] = i = int(left.argmin())
        column = S[:, i] / np.sqrt(max(left[i], np.finfo(float).tiny))
        S -= np.outer(column, column)
        left = np.minimum(np.diag(S), left)  # rounding never raises a pivot
        left[perm[place:]] = np.inf
    return perm


def targets_missed(E: np.ndarray, found: Factored) -> np.ndarray:
    """What each weight missed the value it was rounded from by, (out, in) by channel, from `E` = W - Q (out, in).

    Error feedback rounds column j of W after adding E_{<j} R_{<j,j} / R_jj, so that it misses by (E R)_j / R_jj: known
    from the outcome, whatever picked the codes. Of rounding without feedback it is E itself, R = I.
    """
    missed = np.empty_like(E, dtype=float)
    missed[:, found.perm] = E[:, found.perm] @ found.R / np.diag(found.R)
    return missed
