"""A decoder block tuned against the unquantized one: what of it may move, and its weights as they follow from that.

The loop is `suite.adaptation.block_tuning`'s. Here values become weights, differentiably and as stored, and rows pass
through the block with all that happens to them at run time: maps, quantized activations and caches (gradients go
straight through what is rounded). Some rows at a time are in a graph, and one set of gradients of the block's weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call

from suite.adaptation.block_tuning import BlockTuning, Descent, Values, descend
from suite.models.architecture import linear, weight_of
from suite.models.checkpoint import Checkpoint
from suite.outside import supported
from suite.quantized import Quantized


@dataclass(frozen=True, slots=True)
class Rows:
    """Hidden states (rows, length, hidden) that enter a block, and those that should leave it."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def row_energy(self) -> float:
        """The sum of squares of a target row, in the mean over rows."""
        return sum(float(row.double().square().sum()) for row in self.targets) / len(self.targets)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Block `i` with its quantized `layers` so far; `loose` ones are still to be rounded. Both by name in the block."""

    checkpoint: Checkpoint
    i: int
    block: nn.Module
    how: BlockTuning
    layers: Mapping[str, Quantized]
    loose: tuple[str, ...] = ()

    def run(self, rows: Rows, generator: torch.Generator) -> tuple[dict[str, Quantized], Descent | None]:
        """Tune the block in place; its quantized layers as they are then, and how the error fell.

        Gains are left as they are stored. Where nothing may move there is no descent; layers of which nothing may say
        so among their fallbacks. Raises `UnsupportedError` for fewer than two rows.
        """
        start = self._start()
        layers = {name: _noted(q, self._still(name, start)) for name, q in self.layers.items()}
        if not start:
            return layers, None
        train, held = supported(self.how.split, len(rows.inputs), generator)
        energy = rows.row_energy
        found = descend(start, lambda values, batch: self._gradient(values, rows, batch, energy),
                        lambda values: self._error(values, rows, held, energy), train, self.how, generator)  # fmt: skip
        if found.best:
            tuned, weights = self._stored(found.values)
            layers |= {name: replace(q, fallbacks=layers[name].fallbacks) for name, q in tuned.items()}
            for key, W in weights.items():
                self.block.get_parameter(key).copy_(W)
        if layers and not all(map(math.isfinite, found.errors)):
            last = next(reversed(layers))
            layers[last] = _noted(layers[last], f"block tuning diverged in epoch {len(found.errors) - 1}")
        return layers, found

    def _start(self) -> Values:
        """Everything that may move."""
        found = {(name, own): x for name, q in self.layers.items() for own, x in q.tunable().items()}
        norms = (site.source for site in self.checkpoint.architecture.sites if site.kind == "norm")
        found |= {(norm, "gain"): weight_of(self.block, norm) for norm in norms}
        found |= {(layer, "weight"): linear(self.block, layer).weight for layer in self.loose}
        return {name: x.detach() for name, x in found.items() if self.how.rate_of(name[1])}

    def _still(self, layer: str, start: Values) -> str | None:
        if _of(start, layer):
            return None
        return f"block tuning moves nothing of {type(self.layers[layer].grid.grid).__name__}"

    def _weights(self, values: Values) -> dict[str, torch.Tensor]:
        """Weights of the block by key, differentiable in the values that they depend on."""
        found = {f"{module}.weight": x for (module, own), x in values.items() if own in ("gain", "weight")}
        for layer, q in self.layers.items():
            if moved := _of(values, layer):
                found[f"{layer}.weight"] = q.tuned(moved).decode().to(self.checkpoint.dtype)
        return found

    def _stored(self, values: Values) -> tuple[dict[str, Quantized], dict[str, torch.Tensor]]:
        """Quantized layers, and weights by key, as they are stored; loose weights as they are."""
        tuned = {layer: q.tuned(moved).as_stored() for layer, q in self.layers.items() if (moved := _of(values, layer))}
        weights = {f"{layer}.weight": q.dequantize().to(self.checkpoint.dtype) for layer, q in tuned.items()}
        for (module, own), x in values.items():
            if own == "gain":
                key = f"{self.checkpoint.architecture.full_name(self.i, module)}.weight"
                weights[f"{module}.weight"] = x.to(self.checkpoint.files[key].dtype).to(x.dtype)
            elif own == "weight":
                weights[f"{module}.weight"] = x
        return tuned, weights

    def _gradient(self, values: Values, rows: Rows, batch: torch.Tensor, energy: float) -> Values:
        """Of the relative error on a batch: in the weights, a few rows at a time, and then once in what makes them."""
        leaves = {name: x.detach().requires_grad_(True) for name, x in values.items()}
        with torch.enable_grad():
            weights = self._weights(leaves)
        at = {key: W.detach().requires_grad_(True) for key, W in weights.items()}
        total = [torch.zeros_like(W) for W in at.values()]
        for x, y in self._parts(rows, batch):
            with torch.enable_grad():
                error = (self._through(at, x) - y).square().sum() / (energy * len(batch))
            for into, part in zip(total, torch.autograd.grad(error, list(at.values())), strict=True):
                into += part
        found = torch.autograd.grad(list(weights.values()), list(leaves.values()), grad_outputs=total)
        return dict(zip(leaves, found, strict=True))

    @torch.no_grad()
    def _error(self, values: Values, rows: Rows, held: torch.Tensor, energy: float) -> float:
        """The relative error on held-out rows with everything as it is stored."""
        _, weights = self._stored(values)
        squares = 0.0
        for x, y in self._parts(rows, held):
            squares += float((self._through(weights, x) - y).double().square().sum())
        return squares / (energy * len(held))

    def _through(self, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(self.block, weights, (x,), self.checkpoint.arguments(self.i, x))
        return out

    def _parts(self, rows: Rows, chosen: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets of some rows, a bounded number of tokens at a time."""
        parts = (self.checkpoint.row_parts(hidden[chosen]) for hidden in (rows.inputs, rows.targets))
        return list(zip(*parts, strict=True))


def _of(values: Values, layer: str) -> dict[str, torch.Tensor]:
    """What of a quantized layer moves, by name."""
    return {own: x for (module, own), x in values.items() if module == layer and own not in ("gain", "weight")}


def _noted(q: Quantized, what: str | None) -> Quantized:
    """The same with one more fallback, once."""
    return q if what is None or what in q.fallbacks else replace(q, fallbacks=(*q.fallbacks, what))
