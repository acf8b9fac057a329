"""Integers decoded by one logical operation for two weights.

A field of at most ten bits, set into the fraction of the half-precision number 1024, reads 1024 + q 2^p with p its
place in the word: one AND and one OR, which the hardware does at once. A fused multiply-add takes it to q less its zero
point. In bfloat16 the fraction has seven bits and the number is 128; there 8-bit codes go as two nibbles. (The trick
for 4 bits: Kim et al. 2022, "Who Says Elephants Can't Run", arXiv:2211.10017.)
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.integer_product.packing import IntegerWeights, validate
from kernels.launch import Launch
from kernels.product import triton as shared


@triton.jit
def integer(words, PLACE: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr, DTYPE: tl.constexpr):
    """The field of `BITS` bits at bit `PLACE` of each word, less the constant `LESS`, in `DTYPE`."""
    ROOM: tl.constexpr = 10 if DTYPE == tl.float16 else 7  # bits of the fraction
    FIRST: tl.constexpr = ROOM // BITS * BITS  # fields below this bit need no shift
    MOVE: tl.constexpr = PLACE // FIRST * FIRST
    AT: tl.constexpr = PLACE - MOVE
    MASK: tl.constexpr = ((1 << BITS) - 1) << AT
    MAGIC: tl.constexpr = 0x6400 if DTYPE == tl.float16 else 0x4300  # 1024, 128
    BASE: tl.constexpr = (1 << ROOM) / (1 << AT) + LESS
    if MOVE > 0:
        words = shared.shifted(words, MOVE)
    value = shared.as_half(shared.raised(words, MASK, MAGIC), DTYPE)
    return value * (1.0 / (1 << AT)) - BASE


@triton.jit
def code(a, b, c, PIECE: tl.constexpr, BITS: tl.constexpr, LESS: tl.constexpr, DTYPE: tl.constexpr):
    """Code number `PIECE` of the words in up to three planes, less the constant `LESS`."""
    if BITS == 3:
        if PIECE < 15:
            word = a if PIECE < 5 else (b if PIECE < 10 else c)
            value = integer(word, PIECE % 5 * 3, 3, LESS, DTYPE)
        else:
            spare = (shared.shifted(a, 15) & 1) | (shared.shifted(b, 14) & 2) | (shared.shifted(c, 13) & 4)
            value = integer(spare, 0, 3, LESS, DTYPE)
    elif BITS == 8 and DTYPE != tl.float16:
        high = integer(a, PIECE * 8 + 4, 4, LESS // 16, DTYPE)
        value = high * 16 + integer(a, PIECE * 8, 4, LESS % 16, DTYPE)
    else:
        value = integer(a, PIECE * BITS, BITS, LESS, DTYPE)
    return value


@triton.jit
def int2(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 2 bits about their middle."""
    return code(a, b, c, PIECE, 2, 2, DTYPE)


@triton.jit
def int3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 3 bits about their middle."""
    return code(a, b, c, PIECE, 3, 4, DTYPE)


@triton.jit
def int4(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 4 bits about their middle."""
    return code(a, b, c, PIECE, 4, 8, DTYPE)


@triton.jit
def int8(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 8 bits about their middle."""
    return code(a, b, c, PIECE, 8, 128, DTYPE)


@triton.jit
def uint2(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 2 bits less their zero points."""
    return code(a, b, c, PIECE, 2, 0, DTYPE) - shift[None, :].to(DTYPE)


@triton.jit
def uint3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 3 bits less their zero points."""
    return code(a, b, c, PIECE, 3, 0, DTYPE) - shift[None, :].to(DTYPE)


@triton.jit
def uint4(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 4 bits less their zero points."""
    return code(a, b, c, PIECE, 4, 0, DTYPE) - shift[None, :].to(DTYPE)


@triton.jit
def uint8(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of 8 bits less their zero points."""
    return code(a, b, c, PIECE, 8, 0, DTYPE) - shift[None, :].to(DTYPE)


@triton.jit
def scale_and_zero(scale, extra, group, n, columns, inside):
    """`SIDE` of weights with zero points."""
    at = group * columns + n
    return tl.load(scale + at, mask=inside, other=0.0).to(tl.float32), tl.load(extra + at, mask=inside, other=0.0)


CENTERED = {2: int2, 3: int3, 4: int4, 8: int8}
WITH_ZERO = {2: uint2, 3: uint3, 4: uint4, 8: uint8}


def plan(x: torch.Tensor, weights: IntegerWeights) -> Launch:
    """The launch of `integer_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    return shared.plan(
        x, weights.words, weights.scale, extra=weights.zero, outputs=weights.outputs, layout=weights.layout,
        group=weights.group, decode=(CENTERED if weights.zero is None else WITH_ZERO)[weights.bits],
        side=shared.half_scale if weights.zero is None else scale_and_zero,
    )  # fmt: skip


def integer_product(x: torch.Tensor, weights: IntegerWeights) -> torch.Tensor:
    """Give x (rows, inputs) in float16 or bfloat16 times the transposed weights: (rows, outputs) in the type of x.

    Sums in float32, the same bits in every run. Weights less their zero points are exact in the type of x where the
    zero points are integers, otherwise rounded to it. Raises `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
