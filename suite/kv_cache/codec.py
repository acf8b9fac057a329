"""Runs of tokens as integers and back: what is stored of the keys or the values of one layer.

Tokens are (rows, n, heads, d). A *unit* is what is rounded together: a token, or a group of them where groups run along
tokens. Every stream holds so many integers of one width for each unit, so that units are packed alone, appended and
dropped. Encoding is in the type of the values; decoding is in float32 from what is stored, whoever asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from suite.grids import Integer, Scaled
from suite.grids.elements import Table
from suite.grids.layout import check_finite
from suite.grids.stored import from_bits, to_bits
from suite.kv_cache.target import CacheGrid, LearnedTable

Streams = tuple[tuple[torch.Tensor, int], ...]  # integers (rows, units, m), and the width of each
LARGEST = 65504.0  # of float16
INDEX_BITS = 16  # of an outlier's place among a token's values; as many for its value, and for each token's count


@dataclass(frozen=True, slots=True)
class Outliers:
    """Values kept beside the codes: where (rows, n, channels), and all values in float16, of which those count."""

    where: torch.Tensor
    values: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> "Outliers":
        """Those of some rows."""
        return Outliers(self.where[chosen], self.values[chosen])


@dataclass(frozen=True, slots=True)
class Encoded:
    """A run of units: streams of integers, and outliers where they are kept."""

    streams: Streams
    outliers: Outliers | None = None

    @property
    def units(self) -> int:
        """How many there are."""
        return self.streams[0][0].shape[1]

    def rows(self, chosen: torch.Tensor) -> "Encoded":
        """Those of some rows."""
        outliers = None if self.outliers is None else self.outliers.rows(chosen)
        return Encoded(tuple((values[chosen], width) for values, width in self.streams), outliers)

    def first(self, units: int) -> "Encoded":
        """The first `units` of every row."""
        outliers = None
        if self.outliers is not None:
            outliers = Outliers(self.outliers.where[:, :units], self.outliers.values[:, :units])
        return Encoded(tuple((values[:, :units], width) for values, width in self.streams), outliers)

    @property
    def n_bytes(self) -> int:
        """Exact bytes over all rows, each stream of each unit filled up to whole ones."""
        held = sum(values.shape[0] * values.shape[1] * unit_bytes(values.shape[2], width)
                   for values, width in self.streams)  # fmt: skip
        if self.outliers is None:
            return held
        rows, tokens, _ = self.outliers.where.shape
        return held + (2 * int(self.outliers.where.sum()) + rows * tokens) * INDEX_BITS // 8


def unit_bytes(values: int, width: int) -> int:
    """Bytes of so many integers of a width, filled up to whole ones."""
    return -(-values * width // 8)


@dataclass(frozen=True, slots=True)
class GridCodec:
    """Groups on an `Integer` or `Scaled` grid."""

    side: CacheGrid
    heads: int
    head_dim: int

    @property
    def _grid(self) -> Integer | Scaled:
        assert not isinstance(self.side.grid, LearnedTable)
        return self.side.grid

    def encode(self, x: torch.Tensor) -> Encoded:
        """Tokens (rows, n, heads, d), n a multiple of the group; `ValueError` for NaN or infinite values."""
        W, units = self._matrix(x), x.shape[1] // self.side.group
        fitted: Any = self._grid.fit(W)
        streams = [*fitted.beside(), (fitted.nearest(W), self._grid.bits)]
        return Encoded(tuple((values.reshape(len(x), units, -1), width) for values, width in streams))

    def decode(self, encoded: Encoded) -> torch.Tensor:
        """Tokens (rows, n, heads, d), float32."""
        *beside, (codes, _) = encoded.streams
        rows, units, _ = codes.shape
        width = self.side.group if self.side.along == "tokens" else self.head_dim
        shape = codes.numel() // width, width
        fitted: Any = self._grid.restore([values.reshape(-1).to(torch.int64) for values, _ in beside], {"shape": shape})
        return self._tokens(fitted.decode(codes.reshape(shape)), rows, units)

    def _matrix(self, x: torch.Tensor) -> torch.Tensor:
        """A row for each head of a token, or for each channel of a group of tokens."""
        if self.side.along == "channels":
            return x.reshape(-1, self.head_dim)
        rows, n, heads, d = x.shape
        grouped = x.reshape(rows, n // self.side.group, self.side.group, heads * d)
        return grouped.transpose(2, 3).reshape(-1, self.side.group)

    def _tokens(self, W: torch.Tensor, rows: int, units: int) -> torch.Tensor:
        if self.side.along == "channels":
            return W.reshape(rows, units, self.heads, self.head_dim)
        grouped = W.reshape(rows, units, -1, self.side.group).transpose(2, 3)
        return grouped.reshape(rows, -1, self.heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class Learned:
    """What a `LearnedTable` knows from calibration, in float16: levels (2^bits,), ascending, in [-1, 1] or near.

    For static ranges also the offset and the reach of every channel (channels,).
    """

    levels: torch.Tensor
    offset: torch.Tensor | None = None
    reach: torch.Tensor | None = None

    def named(self, prefix: str) -> dict[str, torch.Tensor]:
        """All that is stored, 16 bits a number, by names that begin with `prefix`."""
        parts = {"levels": self.levels, "offset": self.offset, "reach": self.reach}
        return {f"{prefix}.{name}": tensor for name, tensor in parts.items() if tensor is not None}

    @classmethod
    def among(cls, found: Mapping[str, torch.Tensor], prefix: str) -> "Learned | None":
        """The one that was stored under `prefix`, or None."""
        if f"{prefix}.levels" not in found:
            return None
        return cls(found[f"{prefix}.levels"], found.get(f"{prefix}.offset"), found.get(f"{prefix}.reach"))


@dataclass(frozen=True, slots=True)
class TableCodec:
    """Tokens on a learned table, with outliers. Ties go to the even place of the table."""

    table: LearnedTable
    learned: Learned
    heads: int
    head_dim: int

    def encode(self, x: torch.Tensor) -> Encoded:
        """Tokens (rows, n, heads, d); `ValueError` for NaN or infinite values."""
        check_finite(x)
        flat = x.reshape(*x.shape[:2], -1)
        beside: Streams = ()
        if self.table.ranges == "static":
            offset, reach = self._static(x.dtype)
            outside = (flat - offset).abs() > reach
        else:
            low, high = tails(flat, self.table.outliers)
            outside = (flat < low) | (flat > high)
            offset, reach = (_float16(part).to(x.dtype) for part in middle(flat, outside))
            beside = (to_bits(offset, 16), 16), (to_bits(reach, 16), 16)
        codes = self._element.encode(normalized(flat, offset, reach).clamp(-1, 1))
        kept = Outliers(outside, _float16(torch.where(outside, flat, 0.0))) if self.table.outliers else None
        return Encoded((*beside, (codes, self.table.bits)), kept)

    def decode(self, encoded: Encoded) -> torch.Tensor:
        """Tokens (rows, n, heads, d), float32."""
        *beside, (codes, _) = encoded.streams
        if self.table.ranges == "static":
            offset, reach = self._static(torch.float32)
        else:
            offset, reach = (from_bits(values.reshape(-1), 16).reshape(values.shape) for values, _ in beside)
        values = self.learned.levels.float()[codes.to(torch.int64)] * reach + offset
        if encoded.outliers is not None:
            values = torch.where(encoded.outliers.where, encoded.outliers.values.float(), values)
        return values.reshape(*values.shape[:2], self.heads, self.head_dim)

    @property
    def _element(self) -> Table:
        return Table("learned", self.table.bits, tuple(self.learned.levels.tolist()))

    def _static(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.learned.offset is not None and self.learned.reach is not None
        return self.learned.offset.to(dtype), self.learned.reach.to(dtype)


Codec = GridCodec | TableCodec
Tables = tuple[Learned | None, Learned | None]  # of a layer's keys and values
NO_TABLES: Tables = (None, None)


def named_tables(tables: Tables, prefix: str) -> dict[str, torch.Tensor]:
    """What a layer's tables store, by names that begin with `prefix`."""
    found: dict[str, torch.Tensor] = {}
    for side, learned in zip(("keys", "values"), tables, strict=True):
        found |= {} if learned is None else learned.named(f"{prefix}.{side}")
    return found


def tables_among(found: Mapping[str, torch.Tensor], prefix: str) -> Tables:
    """The inverse of `named_tables`."""
    return Learned.among(found, f"{prefix}.keys"), Learned.among(found, f"{prefix}.values")


def codec_of(side: CacheGrid, learned: Learned | None, heads: int, head_dim: int) -> Codec:
    """The codec of one side of a layer; `ValueError` where a learned table is missing, or a token too wide for it."""
    if not isinstance(side.grid, LearnedTable):
        return GridCodec(side, heads, head_dim)
    if learned is None:
        raise ValueError(f"{side.grid} takes a table from calibration, found none")
    if heads * head_dim > 2**INDEX_BITS:
        raise ValueError(f"outliers of {heads} heads of {head_dim} channels cannot be counted in {INDEX_BITS} bits")
    return TableCodec(side.grid, learned, heads, head_dim)


def normalized(x: torch.Tensor, offset: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """(x - offset) / reach; 0 where there is no reach, as of a token whose values are equal."""
    return torch.where(reach == 0, 0.0, (x - offset) / torch.where(reach == 0, 1.0, reach))


def tails(x: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantiles share/2 and 1 - share/2 of `x` (..., n) along the last axis, (..., 1), linear between neighbors."""
    ordered, last = x.sort(-1).values, x.shape[-1] - 1
    found = []
    for place in (share / 2 * last, (1 - share / 2) * last):
        below = min(int(place), max(last - 1, 0))
        a, b = ordered[..., below, None], ordered[..., min(below + 1, last), None]
        found.append(a + (b - a) * (place - below))
    return found[0], found[1]


def middle(x: torch.Tensor, outside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and half width (..., 1) of the range of what is not outside; zeros where everything is."""
    low = torch.where(outside, torch.inf, x).amin(-1, keepdim=True)
    high = torch.where(outside, -torch.inf, x).amax(-1, keepdim=True)
    empty = low > high
    return torch.where(empty, 0.0, (high + low) / 2), torch.where(empty, 0.0, (high - low) / 2)


def _float16(x: torch.Tensor) -> torch.Tensor:
    if bool((x.abs() > LARGEST).any()):
        raise ValueError(f"a key or value of size {float(x.abs().max()):.4g} does not fit float16")
    return x.half()


def as_exact(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Values as those are kept that are not rounded; `ValueError` for a size beyond float16 where that is asked for."""
    return x.float() if bits == 32 else _float16(x)
