"""A low-rank branch that error feedback knows of, and one that is fitted to what it left.

Saab, Zhang 2026, arXiv:2606.01412, on low-rank correction intrinsic to GPTQ, whose setting this is: the least
|X (W - Q - B A)^T| over grids and ranks. In the letters of `suite`, E = W - Q (out, in) and a branch B A of rank r.

**Known to feedback.** Let V (in, r) be the stiffest eigenvectors of H, H V = V L. Take A = V^T and B = E V: what is
left of E is E (I - V V^T), and

    tr (E - B A) H (E - B A)^T = tr E H_r E^T,    H_r = H - V L V^T,

whatever E is. So the branch takes the r stiffest directions off the problem, and feedback may round by H_r: with errors
uniform over a step s the mean error is s^2 / 12 sum_j d_j of H_r's pivots, at most s^2 / 12 (tr H - tr L).

**After the fact.** Feedback rounds by H, and the branch is the best of its rank for what is left: with H = L L^T the
error is that of E L less its r largest singular values squared (Eckart, Young 1936), so never more than with A = V^T
for the same E; but E was rounded to be small where the branch now helps for free.
"""

import numpy as np


def stiffest(H: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """V (in, rank), the eigenvectors of the largest eigenvalues of `H` (in, in), and H_r (in, in) without them.

    `ValueError` for a rank of less than 1 or beyond that of the matrix.
    """
    if not 1 <= rank <= len(H):
        raise ValueError(f"rank {rank}: expected 1 to {len(H)}")
    values, vectors = np.linalg.eigh(H)
    V, rest = vectors[:, -rank:], vectors[:, :-rank]
    return V, (rest * np.maximum(values[:-rank], 0)) @ rest.T


def intrinsic(E: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank) of the branch that feedback knew of, for `E` (out, in) and `V` (in, rank)."""
    return V.T, E @ V


def after_the_fact(E: np.ndarray, H: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank) with the least tr (E - B A) H (E - B A)^T; `H` (in, in) positive definite.

    E L of H = L L^T is cut to its `rank` largest singular values; this is `suite`'s own `best_of_rank`.
    """
    import torch

    from suite.adaptation.low_rank import best_of_rank

    A, B = best_of_rank(torch.from_numpy(np.array(E)), rank, torch.from_numpy(np.array(H)))
    return A.numpy(), B.numpy()


def stored(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, int]:
    """B A (out, in) of factors rounded to float16, as `suite` stores a branch, and its bits."""
    import torch

    from suite.side import LowRankSide

    side = LowRankSide.stored(torch.from_numpy(np.array(A)), torch.from_numpy(np.array(B)))
    return side.product(torch.float64).numpy(), side.n_bits
