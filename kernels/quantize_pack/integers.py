"""Integers of 2, 3, 4 and 8 bits with the scales and zero points that are in use (`kernels.integer_product`).

The conventions, with amax = max |x| of a group, are those of `suite.grids.integer`: "asymmetric" (GPTQ, AWQ: 0 is kept
inside the range, the zero point is a code), "real-zero" (HQQ: the zero point is any number), and, without zero points,
"full-range" (QuaRot), "narrow" (Brevitas: without the lowest code), "span" (GPTQ's release) and "signed-max"
(llama.cpp's Q4_0: the value of largest magnitude is met, by a scale that may be negative).

Scales are rounded to float16 before codes are chosen: a group of zeros has the scale 1, and none is below 2^-24. Codes
are x / s rounded to nearest, halves to even, plus the zero point; with a real zero point z it is x / s + z that is
rounded.
"""

import torch
import triton
import triton.language as tl

from kernels.integer_product.packing import WIDTHS, IntegerWeights, layout_of
from kernels.launch import Launch
from kernels.quantize_pack import triton as shared
from kernels.rounding import nearest_integer

CONVENTIONS = ("asymmetric", "real-zero", "full-range", "narrow", "span", "signed-max")
WITH_ZERO = CONVENTIONS[:2]


@triton.jit
def quotient(x, divisor, inverse):
    """Round x / divisor to float32 in three operations, for divisors of at most 11 bits, with its `inverse_of`.

    q = x inverse is off by 2.5 units in the last place at most, and x - q divisor, at most 13 bits, is exact. So q plus
    that times inverse is x / divisor but for 2^-21 units before it is rounded; and x / divisor is 2^-12 units or more
    from where rounding changes, being a fraction of 24 bits over 11. (Quotients near 2^-126 may be off; they are 0.)
    """
    if shared.INTERPRETED:
        return x / divisor
    asm: tl.constexpr = QUOTIENT_ASSEMBLY
    return tl.inline_asm_elementwise(asm, "=r,r,r,r", [x, -divisor, inverse], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def inverse_of(divisor):
    """Give 1 / divisor but for 2^-23 of it (PTX ISA, `rcp.approx.ftz.f32`), for `quotient`."""
    if shared.INTERPRETED:
        return 1.0 / divisor
    asm: tl.constexpr = "rcp.approx.ftz.f32 $0, $1;"
    return tl.inline_asm_elementwise(asm, "=r,r", [divisor], dtype=tl.float32, is_pure=True, pack=1)


QUOTIENT_ASSEMBLY = tl.constexpr(
    "{ .reg .f32 q, rest; mul.rn.f32 q, $1, $3; fma.rn.f32 rest, q, $2, $1; fma.rn.f32 $0, rest, $3, q; }"
)


@triton.jit
def divided(x, by):
    """Round x / by to float32 for a number `by`."""
    return tl.div_rn(x, tl.zeros_like(x) + by)


@triton.jit
def as_half(x):
    """Round a finite x to float16, back in float32; beyond its range to the end of it."""
    return tl.minimum(tl.maximum(x, -65504.0), 65504.0).to(tl.float16).to(tl.float32)


@triton.jit
def scale_of(
    low, high, usable, factor, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):
    """`SCALE` of integers: `side` is scale, its inverse, and the zero point."""
    TOP: tl.constexpr = (1 << BITS) - 1
    MIDDLE: tl.constexpr = 1 << (BITS - 1)
    low = tl.where(usable, low, 0.0)
    high = tl.where(usable, high, 0.0)
    if RULE == "asymmetric":
        low = tl.minimum(low, 0.0)
        high = tl.maximum(high, 0.0)
    most = tl.maximum(0.0 - low, high)
    if RULE == "asymmetric" or RULE == "real-zero":
        wanted = divided(high - low, TOP)
    elif RULE == "span":
        wanted = divided(most, TOP / 2)
    elif RULE == "signed-max":
        wanted = divided(most, MIDDLE)
    else:
        wanted = divided(most, MIDDLE - 1)
    if RULE == "real-zero":  # -low / s stays below 65504, however s is rounded
        least = most * 0.000030517578125  # 2^-15
        wanted = tl.where(wanted == 0, tl.maximum(least, 1.0), tl.maximum(wanted, least))
    scale = tl.where(wanted == 0, 1.0, tl.maximum(as_half(wanted), 5.9604644775390625e-8))  # 2^-24
    if RULE == "signed-max":
        scale = tl.where(high >= 0.0 - low, -scale, scale)
    inverse = inverse_of(scale)
    zero = tl.zeros_like(scale) + MIDDLE
    if RULE == "asymmetric":
        zero = tl.minimum(quotient(0.0 - low, scale, inverse), TOP)
        zero = (zero + 12582912.0) - 12582912.0  # 1.5 2^23: rounds to an integer, halves to even
    elif RULE == "real-zero":
        zero = as_half(quotient(0.0 - low, scale, inverse))
    stored = tl.where(usable, scale, float("nan"))
    return stored, tl.where(usable, zero, float("nan")), (stored, inverse, zero)


@triton.jit
def encode(
    x, side, table, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):  # fmt: skip
    """`ENCODE` of integers. A scale that is NaN gives the lowest code."""
    TOP: tl.constexpr = (1 << BITS) - 1
    LOWEST: tl.constexpr = 1 if RULE == "narrow" else 0
    scale, inverse, zero = side
    level = quotient(x, scale[:, None], inverse[:, None])
    if RULE == "real-zero":
        code = nearest_integer(tl.minimum(tl.maximum(level + zero[:, None], LOWEST), TOP))
    else:
        level = tl.minimum(tl.maximum(level, LOWEST - zero[:, None]), TOP - zero[:, None])
        code = nearest_integer(level) + nearest_integer(zero)[:, None]
    return code


def plan(W: torch.Tensor, bits: int, group: int | None = None, convention: str = "asymmetric") -> Launch:
    """The launch of `quantize_integers`: it fills words, scales and, where there are any, zero points."""
    if bits not in WIDTHS:
        raise ValueError(f"weights of {bits} bits, expected one of {WIDTHS}")
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
    return shared.plan(
        W, layout=layout_of(bits), group=group, scale_type=torch.float16, scale=scale_of, encode=encode,
        rule=convention, zeros=convention in WITH_ZERO,
    )  # fmt: skip


def quantize_integers(
    W: torch.Tensor, *, bits: int, group: int | None = None, convention: str = "asymmetric"
) -> IntegerWeights:
    """Round W (outputs, inputs), float16, bfloat16 or float32, to integers and pack them.

    `group` inputs share a scale, a multiple of 32 (of 16 at 3 bits), or all of an output (None). A group with NaN or
    infinity has NaN for its scale. Raises `ValueError` for what does not fit.
    """
    launch = plan(W, bits=bits, group=group, convention=convention)
    words, scale, *zero = launch.run()
    return IntegerWeights(
        words=words, scale=scale, zero=zero[0] if zero else None, outputs=W.shape[0], inputs=W.shape[1], bits=bits,
        group=launch.constants["GROUP"],
    )  # fmt: skip
