"""Products of integers that ATen packs, 4 and 8 bits wide, and the same words decoded for many rows.

ATen's own products decode a weight for every few rows of inputs anew, which is fast for a few. The decoded ones read
the same words, decode so many outputs at a time as a cache holds, once, and multiply by oneDNN's product of bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from suite.runtime.affine import RUN
from suite.runtime.core import Core, Unfit, zero_of

_GROUPS = (256, 128, 64, 32)  # that ATen's int4 product takes
_OUTPUTS = 64  # in a block of its words where there is AVX512; it takes multiples of 16 of them
HALF_BLOCK = 32  # bytes that hold a block's codes of one input
_AT_ONCE = 1 << 20  # weights that are decoded at a time: 2 MiB in bfloat16; of integers that are only cast, twice that
_int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu.default  # which of its overloads is not asked every time
_int8_product = torch.ops.aten._weight_int8pack_mm.default
_INPUTS = 32  # and its int8 product runs of so many inputs, whatever vectors the machine has


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
        return core.laid_out(cls, lambda: cls._of(core))

    @classmethod
    def _of(cls, core: Core) -> "Int4Pack":
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
        y = _int4_product(_in_half(x, self.padding), self.words, self.group, self.parameters)
        if self.planes == 2:
            high, low = y.chunk(2, dim=-1)
            y = high + low if x.dtype == torch.bfloat16 else high.float().add_(low)  # once rounded either way
        y = y if y.size(1) == self.outputs else y[:, : self.outputs]
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        half = _in_half(x, self.padding)
        return partial(_int4_product, half, self.words, self.group, self.parameters)

    @property
    def blocks(self) -> list[torch.Tensor]:
        """The words of each plane as (blocks, in, 32) bytes."""
        n_in = self.parameters.shape[0] * self.group
        shape = (self.planes, -1, n_in, HALF_BLOCK)
        return list(self.words.view(torch.uint8).reshape(shape))


@dataclass(frozen=True, slots=True)
class Int4Decoded:
    """The product of `Int4Pack`'s words decoded to bfloat16, some outputs at a time, and no copy of theirs."""

    packed: Int4Pack

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Int4Decoded":
        """Raises `Unfit` where ATen lays its words out in another way than is decoded here."""
        found = cls(Int4Pack.prepare(core, dtype, device))
        if not _known_layout():
            raise Unfit("this processor's words of 4 bits are laid out in another way than for AVX512")
        return found

    @property
    def n_bytes(self) -> int:
        """Of words and parameters."""
        return self.packed.n_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        return self.bare(x)()[:, : self.packed.outputs].to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        return partial(self._multiply, _in_half(x, self.packed.padding))

    def _multiply(self, half: torch.Tensor) -> torch.Tensor:
        from suite.runtime.decoding import decode, in_threads  # numba is imported for those alone who multiply by it

        planes = [plane.numpy() for plane in self.packed.blocks]
        first, second = planes[0], planes[1] if len(planes) == 2 else planes[0][:0]
        parameters, group = self.packed.parameters.view(torch.uint16).numpy(), self.packed.group
        blocks, n_in, _ = first.shape
        step = max(1, _AT_ONCE // (n_in * _OUTPUTS))
        y = half.new_empty(len(half), blocks * _OUTPUTS)
        for start in range(0, blocks, step):
            some = min(step, blocks - start)
            weights = half.new_empty(n_in, some * _OUTPUTS)
            out = weights.view(torch.uint16).numpy().reshape(n_in, some, _OUTPUTS)

            def part(a: int, b: int, start: int = start, out: np.ndarray = out) -> None:
                decode(first, second, parameters, group, start + a, start + b, start, out)

            in_threads(part, some, min(torch.get_num_threads(), some))
            torch.mm(half, weights, out=y[:, start * _OUTPUTS : (start + some) * _OUTPUTS])
        return y


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
        return core.laid_out(cls, lambda: cls._of(core))

    @classmethod
    def _of(cls, core: Core) -> "Int8Pack":
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
        half = _in_half(x, self.padding)
        return partial(_int8_product, half, self.integers, self.scale)


@dataclass(frozen=True, slots=True)
class Int8Decoded:
    """The product of `Int8Pack`'s integers as bfloat16, which holds each, some outputs at a time, and no copy."""

    packed: Int8Pack

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Int8Decoded":
        """What `Int8Pack` takes."""
        return cls(Int8Pack.prepare(core, dtype, device))

    @property
    def n_bytes(self) -> int:
        """Of integers and scales."""
        return self.packed.n_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        return self.bare(x)().to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        return partial(self._multiply, _in_half(x, self.packed.padding))

    def _multiply(self, half: torch.Tensor) -> torch.Tensor:
        integers = self.packed.integers
        n_out, n_in = integers.shape
        step = max(1, 2 * _AT_ONCE // n_in)
        turned = half.new_empty(n_out, len(half))  # of the two ways round, the faster one by a twentieth
        for start in range(0, n_out, step):
            weights = integers[start : start + step].to(torch.bfloat16)
            torch.mm(weights, half.T, out=turned[start : start + step])
        return torch.mul(turned.T, self.packed.scale, out=half.new_empty(len(half), n_out))


def _in_half(x: torch.Tensor, padding: int) -> torch.Tensor:
    """Inputs as bfloat16, with `padding` zeros behind."""
    half = x if x.dtype == torch.bfloat16 else x.to(torch.bfloat16)
    return F.pad(half, (0, padding)) if padding else half.contiguous()


@cache
def _known_layout() -> bool:
    """Whether ATen lays out 64 outputs and 32 inputs as `suite.runtime.decoding` reads them."""
    codes = (torch.arange(64 * 32) * 7 // 5 % 16).reshape(64, 32)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    halves = codes.T.reshape(32, 2, HALF_BLOCK)
    return torch.equal(words.view(torch.uint8).reshape(32, HALF_BLOCK), (halves[:, 0] | halves[:, 1] << 4).byte())
