"""What is timed beside others of one shape: calls on copies of the same weights, and what their result should be."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from kernels.results import Kind, Shape

ROTATED_BYTES = 180_000_000  # of weights in turns at least: 3 times the 60 MB of an H200's cache
ROTATED = 8  # times the cache: a random replacement hits h = exp((h - 1) n) at n times, 6% at 3, 0.03% at 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`calls` do the same with one copy of the weights each, one after another.

    `reference` is the result of each in float64, `tolerance` is as in `Kernel`.
    """

    name: str
    kind: Kind
    shape: Shape
    dtype: str
    calls: tuple[Callable[[], torch.Tensor], ...]
    bytes_moved: int
    reference: torch.Tensor
    tolerance: float = 0.0
    launch: str = ""


def rotated_bytes(cache_bytes: int) -> int:
    """How many bytes of weights are called in turns, so that a cache of `cache_bytes` holds none from turn to turn."""
    return max(ROTATED_BYTES, ROTATED * cache_bytes)


def n_copies(nbytes: int, rotated: int) -> int:
    """How many copies of `nbytes` of weights make `rotated` bytes or more."""
    return max(1, -(-rotated // max(1, nbytes)))


def copied(value: Any) -> Any:
    """A value whose tensors are others with the same content: tensors and frozen dataclasses of them."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: copied(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def n_bytes(value: Any) -> int:
    """Bytes of the tensors in a value."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if is_dataclass(value) and not isinstance(value, type):
        return sum(n_bytes(getattr(value, f.name)) for f in fields(value))
    return 0
