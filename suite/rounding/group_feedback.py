"""Error feedback from group to group: the columns of a group are rounded at once, and later groups make up for them.

BiLLM's block-wise compensation (Huang et al. 2024, arXiv:2402.04291, Alg. 1), which is GPTQ's between
blocks without its hand-off inside of one. With H + lambda I = R R^T, R upper triangular, and U = R^-1,

    W_later <- W_later - E U_{g,later},    E = (W_g - Q_g) R_gg,

which moves what is still to come to where, given Q so far, the error in the norm of H + lambda I is least. The release
divides by the diagonal of U_gg where its inverse R_gg stands: `errors="diagonal"`.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from suite.grids.grid import Fitted, Grid
from suite.rounding.elementwise import Rounded
from suite.rounding.feedback import checked, factor


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFeedback:
    """Each group of columns fitted to the weights as they are when its turn comes, and rounded to nearest at once.

    Columns come in the given order. A grid that does not `regroup` is one group. `damping` as in `Feedback`.
    """

    errors: Literal["exact", "diagonal"] = "exact"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.errors not in ("exact", "diagonal") or not self.damping >= 0:
            raise ValueError(f"errors {self.errors!r}, damping {self.damping!r}: expected exact or diagonal, and >= 0")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in) given `H` (in, in); `ValueError` without H or where H has the wrong shape."""
        n_in = W.shape[1]
        H = checked(H, n_in)
        R, _, fallbacks = factor(H, "given", self.damping)
        U = torch.linalg.solve_triangular(R, torch.eye(n_in, dtype=R.dtype), upper=True).to(W.dtype)
        fitted: Fitted = grid.fit(W, H)
        size = fitted.group_size if fitted.regroups else n_in
        spread, codes = torch.zeros_like(W), []
        for g, start in enumerate(range(0, n_in, size)):
            here = slice(start, min(start + size, n_in))
            x = W[:, here] - spread[:, :start] @ U[:start, here]
            if fitted.regroups:
                fitted = fitted.refit(x, g, torch.arange(n_in)[here], H)
            code, values = fitted.snap(x, here)
            corner = R[here, here].to(W.dtype)
            spread[:, here] = (x - values) @ (corner if self.errors == "exact" else corner.diagonal().diag())
            codes.append(code)
        return Rounded(torch.cat(codes, dim=1), fitted, fallbacks)
