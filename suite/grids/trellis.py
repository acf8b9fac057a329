"""Trellis-coded quantization: a tile of a matrix is a ring of bits, and every window of L bits stands for values.

Tseng, Sun, Hou, De Sa 2024, "QTIP: Quantization with Trellises and Incoherence Processing", arXiv:2406.11235; the
search is `suite.grids.viterbi`, what windows stand for `suite.grids.trellis_codes`. A tile of 16 x 16 values, row after
row, is one sequence of 256: `bits` of storage for each value, and one scale for the matrix.

A tile that is short, at the end of the rows or columns, is coded like a whole one whose missing values do not count,
and is stored and charged like a whole one. The release has no such tiles: its sides are multiples of 16.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from kernels.packing import pack, unpack
from suite.grids.layout import ALL, Columns, check_finite, check_matrix
from suite.grids.stored import from_bits, to_bits
from suite.grids.trellis_codes import CODES, HYB_ENTRIES, Code, hyb, hyb_table, values_of
from suite.grids.viterbi import codes_of, states_of, tail_biting

_HALF = torch.finfo(torch.float16)
_SMALLEST = _HALF.smallest_normal * _HALF.eps  # the smallest subnormal
_LARGEST_STATE = 20  # bits; the search keeps 2^L numbers of each value


@dataclass(frozen=True, slots=True, kw_only=True)
class Trellis:
    """`bits` per value (K), states of `L` bits, `V` values a step, in tiles of (rows, columns).

    `code` says what states stand for ("hyb" has V = 2, "1mad" and "3inst" have V = 1). The scale makes the deviation of
    the matrix `gain` times that of the code's values, or with `unit=False` `gain` itself, as if that of the code were 1
    (3INST as it comes, of 1.24). Below 1 it leaves room for what error feedback adds. `around` is how many steps on
    each side of the seam are looked at to close the ring; None for half of all, as in the release. `own_table` stores
    the table of "hyb" with the matrix, so that it can be tuned; it begins as the one that is not stored.
    """

    bits: int = 2
    code: Code = "1mad"
    L: int = 16
    V: int = 1
    tile: tuple[int, int] = (16, 16)
    gain: float = 0.9
    unit: bool = True
    around: int | None = None
    own_table: bool = False

    def __post_init__(self) -> None:
        for name in ("bits", "L", "V"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected a positive integer")
        if self.code not in CODES:
            raise ValueError(f"code {self.code!r}: expected one of {', '.join(CODES)}")
        if len(self.tile) != 2 or min(self.tile) < 1:
            raise ValueError(f"tile {self.tile!r}: expected (rows, columns), at least 1 each")
        if not self.gain > 0 or (self.around is not None and self.around < 1):
            raise ValueError(f"gain {self.gain!r}, around {self.around!r}: expected above 0, and at least 1 or None")

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of values that share a code: the tile."""
        return self.tile

    @property
    def k(self) -> int:
        """Bits of a step."""
        return self.bits * self.V

    @property
    def steps(self) -> int:
        """Steps of a tile."""
        return math.prod(self.tile) // self.V

    @property
    def unsupported(self) -> str | None:
        """Why this trellis cannot be had, or None."""
        if self.V != (2 if self.code == "hyb" else 1) and self.code != "gaussian":
            return f"{self.code} has {2 if self.code == 'hyb' else 1} values a step, V is {self.V}"
        if not self.k <= min(self.L, 8) or self.L > _LARGEST_STATE:
            return f"a step of {self.k} bits of a state of {self.L}: expected at most 8 of at most {_LARGEST_STATE}"
        if self.code == "hyb" and self.L < 8:
            return f"hyb hashes states to 16 bits, of which {self.L} bits of state make {2 * self.L}"
        if math.prod(self.tile) % self.V or self.steps * self.k < self.L:
            return f"a tile of {math.prod(self.tile)} values is no ring of steps of {self.V} and at least {self.L} bits"
        if self.own_table and self.code != "hyb":
            return f"{self.code} has no table to be stored"
        return None

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedTrellis":
        """The scale of `W` (out, in); `importance` is not read. A matrix of zeros has scale 0 and stays one.

        Raises `ValueError` for NaN or infinite values, an empty matrix, and an unsupported combination.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        own = values_of(self.code, self.L, self.V).double().square().mean().sqrt() if self.unit else 1.0
        wanted = W.double().square().mean().sqrt() / (own * self.gain)
        scale = torch.where(wanted == 0, wanted, wanted.clamp(_SMALLEST, _HALF.max)).half().to(W.dtype)
        table = hyb_table().to(W.dtype) if self.own_table else None
        return FittedTrellis(grid=self, shape=(W.shape[0], W.shape[1]), scale=scale, table=table)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedTrellis", torch.Tensor]:
        """The fitted grid and the codes that `FittedTrellis.to_bytes` wrote."""
        shape = _code_shape(self, header["shape"])
        *beside, codes = unpack(payload, [*self.beside_widths(header), (math.prod(shape), self.k)])
        return self.restore(beside, header), codes.to(torch.uint8).reshape(shape)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of the scale, and of a table of its own."""
        return [(1, 16), *([(2 * HYB_ENTRIES, 16)] if self.own_table else [])]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedTrellis":
        """The fitted grid from the values of `FittedTrellis.beside`."""
        n_out, n_in = header["shape"]
        scale, *table = (from_bits(stored, 16) for stored in beside)
        own = table[0].reshape(HYB_ENTRIES, 2) if self.own_table else None
        return FittedTrellis(grid=self, shape=(n_out, n_in), scale=scale.reshape(()), table=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTrellis:
    """A `Trellis` bound to an (out, in) matrix by its `scale` (), and its `table` (512, 2) if it has one of its own.

    Codes are (tiles of rows, tiles of columns, steps), uint8: the bits of each step. The search is in float32, whatever
    the type of the matrix.
    """

    grid: Trellis
    shape: tuple[int, int]
    scale: torch.Tensor
    table: torch.Tensor | None = None

    regroups = False
    mask_size = 0

    @property
    def n_codes(self) -> int:
        """How many different values the bits of a step have."""
        return 2**self.grid.k

    @property
    def group_size(self) -> int:
        """How many values share a scale: all."""
        return math.prod(self.shape)

    @property
    def values(self) -> torch.Tensor:
        """What all states stand for before the scale: (2^L, V), in the type of the matrix."""
        if self.table is None:
            return values_of(self.grid.code, self.grid.L, self.grid.V).to(self.scale.dtype)
        return hyb(torch.arange(2**self.grid.L), self.table)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (R, C, steps) for `x` (out, k), the values of `columns`: whole tiles, a short one last.

        The nearest ring that the two passes of `tail_biting` find, tile by tile, which need not be the nearest of all.
        """
        if cost is not None:
            raise ValueError("a trellis takes no cost by code: values that share a code have no rate each")
        grid, (rows, wide) = self.grid, self.grid.tile
        wanted = x.detach() / torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale).detach()
        n_out, n = wanted.shape
        tiles = _tiles(F.pad(wanted, (0, -n % wide, 0, -n_out % rows)), grid.tile)
        states, table = torch.empty(*tiles.shape[:2], grid.steps, dtype=torch.int64), self.values.detach()
        for r, height in _parts(n_out, rows):
            for c, width in _parts(n, wide):
                known = torch.zeros(rows, wide, dtype=torch.bool)
                known[:height, :width] = True
                some, steps = tiles[r, c], known.reshape(grid.steps, grid.V)
                found = tail_biting(some.reshape(-1, grid.steps, grid.V), table, grid.k, steps, grid.around)
                states[r, c] = found.reshape(*some.shape[:2], -1)
        return codes_of(states, grid.L, grid.k).to(torch.uint8)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (R, C, steps) for `x` (out, k), and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self._joined(codes, x.shape[1])

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """`ValueError`: tiles have no two codes around them."""
        raise ValueError(f"tiles of {math.prod(self.grid.tile)} values have no neighbors: no two codes around them")

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for; differentiable in scale and table."""
        k = len(range(self.shape[1])[columns]) if isinstance(columns, slice) else len(columns)
        return self._joined(codes, k)

    def _joined(self, codes: torch.Tensor, k: int) -> torch.Tensor:
        rows, wide = self.grid.tile
        found = self.values[states_of(codes, self.grid.L, self.grid.k)]
        whole = found.reshape(*codes.shape[:2], rows, wide).transpose(1, 2).reshape(rows * len(codes), -1)
        return whole[: self.shape[0], :k] * self.scale

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32, from scale and table as they are stored."""
        return self.grid.restore([stored for stored, _ in self.beside()], self.header()).decode(codes)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The scale, and the table where the matrix has its own."""
        return {"scale": self.scale} | ({} if self.table is None else {"table": self.table})

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedTrellis":
        """The same with these in their place."""
        return replace(self, scale=values["scale"], table=values.get("table"))

    def in_order(self, perm: torch.Tensor) -> "FittedTrellis":
        """Itself: there are no groups of columns."""
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedTrellis":
        """Itself: there are no groups of columns."""
        return self

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, scale and table."""
        return math.prod(_code_shape(self.grid, self.shape)) * self.grid.k + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of scale and table."""
        return sum(count * width for count, width in self.grid.beside_widths({}))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The scale, and a table of its own."""
        return [(to_bits(x.detach().clamp(-_HALF.max, _HALF.max).reshape(-1), 16), 16) for x in self.tunable().values()]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The bits of all steps, tile after tile."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (R, C, steps), uint8."""
        return streams[0].to(torch.uint8).reshape(_code_shape(self.grid, self.shape))

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Scale and table, then the bits of all steps, tile after tile."""
        return pack([*self.beside(), (codes, self.grid.k)])

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}


def _code_shape(grid: Trellis, shape: Sequence[int]) -> tuple[int, int, int]:
    return -(-shape[0] // grid.tile[0]), -(-shape[1] // grid.tile[1]), grid.steps


def _tiles(x: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """`x`, whole tiles, as (tiles of rows, tiles of columns, values of a tile row after row)."""
    rows, wide = tile
    return x.reshape(len(x) // rows, rows, -1, wide).transpose(1, 2).reshape(len(x) // rows, -1, rows * wide)


def _parts(n: int, size: int) -> Iterator[tuple[slice, int]]:
    """Which of the blocks of `size` in n are whole, and which is short: slices of blocks, with how much they have."""
    whole, left = divmod(n, size)
    if whole:
        yield slice(0, whole), size
    if left:
        yield slice(whole, whole + 1), left
