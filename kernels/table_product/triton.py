"""Entries of a table of 16, looked up by permuting bytes.

`PRMT` picks four bytes out of eight by four hexadecimal digits. The low bytes of 16 entries fill four registers: two
permutations look four codes up in the lower and in the upper half of the table, and a logical operation chooses by a
mask, the codes' highest bits spread over bytes. So for the high bytes, and two permutations bring low and high bytes
together. The eight codes of two words take 12 permutations and 5 logical operations, two permutations to put codes
and two to put masks in order, and a shift: 2.75 instruction slots a weight. Entries are exact, whatever the table is.

The product's whole loop compiled by Triton 3.9.0 for sm_90, float16, groups of 64, tiles of 32 rows, in slots a weight:

    bytes permuted           4.1   of which 2.9 are integer operations
    table of pairs           3.9   `tl.gather`, 256 entries of two codes: 0.5 loads a weight from shared memory
    table in shared memory   5.5   `tl.gather`, 16 entries: 1 load a weight
    table in the cache       7.9   a load of two bytes a weight
    tree of choices         22.5

Tiles of 16 rows take 4.5 and 2.8 and 95 registers for 168: with 32, products of 64 tokens spill.
Shared memory serves 32 lanes in a clock, unless they want different words of a bank: 32 of 256 pairs collide 3.1-fold,
which makes 1.6 lanes a weight, and what is gathered goes through it once more to the matrix units, two bytes in and
two out, another lane. A multiprocessor cannot pass 12 weights in a clock so. Permutations and logical operations start
in 64 lanes a clock: 22 weights. 4.3 TB/s, 132 multiprocessors and 1.755 GHz would ask for 33 of 4.5 bits. By this
reckoning tables reach two thirds of the bandwidth, and integer arithmetic is what bounds them. Not measured.
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch
from kernels.product import triton as shared
from kernels.table_product.packing import HEADER, LAYOUT, SECOND_BLOCK, TableWeights, validate

_HEADER, _BLOCK = tl.constexpr(HEADER), tl.constexpr(SECOND_BLOCK)


def lookup_assembly(piece: int) -> str:
    """Piece `piece` ($0) of two words ($1); $2, $4 .. $16 are the table, every operand but the words comes twice.

    The compiler finds what the four pieces share.
    """
    codes, masks = ((0x20, 0xAE8C), (0x31, 0xBF9D))[piece // 2]
    both = (0x6240, 0x7351)[piece % 2]
    return f"""{{
.reg .b32 up, upper, at, a, b, low, high;
shl.b32 up, $1, 4;
prmt.b32 upper, $1, up, {masks:#x};
and.b32 at, $1, 0x77777777;
prmt.b32 at, at, at, {codes:#x};
prmt.b32 a, $2, $4, at;
prmt.b32 b, $6, $8, at;
lop3.b32 low, a, b, upper, 0xd8;
prmt.b32 a, $10, $12, at;
prmt.b32 b, $14, $16, at;
lop3.b32 high, a, b, upper, 0xd8;
prmt.b32 $0, low, high, {both:#x};
}}"""


_LOOKUP = tl.constexpr(tuple(lookup_assembly(piece) for piece in range(4)))
_OPERANDS = tl.constexpr(",".join(["=r"] + ["r"] * 17))
# zero, but the compiler cannot know: a mask of one bit, without its lowest bit
_ZERO = tl.constexpr("{ .reg .b32 less; mov.u32 $0, %lanemask_eq; add.u32 less, $0, -1; and.b32 $0, $0, less; }")


@triton.jit
def entry(a, b, c, shift, table, PIECE: tl.constexpr, DTYPE: tl.constexpr):
    """Entries of the table at the codes of piece `PIECE`."""
    if shared.INTERPRETED:
        code = (a.to(tl.int32) >> (4 * PIECE)) & 15
        low = tl.load(table + (code >> 2)) >> ((code & 3) * 8)
        high = tl.load(table + 4 + (code >> 2)) >> ((code & 3) * 8)
        bits = ((low & 0xFF) | ((high & 0xFF) << 8)).to(tl.int16)
    else:
        # A block of one, and not a scalar: Triton moves it past the layouts of matrix operands only so. Addresses that
        # differ from lane to lane, as far as the compiler can see: it would else hold the table where `PRMT` cannot
        # reach, and copy it before every use.
        at = table + tl.inline_asm_elementwise(_ZERO, "=r,r", [tl.zeros([1, 1], tl.int32)], tl.int32, True, 1)
        octets = [a, tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3),
                  tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7)]  # fmt: skip
        bits = tl.inline_asm_elementwise(_LOOKUP[PIECE], _OPERANDS, octets, dtype=tl.int16, is_pure=True, pack=2)
    return shared.as_half(bits, DTYPE)


@triton.jit
def double_scale(scale, extra, group, n, columns, inside):
    """`SIDE` of scales in 8 bits, as `kernels.table_product.packing.SecondScale` says."""
    code = tl.load(scale + group * columns + n, mask=inside, other=0).to(tl.int32)
    block = n * tl.load(extra + 1).to(tl.int32, bitcast=True) + group
    larger = tl.load(extra + _HEADER + block // _BLOCK, mask=inside, other=0.0)
    s = tl.load(extra + 2 + code) * larger + tl.load(extra)
    # A sum of one addend: Triton moves no sum to where the scale is used, and there repeats it for every weight.
    return tl.sum(s[:, None], axis=1), 0


def plan(x: torch.Tensor, weights: TableWeights) -> Launch:
    """The launch of `table_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    return shared.plan(
        x, weights.words, weights.scale, extra=weights.second, table=weights.octets[ACTIVATIONS.index(x.dtype)],
        outputs=weights.outputs, layout=LAYOUT, group=weights.group, decode=entry,
        side=shared.half_scale if weights.second is None else double_scale,
    )  # fmt: skip


def table_product(x: torch.Tensor, weights: TableWeights) -> torch.Tensor:
    """Give x (rows, inputs) in float16 or bfloat16 times the transposed weights: (rows, outputs) in the type of x.

    Sums in float32, the same bits in every run. Entries of the table are rounded to the type of x, scales are applied
    in float32. Raises `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
