"""What every product is given and gives: a matrix to be multiplied by, and one that is ready for it."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from suite.grids.grid import Fitted
from suite.runtime.affine import Affine, affine

P = TypeVar("P")


class Unfit(ValueError):
    """A product that cannot compute this matrix; the text says why."""


class Prepared(Protocol):
    """Weights (out, in) as a product reads them."""

    @property
    def n_bytes(self) -> int:
        """The bytes of all tensors that are held."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, in) times the transposed weights, (rows, out), of the type of `x`."""

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The operation that does the work, ready to be called: what everything around it is measured against."""


@dataclass(frozen=True, slots=True)
class ByRows:
    """What multiplies a layer's inputs: `products[i]` from `since[i]` rows of them on, from 1, ascending."""

    products: tuple[Prepared, ...]
    since: tuple[int, ...] = (1,)

    def at(self, rows: int) -> Prepared:
        """The product for so many rows."""
        return self.products[bisect_right(self.since, rows) - 1]

    def __str__(self) -> str:
        names = [type(product).__name__ for product in self.products]
        later = (f", {name} from {n} rows on" for name, n in zip(names[1:], self.since[1:], strict=True))
        return names[0] + "".join(later)


@dataclass(frozen=True)  # without slots: what is found out once is kept
class Core:
    """`codes` on the grid `fitted`, with parameters as they come back from bytes."""

    codes: torch.Tensor
    fitted: Fitted
    _laid_out: dict[type, Any] = field(default_factory=dict, repr=False, compare=False)

    def laid_out(self, kind: type[P], make: Callable[[], P]) -> P:
        """What `make` lays out, made once, so that products which read the same words hold them once."""
        if kind not in self._laid_out:
            self._laid_out[kind] = make()
        return self._laid_out[kind]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.fitted.shape

    @cached_property
    def affine(self) -> Affine:
        """The matrix as integers; `Unfit` where it is none."""
        found = affine(self.codes, self.fitted)
        if found is None:
            raise Unfit("its levels are not evenly spaced, or do not share a spacing along 32 inputs")
        return found

    def dequantized(self) -> torch.Tensor:
        """The weights (out, in), float32."""
        return self.fitted.decode32(self.codes)


def zero_of(found: Affine) -> torch.Tensor:
    """The code, not always an integer, that stands for zero; `Unfit` where a whole group is one other number."""
    if bool(((found.scale == 0) & (found.base != 0)).any()):
        raise Unfit("a group's levels are all the same, and not zero")
    return torch.where(found.scale == 0, 0.0, -found.base / found.scale)
