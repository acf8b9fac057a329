"""What a cache holds of some rows of one layer's keys or values, packed, and what it shows to a query.

`Held` is a value: `entered` gives the next one. The same step over a whole row at once is the one-shot evaluation,
which packs nothing (`entering`).
"""

from dataclasses import dataclass, replace

import torch

from kernels.hadamard import hadamard_transform, is_hadamard_size
from kernels.packing import pack, unpack
from suite.kv_cache.codec import INDEX_BITS, Codec, Encoded, Learned, Outliers, as_exact, codec_of, unit_bytes
from suite.kv_cache.rotary import Rotary
from suite.kv_cache.target import CacheGrid, CacheTarget


@dataclass(frozen=True, slots=True)
class Versions:
    """Keys or values (rows, heads, n, d) as queries see them: `rounded` from step `since` (rows, n) on, else `exact`.

    A query's step is its place in its row's text. Rows with padding on their left have `padding` (rows,) tokens that
    no query may see; steps and places count from the first column, padding included.
    """

    exact: torch.Tensor
    rounded: torch.Tensor
    since: torch.Tensor
    padding: torch.Tensor

    def at_last(self) -> torch.Tensor:
        """The tensor that the last column's query sees."""
        late = self.since < self.exact.shape[2]
        return torch.where(late[:, None, :, None], self.rounded, self.exact)

    def changes(self, first: int) -> bool:
        """Whether queries from column `first` on see some token exactly that the last one sees rounded."""
        places = torch.arange(self.exact.shape[2])
        return bool(((self.since < len(places)) & (self.since > places.clamp(min=first))).any())


@dataclass(frozen=True)
class Side:
    """How the keys or the values of a layer are rounded."""

    target: CacheTarget
    form: CacheGrid
    codec: Codec
    rotary: Rotary | None

    @classmethod
    def of(
        cls, target: CacheTarget, form: CacheGrid, learned: Learned | None, heads: int, head_dim: int,
        rotary: Rotary | None,
    ) -> "Side":  # fmt: skip
        """Raises `ValueError` for what cannot be had: a table that is missing, a head without a Hadamard matrix."""
        if form.rotate and not is_hadamard_size(head_dim):
            raise ValueError(f"a head of {head_dim} channels has no Hadamard matrix to be rotated by")
        return cls(target, form, codec_of(form, learned, heads, head_dim), rotary)

    def encode(self, x: torch.Tensor, first: int) -> Encoded:
        """Tokens (rows, n, heads, d) at places `first` on; in float64, or else float32."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.rotary is not None:
            x = self.rotary.undo(x, torch.arange(first, first + x.shape[1]))
        return self.codec.encode(hadamard_transform(x) if self.form.rotate else x)

    def decode(self, encoded: Encoded, first: int, dtype: torch.dtype) -> torch.Tensor:
        """What is read back (rows, n, heads, d)."""
        x = self.codec.decode(encoded)
        x = x.double() if dtype == torch.float64 else x
        x = hadamard_transform(x, inverse=True) if self.form.rotate else x
        if self.rotary is not None:
            x = self.rotary.apply(x, torch.arange(first, first + x.shape[1]))
        return x.to(dtype)


@dataclass(frozen=True)
class Packed:
    """Units as bytes (rows, units, bytes); outliers token by token, and among one token's row by row."""

    payload: torch.Tensor
    layout: tuple[tuple[int, int], ...]  # integers in each stream of a unit, and their width
    counts: torch.Tensor | None = None  # (n, rows), outliers of each token
    index: torch.Tensor | None = None
    value: torch.Tensor | None = None
    channels: int = 0

    @classmethod
    def of(cls, encoded: Encoded) -> "Packed":
        """Pack a run of units."""
        layout = tuple((values.shape[2], width) for values, width in encoded.streams)
        payload = torch.cat([_pack(values, width) for values, width in encoded.streams], dim=2)
        if encoded.outliers is None:
            return cls(payload, layout)
        where, values = (part.transpose(0, 1) for part in (encoded.outliers.where, encoded.outliers.values))
        index = where.nonzero()[:, 2]
        return cls(payload, layout, _int16(where.sum(-1)), _int16(index), values[where], where.shape[2])

    def unpack(self) -> Encoded:
        """The run of units."""
        streams, start = [], 0
        for values, width in self.layout:
            stop = start + unit_bytes(values, width)
            streams.append((_unpack(self.payload[:, :, start:stop], values, width), width))
            start = stop
        return Encoded(tuple(streams), self._outliers())

    def _outliers(self) -> Outliers | None:
        if self.counts is None or self.index is None or self.value is None:
            return None
        counts = _from_int16(self.counts)
        token = torch.arange(counts.numel()).repeat_interleave(counts.reshape(-1))
        where = torch.zeros(counts.numel(), self.channels, dtype=torch.bool)
        values = torch.zeros(where.shape, dtype=torch.float16)
        where[token, _from_int16(self.index)] = True
        values[token, _from_int16(self.index)] = self.value
        n, rows = counts.shape
        return Outliers(*(part.reshape(n, rows, -1).transpose(0, 1) for part in (where, values)))

    def followed_by(self, other: "Packed") -> "Packed":
        """These units and then those."""
        payload = torch.cat([self.payload, other.payload], dim=1)
        if self.counts is None:
            return replace(self, payload=payload)
        counts, index, value = (torch.cat([getattr(one, name) for one in (self, other)])
                                for name in ("counts", "index", "value"))  # fmt: skip
        return Packed(payload, self.layout, counts, index, value, self.channels)

    @property
    def n_bytes(self) -> int:
        """The bytes of all tensors."""
        held = (self.payload, self.counts, self.index, self.value)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)


def _pack(values: torch.Tensor, width: int) -> torch.Tensor:
    """Integers (rows, units, m) as bytes (rows, units, ceil(m width / 8)); a unit's last byte is filled with zeros."""
    rows, units, m = values.shape
    size = unit_bytes(m, width)
    if size * 8 == m * width:
        payload = pack([(values, width)])
    else:
        bits = (values.to(torch.int64)[..., None] >> torch.arange(width) & 1).reshape(rows, units, -1)
        payload = pack([(torch.nn.functional.pad(bits, (0, size * 8 - m * width)), 1)])
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8).reshape(rows, units, size)


def _unpack(payload: torch.Tensor, m: int, width: int) -> torch.Tensor:
    """The inverse of `_pack`."""
    rows, units, size = payload.shape
    stream = payload.contiguous().numpy().tobytes()
    if size * 8 == m * width:
        return unpack(stream, [(rows * units * m, width)])[0].reshape(rows, units, m)
    bits = unpack(stream, [(len(stream) * 8, 1)])[0].reshape(rows, units, -1)[:, :, : m * width]
    return (bits.reshape(rows, units, m, width) << torch.arange(width)).sum(-1)


def _int16(values: torch.Tensor) -> torch.Tensor:
    """Integers below 2^16 in two bytes each."""
    return (values - 2 ** (INDEX_BITS - 1)).to(torch.int16)


def _from_int16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.int64) + 2 ** (INDEX_BITS - 1)


@dataclass(frozen=True)
class Held:
    """The tokens (rows, n, heads, d) of rows that begin together: sinks, then packed ones, then those that wait."""

    sinks: torch.Tensor
    packed: Packed | None
    n_packed: int
    waiting: torch.Tensor

    @classmethod
    def nothing(cls, like: torch.Tensor, bits: int) -> "Held":
        """For rows and heads as in `like` (rows, n, heads, d)."""
        none = as_exact(like[:, :0], bits)
        return cls(none, None, 0, none)

    @property
    def tokens(self) -> int:
        """How many there are of each row."""
        return self.sinks.shape[1] + self.n_packed + self.waiting.shape[1]

    @property
    def n_bytes(self) -> int:
        """The bytes of everything held."""
        exact = sum(part.numel() * part.element_size() for part in (self.sinks, self.waiting))
        return exact + (0 if self.packed is None else self.packed.n_bytes)

    def rows(self, chosen: torch.Tensor) -> "Held":
        """The same of some rows, in that order."""
        packed = None if self.packed is None else Packed.of(self.packed.unpack().rows(chosen))
        return replace(self, sinks=self.sinks[chosen], packed=packed, waiting=self.waiting[chosen])

    def entered(self, side: Side, x: torch.Tensor) -> tuple["Held", "Shown"]:
        """What is held, and what was shown, after tokens `x` (rows, n, heads, d) came in."""
        shown = _enter(side, self, x)
        packed = self.packed
        if shown.fresh is not None:
            fresh = Packed.of(shown.fresh)
            packed = fresh if packed is None else packed.followed_by(fresh)
        waiting = shown.waiting.clone()  # not a part of a larger tensor, which would be held with it
        return Held(shown.sinks, packed, shown.n_packed, waiting), shown

    def cut(self, side: Side, tokens: int) -> "Held":
        """The first `tokens` alone; `ValueError` where some would be held exactly that are rounded already."""
        sinks = self.sinks[:, :tokens]
        kept = side.target.rounded(side.form, tokens)
        left = tokens - sinks.shape[1] - self.n_packed
        if self.n_packed > kept:
            if side.target.window:
                raise ValueError(f"cropped to {tokens} tokens, the cache would hold exactly what it has rounded: "
                                 f"{self.n_packed} tokens beyond its sinks, of which {kept} would be")  # fmt: skip
            packed = Packed.of(self.packed.unpack().first(kept)) if self.packed is not None and kept else None
            return Held(sinks, packed, kept, self.waiting)
        return replace(self, sinks=sinks, waiting=self.waiting[:, : max(0, left)])


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry of tokens: what is held exactly after it, which units were rounded in it, and what queries saw."""

    sinks: torch.Tensor
    fresh: Encoded | None
    n_packed: int
    waiting: torch.Tensor
    exact: torch.Tensor  # (rows, n, heads, d), all tokens that are in; `rounded` itself where none is seen otherwise
    rounded: torch.Tensor
    since: torch.Tensor  # (n,)


def _enter(side: Side, held: Held, x: torch.Tensor) -> Shown:
    """Tokens `x` (rows, n, heads, d) one after the other, seen at once."""
    target, dtype, bits = side.target, x.dtype, side.target.exact_bits
    first = max(0, target.sinks - held.tokens)
    sinks = torch.cat([held.sinks, as_exact(x[:, :first], bits)], dim=1)
    rest = x[:, first:]
    waiting = torch.cat([held.waiting.to(dtype), as_exact(rest, bits).to(dtype)], dim=1) if target.window else rest
    n_packed = target.rounded(side.form, held.tokens + x.shape[1])
    leaving, start = n_packed - held.n_packed, sinks.shape[1] + held.n_packed
    parts = [sinks.to(dtype)]
    if held.packed is not None:
        parts.append(side.decode(held.packed.unpack(), sinks.shape[1], dtype))
    fresh = side.encode(waiting[:, :leaving], start) if leaving else None
    new = side.decode(fresh, start, dtype) if fresh is not None else waiting[:, :0]
    rounded = torch.cat([*parts, new, waiting[:, leaving:]], dim=1)
    return Shown(
        sinks=sinks, fresh=fresh, n_packed=n_packed, waiting=as_exact(waiting[:, leaving:], bits),
        exact=torch.cat([*parts, waiting], dim=1) if target.window else rounded, rounded=rounded,
        since=target.since(side.form, torch.arange(start + waiting.shape[1])),
    )  # fmt: skip


def entering(side: Side, x: torch.Tensor) -> tuple[Shown, int]:
    """Whole rows `x` (rows, n, heads, d) into an empty cache, and the bytes that it would hold; nothing is packed."""
    shown = _enter(side, Held.nothing(x, side.target.exact_bits), x)
    exact = sum(part.numel() * part.element_size() for part in (shown.sinks, shown.waiting))
    return shown, exact + (0 if shown.fresh is None else shown.fresh.n_bytes)
