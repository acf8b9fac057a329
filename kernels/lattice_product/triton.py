"""Points of E8P from a word of a table and a few logical operations on eight values at once.

A word has a nibble n = 2 v + 8 for each value v of a pattern. Flipping the upper three bits of an odd nibble negates v,
and (2 n - 15) / 4 is v + 1/4; flipping the lowest bit makes it v - 1/4. Packed signs lie four bits apart: shifted to
the lowest bits of the nibbles, a multiplication by 14 brings them to the upper three, and another sums them up in the
highest bit of the word, where their parity, which is the shift, is spread by an arithmetic shift.

The lowest bits of a half-precision number are n 2^-24, subnormal and exact; one fused multiply-add makes
(2 n - 15) 2^-10 of it. So no exponent needs to be set, with a second constant in a logical operation that has room for
one. bfloat16 does the same with 2^-133 and 2^-7. A nibble may lie at bits 0 and 4 of a float16 number, and at bit 0 of
bfloat16, whose fraction has seven bits.

Bounds on an H200, whose memory brings the 32 codes of a warp's look-up in 3.4 cycles (4.3 TB/s, 1.755 GHz): 32 random
words of a kilobyte take its cache 3 to 4, codes and activations on their way through shared memory about 2 more; a
multiprocessor starts 14 instructions for each of them in that time, and the loop has about 26 for one token.
So instructions bind, at about half of the bandwidth.
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.lattice_product.packing import BLOCKS, LENGTH, OUTPUTS, POINTS, LatticeWeights, validate
from kernels.launch import Launch
from kernels.product.triton import as_half, shifted, triton_type
from kernels.vector_product import triton as shared

INTERPRETED = shared.INTERPRETED


@triton.jit
def nibbles(pairs, PLACE: tl.constexpr, LESS: tl.constexpr, DTYPE: tl.constexpr):
    """(2 n - LESS) 2^-10 in float16, 2^-7 in bfloat16, of the nibbles n at bit `PLACE` of 16."""
    UP: tl.constexpr = 2.0**15 if DTYPE == tl.float16 else 2.0**127
    UNIT: tl.constexpr = 2.0**-10 if DTYPE == tl.float16 else 2.0**-7
    return as_half(pairs & (15 << PLACE), DTYPE) * (UP / (1 << PLACE)) - LESS * UNIT


@triton.jit
def eight(words, LESS: tl.constexpr, DTYPE: tl.constexpr):
    """The values of `words` (64, 16) as (64, 16, 2, 2, 2): value 4 i + 2 j + k at i, j, k."""
    a = shared.halves(words)
    b = shifted(a, 8)
    even = tl.join(nibbles(a, 0, LESS, DTYPE), nibbles(b, 0, LESS, DTYPE))
    if DTYPE == tl.float16:
        odd = tl.join(nibbles(a, 4, LESS, DTYPE), nibbles(b, 4, LESS, DTYPE))
    else:
        odd = tl.join(nibbles(shifted(a, 4), 0, LESS, DTYPE), nibbles(shifted(a, 12), 0, LESS, DTYPE))
    return tl.join(even, odd).permute(0, 1, 3, 4, 2)


@triton.jit
def in_place(values):
    """Values (64, 16, 2, 2, 2) of a tile as weights (64 outputs, 128 inputs), in the order of `packing.in_tiles`."""
    return values.reshape([2, 8, 4, 4, 2, 2, 2, 2, 2]).permute(4, 0, 5, 1, 3, 2, 6, 7, 8).reshape([64, 128])


@triton.jit
def negative(words):
    """All bits set where a word is negative. In assembly: LLVM would make a comparison and a selection of the shift."""
    if INTERPRETED:
        return words >> 31
    return tl.inline_asm_elementwise("shr.s32 $0, $1, 31;", "=r,r", [words], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def e8p(codes, signs, table, code_tile, sign_tile, DTYPE: tl.constexpr):
    """Points of E8P, four times themselves."""
    thread = tl.arange(0, 64)[:, None]
    pattern = tl.load(codes + (code_tile * 1024 + thread * 16 + tl.arange(0, 16)[None, :]))
    four = tl.load(signs + (sign_tile * 256 + thread * 4 + tl.arange(0, 4)[None, :]))
    spread = four.to(tl.uint32, bitcast=True)[:, :, None] >> tl.arange(0, 4)[None, None, :]
    minus = (spread & 0x11111111).reshape([64, 16])
    parity = negative((minus * 0x88888888).to(tl.int32, bitcast=True))
    flips = (minus * 14).to(tl.int32, bitcast=True) ^ (parity & 0x1111111F)
    return in_place(eight(shared.looked_up(table, pattern.to(tl.uint32)) ^ flips, 15, DTYPE))


@triton.jit
def unsigned(codes, table, code_tile, DTYPE: tl.constexpr):
    """Points that the table has with their signs, four times themselves."""
    number = tl.load(codes + (code_tile * 1024 + tl.arange(0, 64)[:, None] * 16 + tl.arange(0, 16)[None, :]))
    return in_place(eight(shared.looked_up(table, number.to(tl.uint32)), 16, DTYPE))


@triton.jit
def two_bits(codes, signs, table, t, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """`DECODE` of one point of E8P."""
    tile = t * tl.num_programs(1) + tl.program_id(1)
    return e8p(codes, signs, table, tile, tile, DTYPE)


@triton.jit
def three_bits(codes, signs, table, t, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """`DECODE` of a point of E8P and one of 256."""
    tile = t * tl.num_programs(1) + tl.program_id(1)
    if PLANE == 0:
        values = e8p(codes, signs, table, 2 * tile, tile, DTYPE)
    else:
        values = unsigned(codes, table + 256, 2 * tile + 1, DTYPE)
    return values


@triton.jit
def four_bits(codes, signs, table, t, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """`DECODE` of two points of E8P."""
    tile = 2 * (t * tl.num_programs(1) + tl.program_id(1)) + PLANE
    return e8p(codes, signs, table + 256 * PLANE, tile, tile, DTYPE)


DECODE = {2: two_bits, 3: three_bits, 4: four_bits}


def plan(x: torch.Tensor, weights: LatticeWeights) -> Launch:
    """The launch of `lattice_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.codes.device)
    unit = 2.0**-10 if x.dtype == torch.float16 else 2.0**-7
    return shared.plan(
        x, weights.codes, weights.scale, signs=weights.signs, table=weights.table, outputs=weights.outputs,
        tile=(OUTPUTS, BLOCKS * LENGTH), decode=DECODE[weights.bits], planes=POINTS[weights.bits],
        loop_bytes=OUTPUTS * BLOCKS * weights.bits, dtype=triton_type(x.dtype), factor=0.25 / unit,
        ratio=None if weights.bits == 2 else 1 / weights.residual,
    )  # fmt: skip


def lattice_product(x: torch.Tensor, weights: LatticeWeights) -> torch.Tensor:
    """Activations x (rows, inputs), float16 or bfloat16, times the transposed weights: (rows, outputs) in their type.

    Points are exact in the type of x, sums are in float32, the same bits in every run. Raises `ValueError` for what
    does not fit.
    """
    return plan(x, weights).run()
