"""How much a weight counts: its magnitude, or what rounding it alone would cost the output.

With H + lambda I = R R^T, R upper triangular, removing w_j and letting the columns before it make up for that costs
w_j^2 R_jj^2, which is w_j^2 / U_jj^2 for the factor U = R^-1 of the inverse that GPTQ's code holds: what PB-LLM and
BiLLM call the Hessian's score (their papers write the diagonal of the inverse, which U_jj^2 is of the columns so far).
"""

from typing import Literal

import torch

Score = Literal["magnitude", "hessian"]
_LARGEST_DAMPING = 10.0


def check_score(score: object, damping: float) -> None:
    """Raise `ValueError` for an unknown score or a damping below 0."""
    if score not in ("magnitude", "hessian"):
        raise ValueError(f"score {score!r}: expected magnitude or hessian")
    if not damping >= 0:
        raise ValueError(f"damping {damping!r}: expected >= 0")


def pivots_for(score: Score, H: torch.Tensor | None, n_in: int, damping: float) -> torch.Tensor | None:
    """R_jj (in,) in float64 for the score "hessian", None for "magnitude".

    lambda is `damping` times the mean diagonal of H (in, in), raised tenfold while that cannot be factored, as error
    feedback does (and records). `ValueError` without H, where it has the wrong shape, or where nothing up to 10 helps.
    """
    if score == "magnitude":
        return None
    if H is None or H.shape != (n_in, n_in):
        found = "none" if H is None else f"shape {tuple(H.shape)}"
        raise ValueError(f"score {score} needs the Gram matrix H of shape {(n_in, n_in)}, found {found}")
    turned = H.double().flip(0, 1)  # a copy: the factor is upper triangular where columns come from the last on
    mean, used = float(H.diagonal().mean()) or 1.0, damping
    while True:
        R, failed = torch.linalg.cholesky_ex(turned + used * mean * torch.eye(n_in, dtype=torch.float64))
        if not failed and bool(torch.isfinite(R.diagonal()).all()):
            return R.diagonal().flip(0)
        used = max(used * 10, 1e-4)
        if used > _LARGEST_DAMPING:
            raise ValueError(f"the Gram matrix cannot be factored with damping up to {_LARGEST_DAMPING:g}")
