"""Elements times a scale per group: floating-point formats, MX, NVFP4, NF4, ternary and binary, tables of any size.

value = level[code] * scale[group]. What a format is made of is said by three fields: which levels (`element`), who
shares a scale (`group`, `axis`), and how the scale follows from the group and is stored (`scale`). MXFP4 is then
`Scaled(element="e2m1", group=32, scale=PowerOfTwo(), pad=True)`, and a format that nobody ships yet is a new line.

Ties go to the even code (see `suite.grids.elements`). Blocks of zeros decode to zeros wherever the element has a zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.elements import ELEMENTS, Element, Table, code_type
from suite.grids.layout import ALL, Axis, Columns, Group, Groups, Layout, check_group, check_matrix, in_chunks
from suite.grids.least_squares import LeastSquares
from suite.grids.lloyd_max import GaussianTable, KMeansTable
from suite.grids.nested import DoubleQuantized, TwoLevel
from suite.grids.scales import PowerOfTwo, RealScale, Stored, Unscaled
from suite.grids.stored import from_bits, to_bits

Scale = RealScale | LeastSquares | PowerOfTwo | TwoLevel | DoubleQuantized | Unscaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Elements of one format, each group times its scale.

    `element` is a format's name or a table. Groups are as in `Integer`, or with `axis="flat"` runs of the flattened
    matrix. `pad` says that the format knows whole groups only: short ones are filled up with zeros, which are stored.
    `first` says which half of a byte the first of two 4-bit codes takes.
    """

    element: str | GaussianTable | KMeansTable
    group: Group = 128
    scale: Scale = field(default_factory=RealScale)
    axis: Axis = 1
    pad: bool = False
    first: Literal["low", "high"] = "low"

    block = (1, 1)

    def __post_init__(self) -> None:
        check_group(self.group)
        if isinstance(self.element, str) and self.element not in ELEMENTS:
            raise ValueError(f"element {self.element!r}: expected one of {', '.join(ELEMENTS)}")

    @property
    def bits(self) -> int:
        """The width of a code."""
        return ELEMENTS[self.element].bits if isinstance(self.element, str) else self.element.bits

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.pad and not (isinstance(self.group, int) and self.axis == 1):
            return "only groups of a fixed size along the inputs are padded"
        if self.first == "high" and self.bits != 4:
            return f"only 4-bit codes are stored two to a byte, the element has {self.bits}"
        if isinstance(self.element, KMeansTable) and not isinstance(self.scale, RealScale | Unscaled):
            return "a fitted table takes a real scale or none"
        return None

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which values of an (out, in) matrix share a scale."""
        if self.pad and isinstance(self.group, int):
            return Layout(shape, shape[0], self.group, group_of=group_of)
        return Layout.of(shape, self.group, self.axis, group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedScaled":
        """Bind the grid to `W` (out, in), float32 or float64. `importance` is H, which a weighted k-means reads.

        Raises `ValueError` for an unsupported combination, NaN or infinite values, an empty matrix.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        layout = self.layout((W.shape[0], W.shape[1]))
        groups = Groups.of(W, layout)
        element = self._element(W, groups, layout, importance)
        if self.scale.clip is None:
            return self._bind(layout, element, self.scale.fit(groups, element))
        return self._search(W, groups, layout, element)

    def fit_under(self, x: torch.Tensor, most: float) -> "FittedScaled":
        """Bind the grid to `x` (out, in), with what all of it shares made for magnitudes up to `most` (static scales).

        That is the scale of `group="tensor"` and the g of `TwoLevel`. Raises `ValueError` for NaN or infinite values.
        """
        assert not isinstance(self.element, KMeansTable)
        element, layout, top = self._constant(self.element), self.layout((x.shape[0], x.shape[1])), x.new_tensor(most)
        groups = Groups.of(x, layout)
        if self.group == "tensor":
            groups = replace(groups, largest=top.reshape(1, 1))
        rule = self.scale
        stored = rule.fit_under(groups, element, top) if isinstance(rule, TwoLevel) else rule.fit(groups, element)
        return self._bind(layout, element, stored)

    def _element(self, W: torch.Tensor, groups: Groups, layout: Layout, H: torch.Tensor | None) -> Element:
        if not isinstance(self.element, KMeansTable):
            return self._constant(self.element)
        if self.element.weighted and H is None:
            raise ValueError("a weighted table needs the Gram matrix H")
        scale = layout.expand(self.scale.scale(self.scale.fit(groups, ELEMENTS["binary"])))
        weight = scale.square().expand_as(W)
        if self.element.weighted and H is not None:
            weight = weight * H.diagonal().to(W.dtype)
        return self.element.fit(W / scale, weight)

    @staticmethod
    def _constant(element: str | GaussianTable) -> Element:
        """An element that is the same for every matrix."""
        return ELEMENTS[element] if isinstance(element, str) else _gaussian(element)

    def _bind(self, layout: Layout, element: Element, stored: Stored) -> "FittedScaled":
        scale, inverse = self.scale.scale(stored), self.scale.inverse(stored)
        columns_first = scale.T.contiguous().T, inverse.T.contiguous().T  # error feedback reads column after column
        return FittedScaled(self, layout, element, stored, *columns_first)

    def _search(self, W: torch.Tensor, groups: Groups, layout: Layout, element: Element) -> "FittedScaled":
        """For every group the shrunk statistic with the least sum |x - q|^norm; the first of equal ones."""
        clip = self.scale.clip
        assert clip is not None
        best, least = None, torch.full(layout.parameters, math.inf, dtype=W.dtype)
        for i in range(max(1, int(clip.most * clip.steps))):
            fitted = self._bind(layout, element, self.scale.fit(groups, element, 1 - i / clip.steps))
            E = W - fitted.decode(fitted.nearest(W))
            objective = layout.grouped(E.abs_().pow_(clip.norm), 0.0).sum(-1)
            best = fitted if best is None else best._where(objective < least, fitted)
            least = torch.minimum(least, objective)
        assert best is not None
        return best

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedScaled", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedScaled.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        layout = self.layout((n_out, n_in))
        rows, columns = layout.parameters
        n_codes = rows * columns * layout.width if self.pad else n_out * n_in
        *beside, codes = unpack(payload, [*self.beside_widths(header), (n_codes + self._odd(n_codes), self.bits)])
        codes = self._halves(codes)[:n_codes].to(code_type(self.bits))
        codes = layout.ungrouped(codes.reshape(rows, columns, -1)) if self.pad else codes.reshape(n_out, n_in)
        return self.restore(beside, header), codes.contiguous()

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of group indices, fitted table and scales."""
        n_out, n_in = header["shape"]
        rows, columns = self.layout((n_out, n_in)).parameters
        group_of = [(n_in, max(1, (columns - 1).bit_length()))] if header.get("grouped") else []
        table = [(2**self.bits, 16)] if isinstance(self.element, KMeansTable) else []
        return [*group_of, *table, *self.scale.widths(rows, columns).values()]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedScaled":
        """The fitted grid from the values of `FittedScaled.beside`."""
        n_out, n_in = header["shape"]
        layout, left = self.layout((n_out, n_in)), list(beside)
        rows, columns = layout.parameters
        if header.get("grouped"):
            layout = replace(layout, group_of=left.pop(0))
        if isinstance(self.element, KMeansTable):
            levels = from_bits(left.pop(0), 16).double()
            element: Element = Table("k-means", self.bits, tuple(levels.tolist()))
        else:
            element = self._constant(self.element)
        return self._bind(layout, element, self.scale.restore(left, rows, columns))

    def _odd(self, n_codes: int) -> int:
        return n_codes % 2 if self.first == "high" else 0

    def _halves(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes with the two of each byte exchanged where the first one takes the high half."""
        return codes.reshape(-1, 2).flip(1).reshape(-1) if self.first == "high" else codes


@lru_cache(maxsize=32)
def _gaussian(table: GaussianTable) -> Table:
    return table.table()


@dataclass(frozen=True, slots=True)
class FittedScaled:
    """A `Scaled` grid bound to a matrix: the parameters as stored, and the factors (R, C) that follow from them."""

    grid: Scaled
    layout: Layout
    element: Element
    stored: Stored
    scale: torch.Tensor
    inverse: torch.Tensor

    mask_size = 0  # no masks

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
        """How many values really share a scale."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.grid.axis == 1 and self.grid.scale.separate and self.scale.shape[1] > 1

    def _levels(self, dtype: torch.dtype) -> torch.Tensor:
        return levels_of(self.element, dtype)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) of the levels nearest to `x` (out, k), the values of `columns`.

        `cost` (n_codes,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        if cost is not None:
            values = self._levels(x.dtype) * self.layout.expand(self.scale, columns)[..., None]
            levels = self._levels(x.dtype)
            never = ~torch.isfinite(levels) | (levels < self.element.lowest)
            penalty = (x[..., None] - values).square() + cost
            return penalty.masked_fill(never, math.inf).argmin(-1).to(code_type(self.element.bits))
        if columns is not ALL or self.layout.group_of is not None:
            return self.element.encode(x * self.layout.expand(self.inverse, columns))
        groups = self.layout.grouped(x, 0.0)
        flat = groups.reshape(-1, groups.shape[-1])
        factors = self.inverse.reshape(-1, 1)
        codes = torch.empty(flat.shape, dtype=code_type(self.element.bits))
        start = 0
        for part in in_chunks(flat):
            stop = start + len(part)
            codes[start:stop] = self.element.encode(part * factors[start:stop])
            start = stop
        return self.layout.ungrouped(codes.reshape(groups.shape)).contiguous()

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for: `nearest` and `decode` in one go."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """The values nearest to `x` (out, in) alone: what `snap` gives second, but for the sign of 0."""
        return self.element.round(x * self.layout.expand(self.inverse)).mul_(self.layout.expand(self.scale))

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level that is ever chosen."""
        return self.element.lowest, max(level for level in self.element.levels if math.isfinite(level))

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        levels, codes = _ascending(self.element, x.dtype)
        scale = self.layout.expand(self.scale, columns)
        ratio = x * self.layout.expand(self.inverse, columns)
        above = torch.bucketize(ratio, levels)  # the first level not below
        exact = levels[above.clamp(max=len(levels) - 1)] == ratio
        low = torch.where(exact, above, above - 1).clamp(0, len(levels) - 1)
        high = torch.where(exact, above, torch.where(above == 0, 0, above)).clamp(0, len(levels) - 1)
        turned = scale < 0
        return codes[torch.where(turned, high, low)], codes[torch.where(turned, low, high)]

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scale's type."""
        levels = self._levels(self.scale.dtype)
        values = torch.index_select(levels, 0, codes.reshape(-1).to(torch.int32)).reshape(codes.shape)
        return values.mul_(self.layout.expand(self.scale, columns))

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the parameters as they are stored, in float32."""
        return self._as_stored().decode(codes)

    def _as_stored(self) -> "FittedScaled":
        rule = self.grid.scale
        whole = [values.to(torch.int64).reshape(-1) for values in rule.integers(self.stored)]
        return self.grid._bind(self.layout, self.element, rule.restore(whole, *self.layout.parameters))

    def tunable(self) -> dict[str, torch.Tensor]:
        """Scales (R, C), where they are real numbers, one for each group."""
        return {"scale": self.stored["scale"]} if isinstance(self.grid.scale, RealScale | LeastSquares) else {}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedScaled":
        """The same with these scales."""
        return self.grid._bind(self.layout, self.element, {**self.stored, **values})

    def in_order(self, perm: torch.Tensor) -> "FittedScaled":
        """The grid with groups made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedScaled":
        """The grid with `group`'s scales fitted anew to `x` (out, k), the values its `columns` have now."""
        if not self.regroups:
            raise ValueError(f"the scales of {self.grid} are not fitted one by one")
        rule = self.grid.scale
        alone = replace(self.grid, group="row", pad=False)
        layout = alone.layout((x.shape[0], x.shape[1]))
        groups = Groups.of(x, layout)
        fresh = (alone._bind(layout, self.element, rule.fit(groups, self.element)) if rule.clip is None
                 else alone._search(x, groups, layout, self.element))  # fmt: skip
        stored = {name: values.clone() for name, values in self.stored.items()}
        for name, values in stored.items():
            if values.shape == self.scale.shape:  # others, the matrix has one of
                values[:, group] = fresh.stored[name][:, 0]
        scale, inverse = self.scale.clone(), self.inverse.clone()
        scale[:, group], inverse[:, group] = fresh.scale[:, 0], fresh.inverse[:, 0]
        return replace(self, stored=stored, scale=scale, inverse=inverse)

    def _where(self, better: torch.Tensor, other: "FittedScaled") -> "FittedScaled":
        stored = {name: torch.where(better, other.stored[name], mine) for name, mine in self.stored.items()}
        return self.grid._bind(self.layout, self.element, stored)

    @property
    def _table(self) -> Table | None:
        return self.element if isinstance(self.grid.element, KMeansTable) and isinstance(self.element, Table) else None

    @property
    def _code_bits(self) -> int:
        """What the codes take, padding and a last half byte included."""
        rows, columns = self.layout.parameters
        n_codes = rows * columns * self.layout.width if self.grid.pad else math.prod(self.shape)
        return (n_codes + self.grid._odd(n_codes)) * self.grid.bits

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, padding, scales, fitted table and group indices."""
        return self._code_bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of scales, fitted table and group indices."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Group indices, fitted table, scales."""
        rows, columns = self.layout.parameters
        streams = []
        if self.layout.group_of is not None:
            streams.append((self.layout.group_of, max(1, (columns - 1).bit_length())))
        if self._table:
            streams.append((to_bits(torch.tensor(self._table.levels, dtype=torch.float64), 16), 16))
        rule = self.grid.scale
        widths = [width for _, width in rule.widths(rows, columns).values()]
        return [*streams, *zip(rule.integers(self.stored), widths, strict=True)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row, without padding."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in)."""
        return streams[0].to(code_type(self.grid.bits)).reshape(self.shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """What is beside the codes, then the codes, row after row."""
        written = codes
        if self.grid.pad:
            columns = self.layout.parameters[1]
            blank = int(self.element.encode(torch.zeros(1))[0])
            written = torch.nn.functional.pad(codes, (0, columns * self.layout.width - codes.shape[1]), value=blank)
        written = written.reshape(-1)
        if self.grid._odd(len(written)):
            written = torch.nn.functional.pad(written, (0, 1))
        return pack([*self.beside(), (self.grid._halves(written), self.grid.bits)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their groups."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.layout.group_of is not None else {})


@lru_cache(maxsize=128)
def levels_of(element: Element, dtype: torch.dtype) -> torch.Tensor:
    """An element's levels by code (n,)."""
    return torch.tensor(element.levels, dtype=dtype)


@lru_cache(maxsize=128)
def _ascending(element: Element, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels that are ever chosen, ascending, each once, and their codes; of two zeros the positive one."""
    code_of: dict[float, int] = {}
    for code, level in enumerate(element.levels):
        if math.isfinite(level) and level >= element.lowest:
            code_of.setdefault(level, code)
    ordered = sorted(code_of)
    codes = torch.tensor([code_of[level] for level in ordered], dtype=code_type(element.bits))
    return torch.tensor(ordered, dtype=dtype), codes
