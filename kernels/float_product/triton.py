"""Floating-point weights decoded by shifts and masks: a code's fields are half precision's, only narrower.

Magnitude and sign of a code are moved to where half precision has them and taken by masks; what is then read is the
number times 2^(bias - 15), exactly, subnormals too, and matrix units take subnormal operands. The power of two goes
into the scale. In bfloat16, whose exponent has eight bits, that would be 2^(bias - 127) and all numbers as good as
zero: there, one multiplication undoes it, which `mul.bf16x2` does exactly (subnormal operands: PTX ISA, "mul").

Scales apply to the sums of a group, in float32, as in every product. With formats of 4 bits, whose groups of 16 or 32
inputs make this dear, they apply to the weights instead, wherever that is exact: E4M3 scales, because a product of
E4M3 and E2M1 has six significant bits and, times 2^-7, none below 2^-17; E8M0 scales in bfloat16, in the place of the
multiplication above, and in float16 while they span no more than 2^24. A byte of scale becomes a pair of halves by one
multiplication and addition of integers.

Blackwell's matrix units take block-scaled operands only if the activations are 4, 6 or 8 bits wide too; there is no
instruction for a 16-bit operand beside a 4-bit one, and Triton's `dot_scaled` then widens the weights, for sm_90 and
sm_100 alike. A product with 16-bit activations has therefore one way on both.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.float_product.formats import E2M1, E2M3, E3M2, E4M3, E5M2, SIGNS
from kernels.float_product.packing import SPREAD, FloatWeights, validate
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch
from kernels.product import triton as shared

SIGNS_4 = tl.constexpr(tuple(bit for _, bit in SIGNS[4]))
SIGN_PLANES_6 = tl.constexpr(tuple(plane for plane, _ in SIGNS[6]))
SIGNS_6 = tl.constexpr(tuple(bit for _, bit in SIGNS[6]))
SIGNS_8 = tl.constexpr(tuple(bit for _, bit in SIGNS[8]))


@triton.jit
def moved(words, UP: tl.constexpr):
    """Words shifted left by `UP`, or right by -`UP`, two in one operation; the bits shifted in are undefined."""
    if UP < 0:
        words = shared.shifted(words, -UP)
    elif UP > 0:
        if shared.INTERPRETED:
            words = words << UP
        else:
            asm: tl.constexpr = lift_assembly(UP)
            words = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
    return words


@triton.constexpr_function
def lift_assembly(by: int) -> str:
    """What `moved` does on a GPU, to two words in a register."""
    return f"shl.b32 $0, $1, {by};"


@triton.jit
def plane(a, b, c, AT: tl.constexpr):
    """Plane number `AT`."""
    if AT == 0:
        word = a
    elif AT == 1:
        word = b
    else:
        word = c
    return word


@triton.jit
def pattern(
    a, b, c, PLANE: tl.constexpr, AT: tl.constexpr, SIGN_PLANE: tl.constexpr, SIGN: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Codes of `E` and `M` bits read as `DTYPE`: magnitudes from bit `AT` of a plane, signs at bit `SIGN` of one."""
    LOW: tl.constexpr = (10 if DTYPE == tl.float16 else 7) - M  # the fraction has 10 bits or 7
    MASK: tl.constexpr = ((1 << (E + M)) - 1) << LOW
    magnitude = moved(plane(a, b, c, PLANE), LOW - AT) & MASK
    return shared.as_half(magnitude | (moved(plane(a, b, c, SIGN_PLANE), 15 - SIGN) & -0x8000), DTYPE)


@triton.jit
def number(
    a, b, c, PLANE: tl.constexpr, AT: tl.constexpr, SIGN_PLANE: tl.constexpr, SIGN: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Numbers for sums that are scaled later: times 2^(bias - 15) in float16, themselves in bfloat16."""
    value = pattern(a, b, c, PLANE, AT, SIGN_PLANE, SIGN, E, M, DTYPE)
    if DTYPE != tl.float16:
        value = value * (2.0 ** (128 - 2 ** (E - 1)))
    return value


@triton.jit
def e2m1(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E2M1."""
    return number(a, b, c, 0, PIECE * 3, 0, SIGNS_4[PIECE], 2, 1, DTYPE)


@triton.jit
def e2m3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E2M3."""
    return number(a, b, c, PIECE // 3, PIECE % 3 * 5, SIGN_PLANES_6[PIECE], SIGNS_6[PIECE], 2, 3, DTYPE)


@triton.jit
def e3m2(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E3M2."""
    return number(a, b, c, PIECE // 3, PIECE % 3 * 5, SIGN_PLANES_6[PIECE], SIGNS_6[PIECE], 3, 2, DTYPE)


@triton.jit
def e4m3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E4M3."""
    return number(a, b, c, 0, PIECE * 7, 0, SIGNS_8[PIECE], 4, 3, DTYPE)


@triton.jit
def e5m2(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E5M2."""
    return number(a, b, c, 0, PIECE * 7, 0, SIGNS_8[PIECE], 5, 2, DTYPE)


@triton.jit
def spread(bytes, ROWS: tl.constexpr, AT: tl.constexpr, TIMES: tl.constexpr, PLUS: tl.constexpr, DTYPE: tl.constexpr):
    """Byte `AT` of each integer (columns), times `TIMES` plus `PLUS`, read as `DTYPE` in every row (ROWS, columns)."""
    whole = tl.broadcast_to(bytes[None, :], ROWS, bytes.shape[0])
    if shared.INTERPRETED:
        bits = (((whole >> (8 * AT)) & 255) * TIMES + PLUS).to(tl.int16)
    else:
        # rows 2 i and 2 i + 1 have the same integer
        asm: tl.constexpr = spread_assembly(AT, TIMES, PLUS)
        bits = tl.inline_asm_elementwise(asm, "=r,r,r", [whole], dtype=tl.int16, is_pure=True, pack=2)
    return shared.as_half(bits, DTYPE)


@triton.constexpr_function
def spread_assembly(at: int, times: int, plus: int) -> str:
    """What `spread` does on a GPU: both halves of a register at once."""
    take = f"prmt.b32 byte, $1, 0, {0x4440 + at:#x};"
    place = f"mad.lo.u32 $0, byte, {times * 0x10001:#x}, {plus * 0x10001 & 0xFFFFFFFF:#x};"
    return f"{{ .reg .b32 byte; {take} {place} }}"


@triton.jit
def e2m1_with_powers(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E2M1 with E8M0 scales from four bytes, times 2 in float16.

    A scale times 2^126 is the multiplication that bfloat16 needs anyway; times 2^15 it is what float16 can hold.
    """
    value = pattern(a, b, c, 0, PIECE * 3, 0, SIGNS_4[PIECE], 2, 1, DTYPE)
    if DTYPE == tl.float16:
        power = spread(shift, a.shape[0], PIECE, 1 << 10, (15 + 15 - 127) * 1024, DTYPE)
    else:
        power = spread(shift, a.shape[0], PIECE, 1 << 7, 126 << 7, DTYPE)
    return value * power


@triton.jit
def e2m1_with_e4m3(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of E2M1 with E4M3 scales from eight bytes: times 2^-14, in both types.

    Bits 7 to 14 of a scale in float16 are an exponent of five bits with a bias of 15 and a fraction of three; the same
    scale times 2^112 in bfloat16 has them at bits 4 to 11, and 127 - 15 + 112 more in the exponent.
    """
    HALF: tl.constexpr = DTYPE == tl.float16
    value = pattern(a, b, c, PIECE // 4, PIECE % 4 * 3, PIECE // 4, SIGNS_4[PIECE % 4], 2, 1, DTYPE)
    four = shift.to(tl.int32) if PIECE < 4 else (shift >> 32).to(tl.int32)
    return value * spread(four, a.shape[0], PIECE % 4, 1 << (7 if HALF else 4), 0 if HALF else 224 << 7, DTYPE)


@triton.jit
def power(scale, extra, group, n, columns, inside):
    """`SIDE` of E8M0 scales."""
    exponent = tl.load(scale + group * columns + n, mask=inside, other=0).to(tl.int32)
    return (exponent << 23).to(tl.float32, bitcast=True), 0


@triton.jit
def power_of_four(scale, extra, group, n, columns, inside):
    """`SIDE` of E8M0 scales that lie four by four."""
    exponent = tl.load(scale + (group // 4 * columns + n) * 4 + group % 4, mask=inside, other=0).to(tl.int32)
    return (exponent << 23).to(tl.float32, bitcast=True), 0


@triton.jit
def bytes_of_tile(scale, extra, group, n, columns, inside):
    """`SIDE` of scales that apply to the weights: the group is a tile, and `DECODE` gets its bytes."""
    found = tl.load(scale + group * columns + n, mask=inside, other=0x7F7F7F7F)  # finite as any scale
    return tl.full(n.shape, 1.0, tl.float32), found


@triton.jit
def single(scale, extra, group, n, columns, inside):
    """`SIDE` of float32 scales of an output."""
    return tl.load(scale + group * columns + n, mask=inside, other=0.0), 0


@triton.jit
def blocks(scale, extra, group, n, columns, inside):
    """`SIDE` of float32 scales of 128 outputs, whose number is padded to a multiple of 8."""
    across = (columns + 1023) // 1024 * 8
    return tl.load(scale + group * across + n // 128, mask=inside, other=0.0), 0


DECODERS = {E2M1: e2m1, E2M3: e2m3, E3M2: e3m2, E4M3: e4m3, E5M2: e5m2}
# E8M0 scales that multiply weights may span 2^this. In float16 the smallest weight is 2 x 1/2 x 2^-24, the last bit
# of its subnormal numbers; in bfloat16 any that can be packed will do.
SPREADS = {torch.float16: 24, torch.bfloat16: SPREAD}


def plan(x: torch.Tensor, weights: FloatWeights) -> Launch:
    """The launch of `float_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    how = _for_weights(x.dtype, weights) or _for_sums(x.dtype, weights)
    factor = weights.factor * 2.0**how.power
    if not abs(factor) <= torch.finfo(torch.float32).max:
        raise ValueError(f"factor of the weights is {weights.factor}, expected at most 2^{127 - how.power}")
    return shared.plan(
        x, weights.words, how.scale, outputs=weights.outputs, layout=weights.layout, group=how.group,
        decode=how.decode, side=how.side, factor=factor,
    )  # fmt: skip


class _How(NamedTuple):
    """Functions compiled in, what they read, and the power of two that they leave to the factor."""

    decode: Any
    side: Any
    scale: torch.Tensor
    group: int
    power: int


def _for_weights(dtype: torch.dtype, weights: FloatWeights) -> _How | None:
    """Scales that apply to the weights, where a byte is at hand for each piece and the product is exact."""
    if weights.scales == "e4m3":
        return _How(e2m1_with_e4m3, bytes_of_tile, weights.scale, weights.layout.inputs, 14)
    if weights.scales == "e8m0" and weights.format == E2M1 and weights.spread <= SPREADS[dtype]:
        power_left = -1 if dtype == torch.float16 else 0
        return _How(e2m1_with_powers, bytes_of_tile, weights.scale, weights.layout.inputs, power_left)
    return None


def _for_sums(dtype: torch.dtype, weights: FloatWeights) -> _How:
    """Scales that apply to the sums of a group."""
    power_left = 15 - weights.format.bias if dtype == torch.float16 else 0
    decode, scale, group = DECODERS[weights.format], weights.scale, weights.group
    if weights.scales == "float32":
        return _How(decode, single if weights.block == 1 else blocks, scale, group, power_left)
    if scale.dtype == torch.uint8:
        return _How(decode, power, scale, group, power_left)
    return _How(decode, power_of_four, scale.view(torch.uint8), group, power_left)


def float_product(x: torch.Tensor, weights: FloatWeights) -> torch.Tensor:
    """Activations x (rows, inputs) times the transposed weights: (rows, outputs) in the type of x, float16 or bfloat16.

    Weights are exact, sums in float32, the same bits in every run. Raises `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
