"""Element formats: a handful of bits and the number that each of their patterns stands for.

A format is a constant. `levels` says what every code decodes to; `encode` rounds to nearest, ties to the even code
(of the magnitude, where a sign bit is apart; of the level's place from below, in a table). What happens at the edges:

- beyond the largest number, `encode` saturates: also at +-infinity. With `saturate=False` formats that have an
  infinity (E5M2) go there, those that have only a NaN (E4M3) go to NaN, as `ml_dtypes` casts do, and the rest saturate;
- NaN becomes the format's NaN, and is a `ValueError` where there is none;
- -0 keeps its sign bit where there is one, and reads back as -0.

Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP Microscaling Formats 1.0, section 5.3 (E3M2, E2M3,
E2M1, INT8); Dettmers et al. 2023, arXiv:2305.14314, appendix E (NF4); Du et al. 2024, BitDistiller, arXiv:2402.10631,
and its release (N2F3, made the same way); Liu et al. 2025, ParetoQ, arXiv:2502.02631 (SEQ).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, Protocol

import torch

_LAYOUT = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


class Element(Protocol):
    """A finite set of levels and their codes; hashable, since it is a constant."""

    def __hash__(self) -> int:
        """Elements are keys of caches."""
        ...

    @property
    def name(self) -> str:
        """What recipes call it."""

    @property
    def bits(self) -> int:
        """The width of a code."""

    @property
    def reach(self) -> float:
        """The magnitude that a group's largest value is scaled to."""

    @property
    def levels(self) -> tuple[float, ...]:
        """What every code decodes to, by code; NaN and infinities where the format has them."""

    @property
    def lowest(self) -> float:
        """The lowest number that is ever chosen."""

    def encode(self, x: torch.Tensor, saturate: bool = True) -> torch.Tensor:
        """The codes nearest to `x`: uint8, or int32 beyond 8 bits."""

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The levels nearest to `x`, those of the codes that `encode` gives but for the sign of 0; saturates."""


def code_type(bits: int) -> torch.dtype:
    """The tensor type of codes of so many bits."""
    return torch.uint8 if bits <= 8 else torch.int32


def fields_of(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Non-negative float32 or float64 `x` as integers of the same size, with mantissa width and exponent bias."""
    whole, mantissa, bias = _LAYOUT[x.dtype]
    return x.view(whole), mantissa, bias


def has_nan(x: torch.Tensor) -> bool:
    """Whether a number is NaN; their sum says at once that none is, unless infinities cancel."""
    return bool(x.sum().isnan()) and bool(x.isnan().any())


@dataclass(frozen=True)
class FloatFormat:
    """A sign, `exponent` and `mantissa` bits, with subnormals: (-1)^s 2^(e - bias) 1.m, and 2^(1 - bias) 0.m at e = 0.

    `special`: "ieee" keeps the highest exponent for infinity and NaN, "nan" only the highest pattern for NaN,
    "finite" nothing.
    """

    name: str
    exponent: int
    mantissa: int
    special: Literal["ieee", "nan", "finite"]
    type: torch.dtype | None = None  # torch's own, whose casts are used where they round once

    @property
    def bits(self) -> int:
        """The width of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """The exponent bias, IEEE's."""
        return 2 ** (self.exponent - 1) - 1

    @cached_property
    def top_code(self) -> int:
        """The code of the largest finite number."""
        highest = 2 ** (self.bits - 1) - 1
        return highest - {"ieee": 2**self.mantissa, "nan": 1, "finite": 0}[self.special]

    @property
    def reach(self) -> float:
        """The largest finite number."""
        return self.levels[self.top_code]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """What every code decodes to, by code."""
        half = [self._magnitude(code) for code in range(2 ** (self.bits - 1))]
        return tuple(half + [-value for value in half])

    @property
    def lowest(self) -> float:
        """The lowest number."""
        return -self.reach

    def _magnitude(self, code: int) -> float:
        if code > self.top_code:
            infinite = self.special == "ieee" and code == self.top_code + 1
            return math.inf if infinite else math.nan
        e, m = divmod(code, 2**self.mantissa)
        return math.ldexp(m + (2**self.mantissa if e else 0), max(e, 1) - self.bias - self.mantissa)

    def encode(self, x: torch.Tensor, saturate: bool = True) -> torch.Tensor:
        """The codes nearest to `x`, ties to even. `ValueError` for NaN where the format has none.

        With the exponent e of |x|, at least that of the smallest normal number, the magnitude's code is
        (e - e_min) 2^m + round(|x| 2^(m - e)): a mantissa that rounds up carries into the exponent by itself.
        """
        if self.type is not None and x.dtype == torch.float32 and saturate and not has_nan(x):
            cast = x.clamp(-self.reach, self.reach).to(self.type)
            return cast.view(torch.uint8) if self.bits == 8 else cast.view(torch.int16).to(torch.int32) & 0xFFFF
        size = x.abs()
        whole, width, bias = fields_of(size)
        lowest = 1 - self.bias
        e = (whole >> width).clamp_(lowest + bias, 2**self.exponent - self.bias + bias)
        power = ((2 * bias + self.mantissa) - e).bitwise_left_shift_(width).view(x.dtype)  # 2^(m - e)
        steps = (size * power).round_().clamp_(max=2.0 ** (self.mantissa + 1))
        code = steps.to(whole.dtype).add_(e.sub_(lowest + bias).bitwise_left_shift_(self.mantissa))
        code = code.clamp_(max=self.top_code if saturate or self.special == "finite" else self.top_code + 1)
        code = code.to(torch.int32)
        if has_nan(x):
            if self.special == "finite":
                raise ValueError(f"NaN has no code in {self.name}")
            code = torch.where(x.isnan(), self._nan_code, code)
        negative = x.view(whole.dtype) < 0  # the sign bit, of -0 too
        return code.add_(negative, alpha=1 << (self.bits - 1)).to(code_type(self.bits))

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers nearest to `x`, ties to even; saturates, and NaN stays NaN.

        Adding and taking away 3/2 of a power of two so large that its last place is the step at |x| rounds to it.
        """
        near = x.clamp(-self.reach, self.reach)
        whole, width, bias = fields_of(near)
        power = (whole & ((2 * bias + 1) << width)).view(x.dtype).clamp_(min=2.0 ** (1 - self.bias))
        power.mul_(1.5 * 2.0 ** (width - self.mantissa))
        return near.add_(power).sub_(power)

    @property
    def _nan_code(self) -> int:
        """The NaN that casts make: the only one, or the quiet one."""
        return self.top_code + (1 if self.special == "nan" else 1 + 2 ** (self.mantissa - 1))


@dataclass(frozen=True)
class FixedPoint:
    """Two's complement with `fraction` bits behind the point; the most negative code is never chosen."""

    name: str
    bits: int
    fraction: int

    @property
    def reach(self) -> float:
        """The largest number."""
        return (2 ** (self.bits - 1) - 1) / 2**self.fraction

    @property
    def lowest(self) -> float:
        """The lowest number that is chosen."""
        return -self.reach

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """What every code decodes to, by code."""
        n = 2**self.bits
        return tuple((code - n if code >= n // 2 else code) / 2**self.fraction for code in range(n))

    def encode(self, x: torch.Tensor, saturate: bool = True) -> torch.Tensor:
        """The codes nearest to `x`, ties to even; always saturates, symmetrically. `ValueError` for NaN."""
        if has_nan(x):
            raise ValueError(f"NaN has no code in {self.name}")
        top = 2 ** (self.bits - 1) - 1
        code = (x * 2.0**self.fraction).round_().clamp_(-top, top).to(torch.int32)
        return code.bitwise_and_(2**self.bits - 1).to(code_type(self.bits))

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers nearest to `x`, ties to even; saturates symmetrically, and NaN stays NaN."""
        top = 2 ** (self.bits - 1) - 1
        return (x * 2.0**self.fraction).round_().clamp_(-top, top).mul_(2.0**-self.fraction)


@dataclass(frozen=True)
class Table:
    """Ascending levels, coded by their place. A group's largest value is scaled to `reach`."""

    name: str
    bits: int
    levels: tuple[float, ...]
    reach: float = 1.0

    @property
    def lowest(self) -> float:
        """The first level."""
        return self.levels[0]

    def encode(self, x: torch.Tensor, saturate: bool = True) -> torch.Tensor:
        """The codes nearest to `x`, ties to the even place; always saturates. `ValueError` for NaN."""
        if has_nan(x):
            raise ValueError(f"NaN has no code in {self.name}")
        search = _search(self.levels, x.dtype)
        return search.place(x).to(code_type(self.bits))

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The levels nearest to `x`, ties to the even place; saturates. `ValueError` for NaN."""
        places = self.encode(x).reshape(-1).to(torch.int32)
        return torch.tensor(self.levels, dtype=x.dtype).index_select(0, places).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class _Search:
    """How many of ascending `bounds` (n,) are below a number, by a look into `bins` of equal width.

    A number's bin is a monotone function of it, rounding included. So bounds in lower bins are surely below it, those
    in higher bins surely not, and only the one bound in its own bin is left to compare with.
    """

    bounds: torch.Tensor
    low: float
    per_unit: float
    counts: torch.Tensor | None = None  # bounds in lower bins
    inside: torch.Tensor | None = None  # the bound in this bin, or infinity

    def bin(self, x: torch.Tensor, bins: int) -> torch.Tensor:
        """The bin of every number, int32."""
        return (x - self.low).mul_(self.per_unit).clamp_(0, bins - 1).to(torch.int32)

    def place(self, x: torch.Tensor) -> torch.Tensor:
        """The number of bounds below each of `x`."""
        if self.counts is None or self.inside is None:
            return torch.bucketize(x, self.bounds, out_int32=True)
        where = self.bin(x, len(self.counts)).reshape(-1)
        above = x.reshape(-1) > self.inside.index_select(0, where)
        return (self.counts.index_select(0, where) + above.view(torch.uint8)).reshape(x.shape)


@lru_cache(maxsize=128)
def _search(levels: tuple[float, ...], dtype: torch.dtype) -> _Search:
    """The fewest bins, a power of two, that tell all bounds apart; plain bisection where 2^12 do not."""
    bounds = boundaries(levels, dtype)
    low, span = float(bounds[0]), float(bounds[-1] - bounds[0])
    for width in range(13):
        search = _Search(bounds, low, (2**width - 1) / span if span else 0.0)
        where = search.bin(bounds, 2**width).to(torch.int64)
        if len(where.unique()) == len(bounds):
            inside = torch.full((2**width,), math.inf, dtype=dtype).index_copy_(0, where, bounds)
            counts = torch.searchsorted(where, torch.arange(2**width))  # sorted, as the bounds are
            return replace(search, counts=counts.to(torch.uint8), inside=inside)
    return _Search(bounds, low, 0.0)


@lru_cache(maxsize=128)
def boundaries(levels: tuple[float, ...], dtype: torch.dtype) -> torch.Tensor:
    """The largest number of this type that still rounds to each level but the last, ties to the even place."""
    table = torch.tensor(levels, dtype=torch.float64)
    middle = (table[1:] + table[:-1]) / 2
    found = middle.to(dtype)
    below = torch.nextafter(found, torch.full_like(found, -math.inf))
    exact = found.double() == middle
    down = torch.arange(len(middle)) % 2 == 0  # a tie goes to the lower place where that is even
    stays = (found.double() < middle) | (exact & down)
    return torch.where(stays, found, below)


E4M3 = FloatFormat("e4m3", 4, 3, "nan", torch.float8_e4m3fn)
E5M2 = FloatFormat("e5m2", 5, 2, "ieee", torch.float8_e5m2)
E3M2 = FloatFormat("e3m2", 3, 2, "finite")
E2M3 = FloatFormat("e2m3", 2, 3, "finite")
E2M1 = FloatFormat("e2m1", 2, 1, "finite")
FLOAT16 = FloatFormat("float16", 5, 10, "ieee", torch.float16)
INT8 = FixedPoint("int8", 8, 6)  # MXINT8: 1.6 fixed point

NF4 = Table("nf4", 4, (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0))  # fmt: skip
N2F3 = Table("n2f3", 3, (
    -1.0, -0.5350227355957031, -0.2469314038753510, 0.0, 0.1833375245332718, 0.3819939494132996, 0.6229856610298157,
    1.0))  # fmt: skip
NF2 = Table("nf2", 2, (-1.0, 0.0, 0.33791524171829224, 1.0))
TERNARY = Table("ternary", 2, (-1.0, 0.0, 1.0))
BINARY = Table("binary", 1, (-1.0, 1.0))
SEQ3 = Table("seq3", 2, (-2 / 3, 0.0, 2 / 3))  # ParetoQ at 1.58 bits, in units of alpha = max |w|
SEQ4 = Table("seq4", 2, (-0.75, -0.25, 0.25, 0.75))  # ParetoQ at 2 bits
FP4_BITSANDBYTES = Table("fp4-bitsandbytes", 4, tuple(
    value / 12 for value in (-12, -8, -6, -4, -3, -2, -0.0625, 0, 0.0625, 2, 3, 4, 6, 8, 12)))  # fmt: skip
UNBALANCED = Table("unbalanced", 2, (-2.0, -1.0, 0.0, 1.0), reach=2.0)

_ALL = (
    E4M3,
    E5M2,
    E3M2,
    E2M3,
    E2M1,
    FLOAT16,
    INT8,
    NF4,
    N2F3,
    NF2,
    FP4_BITSANDBYTES,
    TERNARY,
    BINARY,
    SEQ3,
    SEQ4,
    UNBALANCED,
)
ELEMENTS: dict[str, Element] = {element.name: element for element in _ALL}
