"""Bounds on the error of a rounded layer, from whoever proves them: the entry points `bitfrontier.bounds`.

An entry point names a function that takes a `RoundedLayer` and returns a number that tr (W - Q) H (W - Q)^T cannot
exceed, or None where it has nothing to say. The suite knows no theorem; it puts the least bound beside the error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

import torch

from suite.environment import BOUNDS
from suite.quantized import Quantized
from suite.recipe import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedLayer:
    """A layer as it was rounded: `W` (out, in), what became of it, and as which target.

    `gram` (in, in) is what it was rounded under, `H` (in, in) what its error is measured in; they are one tensor where
    they are the same.
    """

    W: torch.Tensor
    quantized: Quantized
    target: Target
    gram: torch.Tensor
    H: torch.Tensor


Bound = Callable[[RoundedLayer], float | None]


def bound_of(layer: RoundedLayer) -> float | None:
    """The least bound on a layer's error; None where nothing installed has one."""
    found = [value for bound in _contributed() if (value := bound(layer)) is not None]
    return min(found, default=None)


@cache
def _contributed() -> tuple[Bound, ...]:
    return tuple(entry.load() for entry in sorted(entry_points(group=BOUNDS), key=lambda e: e.name))
