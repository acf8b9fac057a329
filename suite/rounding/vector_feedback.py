"""VPTQ's rounding: codebooks of output vectors by weighted k-means, column by column with error feedback.

Liu et al. 2024, "VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models", arXiv:2409.17066.
A vector is of consecutive outputs and of one input j, so that all its values weigh alike: with H + lambda I = R R^T,

    tr (W - Q)(H + lambda I)(W - Q)^T = sum_j R_jj^2 |w'_j - q_j|^2

where w' is what feedback makes of column j, and the nearest entry is the best one there is for it. The paper's steps:
1. the first codebook, by k-means on W weighted by H_jj; a sweep with feedback;
2. every further codebook, by k-means on what the sweep has left of w', weighted alike; a sweep with all there are.

Two more, which are ours. `retrain`: the sweep rounds w' and not W, so codebooks are trained on the w' of the sweep
before, weighted by R_jj^2, which is what they are for. `refine`: for fixed codes the error is quadratic in the entries,
and for fixed entries each vector has a nearest one given all others, so that the two take turns, each exact and neither
uphill. The first is what the paper's layer-wise fine-tuning of centroids goes to by gradients, the second what QuIP#
calls tuning sweeps (Tseng et al. 2024, arXiv:2402.04396). Both cost out in^2, what a sweep of feedback does, and a
look at every entry for every vector.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from suite.grids.codebooks import Codebooks, FittedCodebooks
from suite.grids.grid import Grid
from suite.grids.outlier_columns import FittedOutlierColumns, OutlierColumns
from suite.rounding.elementwise import Rounded
from suite.rounding.feedback import ORDERS, Feedback, Order, Ordered, checked, factor
from suite.statistics import quadratic

Fitted = FittedCodebooks | FittedOutlierColumns

_STEPS = 16  # of conjugate gradients at most, from entries that were trained for codes like these
_CONVERGED = 1e-6  # of the squared slope at the start


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFeedback:
    """Codebooks and codes in the H-norm, for `Codebooks` of output vectors without row scales.

    `order`, `damping` and `block` are those of `Feedback`; columns go back to their places, and no order is stored.
    `retrain` and `refine` say how often; without them this is the paper. `importance="misaligned"` weighs the vectors
    of column j by H_ii, i = j // length, wherever a further codebook is trained, as the release's buffers do.
    """

    order: Order = "pivot"
    damping: float = 0.01
    block: int = 128
    retrain: int = 1
    refine: int = 4
    importance: Literal["aligned", "misaligned"] = "aligned"

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.importance not in ("aligned", "misaligned"):
            raise ValueError(f"order {self.order!r}, importance {self.importance!r}: "
                             f"expected one of {', '.join(ORDERS)}, and aligned or misaligned")  # fmt: skip
        if self.damping < 0 or self.block < 1 or self.retrain < 0 or self.refine < 0:
            raise ValueError(f"damping {self.damping!r}, block {self.block!r}, retrain {self.retrain!r}, "
                             f"refine {self.refine!r}: expected at least 0, 1, 0 and 0")  # fmt: skip

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in) given `H` (in, in); `ValueError` without H, and for another grid."""
        if not isinstance(grid, Codebooks | OutlierColumns) or grid.block[1] != 1:
            raise ValueError(f"VPTQ's rounding takes codebooks of consecutive outputs, the grid is {grid}")
        sweep = Sweep.of(W, checked(H, W.shape[1]), self, generator)
        codes, fitted = self._trained(W, grid, sweep)
        if self.refine:
            norm = sweep.norm()
            for _ in range(self.refine):
                fitted = refitted(fitted, W, codes, norm)
                codes = descended(fitted, W, codes, norm)
            fitted = refitted(fitted, W, codes, norm)
        return Rounded(codes, fitted, sweep.fallbacks)

    def _trained(
        self, W: torch.Tensor, grid: Codebooks | OutlierColumns, sweep: "Sweep"
    ) -> tuple[torch.Tensor, Fitted]:
        """Codes of the last sweep, and the codebooks they are of."""
        misaligned = self.importance == "misaligned"
        further = sweep.diagonal[torch.arange(W.shape[1]) // grid.length] if misaligned else sweep.diagonal
        fitted: Fitted = grid.bind(W, sweep.H).trained(W, 1, sweep.generator, sweep.diagonal)
        codes, moved = sweep(fitted)
        for stages in range(2, grid.stages + 1):
            fitted = fitted.trained(moved, stages, sweep.generator, further, keep=stages - 1)
            codes, moved = sweep(fitted)
        for _ in range(self.retrain):
            fitted = fitted.trained(moved, grid.stages, sweep.generator, sweep.pivots.square())
            codes, moved = sweep(fitted)
        return codes, fitted


@dataclass(frozen=True, slots=True)
class Sweep:
    """Error feedback over the columns of one matrix, as often as codebooks change.

    `H` (in, in) and `pivots` (in,), the diagonal of R, go with the columns of the matrix, float64.
    """

    columns: Ordered
    feedback: Feedback
    generator: torch.Generator
    H: torch.Tensor
    pivots: torch.Tensor
    R: torch.Tensor
    fallbacks: tuple[str, ...]

    @classmethod
    def of(cls, W: torch.Tensor, H: torch.Tensor, how: VectorFeedback, generator: torch.Generator) -> "Sweep":
        """The sweep over `W` (out, in) in the norm of `H` (in, in)."""
        R, perm, fallbacks = factor(H, how.order, how.damping)
        columns = Ordered.of(W, H, R.clone(), perm)
        pivots = torch.empty_like(columns.pivots)
        pivots[perm] = columns.pivots
        feedback = Feedback(order=how.order, groups="static", damping=how.damping, block=how.block)
        return cls(columns, feedback, generator, H.double(), pivots, R, fallbacks)

    @property
    def diagonal(self) -> torch.Tensor:
        """H_jj (in,)."""
        return self.H.diagonal()

    def __call__(self, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, and the values (out, in) that they were chosen for: w'."""
        columns = replace(self.columns, errors=torch.zeros_like(self.columns.errors))
        codes, _ = self.feedback.place(columns, fitted, self.generator)
        pushed = columns.original + columns.A.T @ columns.errors - columns.errors  # A has a diagonal of 1
        moved = torch.empty_like(pushed)
        moved[columns.perm] = pushed
        return codes, moved.T.contiguous()

    def norm(self) -> torch.Tensor:
        """H + lambda I (in, in), float64, by the columns of the matrix."""
        back = torch.argsort(self.columns.perm)
        return (self.R @ self.R.T)[back[:, None], back]


def refitted(fitted: Fitted, W: torch.Tensor, codes: torch.Tensor, H: torch.Tensor) -> Fitted:
    """The grid with entries of less tr (W - Q) H (W - Q)^T for these `codes`, as stored; itself if there are none.

    `W` (out, in), `H` (in, in) float64. Least squares in the entries of all stages at once, by conjugate gradients from
    where they are: a step is a product (out, in) x (in, in), and none goes uphill. Entries that no code takes stay.
    """
    entries = fitted.entries.double()
    wide = fitted.with_entries(entries)
    left = wide.gathered(codes, (W - wide.decode(codes)) @ H)
    pull = wide.gathered(codes, H.diagonal().expand(W.shape).double())
    inverse = torch.where(pull > 0, 1 / pull, 0.0)  # what the entries would take one by one
    towards = inverse * left
    slope = first = float((left * towards).sum())
    for _ in range(_STEPS):
        if slope <= _CONVERGED * first:
            break
        curved = wide.gathered(codes, wide.with_entries(towards).decode(codes) @ H)
        step = slope / float((towards * curved).sum())
        entries, left = entries + step * towards, left - step * curved
        ahead = inverse * left
        before, slope = slope, float((left * ahead).sum())
        towards = ahead + (slope / before) * towards
    found = fitted.with_entries(entries.to(W.dtype)).storable()
    better = quadratic(W - found.decode(codes), H) < quadratic(W - fitted.decode(codes), H)
    return found if better else fitted


def descended(fitted: Fitted, W: torch.Tensor, codes: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """Codes after one look at every vector, column by column: the best entries for it, given all other codes.

    For column j that is the entry nearest to q_j + (W - Q) H_j / H_jj; codes stay where that is no nearer than they
    are, which several stages, searched one after the other, may miss. Columns with H_jj = 0 stay as they are.
    """
    E, H, codes = (W - fitted.decode(codes)).T.contiguous(), H.to(W.dtype), codes.clone()  # E (in, out)
    rows = fitted.grid.length
    for j in H.diagonal().nonzero()[:, 0].tolist():
        q = W[:, j] - E[j]
        x = torch.addmv(q, E.T, H[j] / H[j, j])[:, None]
        found, values = fitted.snap(x, slice(j, j + 1))
        gains = fitted.cut((x - q[:, None]).square() - (x - values).square()).sum(-1)[:, 0] > 0
        codes[:, j] = torch.where(gains[:, None], found[:, 0], codes[:, j])
        better = gains.repeat_interleave(rows)[: len(q)]
        E[j] = torch.where(better, W[:, j] - values[:, 0], E[j])
    return codes
