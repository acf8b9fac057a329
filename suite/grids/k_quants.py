"""The number formats of GGUF files: K-quants, and the plain blocks Q4_0 and Q8_0, as llama.cpp stores and chooses them.

Kawrakow 2023, "k-quants" (ggml-org/llama.cpp, pull request 1684). A row is cut into blocks of 256 (or 32) inputs, each
a whole number of bytes (`suite.grids.gguf_blocks`); the scales come from a search (`suite.grids.gguf_search`). Rows of
other lengths, which llama.cpp refuses, are padded with zeros, and the padding is charged. `to_bytes` is what a GGUF
file holds, and `decode32` what its readers make of it, bit for bit.

A value's code is the level nearest to it in float32, with ties to the even multiple of the sub-block's scale; in Q4_0
ties go up (+8.5, truncated) and in Q8_0 away from zero, both counted with the scale from before it was rounded to
float16, as llama.cpp does. Where a sub-block's scale is 0, so that all its codes mean the same, the code is that of
q = 0; llama.cpp leaves what its search had found, or 0, the only bytes that differ.

Formats with a minimum (Q2_K, Q4_K, Q5_K) are not symmetric in sign: a sub-block's range begins at 0 or below, and a
negative constant is a minimum without a scale. Q3_K's search is not either (`descend`). Values too large for float16
scales saturate; values that call for a scale below half of the smallest float16, 2^-25, become zeros.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

from suite.grids.gguf_blocks import FORMATS, Format, GgufType, pack_blocks, unpack_blocks
from suite.grids.gguf_search import LARGEST, Scales, search
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_matrix
from suite.grids.stored import from_bits, to_bits

_AT_ONCE = 1 << 20  # values in working memory at a time, in a few buffers of 4 MiB; any value is correct
_BELOW_HALF = 0.5 - 2.0**-25  # the largest float32 below 1/2: truncation after adding it is exact rounding of halves up


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """One of GGUF's formats. With `importance` its search weights errors by the diagonal of H: an importance matrix."""

    type: GgufType
    importance: bool = False

    block = (1, 1)

    def __post_init__(self) -> None:
        if self.type not in FORMATS:
            raise ValueError(f"type {self.type!r}: expected one of {', '.join(FORMATS)}")

    @property
    def format(self) -> Format:
        """Where the blocks keep their bits."""
        return FORMATS[self.type]

    @property
    def bits(self) -> int:
        """The width of a code; scales come on top."""
        return self.format.bits

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.importance and self.type == "q8_0":
            return "q8_0 has no search that an importance matrix could weight"
        return None

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedGguf":
        """Bind the format to `W` (out, in), in float32 whatever its type; `importance` is H (in, in).

        H is read only where the field `importance` says so. Raises `ValueError` where it is needed and not given, for
        NaN or infinite values, and for an empty matrix.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        low, high = W.aminmax()
        weights = self._weights(W.shape[1], importance) if self.importance else None
        found = []
        for part in _row_parts(len(W), self._padded(W.shape[1])):
            x = W[part] if max(-low, high) <= LARGEST else W[part].clamp(-LARGEST, LARGEST)
            found.append(search(self.type, self._blocks(x), weights))
        return FittedGguf.of(self, (W.shape[0], W.shape[1]), W.dtype, found)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedGguf", torch.Tensor]:
        """The fitted format and the codes (out, in) in GGUF's bytes; codes of padding are dropped."""
        (n_out, n_in), form = header["shape"], self.format
        per_row = self._padded(n_in) // form.block
        if len(payload) != n_out * per_row * form.size:
            raise ValueError(f"payload has {len(payload)} bytes, its blocks need {n_out * per_row * form.size}")
        blocks = torch.frombuffer(bytearray(payload), dtype=torch.uint8).reshape(n_out, per_row, form.size)
        found, codes = [], []
        for part in _row_parts(n_out, self._padded(n_in)):
            values = unpack_blocks(form, blocks[part].reshape(-1, form.size))
            codes.append(values.pop("codes").reshape(-1, per_row * form.block)[:, :n_in])
            found.append(Scales(d=values["d"], dmin=values.get("dmin"), scales=values.get("scales")))
            self._check_finite(values["d"], values.get("dmin"))
        return FittedGguf.of(self, (n_out, n_in), torch.float32, found), torch.cat(codes)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of float16 scales and of the integers of sub-blocks."""
        (n_out, n_in), form = header["shape"], self.format
        blocks = n_out * self._padded(n_in) // form.block
        widths = [(blocks, 16)] * (2 if form.has_mins else 1)
        return [*widths, (blocks * form.count("scales"), form.scale_bits)] if form.has_scales else widths

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedGguf":
        """The fitted format from the values of `FittedGguf.beside`."""
        (n_out, n_in), form, left = header["shape"], self.format, list(beside)
        d = from_bits(left.pop(0), 16)
        dmin = from_bits(left.pop(0), 16) if form.has_mins else None
        self._check_finite(d, dmin)
        scales = left.pop(0).to(torch.uint8).reshape(len(d), -1) if form.has_scales else None
        return FittedGguf.of(self, (n_out, n_in), torch.float32, [Scales(d=d, dmin=dmin, scales=scales)])

    def _check_finite(self, *scales: torch.Tensor | None) -> None:
        if not all(bool(x.isfinite().all()) for x in scales if x is not None):
            raise ValueError(f"expected finite scales, found NaN or infinity in blocks of {self.type}")

    def _padded(self, n_in: int) -> int:
        return -(-n_in // self.format.block) * self.format.block

    def _blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (n, in) in float32 as (n, blocks, block), padded with zeros."""
        x = x.float()
        return F.pad(x, (0, self._padded(x.shape[1]) - x.shape[1])).reshape(len(x), -1, self.format.block)

    def _weights(self, n_in: int, H: torch.Tensor | None) -> torch.Tensor:
        """The diagonal of H as (blocks, block), in float32; padding counts for nothing."""
        if H is None or H.shape != (n_in, n_in):
            found = "none" if H is None else f"shape {tuple(H.shape)}"
            raise ValueError(f"an importance matrix needs the Gram matrix H of shape {(n_in, n_in)}, found {found}")
        return F.pad(H.diagonal().float(), (0, self._padded(n_in) - n_in)).reshape(-1, self.format.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedGguf:
    """A `Gguf` bound to an (out, in) matrix: what its blocks store, and what follows from it.

    Blocks (out, B) have `d` and `dmin`, in float32; `scales` (out B, count) are their stored integers. Sub-blocks
    (out, S) have a `step` and, where there is a minimum, an `offset`: value = step (code - zero) - offset. `inverse`
    (out, B), not stored, is what Q4_0 and Q8_0 choose codes with. Values are those of float32, in the matrix's type.
    """

    grid: Gguf
    shape: tuple[int, int]
    dtype: torch.dtype
    d: torch.Tensor
    dmin: torch.Tensor | None
    scales: torch.Tensor | None
    step: torch.Tensor
    offset: torch.Tensor | None
    inverse: torch.Tensor | None

    regroups = False  # a sub-block's scale is an integer that the whole block has a part in
    mask_size = 0

    @classmethod
    def of(cls, grid: Gguf, shape: tuple[int, int], dtype: torch.dtype, found: list[Scales]) -> "FittedGguf":
        """From the scales of successive rows' blocks."""
        form, n_out = grid.format, shape[0]

        def joined(name: str) -> torch.Tensor | None:
            parts = [getattr(part, name) for part in found]
            return None if parts[0] is None else torch.cat(parts)

        d, dmin, scales, inverse = (joined(name) for name in ("d", "dmin", "scales", "inverse"))
        assert d is not None
        step, offset = d[:, None], None
        if scales is not None:
            whole = scales.float() - form.scale_zero
            count = form.block // form.group
            step = step * whole[:, :count]
            offset = None if dmin is None else dmin[:, None] * whole[:, count:]
        elif inverse is None and not grid.importance:
            inverse = torch.where(d == 0, 0.0, torch.ones(()) / d)
        return cls(
            grid=grid, shape=shape, dtype=dtype, d=d.reshape(n_out, -1),
            dmin=None if dmin is None else dmin.reshape(n_out, -1), scales=scales,
            step=_by_column(step, n_out), offset=None if offset is None else _by_column(offset, n_out),
            inverse=None if inverse is None else _by_column(inverse, n_out),
        )  # fmt: skip

    @property
    def n_codes(self) -> int:
        """How many different codes there are."""
        return 2**self.grid.bits

    @property
    def group_size(self) -> int:
        """How many values share a scale."""
        return self.grid.format.group

    def _of(self, values: torch.Tensor, rows: slice, columns: Columns) -> torch.Tensor:
        """What sub-blocks have, for the values of `columns` in some rows: broadcastable to (rows, k)."""
        values = values[rows]
        return Layout((len(values), self.shape[1]), len(values), self.group_size).expand(values, columns)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, of the levels nearest to `x` (out, k); see the module for ties.

        `cost` (2^b,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        codes = torch.empty(x.shape, dtype=torch.uint8)
        for rows in _row_parts(len(x), x.shape[1] * (1 if cost is None else self.n_codes)):
            if cost is None:
                codes[rows] = self._nearest(x[rows], rows, columns)
            else:
                every = torch.arange(self.n_codes, dtype=torch.uint8).expand(x[rows].shape[1], -1)
                levels = [self._decoded(c.expand(len(x[rows]), -1), rows, columns).to(x.dtype) for c in every.T]
                codes[rows] = ((x[rows, :, None] - torch.stack(levels, -1)) ** 2 + cost).argmin(-1)
        return codes

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def _nearest(self, x: torch.Tensor, rows: slice, columns: Columns) -> torch.Tensor:
        form, x = self.grid.format, x.float()
        if self.inverse is None:
            levels = self._ratio(x, rows, columns).round_().add_(form.zero).clamp_(0, self.n_codes - 1)
            return levels.to(torch.int8).view(torch.uint8)  # several times faster than to uint8
        ratio = x * self._of(self.inverse, rows, columns)
        if self.grid.type == "q4_0":
            return ratio.add_(8.5).clamp_(0, 15).to(torch.int8).view(torch.uint8)  # which truncates
        half = torch.copysign(torch.tensor(_BELOW_HALF), ratio)
        return ratio.add_(half).clamp_(-128, 127).to(torch.int8).view(torch.uint8) ^ form.zero

    def _ratio(self, x: torch.Tensor, rows: slice, columns: Columns) -> torch.Tensor:
        """Steps from `x` to zero; 0 where the step is 0."""
        step = self._of(self.step, rows, columns)
        if self.offset is not None:
            x = x + self._of(self.offset, rows, columns)
        return x / step.masked_fill(step == 0, torch.inf)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        below = self._ratio(x.float(), ALL, columns).floor_().add_(self.grid.format.zero)
        low, high = (c.clamp(0, self.n_codes - 1).to(torch.uint8) for c in (below, below + 1))
        return low, high

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for: those of float32, in the matrix's type."""
        values = torch.empty(codes.shape, dtype=self.dtype)
        for rows in _row_parts(len(codes), codes.shape[1]):
            values[rows] = self._decoded(codes[rows], rows, columns)
        return values

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32: what GGUF's readers make of the bytes."""
        values = torch.empty(codes.shape)
        for rows in _row_parts(len(codes), codes.shape[1]):
            values[rows] = self._decoded(codes[rows], rows, ALL)
        return values

    def _decoded(self, codes: torch.Tensor, rows: slice, columns: Columns) -> torch.Tensor:
        values = codes.float().sub_(self.grid.format.zero).mul_(self._of(self.step, rows, columns))
        return values if self.offset is None else values.sub_(self._of(self.offset, rows, columns))

    def in_order(self, perm: torch.Tensor) -> NoReturn:
        """Not to be had: groups lie where the format puts them."""
        raise ValueError(f"{self.grid.type} keeps its groups in the given order of columns")

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> NoReturn:
        """Not to be had: sub-blocks of a block share a float16 scale."""
        raise ValueError(f"{self.grid.type} fits all scales of a block at once, found one group to refit")

    @property
    def n_bits(self) -> int:
        """Exact bits: whole blocks, the padding's codes included."""
        return self.d.numel() * self.grid.format.size * 8

    @property
    def beside_bits(self) -> int:
        """Exact bits of scales and minima."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Of all blocks d and dmin, and the integers of their sub-blocks."""
        reals = [(to_bits(x.reshape(-1), 16), 16) for x in (self.d, self.dmin) if x is not None]
        return reals if self.scales is None else [*reals, (self.scales, self.grid.format.scale_bits)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row, without padding."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        return streams[0].to(torch.uint8).reshape(self.shape)

    def _with_padding(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (out, blocks times block): padding is rounded like the zeros that it is."""
        n_out, n_in = self.shape
        beyond = torch.arange(n_in, self.d.shape[1] * self.grid.format.block)
        return torch.cat([codes, self.nearest(torch.zeros(n_out, len(beyond)), beyond)], dim=1)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """The blocks of a GGUF tensor, row after row."""
        whole, form, parts = self._with_padding(codes), self.grid.format, []
        per_row = self.d.shape[1]
        for rows in _row_parts(*whole.shape):
            values = {"codes": whole[rows].reshape(-1, form.block), "d": self.d[rows].reshape(-1)}
            if self.scales is not None:
                values["scales"] = self.scales[rows.start * per_row : rows.stop * per_row]
            if self.dmin is not None:
                values["dmin"] = self.dmin[rows].reshape(-1)
            parts.append(pack_blocks(form, values).numpy().tobytes())
        return b"".join(parts)

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape."""
        return {"shape": list(self.shape)}


def _row_parts(n_rows: int, width: int) -> Iterator[slice]:
    """Runs of rows of about `_AT_ONCE` values."""
    count = max(1, _AT_ONCE // max(1, width))
    for start in range(0, n_rows, count):
        yield slice(start, min(start + count, n_rows))


def _by_column(values: torch.Tensor, n_out: int) -> torch.Tensor:
    """What sub-blocks have, (out, S), with a column side by side: error feedback reads column after column."""
    return values.reshape(n_out, -1).T.contiguous().T
