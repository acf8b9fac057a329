"""A recipe: the five choices that make a method, as one frozen value with a canonical text.

`str(recipe)` leaves out fields at their defaults and is what `--recipe` takes: a constructor expression that is
parsed, never evaluated.
"""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from suite.activations import unsupported_activations
from suite.adaptation.block_tuning import BlockTuning
from suite.adaptation.clipping import AsymmetricClip, unsupported_clipping
from suite.adaptation.low_rank import Adapters, LowRank
from suite.adaptation.quantization_aware import Gradient, Perturbation, QuantizationAware
from suite.adaptation.training import Schedule
from suite.coding import CODINGS, Coding, Exponents, Fixed
from suite.grids import GRID_PARTS, GRIDS, Codebooks, Exl2, Integer, OutlierColumns, Sparse, Steps
from suite.grids.grid import Grid
from suite.kv_cache.target import CACHE_PARTS, CacheGrid, CacheTarget, with_bits
from suite.rounding import (
    ROUNDINGS,
    WHOLE,
    Additive,
    Descent,
    Feedback,
    GroupFeedback,
    HalfQuadratic,
    Nearest,
    Qronos,
    RateAware,
    Stochastic,
    VectorFeedback,
)
from suite.transforms import TRANSFORMS, Incoherence, LearnedRotations, RotateKeys, Transform

# what is learned, and what that is made of
ADAPTATIONS = (BlockTuning, QuantizationAware, Schedule, Gradient, Perturbation, AsymmetricClip, LowRank, Adapters)
Rounding = (
    Nearest
    | Stochastic
    | Feedback
    | HalfQuadratic
    | RateAware
    | Qronos
    | Additive
    | GroupFeedback
    | VectorFeedback
    | Descent
)


@dataclass(frozen=True, slots=True)
class Target:
    """A grid and the rounding that puts values on it."""

    grid: Grid
    rounding: Rounding = field(default_factory=Nearest)

    def __post_init__(self) -> None:
        if not isinstance(self.grid, GRIDS) or not isinstance(self.rounding, ROUNDINGS):
            raise ValueError(f"a target is a grid and a rounding, found {self.grid!r} and {self.rounding!r}")

    def __str__(self) -> str:
        return canonical(self)

    @property
    def unsupported(self) -> str | None:
        """Why this pair cannot be had, or None."""
        if isinstance(self.rounding, HalfQuadratic):
            if not isinstance(self.grid, Integer):
                return f"half-quadratic rounding moves the zero points of integers, the grid is {canonical(self.grid)}"
            if self.grid.convention != "real-zero":
                return f"half-quadratic rounding moves real zero points, the convention is {self.grid.convention}"
        if isinstance(self.rounding, Additive) and not (isinstance(self.grid, Codebooks) and self.grid.axis == 1):
            return f"beam search takes codebooks of consecutive inputs, the grid is {canonical(self.grid)}"
        vectors = isinstance(self.grid, Codebooks | OutlierColumns) and self.grid.block[1] == 1  # of outputs
        if isinstance(self.rounding, VectorFeedback) and not vectors:
            return f"VPTQ's rounding takes codebooks of consecutive outputs, the grid is {canonical(self.grid)}"
        feedback = self.rounding.feedback if isinstance(self.rounding, RateAware) else self.rounding
        feedback = feedback.start if isinstance(feedback, Descent) else feedback
        order = feedback.order if isinstance(feedback, Feedback | Qronos) else None
        if self.grid.block != (1, 1):
            if isinstance(self.rounding, GroupFeedback):
                return f"groups of columns rounded at once have values coded one by one, not in {self.grid.block}"
            if isinstance(feedback, Stochastic) or (isinstance(feedback, Feedback) and feedback.pick != Nearest()):
                return f"values coded together are rounded to the nearest code, not by {canonical(self.rounding)}"
            if self.grid.block[1] > 1 and isinstance(feedback, Qronos):
                return f"Qronos corrects a single column first, {self.grid.block[1]} are coded together"
            if self.grid.block[1] > 1 and isinstance(feedback, Feedback) and order not in WHOLE:
                return f"columns coded together take the given or the reversed order, not {order}"
        if isinstance(self.grid, Sparse) and self.grid.score == "feedback" and order != "given":
            return f"masks chosen in error feedback take the given order, the rounding is {canonical(self.rounding)}"
        if isinstance(self.grid, Exl2) and order != "decreasing":
            return f"EXL2 takes error feedback in decreasing order, the rounding is {canonical(self.rounding)}"
        if isinstance(self.rounding, RateAware):
            if not isinstance(self.grid, Steps):
                return f"rate-aware rounding searches the step of Steps, the grid is {canonical(self.grid)}"
            if isinstance(feedback, Feedback) and feedback.pick != Nearest():
                return f"rate-aware rounding picks codes itself, its feedback picks {canonical(feedback.pick)}"
        if isinstance(self.grid, Steps) and self.grid.spacing == "pivots":
            if order != "given":
                return f"steps by pivots are for error feedback in the given order, not {canonical(self.rounding)}"
        return self.grid.unsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to a model: transforms in order, targets for weights, the linear layers' inputs and the cache.

    `layers` overrides the weights' target where a layer's name matches a shell pattern (first match wins): a
    mixed-width allocation, or AWQ's unclipped queries and keys. The embedding and the head are quantized only where a
    pattern other than a bare `*` matches "model.embed_tokens" or "lm_head". `inputs` says whose activations calibrate
    a layer: the unquantized model's, or those of the model quantized so far, measured layer after layer.
    Activations are quantized to nearest, token by token (`suite.activations`), and so are keys and values, as what they
    are kept in (`suite.kv_cache`). `adaptation` is what is learned of a block once its layers are rounded, or of
    the whole model before. `coding` says how the codes of all weights are stored.
    """

    transforms: tuple[Transform, ...] = ()
    weights: Target | None = None
    layers: tuple[tuple[str, Target], ...] = ()
    activations: Target | None = None
    cache: CacheTarget | None = None
    inputs: Literal["original", "quantized"] = "original"
    adaptation: BlockTuning | QuantizationAware | LowRank | None = None
    coding: Coding = field(default_factory=Fixed)

    def __str__(self) -> str:
        return canonical(self)

    def __post_init__(self) -> None:
        _check_types(self)

    def target_of(self, layer: str) -> Target | None:
        """The weights' target for a linear layer of a block, by its full name."""
        return next((target for pattern, target in self.layers if fnmatchcase(layer, pattern)), self.weights)

    def target_outside(self, name: str) -> Target | None:
        """The target for a matrix outside the blocks, the embedding or the head: only one asked for explicitly.

        `weights` never reaches it, nor does a pattern of nothing but `*`, which says as much as `weights` does.
        """
        named = ((pattern, target) for pattern, target in self.layers if pattern.strip("*"))
        return next((target for pattern, target in named if fnmatchcase(name, pattern)), None)

    @property
    def incoherence(self) -> Incoherence | None:
        """What every weight matrix of the blocks is rotated by, on both sides, before it is rounded."""
        return next((transform for transform in self.transforms if isinstance(transform, Incoherence)), None)

    @property
    def held_cache(self) -> CacheTarget | None:
        """The cache, with keys rotated where a transform rotates them: then it is the cache that does."""
        if self.cache is None or not any(isinstance(transform, RotateKeys) for transform in self.transforms):
            return self.cache
        return replace(self.cache, keys=replace(self.cache.keys, rotate=True))

    @property
    def compares_inputs(self) -> bool:
        """Whether some rounding reads the quantized model's inputs beside the unquantized one's."""
        targets = (self.weights, *(target for _, target in self.layers))
        return self.inputs == "quantized" and any(t is not None and isinstance(t.rounding, Qronos) for t in targets)

    @property
    def streams(self) -> frozenset[Literal["original", "quantized"]]:
        """In which models calibration rows are followed from block to block: the unquantized one, the one so far."""
        found: set[Literal["original", "quantized"]] = {"quantized"} if self.inputs == "quantized" else set()
        if self.compares_inputs:
            found.add("original")
        if isinstance(self.adaptation, BlockTuning):
            if self.adaptation.stream != "original":
                found.add("quantized")
            if self.adaptation.stream != "quantized":
                found.add("original")
        return frozenset(found)

    @property
    def unsupported(self) -> str | None:
        """Why this combination is skipped, or None."""
        targets = [self.weights, *(target for _, target in self.layers)]
        reasons = [target.unsupported or _coding_unsupported(self.coding, target) for target in targets if target]
        reasons.append(_order_unsupported(self.transforms))
        if self.activations is not None:
            learned = isinstance(self.adaptation, QuantizationAware)
            reasons.append(self.activations.unsupported or _activations_unsupported(self.activations, learned))
        if self.held_cache is not None:
            reasons.append(self.held_cache.unsupported)
        if isinstance(self.adaptation, BlockTuning) and not any(targets):
            reasons.append("a block is tuned to make up for the rounding of its weights, and none are rounded")
        if isinstance(self.adaptation, QuantizationAware):
            reasons.append(_training_unsupported(self))
        if isinstance(self.adaptation, LowRank):
            reasons.append(_side_unsupported(self, self.adaptation))
        return next(filter(None, reasons), None)


def _order_unsupported(transforms: tuple[Transform, ...]) -> str | None:
    places = [transform.place for transform in transforms]
    turned = places.count("residual")
    if "residual" in places[turned:]:
        return "a rotation of the residual stream comes first: it folds norm gains, which would undo what is before it"
    if turned > 1 and any(isinstance(transform, LearnedRotations) for transform in transforms):
        return "a learned rotation of the residual stream takes no other beside it"
    if "matrix" in places[:-1]:
        return "what rotates single matrices comes last, once: all else is done to the model"
    return None


def _training_unsupported(recipe: Recipe) -> str | None:
    if recipe.transforms:
        return "a model is trained in its own coordinates: transforms have no part in quantization-aware training"
    clips = isinstance(recipe.adaptation, QuantizationAware) and recipe.adaptation.clipping is not None
    for target in (recipe.weights, *(target for _, target in recipe.layers)):
        if target is not None and clips and (reason := unsupported_clipping(target.grid)):
            return reason
        if target is not None and not isinstance(target.rounding, Nearest):
            return f"trained weights are rounded to nearest, as in training, not by {canonical(target.rounding)}"
    outside = [pattern for pattern, _ in recipe.layers if pattern.startswith(("model.embed_tokens", "lm_head"))]
    return f"{outside[0]} is not fake quantized in training" if outside else None


def _side_unsupported(recipe: Recipe, how: LowRank) -> str | None:
    targets = [target for target in (recipe.weights, *(target for _, target in recipe.layers)) if target is not None]
    if not targets:
        return "a side branch is beside rounded weights, and none are rounded"
    if how.schedule is not None and recipe.transforms:
        return "a model is trained in its own coordinates: transforms have no part in training adapters"
    if how.schedule is not None and recipe.activations is not None:
        return "adapters are trained beside rounded weights alone: inputs are not rounded in their training"
    for target in targets if how.pooled else ():
        grid = target.grid
        if not (isinstance(grid, Integer) and grid.convention == "real-zero" and isinstance(grid.group, int)):
            return f"a pooled branch is merged into real zero points of groups, the grid is {canonical(grid)}"
    return None


def trains(recipe: Recipe) -> bool:
    """Whether a whole model is trained as the recipe says."""
    how = recipe.adaptation
    return isinstance(how, QuantizationAware) or (isinstance(how, LowRank) and how.schedule is not None)


def _coding_unsupported(coding: Coding, target: Target) -> str | None:
    if not isinstance(coding, Exponents):
        return None
    width = 1 + coding.exponent_bits + coding.mantissa_bits
    if target.grid.bits == width:
        return None
    return f"coding by exponents takes floating-point codes of {width} bits, the grid is {canonical(target.grid)}"


def _activations_unsupported(target: Target, learned: bool) -> str | None:
    if not isinstance(target.rounding, Nearest):
        return "activations are rounded to nearest"
    return unsupported_activations(target.grid, learned=learned)


def _check_types(recipe: Recipe) -> None:
    """Raise `ValueError` for the first field, at any depth, whose value is not of its declared type."""
    for part in _parts(recipe):
        hints = get_type_hints(type(part))
        for name, hint in ((f.name, hints[f.name]) for f in fields(part)):
            if not _is_a(getattr(part, name), hint):
                wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
                raise ValueError(f"{type(part).__name__}: {name} {getattr(part, name)!r}: expected {wanted}")


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _parts(item)
    elif is_dataclass(value):
        yield value
        for f in fields(value):
            yield from _parts(getattr(value, f.name))


def _is_a(value: Any, hint: Any) -> bool:
    if hint is Grid:
        return isinstance(value, GRIDS)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        kinds = args[:1] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_a, value, kinds))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint  # exactly: True is no number, and the text of a numpy number does not parse


_CONSTRUCTORS = {
    kind.__name__: kind
    for kind in (Recipe, Target, *ADAPTATIONS, *GRIDS, *GRID_PARTS, *TRANSFORMS, *ROUNDINGS, *CODINGS, *CACHE_PARTS)
}


def parse(text: str) -> Recipe:
    """The recipe that a text stands for; `parse(str(recipe)) == recipe`.

    A bare `Target(...)` is a recipe for the weights. Raises `ValueError` naming what is wrong.

    >>> parse('Target(Integer(bits=4))').weights.grid.group
    128
    """
    try:
        value = _build(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"recipe {text!r} does not parse: {error.msg}") from error
    except (RecursionError, MemoryError) as error:  # how the parser says it
        raise ValueError(f"a recipe of {len(text)} characters is nested too deeply to be parsed") from error
    except ValueError as error:
        raise ValueError(f"recipe {text!r}: {error}") from error
    if isinstance(value, Target):
        value = Recipe(weights=value)
    if not isinstance(value, Recipe):
        raise ValueError(f"recipe {text!r} is not a Recipe or a Target")
    return value


def _build(node: ast.expr) -> Any:
    """The value of a constructor expression made of known names, constants and tuples."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        if isinstance(node.operand.value, (int, float)):
            return -node.operand.value
    if isinstance(node, ast.Tuple):
        return tuple(_build(item) for item in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in _CONSTRUCTORS:
            raise ValueError(f"unknown name {node.func.id}, expected one of {', '.join(sorted(_CONSTRUCTORS))}")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        if len({keyword.arg for keyword in node.keywords}) < len(node.keywords):
            raise ValueError(f"{node.func.id} is given the same keyword twice")
        keywords = {str(keyword.arg): _build(keyword.value) for keyword in node.keywords}
        arguments = [_build(argument) for argument in node.args]
        try:
            return _CONSTRUCTORS[node.func.id](*arguments, **keywords)
        except TypeError as error:
            raise ValueError(f"{ast.unparse(node)}: {error}") from error
    raise ValueError(f"{ast.unparse(node)} is neither a constant, a tuple nor a constructor")


def canonical(value: Any) -> str:
    """The constructor expression of a recipe or a part of one: fields in order, those at their defaults left out."""
    if not is_dataclass(value):
        if isinstance(value, tuple):
            return f"({', '.join(map(canonical, value))}{',' if len(value) == 1 else ''})"
        return repr(value)
    parts = []
    for f in fields(value):
        mine = getattr(value, f.name)
        default = f.default_factory() if callable(f.default_factory) else f.default
        if isinstance(default, float) and isinstance(mine, int):
            mine = float(mine)  # one text for equal values
        if mine != default:
            parts.append(f"{f.name}={canonical(mine)}" if f.kw_only else canonical(mine))
    return f"{type(value).__name__}({', '.join(parts)})"


def with_activations(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with the linear layers' inputs quantized per token at `bits`, in its own convention if it has one."""
    if recipe.activations is not None:
        grid = recipe.activations.grid
        if not isinstance(grid, Integer):
            raise ValueError(f"activation bits {bits}: the recipe's inputs are {canonical(grid)}, not integers")
        grid = replace(grid, bits=bits)
        return replace(recipe, activations=replace(recipe.activations, grid=grid))
    return replace(recipe, activations=Target(Integer(bits=bits, group="row", convention="full-range", scale_bits=32)))


def with_cache(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with keys and values quantized at `bits`, in its own way if it has one.

    Else as they come, each head of a token on asymmetric integers of its own range (QuaRot's, but for the rotation).
    """
    if recipe.cache is not None:
        return replace(recipe, cache=with_bits(recipe.cache, bits))
    side = CacheGrid(grid=Integer(bits=bits, group="row"))
    return replace(recipe, cache=CacheTarget(keys=side, values=side))
