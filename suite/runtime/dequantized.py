"""Products of decoded weights: all of them, held, or some at a time, decoded as they are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from suite.grids.grid import Fitted
from suite.runtime.core import Core

_AT_ONCE = 1 << 22  # weights that are decoded at a time: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class Dense:
    """The product of decoded weights."""

    weights: torch.Tensor

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Dense":
        """Decode them."""
        return cls(core.dequantized().to(device, dtype))

    @property
    def n_bytes(self) -> int:
        """Of the weights."""
        return self.weights.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        return F.linear(x, self.weights)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        return partial(F.linear, x, self.weights)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive `columns` of a matrix: codes of `shape`, `per_byte` to a byte where several fit."""

    columns: slice
    packed: torch.Tensor
    shape: tuple[int, ...]
    per_byte: int

    @classmethod
    def of(cls, codes: torch.Tensor, columns: slice, width: int) -> "Piece":
        """`codes` below 2^width, packed."""
        if width > 8:
            return cls(columns, codes.to(torch.int32), tuple(codes.shape), 0)
        per_byte = 8 // next(w for w in (1, 2, 4, 8) if w >= width)
        flat = codes.reshape(-1).to(torch.uint8)
        flat = F.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
        packed = flat[:, 0].clone()
        for i in range(1, per_byte):
            packed |= flat[:, i] << (8 // per_byte * i)
        return cls(columns, packed, tuple(codes.shape), per_byte)

    def codes(self) -> torch.Tensor:
        """The codes, as grids take them."""
        if self.per_byte in (0, 1):
            return self.packed.reshape(self.shape)
        width = 8 // self.per_byte
        parts = [(self.packed >> (width * i)) & (2**width - 1) for i in range(self.per_byte)]
        count = 1
        for n in self.shape:
            count *= n
        return torch.stack(parts, -1).reshape(-1)[:count].reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Dequantize:
    """The product of weights decoded as they are needed, some columns at a time, on the CPU, whose grids these are."""

    fitted: Fitted
    pieces: tuple[Piece, ...]

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Dequantize":
        """Keep the codes, packed, in pieces of about 2^22 weights."""
        n_out, n_in = core.shape
        block = core.fitted.grid.block[1]
        width = max(1, _AT_ONCE // (n_out * block)) * block
        bits = max(1, int(core.codes.max()).bit_length())
        pieces = [
            Piece.of(
                core.codes[:, at // block : -(-min(at + width, n_in) // block)], slice(at, min(at + width, n_in)), bits
            )
            for at in range(0, n_in, width)
        ]
        return cls(core.fitted, tuple(pieces))

    @property
    def n_bytes(self) -> int:
        """Of codes and the grid's parameters."""
        return sum(piece.packed.nbytes for piece in self.pieces) + -(-self.fitted.beside_bits // 8)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        total = None
        for piece in self.pieces:
            weights = self.fitted.decode(piece.codes(), piece.columns).to(x.device, x.dtype)
            part = F.linear(x[:, piece.columns], weights)
            total = part if len(self.pieces) == 1 else part.float() if total is None else total.add_(part)
        assert total is not None
        return total.to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        return partial(self, x)
