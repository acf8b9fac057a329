"""Roundings that look at one value at a time: to nearest, and stochastic (unbiased between the two neighbors)."""

from dataclasses import dataclass

import torch

from suite.grids.grid import Fitted, Grid
from suite.grids.layout import ALL, Columns

Picked = tuple[torch.Tensor, torch.Tensor]  # codes, uint8, and the values they stand for


@dataclass(frozen=True, slots=True)
class Rounded:
    """Codes (out, in) on a fitted grid, and what did not go as asked."""

    codes: torch.Tensor
    grid: Fitted
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """Every value to its nearest level; the grid names the tie rule."""

    def pick(self, x: torch.Tensor, grid: Fitted, columns: Columns, generator: torch.Generator) -> Picked:
        """Codes and values (out, k) for `x` (out, k), the values of `columns`; draws nothing."""
        return grid.snap(x, columns)

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Fit the grid to `W` (out, in) and round."""
        fitted = grid.fit(W, H)
        return Rounded(fitted.nearest(W), fitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stochastic:
    """Up with probability (x - lower) / (upper - lower): E[q] = x within the range, the last level outside it."""

    def pick(self, x: torch.Tensor, grid: Fitted, columns: Columns, generator: torch.Generator) -> Picked:
        """Codes and values (out, k) for `x` (out, k); one uniform number is drawn for each value."""
        below, above = grid.neighbors(x, columns)
        low, high = grid.decode(below, columns), grid.decode(above, columns)
        gap = torch.where(high == low, 1.0, high - low)
        draws = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        up = draws < (x - low) / gap
        return torch.where(up, above, below), torch.where(up, high, low)

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Fit the grid to `W` (out, in) and round."""
        fitted = grid.fit(W, H)
        return Rounded(self.pick(W, fitted, ALL, generator)[0], fitted)
