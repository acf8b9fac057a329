"""From a matrix and a recipe to a `Quantized`: the way every layer of every method takes."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from suite.activations import quantize_activations
from suite.adaptation.low_rank import LowRank
from suite.adaptation.straight_through import tuned
from suite.coding import Coding, Fixed
from suite.grids import Integer, OutputSearch, ShrinkSearch
from suite.grids.grid import Grid
from suite.methods import METHODS, method_named
from suite.quantized import Quantized
from suite.recipe import Recipe, Target, trains
from suite.rounding import Qronos
from suite.side_rounds import with_side
from suite.statistics import LayerStatistics, quadratic, statistics_of
from suite.transforms import Frame, Score


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator that follows from a seed and a layer's name alone, whatever ran before."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def quantize_layer(
    W: torch.Tensor,
    target: Target,
    H: torch.Tensor | None,
    generator: torch.Generator,
    coding: Coding = Fixed(),  # noqa: B008 - a frozen value
    cross: torch.Tensor | None = None,
    frame: Frame | None = None,
    learned: Mapping[str, torch.Tensor] | None = None,
    side: LowRank | None = None,
) -> Quantized:
    """Round `W` (out, in) as the target says, H (in, in) or None, for codes that `coding` stores.

    `cross` (in, in) is X^T X~ / n, of the unquantized model's inputs with those that H = X~^T X~ / n is of; only
    `Qronos` reads it, and takes X = X~ without it. `frame` are coordinates to round the matrix in. With `learned`
    parameters the grid is not fitted: they are rounded to what is stored, and the weights then to nearest. What a
    `side` branch leaves is what is rounded, as often as it has rounds.
    """
    if learned:
        kept = Quantized(codes=torch.zeros(0), grid=tuned(target.grid.fit(W), learned)).as_stored().grid
        return Quantized(codes=kept.nearest(W), grid=kept, coding=coding)
    inner, outer = H, cross
    if frame is not None:
        inner, outer = (None if gram is None else frame.gram(gram) for gram in (H, cross))

    def rounded(rest: torch.Tensor) -> Quantized:
        rest = rest if frame is None else frame.into(rest)
        if isinstance(target.rounding, Qronos):
            found = target.rounding.round(rest, target.grid, inner, generator, outer)
        else:
            found = target.rounding.round(rest, target.grid, inner, generator)
        return Quantized(codes=found.codes, grid=found.grid, coding=coding, frame=frame, fallbacks=found.fallbacks)

    return with_side(W, rounded, side, H) if side is not None and side.rounds else rounded(W)


def output_error(weights: dict[str, torch.Tensor], statistics: LayerStatistics, recipe: Recipe) -> Score:
    """What a searching transform minimizes: the squared output error of `weights` (by layer name) after scaling by s.

    Weights are rounded to nearest without a clip search, which ranks candidates at a fraction of the cost of the
    recipe's own rounding. With activations left alone the error is exact over all calibration tokens, by the Gram
    matrix; with quantized ones it is measured on the sampled rows.
    """

    def score(s: torch.Tensor) -> float:
        there, total = statistics.scaled(s), 0.0
        X = there.sample
        if recipe.activations is not None:
            Xq = quantize_activations(X, recipe.activations.grid, float(there.max_abs.max()))
        for name, W in weights.items():
            target, scaled = recipe.target_of(name), W * s.to(W.dtype)
            Q = scaled
            if target is not None:
                grid = target.grid
                fitted = _unsearched(grid).fit(scaled, there.gram)
                Q = fitted.decode(fitted.nearest(scaled))
            if recipe.activations is None:
                total += quadratic(scaled - Q, there.gram)
            else:
                error = X @ scaled.T.to(X.dtype) - Xq @ Q.T.to(X.dtype)
                total += float((error.double() ** 2).sum()) / len(X)
        return total

    return score


def _unsearched(grid: Grid) -> Grid:
    if isinstance(grid, Integer) and isinstance(grid.clip, ShrinkSearch | OutputSearch):
        return replace(grid, clip=None)
    return grid


def quantize_matrix(
    W: torch.Tensor,
    *,
    method: str | None = None,
    recipe: Recipe | None = None,
    bits: float | None = None,
    H: torch.Tensor | None = None,
    X: torch.Tensor | None = None,
    Xq: torch.Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Quantized:
    """Quantize one matrix `W` (out, in), by a method's name and `bits`, or by a `recipe`.

    `H` (in, in) is the Gram matrix X^T X / n of the layer's inputs; `X` (tokens, in) may be given instead, and must
    be for transforms that look at activations (AWQ, SmoothQuant). Their channel scales are kept with the matrix and
    charged, since there is no layer before it to absorb them. `Xq` (tokens, in) are the inputs that the quantized model
    has in place of `X` at the same tokens: H is then theirs, and Qronos corrects the difference; without it, as with
    H alone, Qronos takes the inputs for matched. What a recipe says of blocks, `inputs` and `BlockTuning`, has no part
    in this, and recipes that train a whole model are refused. `options` go to the method. Raises `ValueError` for
    shapes that do not fit, a method that needs what is not given, and an unsupported combination.

    >>> q = quantize_matrix(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), method="rtn", bits=2, group=4)
    >>> q.dequantize(), q.n_bits
    (tensor([[0., 1., 2., 3.]]), 26)
    """
    if (method is None) == (recipe is None):
        raise ValueError("expected either a method or a recipe")
    if W.ndim != 2:
        raise ValueError(f"W: expected a matrix (out, in), found shape {tuple(W.shape)}")
    W = W if W.dtype == torch.float64 else W.float()
    if recipe is None:
        chosen = method_named(str(method), METHODS)
        if bits is None and not chosen.fixed:
            raise ValueError(f"{chosen.name} needs bits")
        recipe = chosen.recipe(bits=bits, **options)
    elif options or bits is not None:
        raise ValueError("a recipe says everything itself: no bits and no options beside it")
    if recipe.weights is None:
        raise ValueError("the recipe does not quantize weights")
    if recipe.unsupported:
        raise ValueError(recipe.unsupported)
    if trains(recipe):
        raise ValueError("training takes a whole model")
    statistics, cross = None if X is None else statistics_of(X), None
    if Xq is not None:
        H, cross = _mismatched(X, Xq, H)
    if H is None and statistics is not None:
        H = statistics.gram
    scale = _kept_scale(W, recipe, statistics)
    if scale is not None:
        W, both = W * scale.to(W.dtype), scale[:, None] * scale
        H, cross = (None if gram is None else gram / both for gram in (H, cross))
    generator, frame = generator_for(seed, "matrix"), None
    if recipe.incoherence is not None:
        frame = recipe.incoherence.fit((W.shape[0], W.shape[1]), generator)
    side = recipe.adaptation if isinstance(recipe.adaptation, LowRank) else None
    result = quantize_layer(W, recipe.weights, H, generator, recipe.coding, cross, frame, side=side)
    return result if scale is None else replace(result, in_scale=scale)


def _mismatched(X: torch.Tensor | None, Xq: torch.Tensor, H: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Xq^T Xq / n and X^T Xq / n (in, in), float64; `ValueError` unless X goes with Xq and says all there is."""
    if X is None or X.shape != Xq.shape or H is not None:
        found = "no X" if X is None else f"X of shape {tuple(X.shape)}" + ("" if H is None else " and H")
        raise ValueError(f"Xq of shape {tuple(Xq.shape)} needs X of that shape, and gives H itself: found {found}")
    wide = Xq.double()
    return wide.T @ wide / len(wide), X.double().T @ wide / len(wide)


def _kept_scale(W: torch.Tensor, recipe: Recipe, statistics: LayerStatistics | None) -> torch.Tensor | None:
    """The product of the transforms' scales (in,), rounded to what is stored, or None without transforms."""
    scales: list[Any] = [transform for transform in recipe.transforms if transform.place != "matrix"]
    if not scales:
        return None
    for transform in scales:
        if transform.place != "fold":
            raise ValueError(f"{type(transform).__name__} changes a model's coordinates: it takes a whole model")
    if statistics is None:
        raise ValueError(f"{type(scales[0]).__name__} looks at activations: give X (tokens, in)")
    alone, total = replace(recipe, layers=()), torch.ones(W.shape[1], dtype=torch.float64)
    for transform in scales:
        now, there = W * total.to(W.dtype), statistics.scaled(total)
        total = total * transform.fit([now], there, output_error({"matrix": now}, there, alone)).double()
    return total.half().double().clamp(min=2.0**-14, max=65504.0)


def relative_errors(W: torch.Tensor, Q: torch.Tensor, H: torch.Tensor) -> tuple[float, float]:
    """`nmse` = |W - Q|^2 / |W|^2 and `hnmse` = tr((W-Q) H (W-Q)^T) / tr(W H W^T); 0 over 0 is 0."""
    return squared_error(W, Q), _ratio(quadratic(W - Q, H), quadratic(W, H))


def squared_error(W: torch.Tensor, Q: torch.Tensor) -> float:
    """`nmse` = |W - Q|^2 / |W|^2; 0 over 0 is 0."""
    return _ratio(float(((W - Q).double() ** 2).sum()), float((W.double() ** 2).sum()))


def _ratio(top: float, bottom: float) -> float:
    return 0.0 if top == 0 else math.inf if bottom == 0 else top / bottom
