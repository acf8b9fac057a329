"""Levels with a scale for either side of zero: BitDistiller's NF-Asym.

Du, Zhang, Cao, Guo, Cao, Chu, Xu 2024, "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via
Self-Distillation", arXiv:2402.10631, section 3.2. A group's values from 0 up are read as s+ times a level, those below
0 as s- times one, where

    s+ = max / (the largest level),    s- = min / (the lowest level),

so that both ends of a group are met, wherever they lie. No midpoint between two levels crosses zero, so each side is
rounded on its own. Ties go to the even place in the table.

A side without values takes the scale of the other, and a group of zeros has 1 on both, since a scale must be a positive
number; the release divides 0 by 0 in a group that has an end of 0, and gives NaN. Scales are rounded to what they are
stored in before any code is chosen; the release's are not stored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.elements import ELEMENTS, Table, code_type
from suite.grids.layout import ALL, Columns, Group, Layout, check_finite, check_group, check_matrix
from suite.grids.stored import from_bits, stored_type, to_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSided:
    """Levels of a table, those of either side times their own scale.

    `group` consecutive inputs of a row share the two scales, or a whole "row", or the "tensor"; a last group may be
    short. `scale_bits` is what a scale is stored in: float16 or float32.
    """

    element: str = "n2f3"
    group: Group = 128
    scale_bits: Literal[16, 32] = 16

    block = (1, 1)

    def __post_init__(self) -> None:
        check_group(self.group)
        if self.element not in ELEMENTS:
            raise ValueError(f"element {self.element!r}: expected one of {', '.join(ELEMENTS)}")
        if self.scale_bits not in (16, 32):
            raise ValueError(f"scale_bits {self.scale_bits!r}: expected 16 or 32")

    @property
    def bits(self) -> int:
        """The width of a code."""
        return ELEMENTS[self.element].bits

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        element = ELEMENTS[self.element]
        if not isinstance(element, Table):
            return f"two sides take a table of ascending levels, {self.element} is none"
        if not (0.0 in element.levels and element.levels[0] < 0 < element.levels[-1]):
            return f"two sides take levels on both sides of a zero, {self.element} has not"
        return None

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which values of an (out, in) matrix share scales."""
        return Layout.of(shape, self.group, group_of=group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedTwoSided":
        """Bind the grid to `W` (out, in); `importance` is not read.

        Raises `ValueError` for a table without two sides, NaN or infinite values, an empty matrix.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        layout, levels = self.layout((W.shape[0], W.shape[1])), ELEMENTS[self.element].levels
        groups = layout.grouped(W, 0.0)
        low, high = groups.amin(-1), groups.amax(-1)
        scale = torch.stack([(low / levels[0]).clamp(min=0), (high / levels[-1]).clamp(min=0)])
        scale = torch.where(scale == 0, scale.flip(0), scale)
        scale = self.kept(torch.where(scale == 0, 1.0, scale)).to(W.dtype)
        return FittedTwoSided(self, layout, scale.mT.contiguous().mT)  # error feedback reads column after column

    def kept(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they are stored, in the type that they are stored in: no less than its smallest number."""
        kind = stored_type(self.scale_bits)
        limits = torch.finfo(kind)
        return scale.clamp(limits.smallest_normal * limits.eps, limits.max).to(kind)  # from the smallest subnormal

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedTwoSided", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedTwoSided.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        *beside, codes = unpack(payload, [*self.beside_widths(header), (n_out * n_in, self.bits)])
        return self.restore(beside, header), codes.to(code_type(self.bits)).reshape(n_out, n_in)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of group indices and scales."""
        n_out, n_in = header["shape"]
        rows, columns = self.layout((n_out, n_in)).parameters
        group_of = [(n_in, max(1, (columns - 1).bit_length()))] if header.get("grouped") else []
        return [*group_of, (2 * rows * columns, self.scale_bits)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedTwoSided":
        """The fitted grid from the values of `FittedTwoSided.beside`; `ValueError` for scales that are not positive."""
        n_out, n_in = header["shape"]
        layout = self.layout((n_out, n_in), beside[0] if header.get("grouped") else None)
        scale = from_bits(beside[-1], self.scale_bits).reshape(2, *layout.parameters)
        if not bool((scale > 0).all()):
            raise ValueError(f"expected positive scales, found {float(scale.min())}")
        return FittedTwoSided(self, layout, scale)


@dataclass(frozen=True)  # without slots: its table is looked up once
class FittedTwoSided:
    """A `TwoSided` grid bound to a matrix: `scale` (2, R, C), first of what lies below zero."""

    grid: TwoSided
    layout: Layout
    scale: torch.Tensor

    mask_size = 0  # no masks

    @cached_property
    def element(self) -> Table:
        """The levels, ascending."""
        found = ELEMENTS[self.grid.element]
        assert isinstance(found, Table)
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.layout.shape

    @property
    def n_codes(self) -> int:
        """How many different codes there are."""
        return len(self.element.levels)

    @property
    def group_size(self) -> int:
        """How many values really share the two scales."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.grid.group != "tensor" and self.scale.shape[2] > 1

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level, each in units of its side's scale."""
        return self.element.levels[0], self.element.levels[-1]

    def scale_of(self, x: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The scale (out, k) of the side that each of `x` (out, k), the values of `columns`, lies on."""
        low, high = (self.layout.expand(scale, columns) for scale in self.scale)
        return torch.where(x < 0, low, high)

    def _by_side(
        self, x: torch.Tensor, columns: Columns, operate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`x` (out, k) multiplied or divided by the scale of each value's side; exact, as 0 is the other side's part.

        Several times as fast as looking up whose scale it is.
        """
        whole = columns is ALL and self.layout.group_of is None
        if whole:
            x, (low, high) = self.layout.grouped(x, 0.0), self.scale.unsqueeze(-1)
        else:
            low, high = (self.layout.expand(scale, columns) for scale in self.scale)
        found = operate(x.clamp(max=0), low).add_(operate(x.clamp(min=0), high))
        return self.layout.ungrouped(found).contiguous() if whole else found

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) of the levels nearest to `x` (out, k), the values of `columns`.

        `cost` (n_codes,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        if cost is None:
            return self.element.encode(self._by_side(x, columns, torch.div))
        levels = torch.tensor(self.element.levels, dtype=x.dtype)
        low, high = (self.layout.expand(scale, columns)[..., None] for scale in self.scale)
        penalty = (x[..., None] - levels * torch.where(levels < 0, low, high)).square() + cost
        return penalty.argmin(-1).to(code_type(self.grid.bits))

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for: `nearest` and `decode` in one go."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        levels = torch.tensor(self.element.levels, dtype=x.dtype)
        ratio, last = self._by_side(x, columns, torch.div), len(levels) - 1
        above = torch.bucketize(ratio, levels)  # the first level not below
        exact = levels[above.clamp(max=last)] == ratio
        low = torch.where(exact, above, above - 1).clamp(0, last)
        kind = code_type(self.grid.bits)
        return low.to(kind), above.clamp(max=last).to(kind)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scales' type."""
        levels = torch.tensor(self.element.levels, dtype=self.scale.dtype)
        values = levels.index_select(0, codes.reshape(-1).to(torch.int32)).reshape(codes.shape)
        return self._by_side(values, columns, torch.mul)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the scales as they are stored, in float32."""
        return replace(self, scale=self.grid.kept(self.scale.detach()).float()).decode(codes)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The scales of both sides, (2, R, C)."""
        return {"scale": self.scale}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedTwoSided":
        """The same with these scales; where they are not positive, what is stored is the smallest that is."""
        return replace(self, scale=values["scale"])

    def in_order(self, perm: torch.Tensor) -> "FittedTwoSided":
        """The grid with groups made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedTwoSided":
        """The grid with `group`'s scales fitted anew to `x` (out, k), the values its `columns` have now."""
        if not self.regroups:
            raise ValueError(f"the scales of {self.grid} are not fitted one by one")
        scale = self.scale.clone()
        scale[:, :, group] = replace(self.grid, group="row").fit(x).scale[:, :, 0]
        return replace(self, scale=scale)

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, scales and group indices."""
        return math.prod(self.shape) * self.grid.bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of scales and group indices."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Group indices, scales."""
        group_of, width = self.layout.group_of, self.grid.scale_bits
        indices = [] if group_of is None else [(group_of, max(1, (self.scale.shape[2] - 1).bit_length()))]
        return [*indices, (to_bits(self.grid.kept(self.scale).reshape(-1), width), width)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in)."""
        return streams[0].to(code_type(self.grid.bits)).reshape(self.shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Group indices and scales, then the codes, row after row."""
        return pack([*self.beside(), (codes, self.grid.bits)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their groups."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.layout.group_of is not None else {})
