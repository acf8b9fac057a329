"""Activations: the inputs of linear layers, rounded to nearest as the model runs, and never stored.

A token is rounded without regard to others, so that a model gives the same numbers whatever shares a batch with it.
What is fitted to a token's values is fitted to that token alone: scales per token (`group="row"`) and per group, MX
blocks, NVFP4's block scales. What a whole matrix of weights would share is made once, for the largest magnitude seen in
calibration, as hardware takes it: one static scale (`group="tensor"`), and the float32 scale g of NVFP4 under its block
scales (`TwoLevel`). Larger values saturate. (torchao's dynamic NVFP4 takes g from the batch instead, by which a token's
blocks move in steps of E4M3 with its neighbors.)

Ranges are not searched, which no hardware does at run time; `ClipRatio` shrinks them by a fixed factor.
"""

from dataclasses import replace

import torch

from suite.grids import (
    BFloat16,
    DoubleQuantized,
    Gguf,
    Integer,
    KMeansTable,
    OutputSearch,
    RealScale,
    Scaled,
    ShrinkSearch,
    Sparse,
    Steps,
    TwoLevel,
)
from suite.grids.grid import Grid
from suite.grids.integer import FittedInteger
from suite.grids.layout import check_finite
from suite.grids.scaled import FittedScaled

Span = float | tuple[float, float]  # what a static scale is made for: the largest magnitude, or both ends
_AT_ONCE = 1 << 19  # values rounded in one go, 2 MiB in a few buffers: less is all overhead, more leaves the cache


def quantize_activations(x: torch.Tensor, grid: Grid, span: Span) -> torch.Tensor:
    """`x` (..., in) rounded to nearest, token by token; static scales are made for `span`.

    Of the type of `x`, float32 or float64; no gradient passes. `grid` is one for which `unsupported_activations` is
    None. Raises `ValueError` for NaN or infinite values.
    """
    rows, alone = _rows(x.detach(), grid)
    found = torch.empty_like(rows)
    for part, out in zip(*(tensor.split(max(1, _AT_ONCE // tensor.shape[1])) for tensor in (rows, found)), strict=True):
        out.copy_(_rounded(part, alone, span))
    return found.reshape(x.shape)


def has_static_scale(grid: Grid) -> bool:
    """Whether something is made beforehand from the range of a layer's inputs, which must be known then."""
    return isinstance(grid, Integer | Scaled) and (grid.group == "tensor" or _under_one_scale(grid))


def unsupported_activations(grid: Grid, *, learned: bool = False) -> str | None:
    """Why inputs cannot be rounded to this grid, or None; static ranges with two ends are only ever `learned`."""
    if isinstance(grid, Steps):
        return "activations are not entropy coded"
    if isinstance(grid, Sparse):
        return _sparse_unsupported(grid)
    if isinstance(grid, Gguf):
        plain = grid.type in ("q4_0", "q8_0") and not grid.importance
        return None if plain else "activation ranges are not searched, nor are GGUF's blocks"
    if isinstance(grid, BFloat16):
        return None
    if not isinstance(grid, Integer | Scaled):
        return f"{type(grid).__name__} is fitted to weights, and not to tokens one by one"
    if isinstance(grid.group, int) and grid.axis != 1:
        return "groups of activations lie within a token, these run over tokens"
    return _integer_unsupported(grid, learned) if isinstance(grid, Integer) else _scaled_unsupported(grid)


def _sparse_unsupported(grid: Sparse) -> str | None:
    if grid.score != "magnitude":
        return f"masks by {grid.score} need the Gram matrix of what activations are multiplied by"
    if has_static_scale(grid.grid):
        return "masked activations take no static scale"
    return unsupported_activations(grid.grid)


def _integer_unsupported(grid: Integer, learned: bool) -> str | None:
    if isinstance(grid.clip, ShrinkSearch | OutputSearch):
        return "activation ranges are not searched"
    if grid.group == "tensor" and grid.convention in ("asymmetric", "real-zero", "signed-max"):
        if learned and grid.convention == "real-zero":
            return None
        return f"static activation scales are symmetric unless both ends are learned, here {grid.convention}"
    return None


def _scaled_unsupported(grid: Scaled) -> str | None:
    if grid.scale.clip is not None:
        return "activation ranges are not searched"
    if isinstance(grid.element, KMeansTable):
        return "tables are fitted to weights, not to activations"
    if isinstance(grid.scale, DoubleQuantized):
        return "double quantization makes scales of many tokens share a mean"
    if grid.group == "tensor" and isinstance(grid.scale, RealScale):
        if grid.scale.statistic != "absmax" or grid.scale.signed:
            return "static activation scales follow from the largest magnitude alone"
    return None


def _under_one_scale(grid: Grid) -> bool:
    return isinstance(grid, Scaled) and isinstance(grid.scale, TwoLevel) and grid.scale.matrix


def _rows(x: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
    """Tokens as rows, or their groups where all are whole: what is left of a group on its own is a row."""
    tokens = x.reshape(-1, x.shape[-1])
    if not isinstance(grid, Integer | Scaled) or not isinstance(grid.group, int) or tokens.shape[1] % grid.group:
        return tokens, grid
    whole = replace(grid, group="row", pad=False) if isinstance(grid, Scaled) else replace(grid, group="row")
    return tokens.reshape(-1, grid.group), whole


def _rounded(x: torch.Tensor, grid: Grid, span: Span) -> torch.Tensor:
    """The values nearest to `x` (n, in): of its own scales, but for what is static."""
    fitted: FittedInteger | FittedScaled
    if isinstance(grid, Integer) and grid.group == "tensor":
        check_finite(x)
        ends = span if isinstance(span, tuple) else (-span, span)
        low, high = (torch.full((1, 1), end, dtype=x.dtype) for end in ends)
        fitted = grid.fit_range(low, high, (x.shape[0], x.shape[1]))
    elif isinstance(grid, Scaled) and has_static_scale(grid):
        assert not isinstance(span, tuple)
        fitted = grid.fit_under(x, span)
    elif isinstance(grid, Integer | Scaled):
        fitted = grid.fit(x)
    else:
        return grid.fit(x).snap(x)[1]
    return fitted.rounded(x)
