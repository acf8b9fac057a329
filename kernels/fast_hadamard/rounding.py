"""Rounding of values as they leave registers: codes of 4 or 8 bits, or plain half precision.

Scales are max |y| / largest code, in float32. Codes are y times largest code / max |y|, rounded half to even, by adding
and subtracting alone: in 1.5 2^23 the last place is 1, so adding it rounds, and leaves the integer in the low bits. A
row of zeros has the scale 0 and codes 0; one with an infinity or NaN has a scale that is neither finite nor of use.

An encoder takes values (rows, columns) in float32 and stores those in rows that are `here` and columns below `B`, at
`start` of `out`, rows `WIDTH` values apart.
"""

import triton
import triton.language as tl

from kernels.launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def scales(top, LARGEST: tl.constexpr, UNIT: tl.constexpr):
    """(scale, factor of values) for the largest magnitudes `top`, in units of `UNIT`; division rounds to nearest."""
    largest = top * 0 + LARGEST
    by = tl.div_rn(largest, tl.where(top > 0, top, 1.0))
    return tl.div_rn(top, largest) * UNIT, tl.where(top > 0, by, 0.0)


@triton.jit
def raised(y):
    """Bits whose lowest 22 are those of the integer nearest to y, half to even; |y| < 2^21."""
    return (y + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def plain(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """Values as they are, in the type of `out`."""
    store(y.to(out.dtype.element_ty), out, start, here, WIDTH, B)


@triton.jit
def int8(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for each value, -127 to 127."""
    store(raised(y).to(tl.int8), out, start, here, WIDTH, B)


@triton.jit
def int4(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for two neighbors, -7 to 7 in two's complement, the first in the low nibble."""
    low, high = tl.split(raised(y).reshape([y.shape[0], y.shape[1] // 2, 2]))
    store(((low & 15) | (high << 4)).to(tl.uint8), out, start // 2, here, WIDTH // 2, B // 2)


@triton.jit
def e4m3(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for each value in the OCP format E4M3, -448 to 448."""
    store(nearest_e4m3(y), out, start, here, WIDTH, B)


@triton.jit
def nearest_e4m3(y):
    """Codes of E4M3, half to even, |y| <= 464: the hardware's conversion, which the interpreter gets wrong.

    There, as the hardware does: steps are 2^(e - 3) in the binade of 2^e, and 2^-9 below 2^-6; adding 2^23 of them
    rounds to one.
    """
    if not INTERPRETED:
        return y.to(tl.float8e4nv)
    bits = y.to(tl.int32, bitcast=True)
    binade = tl.maximum((bits >> 23) & 0xFF, 121)  # exponents with their bias of 127
    steps = ((binade + 20) << 23).to(tl.float32, bitcast=True)
    size = (tl.abs(y) + steps) - steps
    normal = (size.to(tl.int32, bitcast=True) >> 20) - (120 << 3)  # the bias of 127 becomes 7
    code = tl.where(size < 0.015625, raised(size * 512.0) & 0x7F, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def store(values, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """Values (rows, columns) to their places."""
    a = tl.arange(0, values.shape[0])[:, None]
    b = tl.arange(0, values.shape[1])[None, :]
    tl.store(out + start + (a * WIDTH + b), values, mask=here[:, None] & (b < B))
