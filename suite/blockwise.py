"""Quantize one decoder block: transform, round layer by layer, put the result where the weights were."""

from dataclasses import dataclass, field

import torch
from torch import nn

from suite.calibration import gather
from suite.grids.grid import Grid
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.models.outliers import scale_site
from suite.quantize import generator_for, output_error, quantize_activations, quantize_layer, relative_errors
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.statistics import LayerStatistics, quadratic
from suite.store import LayerRecord


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """The block's quantized layers by full name, and a record of each.

    `ranges` are the largest inputs, in size, of layers whose static activation scales are made for them.
    """

    layers: dict[str, Quantized] = field(default_factory=dict)
    records: list[LayerRecord] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """How a block's weights differ from the checkpoint's: W' = W * into / out_of, by layer; and what inputs became."""

    into: dict[str, torch.Tensor]
    out_of: dict[str, torch.Tensor]
    statistics: dict[str, LayerStatistics]  # by the first layer of each site

    def back(self, layer: str, Q: torch.Tensor) -> torch.Tensor:
        """A layer's quantized weights (out, in) in the checkpoint's coordinates."""
        return Q / self.into[layer] * self.out_of[layer][:, None]


@torch.no_grad()
def quantize_block(
    checkpoint: Checkpoint,
    i: int,
    block: nn.Module,
    recipe: Recipe,
    statistics: dict[str, LayerStatistics],
    seed: int,
    hidden: torch.Tensor | None,
) -> QuantizedBlock:
    """Quantize block `i` in place. What transforms leave unquantized is rounded to the type it is stored in.

    `statistics` are those of the unquantized model, by the first layer of each site. `hidden` (rows, length, hidden)
    are the calibration rows as the quantized model so far hands them to this block, for recipes that ask for them:
    then a site is measured when everything before it is quantized; None otherwise.
    """
    architecture, done = checkpoint.architecture, QuantizedBlock()
    original = {layer: linear(block, layer).weight.clone() for layer in architecture.layers}
    coordinates = _transform(checkpoint, i, block, recipe, statistics)
    _round_to_stored(checkpoint, i, block, recipe)
    for site in architecture.sites:
        there = coordinates.statistics[site.layers[0]]
        gram = there.gram if hidden is None else gather(checkpoint, i, block, hidden, site).gram
        for layer in site.layers:
            name, module = architecture.full_name(i, layer), linear(block, layer)
            target = recipe.target_of(name)
            if target is not None:
                found = quantize_layer(module.weight, target, gram, generator_for(seed, name), recipe.coding)
                module.weight.copy_(found.dequantize())
                done.layers[name] = found
                Q, H = coordinates.back(layer, module.weight), statistics[site.layers[0]].gram
                done.records.append(_record(name, found, original[layer], Q, H))
            if recipe.activations is not None:
                max_abs = float(there.max_abs.max())
                quantize_inputs(module, recipe.activations.grid, max_abs)
                if has_static_scale(recipe.activations.grid):
                    done.ranges[name] = max_abs
    return done


def _transform(
    checkpoint: Checkpoint, i: int, block: nn.Module, recipe: Recipe, statistics: dict[str, LayerStatistics]
) -> _Coordinates:
    """Apply the recipe's transforms to the block, in place and in order."""
    layers = {layer: linear(block, layer).weight for layer in checkpoint.architecture.layers}
    into = {layer: torch.ones_like(W[0]) for layer, W in layers.items()}
    out_of = {layer: torch.ones_like(W[:, 0]) for layer, W in layers.items()}
    found = _Coordinates(into, out_of, dict(statistics))
    for transform in recipe.transforms:
        for site in checkpoint.architecture.sites:
            if site.kind not in transform.sources or (site.grouped and _shares_heads(block)):
                continue
            weights = {checkpoint.architecture.full_name(i, layer): layers[layer] for layer in site.layers}
            now = found.statistics[site.layers[0]]
            s = transform.fit(list(weights.values()), now, output_error(weights, now, recipe)).to(into[site.layers[0]])
            scale_site(block, site, s, s)
            found.statistics[site.layers[0]] = now.scaled(s)
            for layer in site.layers:
                into[layer] *= s
            if site.kind == "linear":
                out_of[site.source] *= s
    return found


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


def _record(name: str, found: Quantized, W: torch.Tensor, Q: torch.Tensor, H: torch.Tensor) -> LayerRecord:
    nmse, hnmse = relative_errors(W, Q, H)
    return LayerRecord(
        layer=name, n_out=W.shape[0], n_in=W.shape[1], group_size=found.grid.group_size, n_bits=found.n_bits,
        entropy_bits=found.entropy_bits, coded_bits=found.coded_bits, nmse=nmse, hnmse=hnmse,
        weight_energy=float((W.double() ** 2).sum()), output_energy=quadratic(W, H),
    )  # fmt: skip


def has_static_scale(grid: Grid) -> bool:
    """Whether inputs on this grid share one scale made beforehand, for which their range must be known."""
    return getattr(grid, "group", None) == "tensor"


def quantize_inputs(module: nn.Module, grid: Grid, max_abs: float) -> None:
    """Have a linear layer's inputs rounded to `grid` from now on; `max_abs` is what a static scale is made for."""
    module.register_forward_pre_hook(lambda _, x: (quantize_activations(x[0], grid, max_abs), *x[1:]))
