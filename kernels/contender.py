"""What is timed beside others of one shape: calls on copies of the same data, and what their result should be."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from kernels.check import excess_of
from kernels.results import Kind

ROTATED_BYTES = 180_000_000  # of data in turns at least: 3 times the 60 MB of an H200's cache
PRODUCT = "product"  # the operation of kernels whose sizes are those of products
MOST_COPIES = 512  # of less than 1 MB launches decide, and not where it lies
ROTATED = 8  # times the cache: a random replacement hits h = exp((h - 1) n) at n times, 6% at 3, 0.03% at 8


class Absent(Exception):
    """What cannot be measured here, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`calls` do the same with one copy of the data each, one after another; a result is a tensor or several.

    `reference` is the result of each in float64, integers and bit patterns as they are, and `tolerance` as in `Kernel`;
    `excess(result, reference, tolerance)` gives the largest error in units of what is allowed.
    """

    name: str
    kind: Kind
    dtype: str
    calls: tuple[Callable[[], Any], ...]
    bytes_moved: int
    reference: Any
    bytes_written: int = 0  # of them
    tolerance: float = 0.0
    excess: Callable[[Any, Any, float], float] = excess_of
    launch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """What is timed beside kernels: `build(size, seed, device, rotated_bytes)` gives the contender.

    `beside` names kernels or operations; none are all. `build` raises `Absent` for what is not installed and for sizes
    that it does not take.
    """

    name: str
    build: Callable[[Any, int, str, int], Contender]
    beside: tuple[str, ...] = ()
    slow: bool = False  # tunes or compiles for many seconds at each shape: at shapes of targets only

    def stands_beside(self, names: Iterable[str]) -> bool:
        """Whether it is one for kernels or operations of these names."""
        return not self.beside or not set(self.beside).isdisjoint(names)


def rotated_bytes(cache_bytes: int) -> int:
    """How many bytes of data are called in turns, so that a cache of `cache_bytes` holds none from turn to turn."""
    return max(ROTATED_BYTES, ROTATED * cache_bytes)


def n_copies(nbytes: int, rotated: int) -> int:
    """How many copies of `nbytes` of data make `rotated` bytes or more, `MOST_COPIES` at most."""
    return min(MOST_COPIES, max(1, -(-rotated // max(1, nbytes))))


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
