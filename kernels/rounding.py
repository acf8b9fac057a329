"""Rounding of float32 numbers to codes, by arithmetic that gives the same bits on every chip and under the interpreter.

To nearest, halves to even. Nothing saturates: values are at most the largest code and a few roundings of float32.
"""

import triton
import triton.language as tl

from kernels.launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def times(a, b):
    """Round a b to float32: never fused with what is added next, which would round once where others round twice."""
    if INTERPRETED:
        return a * b
    return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def nearest_integer(y):
    """Integers in int32 for |y| < 2^22: from 2^23 to 2^24 the last place of float32 is 1, so a sum there rounds."""
    return (y + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000  # 1.5 2^23


@triton.jit
def two_in_a_byte(y):
    """Bytes, int8, of two neighboring numbers each (rows, columns), |y| < 8, as `kernels.codes` packs integers."""
    low, high = tl.split(nearest_integer(y).reshape(y.shape[0], y.shape[1] // 2, 2))
    return ((low & 15) | (high << 4)).to(tl.int8)


@triton.jit
def e4m3(y):
    """Bytes of the OCP format E4M3 (OFP8 specification, revision 1.0, 2023), for |y| < 464: the hardware's conversion.

    By hand: from 2^-6 on, the bits of float32 without the last 20 of the fraction and with the bias 7 instead of 127;
    below, multiples of 2^-9, which is the last place of float32 beyond 2^14. Rounding up carries into the exponent, as
    it should, and from the largest of the multiples to 2^-6.
    """
    if INTERPRETED:
        bits = y.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)  # 2^-6
        return code.to(tl.int8)
    asm: tl.constexpr = E4M3_ASSEMBLY
    return tl.inline_asm_elementwise(asm, "=r,r,r,r,r", [y], dtype=tl.int8, is_pure=True, pack=4)


# compute capability 8.9 or higher; the first operand goes into the high byte (PTX ISA, `cvt`)
E4M3_ASSEMBLY = tl.constexpr(
    "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;"
    " mov.b32 $0, {low, high}; }"
)


@triton.jit
def to_type(y, TYPE: tl.constexpr):
    """Round y to float16, bfloat16 or float32; the interpreter would cut bfloat16 off, so there it is done by hand."""
    if INTERPRETED and TYPE == tl.bfloat16:
        y = in_bfloat16(y)
    return y.to(TYPE)


@triton.jit
def in_bfloat16(y):
    """The nearest number of bfloat16, in float32."""
    bits = y.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def scale_of(top, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """(top / LARGEST, the factor LARGEST / top) for magnitudes `top`; division rounds to nearest.

    Both are 0 where `top` is below SMALLEST; where it is NaN or infinite, the first is NaN and the second 0.
    """
    finite = top < float("inf")
    usable = finite & (top >= SMALLEST)
    some = tl.where(usable, top, 1.0)
    largest = some * 0 + LARGEST  # of its shape
    scale = tl.where(usable, tl.div_rn(some, largest), tl.where(finite, 0.0, float("nan")))
    return scale, tl.where(usable, tl.div_rn(largest, some), 0.0)
