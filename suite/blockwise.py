"""Quantize one decoder block: transform, round layer by layer, put the result where the weights were."""

from dataclasses import dataclass

import torch
from torch import nn

from suite.calibration import gather
from suite.models.checkpoint import Checkpoint
from suite.models.outliers import scale_site
from suite.quantize import generator_for, output_error, quantize_activations, quantize_layer, relative_errors
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.statistics import LayerStatistics
from suite.store import LayerRecord


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """The block's quantized layers by name within the block, and a record of each; energies pool its errors."""

    layers: dict[str, Quantized]
    records: list[LayerRecord]
    energies: dict[str, tuple[float, float]]  # layer -> |W|^2, tr(W H W^T)


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
    """Quantize block `i` in place.

    `statistics` are those of the unquantized model, by the first layer of each site. `hidden` (rows, length, hidden)
    are the calibration rows as the quantized model so far hands them to this block, for recipes that ask for them:
    then a site is measured when everything before it is quantized, and None otherwise.
    """
    sites = checkpoint.architecture.sites
    original = {layer: block.get_submodule(layer).weight.clone() for site in sites for layer in site.layers}
    there = dict(statistics)
    into = {layer: torch.ones(W.shape[1], dtype=W.dtype) for layer, W in original.items()}
    out_of = {layer: torch.ones(W.shape[0], dtype=W.dtype) for layer, W in original.items()}
    for transform in recipe.transforms:
        for site in sites:
            if site.kind not in transform.sources or (site.grouped and _shares_heads(block)):
                continue
            weights = {_full(checkpoint, i, layer): block.get_submodule(layer).weight for layer in site.layers}
            now = there[site.layers[0]]
            s = transform.fit(list(weights.values()), now, output_error(weights, now, recipe)).to(now.sample.dtype)
            scale_site(block, site, s, s)
            there[site.layers[0]] = now.scaled(s)
            for layer in site.layers:
                into[layer] *= s
            if site.kind == "linear":
                out_of[site.source] *= s
    done = QuantizedBlock({}, [], {})
    for site in sites:
        local = there[site.layers[0]]
        if hidden is not None:
            local = gather(checkpoint, i, block, hidden, site)
        for layer in site.layers:
            name, module = _full(checkpoint, i, layer), block.get_submodule(layer)
            target = recipe.target_of(name)
            if target is not None:
                found = quantize_layer(module.weight, target, local.gram, generator_for(seed, name))
                module.weight.copy_(found.dequantize())
                Q = module.weight / into[layer] * out_of[layer][:, None]
                H, W = statistics[site.layers[0]].gram, original[layer]
                done.layers[layer] = found
                done.records.append(_record(name, found, relative_errors(W, Q, H)))
                done.energies[layer] = float((W.double() ** 2).sum()), float(((W.double() @ H) * W.double()).sum())
            if recipe.activations is not None:
                _quantize_input(module, recipe, float(there[site.layers[0]].max_abs.max()))
    return done


def _full(checkpoint: Checkpoint, i: int, layer: str) -> str:
    return f"{checkpoint.architecture.blocks}.{i}.{layer}"


def _shares_heads(block: nn.Module) -> bool:
    return int(block.get_submodule("self_attn").num_key_value_groups) > 1


def _record(name: str, found: Quantized, errors: tuple[float, float]) -> LayerRecord:
    n_out, n_in = found.codes.shape
    return LayerRecord(layer=name, n_out=n_out, n_in=n_in, group_size=found.grid.group_size, n_bits=found.n_bits,
                       entropy_bits=found.entropy_bits, nmse=errors[0], hnmse=errors[1])  # fmt: skip


def _quantize_input(module: nn.Module, recipe: Recipe, max_abs: float) -> None:
    assert recipe.activations is not None
    grid = recipe.activations.grid
    module.register_forward_pre_hook(lambda _, x: (quantize_activations(x[0], grid, max_abs), *x[1:]))
