"""Integers decoded by one logical operation for two weights.

A field of at most ten bits, set into the fraction of the half-precision number 1024, reads 1024 + q 2^p with p its
place in the word: one AND and one OR, which the hardware does at once. A fused multiply-add takes it to q less the
middle of the range. (The trick for 4 bits: Kim et al. 2022, "Who Says Elephants Can't Run", arXiv:2211.10017.)

In bfloat16 the fraction has seven bits and the number is 128. There the seven low bits of an 8-bit code read
128 + low, and the eighth, set into the lowest bit of the exponent, reads 128 or 256: their difference is the code less
128.

Zero points apply after the sum over a group: sum (q - z) x = sum (q - middle) x + (middle - z) sum x. They need not be
integers, cost no operation for each weight, and weights stay exact.
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.integer_product.packing import IntegerWeights, validate
from kernels.launch import Launch
from kernels.product import triton as shared


@triton.jit
def integer(words, PLACE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """The field of `BITS` bits at bit `PLACE` of each word, less the middle of its range, in `DTYPE`."""
    ROOM: tl.constexpr = 10 if DTYPE == tl.float16 else 7  # bits of the fraction
    FIRST: tl.constexpr = ROOM // BITS * BITS  # fields below this bit need no shift
    MOVE: tl.constexpr = PLACE // FIRST * FIRST
    AT: tl.constexpr = PLACE - MOVE
    MASK: tl.constexpr = ((1 << BITS) - 1) << AT
    MAGIC: tl.constexpr = 0x6400 if DTYPE == tl.float16 else 0x4300  # 1024, 128
    BASE: tl.constexpr = (1 << ROOM) / (1 << AT) + (1 << (BITS - 1))
    if MOVE > 0:
        words = shared.shifted(words, MOVE)
    value = shared.as_half(shared.raised(words, MASK, MAGIC), DTYPE)
    return value * (1.0 / (1 << AT)) - BASE


@triton.jit
def int2(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 2 bits about their middle."""
    return integer(a, PIECE * 2, 2, DTYPE)


@triton.jit
def int3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 3 bits about their middle: five in each of the three words, the sixteenth in their highest bits."""
    if PIECE < 15:
        word = a if PIECE < 5 else (b if PIECE < 10 else c)
        value = integer(word, PIECE % 5 * 3, 3, DTYPE)
    else:
        spare = (shared.shifted(a, 15) & 1) | (shared.shifted(b, 14) & 2) | (shared.shifted(c, 13) & 4)
        value = integer(spare, 0, 3, DTYPE)
    return value


@triton.jit
def int4(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 4 bits about their middle."""
    return integer(a, PIECE * 4, 4, DTYPE)


@triton.jit
def int8(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 8 bits about their middle."""
    if DTYPE == tl.float16:
        value = integer(a, PIECE * 8, 8, DTYPE)
    else:
        if PIECE == 1:
            a = shared.shifted(a, 8)
        low = shared.as_half(shared.raised(a, 0x7F, 0x4300), DTYPE)  # 128 + q % 128
        value = low - shared.as_half(shared.raised(a, 0x80, 0x4380), DTYPE)  # less 128 if q >= 128, else 256
    return value


@triton.jit
def with_zero(scale, extra, group, n, columns, inside, MIDDLE: tl.constexpr):
    """A group's scale, and the middle of the range less its zero point, in float32."""
    at = group * columns + n
    zero = tl.load(extra + at, mask=inside, other=0.0).to(tl.float32)
    return tl.load(scale + at, mask=inside, other=0.0).to(tl.float32), MIDDLE - zero


@triton.jit
def zero2(scale, extra, group, n, columns, inside):
    """`SIDE` of 2-bit weights with zero points."""
    return with_zero(scale, extra, group, n, columns, inside, 2)


@triton.jit
def zero3(scale, extra, group, n, columns, inside):
    """`SIDE` of 3-bit weights with zero points."""
    return with_zero(scale, extra, group, n, columns, inside, 4)


@triton.jit
def zero4(scale, extra, group, n, columns, inside):
    """`SIDE` of 4-bit weights with zero points."""
    return with_zero(scale, extra, group, n, columns, inside, 8)


@triton.jit
def zero8(scale, extra, group, n, columns, inside):
    """`SIDE` of 8-bit weights with zero points."""
    return with_zero(scale, extra, group, n, columns, inside, 128)


DECODE = {2: int2, 3: int3, 4: int4, 8: int8}
WITH_ZERO = {2: zero2, 3: zero3, 4: zero4, 8: zero8}


def plan(x: torch.Tensor, weights: IntegerWeights) -> Launch:
    """The launch of `integer_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    return shared.plan(
        x, weights.words, weights.scale, extra=weights.zero, outputs=weights.outputs, layout=weights.layout,
        group=weights.group, decode=DECODE[weights.bits], offset=weights.zero is not None,
        side=shared.half_scale if weights.zero is None else WITH_ZERO[weights.bits],
    )  # fmt: skip


def integer_product(x: torch.Tensor, weights: IntegerWeights) -> torch.Tensor:
    """Give x (rows, inputs) in float16 or bfloat16 times the transposed weights: (rows, outputs) in the type of x.

    Weights are decoded exactly and summed in float32, to the same bits in every run. Raises `ValueError` for what does
    not fit.
    """
    return plan(x, weights).run()
