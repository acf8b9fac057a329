"""Asymmetric clipping: before training both ends of a group of weights are drawn in, as far as outputs profit.

Du, Zhang, Cao, Guo, Cao, Chu, Xu 2024, "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via
Self-Distillation", arXiv:2402.10631, section 3.2, equation 4. Over shares a, b of a group's ends,

    minimize ||(Q(w') - w) X^T||^2 = (Q(w') - w) H_gg (Q(w') - w)^T,    w' = clamp(w, b min w, a max w),

by trying all pairs; an end that is on the wrong side of zero clamps nothing. Q rounds to nearest on the grid that is
fitted to w'. The release measures the error on 512 sampled tokens, the Gram matrix holds all of them.

Groups are searched one by one, so they must lie along the inputs and be fitted without regard to each other. What the
errors of two groups do to each other's is left out, as in the release.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from suite.grids.grid import Grid
from suite.grids.integer import Integer
from suite.grids.layout import Layout, check_finite, check_matrix
from suite.grids.lloyd_max import KMeansTable
from suite.grids.residual_binary import ResidualBinary
from suite.grids.scaled import Scaled
from suite.grids.two_sided import TwoSided

_AT_ONCE = 1 << 17  # weights searched together, in whole rows: what is computed of them stays in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class AsymmetricClip:
    """Draw a group's ends in to shares 1 - i/steps of them, i < most * steps, each by itself.

    `unclipped` are shell patterns of the names of layers that are left alone.
    """

    steps: int = 20
    most: float = 0.5
    unclipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and 0 <= self.most <= 1):
            raise ValueError(f"steps {self.steps!r}, most {self.most!r}: expected at least 1, and 0 to 1")

    @property
    def shares(self) -> tuple[float, ...]:
        """What is tried of an end, 1 first."""
        return tuple(1 - i / self.steps for i in range(max(1, int(self.most * self.steps))))

    def takes(self, layer: str) -> bool:
        """Whether the layer of this name is clipped."""
        return not any(fnmatchcase(layer, pattern) for pattern in self.unclipped)


def unsupported_clipping(grid: Grid) -> str | None:
    """Why groups of this grid cannot be clipped one by one, or None."""
    if not isinstance(grid, Integer | Scaled | TwoSided | ResidualBinary):
        return f"weights are clipped by groups that are fitted one by one: {type(grid).__name__} has none"
    if grid.group == "tensor" or getattr(grid, "axis", 1) != 1:
        return f"weights are clipped by groups along the inputs: group {grid.group}, axis {getattr(grid, 'axis', 1)}"
    if isinstance(grid, Scaled) and (isinstance(grid.element, KMeansTable) or not grid.scale.separate):
        return "weights are clipped by groups that are fitted one by one, these share a table or a second scale"
    return None


@torch.no_grad()
def clipped(W: torch.Tensor, grid: Grid, H: torch.Tensor, how: AsymmetricClip) -> torch.Tensor:
    """`W` (out, in) clamped to the ends of least output error that `how` allows, `H` (in, in) of the layer's inputs.

    Of several pairs of ends that are as good, the one that was tried first: the least clipped at the top. No group's
    error exceeds that of its weights as they are. Raises `ValueError` for a grid that cannot be clipped, NaN, infinite
    values and an empty matrix.
    """
    if reason := unsupported_clipping(grid):
        raise ValueError(reason)
    check_matrix(W)
    check_finite(W)
    height = max(1, _AT_ONCE // W.shape[1])
    return torch.cat([_clipped_rows(rows, grid, H.to(W.dtype), how) for rows in W.split(height)])


def _clipped_rows(W: torch.Tensor, grid: Grid, H: torch.Tensor, how: AsymmetricClip) -> torch.Tensor:
    assert isinstance(grid, Integer | Scaled | TwoSided | ResidualBinary)
    layout = grid.layout((W.shape[0], W.shape[1]))
    low, high = layout.grouped(W, torch.inf).amin(-1), layout.grouped(W, -torch.inf).amax(-1)
    best, least = (low, high), torch.full_like(low, torch.inf)
    for top in how.shares:
        for bottom in how.shares:
            ends = (low * bottom, high * top)
            inside = _clamped(W, layout, *ends)
            error = output_errors(grid.fit(inside, H).snap(inside)[1] - W, layout, H)
            better = error < least
            least = torch.minimum(error, least)
            best = torch.where(better, ends[0], best[0]), torch.where(better, ends[1], best[1])
    return _clamped(W, layout, *best)


def _clamped(W: torch.Tensor, layout: Layout, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """`W` (out, in) within `low` to `high` (R, C), those of its groups."""
    return layout.ungrouped(layout.grouped(W, 0.0).clamp(low[..., None], high[..., None]))


def output_errors(E: torch.Tensor, layout: Layout, H: torch.Tensor) -> torch.Tensor:
    """The e H_gg e^T (R, C) of every group e of E (out, in), whose groups lie along the inputs."""
    width = layout.width
    parts = [((e @ H[a : a + width, a : a + width]) * e).sum(-1)
             for a, e in zip(range(0, E.shape[1], width), E.split(width, dim=1), strict=True)]  # fmt: skip
    return torch.stack(parts, dim=1)
