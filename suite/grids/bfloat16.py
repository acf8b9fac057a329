"""BF16: the upper half of a float32, without a scale. Codes are the 65,536 bit patterns, so nothing can be lost twice.

Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training, arXiv:1905.12322: sign 1, exponent 8, mantissa 7,
IEEE's infinities, NaNs and subnormals. A checkpoint in BF16 comes back bit for bit, which is what lossless coders of
weights start from (`suite.coding.exponents`).

Rounding is to nearest, ties to the even pattern, once: a float64 value that float32 would first carry onto a tie goes
where it belongs itself. Numbers beyond the largest finite one stay there, as in all formats here (`suite.grids
.elements`); casts of torch's make infinities of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.packing import pack, unpack
from suite.grids.elements import has_nan
from suite.grids.layout import ALL, Columns, check_finite, check_matrix

_TOP = 0x7F7F  # the largest finite number, (2 - 2^-7) 2^127
_NAN = 0x7FC0  # the quiet one
_SIGN = 0x8000
_TIE = 0x8000  # of the lower 16 bits of a float32


@dataclass(frozen=True, slots=True, kw_only=True)
class BFloat16:
    """Every bit pattern of BF16 as a code of 16 bits; nothing to fit."""

    block = (1, 1)

    @property
    def bits(self) -> int:
        """The width of a code."""
        return 16

    @property
    def unsupported(self) -> str | None:
        """Nothing is."""
        return None

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedBFloat16":
        """Bind the grid to `W` (out, in), float32 or float64; there is nothing to choose.

        Raises `ValueError` for NaN or infinite values and an empty matrix. (`decode` takes every pattern.)
        """
        check_matrix(W)
        check_finite(W)
        return FittedBFloat16(shape=(W.shape[0], W.shape[1]), dtype=W.dtype)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedBFloat16", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedBFloat16.to_bytes` wrote."""
        fitted = self.restore((), header)
        (codes,) = unpack(payload, [(math.prod(fitted.shape), 16)])
        return fitted, fitted.codes_of([codes])

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """Nothing is stored beside the codes."""
        return []

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedBFloat16":
        """The fitted grid, which the shape says all of."""
        n_out, n_in = header["shape"]
        return FittedBFloat16(shape=(n_out, n_in))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedBFloat16:
    """A `BFloat16` grid for an (out, in) matrix of type `dtype`, which it decodes to."""

    shape: tuple[int, int]
    dtype: torch.dtype = torch.float32

    mask_size = 0  # no masks
    n_codes = 1 << 16
    regroups = False  # no scales
    beside_bits = 0

    @property
    def grid(self) -> BFloat16:
        """The frozen value that it was fitted from."""
        return BFloat16()

    @property
    def group_size(self) -> int:
        """All values: none has a scale of its own."""
        return math.prod(self.shape)

    @property
    def n_bits(self) -> int:
        """Exactly 16 bits a value."""
        return 16 * math.prod(self.shape)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), int32, of the numbers nearest to `x` (out, k), ties to the even pattern; -0 keeps its sign.

        NaN becomes the quiet 0x7FC0. Raises `ValueError` for a `cost`: a rate for each of 65,536 patterns would
        have every value compared with all of them, and BF16 is there to lose nothing.
        """
        if cost is not None:
            raise ValueError("BF16 rounds to nearest: its 65536 codes have no costs")
        patterns = _rounded_once(x).to(torch.bfloat16).view(torch.int16).to(torch.int32)
        magnitude = patterns & (_SIGN - 1)
        finite = torch.where(magnitude == _TOP + 1, _TOP, magnitude) | (patterns & _SIGN)  # where it was an infinity
        return torch.where(x.isnan(), _NAN, finite) if has_nan(x) else finite

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x)
        return codes, self.decode(codes)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two numbers around `x`, both the same where `x` is one or lies beyond the largest."""
        codes, values = self.snap(x)
        place = torch.where(codes >= _SIGN, _SIGN - codes, codes)  # ascending, one for both zeros
        low, high = (p.clamp(-_TOP, _TOP) for p in (place - (values > x).int(), place + (values < x).int()))
        return torch.where(low < 0, _SIGN - low, low), torch.where(high < 0, _SIGN - high, high)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The numbers (out, k) that the codes stand for, in the type of the matrix."""
        return self.decode32(codes).to(self.dtype)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All numbers in float32: the pattern, then 16 zero bits. NaNs keep their payload."""
        return (codes.to(torch.int32) << 16).view(torch.float32)

    def in_order(self, perm: torch.Tensor) -> "FittedBFloat16":
        """The same: there are no groups."""
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedBFloat16":
        """The same: there is nothing to fit."""
        return self

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Nothing."""
        return []

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), int32."""
        return streams[0].to(torch.int32).reshape(self.shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """The patterns row after row, two bytes each, the lower one first."""
        return pack([(codes, 16)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape."""
        return {"shape": list(self.shape)}


def _rounded_once(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 such that rounding that to BF16 is rounding `x` to BF16.

    Two roundings differ from one only where the first one ends on a tie of the second, which the value itself was not:
    there the float32 next to the tie, on the value's side, is as good as the value.
    """
    y = x.float()
    if x.dtype == torch.float32:
        return y
    whole = y.view(torch.int32)
    tie = (whole & 0xFFFF) == _TIE
    size, reached = x.abs(), y.abs().to(x.dtype)
    aside = (size > reached).int() - (size < reached).int()  # patterns of one sign ascend with the magnitude
    return torch.where(tie, whole + aside, whole).view(torch.float32)
