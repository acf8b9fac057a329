"""Products y = x W^T from packed weights: one row of `PRODUCTS` for each way, and what it rounds.

A *core* is a quantized matrix without what stands around it: codes on a grid as it is stored. `prepare` lays it out as
the product reads it, or raises `Unfit` with the reason. Beside float32 sums, what a product rounds:

- `int4pack`: inputs and output to bfloat16, a group's scale and offset to bfloat16, (q - 8) s + z being what ATen's
  kernel computes in float32. Codes of 5 to 8 bits are two matrices of 4, one below the other: 16 (h - 8) s and
  (l - 8) s + z, whose sum is taken in float32 of two outputs in bfloat16. Fewer levels than fit are put in the middle,
  where q - 8 and z are small, and so are their errors;
- `int8pack`: inputs, output and the row's scale to bfloat16; for integers symmetric about a code, one scale a row;
- `dense`: weights to the type of the inputs, of which it holds a copy: nothing else, and nothing at all in float32;
- `dequantize`: the same from codes, a few columns at a time;
- `kernel`: on a GPU, those of `kernels`: see `suite.runtime.gpu`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
import torch.nn.functional as F

from suite.grids.grid import Fitted
from suite.runtime.affine import RUN, Affine, affine

_GROUPS = (256, 128, 64, 32)  # that ATen's int4 product takes
_OUTPUTS = 16  # it takes multiples of this many outputs
_INPUTS = 32  # and its int8 product runs of so many inputs, whatever vectors the machine has
_AT_ONCE = 1 << 22  # weights that are decoded at a time: 16 MiB in float32


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
class Pair:
    """What multiplies a layer's inputs: `few` rows of them, and, from `since` rows on, `many`; often the same."""

    few: Prepared
    many: Prepared
    since: int = 1

    def at(self, rows: int) -> Prepared:
        """The product for so many rows."""
        return self.few if rows < self.since else self.many


@dataclass(frozen=True)  # without slots: whether it is affine is found out once
class Core:
    """`codes` on the grid `fitted`, with parameters as they come back from bytes."""

    codes: torch.Tensor
    fitted: Fitted

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A row of `PRODUCTS`. `prepare(core, dtype, device)` is for inputs of that type on that device.

    `holds_dense` says that it keeps all weights decoded, which takes as much memory as not to quantize at all, `exact`
    that with inputs in float32 it rounds nothing but sums.
    """

    name: str
    device: str
    prepare: Callable[[Core, torch.dtype, torch.device], Prepared]
    holds_dense: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Int4Pack:
    """ATen's product of 4-bit integers; `planes` of 4 bits one below the other, `padding` inputs of zeros."""

    words: torch.Tensor
    parameters: torch.Tensor  # (groups, planes * out, 2), bfloat16: scale, offset
    group: int
    outputs: int
    planes: int
    padding: int

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Int4Pack":
        """Lay out affine codes of up to 8 bits."""
        found = core.affine.grouped(_GROUPS[0])
        group = max(found.group, RUN)
        n_out, n_in = core.shape
        planes = 1 if found.top < 16 else 2
        below, padding = -n_out % _OUTPUTS, -n_in % group
        raised, middle = found.raised
        codes = F.pad(raised, (0, padding, 0, below))
        scale, offset = (F.pad(values, (0, 0, 0, below)) for values in (found.scale, middle))
        parts = [(codes, scale, offset)]
        if planes == 2:
            parts = [(codes >> 4, 16 * scale, offset), (codes & 15, scale, torch.zeros_like(offset))]
        words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.cat([part[0] for part in parts]), 1)
        pairs = [torch.stack(part[1:], -1) for part in parts]
        parameters = torch.cat(pairs).transpose(0, 1).to(torch.bfloat16).contiguous()
        return cls(words, parameters, group, n_out, planes, padding)

    @property
    def n_bytes(self) -> int:
        """Of words and parameters."""
        return self.words.nbytes + self.parameters.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        y = self.bare(x)()
        if self.planes == 2:
            high, low = y.chunk(2, dim=-1)
            y = high.float().add_(low)
        y = y if y.shape[1] == self.outputs else y[:, : self.outputs]
        return y.to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        half = x.to(torch.bfloat16)
        half = F.pad(half, (0, self.padding)) if self.padding else half
        return partial(torch.ops.aten._weight_int4pack_mm_for_cpu, half, self.words, self.group, self.parameters)


@dataclass(frozen=True, slots=True)
class Int8Pack:
    """ATen's product of 8-bit integers with one scale for a row; `padding` inputs of zeros.

    Its vectorized loop reads whole runs of 16 inputs and knows of no rest (torch 2.13): it takes multiples.
    """

    integers: torch.Tensor
    scale: torch.Tensor  # (out,), bfloat16
    padding: int

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Int8Pack":
        """Lay out affine codes of one scale a row, less the code that stands for zero."""
        found = core.affine
        if found.base.shape[1] > 1:
            raise Unfit(f"groups of {found.group} inputs have a scale, expected one for a row")
        zero = zero_of(found)
        codes = found.codes.to(torch.int32) - zero.round().to(torch.int32)
        if bool((zero - zero.round()).abs().max() > 2.0**-12) or int(codes.min()) < -128 or int(codes.max()) > 127:
            raise Unfit("its levels are not int8 times a scale")
        padding = -core.shape[1] % _INPUTS
        return cls(F.pad(codes.to(torch.int8), (0, padding)), found.scale[:, 0].to(torch.bfloat16), padding)

    @property
    def n_bytes(self) -> int:
        """Of integers and scales."""
        return self.integers.nbytes + self.scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        return self.bare(x)().to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        half = F.pad(x.to(torch.bfloat16), (0, self.padding)) if self.padding else x.to(torch.bfloat16).contiguous()
        return partial(torch.ops.aten._weight_int8pack_mm, half, self.integers, self.scale)


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
    """The product of weights decoded as they are needed, some columns at a time."""

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
            weights = self.fitted.decode(piece.codes(), piece.columns).to(x.dtype)
            part = F.linear(x[:, piece.columns], weights)
            total = part if len(self.pieces) == 1 else part.float() if total is None else total.add_(part)
        assert total is not None
        return total.to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        return partial(self, x)


def _kernel(core: Core, dtype: torch.dtype, device: torch.device) -> Prepared:
    """Our own product of packed weights, on a GPU."""
    from suite.runtime.gpu import Kernel  # Triton is imported for those alone who ask for it

    return Kernel.prepare(core, dtype, device)


def zero_of(found: Affine) -> torch.Tensor:
    """The code, not always an integer, that stands for zero; `Unfit` where a whole group is one other number."""
    if bool(((found.scale == 0) & (found.base != 0)).any()):
        raise Unfit("a group's levels are all the same, and not zero")
    return torch.where(found.scale == 0, 0.0, -found.base / found.scale)


PRODUCTS = (
    Product(name="int4pack", device="cpu", prepare=Int4Pack.prepare),
    Product(name="int8pack", device="cpu", prepare=Int8Pack.prepare),
    Product(name="kernel", device="cuda", prepare=_kernel),
    Product(name="dense", device="any", prepare=Dense.prepare, holds_dense=True, exact=True),
    Product(name="dequantize", device="any", prepare=Dequantize.prepare, exact=True),
)


def product_named(name: str) -> Product:
    """The product of this name; `ValueError` that lists them."""
    for product in PRODUCTS:
        if product.name == name:
            return product
    raise ValueError(f"product {name!r}: expected one of {', '.join(product.name for product in PRODUCTS)}")
