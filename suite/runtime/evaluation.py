"""Evaluating by the runtime: decoder blocks with packed layers, run on whole rows.

Figures then carry what products round. On a GPU a recipe may round weights alone: how activations and caches are
rounded has been proven on CPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from suite.models.checkpoint import Checkpoint
from suite.outside import UnsupportedError
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.runtime.choice import AUTO, Chooser
from suite.runtime.linear import through_products
from suite.runtime.model import CPU, device_named
from suite.runtime.products import product_named


def check_runtime(product: str | None, device: str) -> None:
    """Raise `ValueError` for a product that there is not, or not there, and for a device that is missing.

    What is fastest differs from run to run, and a record is to be had again: a product is named.
    """
    found = device_named(device)
    if product is None:
        return
    if product == AUTO:
        raise ValueError("product auto: a record needs the product's name, so that it can be had again")
    place = product_named(product).device
    if place not in ("any", found.type):
        raise ValueError(f"product {product}: computes on {place}, the device is {device}")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """How blocks are evaluated: by a chooser's products, or as they are."""

    prefix: str
    chooser: Chooser | None

    @classmethod
    def of(cls, product: str | None, device: str, checkpoint: Checkpoint, recipe: Recipe) -> "Evaluated":
        """By `product` on `device`, or as they are without one; `UnsupportedError` for what cannot be had there."""
        prefix = checkpoint.architecture.blocks
        if product is None:
            return cls(prefix, None)
        if device != "cpu" and (recipe.activations is not None or recipe.cache is not None):
            raise UnsupportedError(f"activations and caches are rounded on the CPU alone, the device is {device}")
        return cls(prefix, Chooser(product, dtype=checkpoint.dtype, device=torch.device(device)))

    def through(self, i: int, block: nn.Module, layers: Mapping[str, Quantized]) -> nn.Module:
        """Block `i` with its quantized `layers`, by full name, packed, in place; or as it is."""
        if self.chooser is not None:
            through_products(block, layers, self.chooser.prepare, self.device, f"{self.prefix}.{i}.")
            block.to(self.device)
        return block

    @property
    def device(self) -> torch.device:
        """Where blocks are run."""
        return CPU if self.chooser is None else self.chooser.device

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers that the product does not compute, one for each grid and shape."""
        return () if self.chooser is None else tuple(self.chooser.unfit.values())


@torch.no_grad()
def run_on(
    device: torch.device, checkpoint: Checkpoint, i: int, block: nn.Module, hidden: torch.Tensor
) -> torch.Tensor:
    """`Checkpoint.run` for a block that is on `device`; hidden states come and go on the CPU."""
    if device.type == "cpu":
        return checkpoint.run(i, block, hidden)
    arguments = _moved(checkpoint.arguments(i, hidden), device)
    return torch.cat([block(part.to(device), **arguments).cpu() for part in checkpoint.row_parts(hidden)])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return {key: _moved(part, device) for key, part in value.items()} if isinstance(value, dict) else value
