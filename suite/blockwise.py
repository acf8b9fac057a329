"""Quantize one decoder block: transform, round layer by layer, put the result where the weights were."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from suite.activations import Span, has_static_scale, quantize_activations
from suite.adaptation.block_tuning import BlockTuning
from suite.adaptation.low_rank import LowRank
from suite.adaptation.straight_through import straight_through
from suite.bounds import RoundedLayer, bound_of
from suite.calibration import gather, gather_cross
from suite.grids.grid import Grid
from suite.kv_cache.codec import NO_TABLES, Tables
from suite.kv_cache.evaluation import evaluate_through, rotate_keys
from suite.learning.blocks import Rows, Tuning
from suite.models.architecture import Site, linear, weight_of
from suite.models.checkpoint import Checkpoint
from suite.models.outliers import scale_site
from suite.models.turn import turn_back, turn_columns, turn_heads, turn_rows, values_site
from suite.outside import UnsupportedError, supported
from suite.quantize import generator_for, output_error, quantize_layer, relative_errors, squared_error
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.statistics import LayerStatistics, quadratic
from suite.store import LayerRecord
from suite.transforms import Map, Scale

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Trained:
    """What training learned beside weights: grids' parameters by layer and name, ranges by layer.

    Of a model whose quantized weights stayed as they were, adapters beside them, `layers` are all that was quantized.
    """

    parameters: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    ranges: Mapping[str, Span] = field(default_factory=dict)
    layers: Mapping[str, Quantized] = field(default_factory=dict)


NOTHING_TRAINED = Trained()


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """The block's quantized layers by full name, and a record of each.

    `ranges` are what static activation scales are made for, layer by layer; `maps` what is
    done to the inputs of a site at run time, by the full name of its first layer; `tables` what its cache has learned.
    `unquantized` is the block in the same coordinates before anything was rounded, where a recipe compares the two.
    `bounds` are numbers that layers' errors tr (W - Q) H (W - Q)^T cannot exceed, where there is one.
    """

    layers: dict[str, Quantized] = field(default_factory=dict)
    records: list[LayerRecord] = field(default_factory=list)
    ranges: dict[str, Span] = field(default_factory=dict)
    maps: dict[str, tuple[Map, ...]] = field(default_factory=dict)
    tables: Tables = NO_TABLES
    unquantized: nn.Module | None = None
    bounds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """How a transformed block differs from the one that was read.

    `statistics` are those of the inputs as they have become, and `maps` what happens to them at run time, both by the
    first layer of each site.
    """

    statistics: dict[str, LayerStatistics]
    maps: dict[str, tuple[Map, ...]] = field(default_factory=dict)
    _inverses: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = field(default_factory=dict)

    def undone_by(self, layer: str, inverse: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Note what takes a layer's weights back across the step that was just made."""
        self._inverses.setdefault(layer, []).append(inverse)

    def back(self, layer: str, Q: torch.Tensor) -> torch.Tensor:
        """A layer's weights (out, in) in the coordinates that the block was read in."""
        for inverse in reversed(self._inverses.get(layer, [])):
            Q = inverse(Q)
        return Q


@torch.no_grad()
def quantize_block(
    checkpoint: Checkpoint,
    i: int,
    block: nn.Module,
    recipe: Recipe,
    statistics: dict[str, LayerStatistics],
    seed: int,
    hidden: torch.Tensor | None,
    original: torch.Tensor | None = None,
    tables: Tables = NO_TABLES,
    trained: Trained = NOTHING_TRAINED,
) -> QuantizedBlock:
    """Quantize block `i` in place. What transforms leave unquantized is rounded to the type it is stored in.

    `statistics` are those of the unquantized model, by the first layer of each site. `hidden` (rows, length, hidden)
    are the calibration rows as the quantized model so far hands them to this block, and `original` the same rows in the
    unquantized model, where the recipe follows them (`Recipe.streams`). With quantized inputs a site is measured when
    everything before it is quantized. `tables` are the learned ones of the block's cache, and `trained` what a
    quantization-aware training learned of grids and static scales.
    """
    architecture, done = checkpoint.architecture, QuantizedBlock(tables=tables)
    read = {layer: linear(block, layer).weight.clone() for layer in architecture.layers}
    coordinates = transform_block(checkpoint, i, block, recipe, statistics, seed)
    if original is not None or isinstance(recipe.adaptation, BlockTuning):
        done = replace(done, unquantized=copy.deepcopy(block))
    _round_to_stored(checkpoint, i, block, recipe)
    if recipe.held_cache is not None:
        supported(evaluate_through, block, checkpoint.config, recipe.held_cache, tables)
    tune = _tuner(checkpoint, i, block, recipe, (hidden, original), done, seed)
    for site in architecture.sites:
        first = site.layers[0]
        there, cross = coordinates.statistics[first], None
        if recipe.inputs == "original" or hidden is None:
            gram = there.gram
        elif not recipe.compares_inputs or done.unquantized is None or original is None:
            gram = gather(checkpoint, i, block, hidden, site).gram
        else:
            rounded = _rounding_of_inputs(recipe, float(there.max_abs.max()))
            both = (block, hidden), (done.unquantized, original)
            gram, cross = gather_cross(checkpoint, i, both, site, rounded)
        if first in coordinates.maps:
            done.maps[architecture.full_name(i, first)] = coordinates.maps[first]
        for layer in site.layers:
            name, module = architecture.full_name(i, layer), linear(block, layer)
            target = recipe.target_of(name)
            if target is not None:
                found = trained.layers.get(name)
                if found is None:
                    generator, learned = generator_for(seed, name), trained.parameters.get(name, {})
                    frame = None
                    if recipe.incoherence is not None:
                        frame = supported(recipe.incoherence.fit, tuple(module.weight.shape), generator)
                    side = recipe.adaptation if isinstance(recipe.adaptation, LowRank) else None
                    found = quantize_layer(module.weight, target, gram, generator, recipe.coding, cross, frame, learned,
                                           side)  # fmt: skip
                    if not (recipe.transforms or recipe.adaptation or learned or checkpoint.turn):
                        bound = bound_of(RoundedLayer(W=module.weight, quantized=found, target=target, gram=gram,
                                                      H=statistics[first].gram))  # fmt: skip
                        done.bounds.update({} if bound is None else {name: bound})
                module.weight.copy_(found.dequantize())
                done.layers[name] = found
            if recipe.activations is not None:
                span = trained.ranges.get(name, float(there.max_abs.max()))
                quantize_inputs(module, recipe.activations.grid, span)
                if has_static_scale(recipe.activations.grid):
                    done.ranges[name] = span
        tune(site)
    done.records.extend(_records(checkpoint, i, block, done, read, coordinates, statistics))
    return done


def _tuner(
    checkpoint: Checkpoint,
    i: int,
    block: nn.Module,
    recipe: Recipe,
    streams: tuple[torch.Tensor | None, torch.Tensor | None],
    done: QuantizedBlock,
    seed: int,
) -> Callable[[Site], None]:
    """What is to be done when a site's layers are rounded: tune the block so far, where the recipe says so.

    `streams` are the rows that enter the block in the quantized and in the unquantized model.
    """
    how, names = recipe.adaptation, checkpoint.architecture
    if not isinstance(how, BlockTuning):
        return lambda site: None
    assert done.unquantized is not None
    inputs = streams[0] if how.stream != "original" else streams[1]
    aims = streams[0] if how.stream == "quantized" else streams[1]
    if inputs is None or aims is None:
        raise ValueError(f"block tuning on the {how.stream} stream needs the rows that enter block {i}")
    rows = Rows(inputs, checkpoint.run(i, done.unquantized, aims))
    full = {layer: names.full_name(i, layer) for layer in names.layers}
    order = [layer for layer in names.layers if recipe.target_of(full[layer]) is not None]

    def tune(site: Site) -> None:
        last, layers = site is names.sites[-1], {layer: q for layer in order if (q := done.layers.get(full[layer]))}
        loose = tuple(layer for layer in order if layer not in layers)
        if layers and (last or (how.weight_rate and loose)):
            generator = generator_for(seed, f"{full[site.layers[0]]}/tuning")
            tuned, _ = Tuning(checkpoint, i, block, how, layers, loose).run(rows, generator)
            done.layers.update({full[layer]: q for layer, q in tuned.items()})

    return tune


def _records(
    checkpoint: Checkpoint,
    i: int,
    block: nn.Module,
    done: QuantizedBlock,
    read: Mapping[str, torch.Tensor],
    coordinates: Coordinates,
    statistics: Mapping[str, LayerStatistics],
) -> Iterator[LayerRecord]:
    """A record of every quantized layer; `read` are the weights as they were read."""
    untransformed = _untransformed(checkpoint, i)
    for site in checkpoint.architecture.sites:
        for layer in site.layers:
            name = checkpoint.architecture.full_name(i, layer)
            if name in done.layers:
                pair = read[layer], coordinates.back(layer, linear(block, layer).weight)
                charged = coordinates.maps.get(layer, ())  # by the first layer of a site alone
                H = statistics[site.layers[0]].gram
                yield _record(name, done.layers[name], pair, untransformed(layer, *pair), H, charged)


def _rounding_of_inputs(recipe: Recipe, max_abs: float) -> Callable[[torch.Tensor], torch.Tensor]:
    if recipe.activations is None:
        return lambda x: x
    grid = recipe.activations.grid
    return lambda x: quantize_activations(x, grid, max_abs)


@torch.no_grad()
def transform_block(
    checkpoint: Checkpoint,
    i: int,
    block: nn.Module,
    recipe: Recipe,
    statistics: Mapping[str, LayerStatistics],
    seed: int,
    watch: Callable[[int, Coordinates], None] = lambda number, coordinates: None,
) -> Coordinates:
    """Apply the recipe's transforms to block `i`, in place and in order; its function stays the same.

    Rotations of the residual stream are none of a single block's: `checkpoint` has them, and `statistics` are in their
    coordinates. `watch` is called with every transform's number once it is applied.
    """
    found = Coordinates(dict(statistics))
    transform: Any  # each place has a `fit` of its own
    for number, transform in enumerate(recipe.transforms):
        if transform.place == "heads":
            generator = generator_for(seed, f"{checkpoint.architecture.full_name(i, 'values')}/{number}")
            _rotate_values(checkpoint, block, found, supported(transform.fit, checkpoint.head_dim, generator))
        for site in checkpoint.architecture.sites:
            name = checkpoint.architecture.full_name(i, site.layers[0])
            if transform.place == "fold" and site.kind in transform.sources:
                if not (site.grouped and _shares_heads(block)):
                    _scale(checkpoint, i, block, recipe, site, found, transform)
            elif transform.place == "online" and any(layer.endswith(transform.sites) for layer in site.layers):
                weights = [linear(block, layer).weight for layer in site.layers]
                generator = generator_for(seed, f"{name}/{number}")
                for m in supported(transform.fit, weights, found.statistics[site.layers[0]], generator):
                    _map_site(block, site, found, m)
            elif transform.place == "across" and site.grouped:
                heads = int(checkpoint.config.num_attention_heads)
                if linear(block, site.layers[0]).in_features != heads * checkpoint.head_dim:
                    raise UnsupportedError("heads are rotated before their channels are expanded, not after")
                for m in supported(transform.fit, heads, checkpoint.head_dim):
                    _map_site(block, site, found, m)
        if transform.place == "keys" and recipe.cache is None:
            rotate_keys(block, checkpoint.config, supported(transform.fit, checkpoint.head_dim))
        watch(number, found)
    for site in checkpoint.architecture.sites:
        map_inputs(block, site, found.maps.get(site.layers[0], ()))
    return found


def _scale(
    checkpoint: Checkpoint, i: int, block: nn.Module, recipe: Recipe, site: Site, found: Coordinates, transform: Any
) -> None:
    """Search a site's channel scale and fold it into what comes before; behind a map it stays at run time."""
    layers = {layer: linear(block, layer).weight for layer in site.layers}
    weights = {checkpoint.architecture.full_name(i, layer): W for layer, W in layers.items()}
    now = found.statistics[site.layers[0]]
    s = transform.fit(list(weights.values()), now, output_error(weights, now, recipe)).to(layers[site.layers[0]])
    if found.maps.get(site.layers[0]):
        _map_site(block, site, found, Scale.stored(s))
        return
    scale_site(block, site, s, s)
    found.statistics[site.layers[0]] = now.scaled(s)
    for layer in site.layers:
        found.undone_by(layer, lambda Q: Q / s)
    if site.kind == "linear":
        found.undone_by(site.source, lambda Q: Q * s[:, None])


def _rotate_values(checkpoint: Checkpoint, block: nn.Module, found: Coordinates, R: torch.Tensor) -> None:
    """Turn what attention mixes, head by head."""
    site = supported(values_site, checkpoint.architecture)
    if found.maps.get(site.layers[0]):
        raise UnsupportedError("values are rotated head by head before their inputs are mapped at run time, not after")
    state = block.state_dict()
    turn_heads(state, site, R)
    block.load_state_dict(state, assign=True)
    first = site.layers[0]
    found.statistics[first] = found.statistics[first].mapped(lambda x: turn_columns(x, R.to(x.dtype)))
    for layer in site.layers:
        found.undone_by(layer, lambda Q: turn_columns(Q, R.T.to(Q.dtype)))
    found.undone_by(site.source, lambda Q: turn_rows(Q, R.T.to(Q.dtype)))


def _map_site(block: nn.Module, site: Site, found: Coordinates, m: Map) -> None:
    """Take a site's weights and statistics into the coordinates that `m` will bring its input to."""
    first = site.layers[0]
    for layer in site.layers:
        module = linear(block, layer)
        module.weight = nn.Parameter(m.to_weights(module.weight).contiguous(), requires_grad=False)
        module.in_features = m.n_out
        found.undone_by(layer, m.from_weights)
    found.statistics[first] = found.statistics[first].mapped(m.forward)
    found.maps[first] = (*found.maps.get(first, ()), m)


def map_inputs(block: nn.Module, site: Site, maps: tuple[Map, ...]) -> None:
    """Have a site's input pass through `maps` from now on: once, where it is made, if a norm makes it."""

    def through(x: torch.Tensor) -> torch.Tensor:
        for m in maps:
            x = m.forward(x)
        return x

    if not maps:
        return
    if site.kind == "norm":
        block.get_submodule(site.source).register_forward_hook(lambda _, __, x: through(x))
    for layer in site.layers if site.kind == "linear" else ():
        linear(block, layer).register_forward_pre_hook(lambda _, x: (through(x[0]), *x[1:]))


def _round_to_stored(checkpoint: Checkpoint, i: int, block: nn.Module, recipe: Recipe) -> None:
    """Give norms, biases and unquantized weights the values that a file holds them in: those are what is evaluated."""
    packed = {f"{layer}.weight" for layer in checkpoint.architecture.layers
              if recipe.target_of(checkpoint.architecture.full_name(i, layer)) is not None}  # fmt: skip
    for key, tensor in block.state_dict().items():
        if key not in packed:
            tensor.copy_(tensor.to(checkpoint.files[checkpoint.architecture.full_name(i, key)].dtype))


def _shares_heads(block: nn.Module) -> bool:
    """Whether several query heads read one value head, so that an output channel's scale is not free."""
    return linear(block, "self_attn.o_proj").in_features != linear(block, "self_attn.v_proj").out_features


def _record(
    name: str,
    found: Quantized,
    weights: tuple[torch.Tensor, torch.Tensor],
    plain: tuple[torch.Tensor, torch.Tensor],
    H: torch.Tensor,
    maps: tuple[Map, ...],
) -> LayerRecord:
    """A layer's record from (W, Q) in the coordinates of `H`, and in the checkpoint's own; `maps` are charged to it."""
    beside = sum(m.n_bits for m in maps)
    nmse, hnmse = squared_error(*plain), relative_errors(*weights, H)[1]
    n_out, n_in = weights[0].shape
    return LayerRecord(
        layer=name, n_out=n_out, n_in=n_in, group_size=found.grid.group_size, n_bits=found.n_bits + beside,
        entropy_bits=found.entropy_bits + beside, coded_bits=found.coded_bits + beside, nmse=nmse, hnmse=hnmse,
        weight_energy=float((plain[0].double() ** 2).sum()), output_energy=quadratic(weights[0], H),
    )  # fmt: skip


def _untransformed(checkpoint: Checkpoint, i: int) -> Callable[[str, torch.Tensor, torch.Tensor], Pair]:
    """What takes a layer's (W, Q) from the coordinates that block `i` was read in to the checkpoint's own."""
    architecture, turn = checkpoint.architecture, checkpoint.turn
    if turn is None:
        return lambda layer, W, Q: (W, Q)
    plain = checkpoint.unturned_block(i)
    gains = {site.source: weight_of(plain, site.source) for site in architecture.sites if site.kind == "norm"}

    def back(layer: str, W: torch.Tensor, Q: torch.Tensor) -> Pair:
        W, Q = linear(plain, layer).weight, turn_back(Q, layer, architecture, turn, i, gains)
        return W, torch.where(Q.isnan(), W.to(Q.dtype), Q)  # what nothing reads has no error

    return back


def quantize_inputs(module: nn.Module, grid: Grid, span: Span) -> None:
    """Have a linear layer's inputs rounded to `grid` from now on; `span` is what a static scale is made for.

    Gradients pass straight through (Bengio, Leonard, Courville 2013, arXiv:1308.3432).
    """

    def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = arguments[0]
        rounded = quantize_activations(x, grid, span)
        return (straight_through(x, rounded) if x.requires_grad else rounded, *arguments[1:])

    module.register_forward_pre_hook(hook)
