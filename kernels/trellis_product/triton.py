"""Trellis codes decoded where matrix units want them: at 2 bits 4.0 instruction slots a weight, 3.4 for HYB.

A state is a window of 16 bits of a tile's ring, so nothing recursive is left: a thread holds a whole tile, loaded 16
bytes at a time, and every window is one or two shifts of two neighboring words of it. Lanes hold their tiles as the
matrix units want them (8 tiles down, 4 across, weights as the left operand, tokens as the right one), so decoded values
go there without leaving their registers. That is why the kernel is its own and not `kernels.product.triton`, whose
transposing loads want inputs in words of 16 bits, one output's beside the next's: here a window crosses words.

What a code computes is a register of two halves in float16. Those of 1MAD and 3INST *sum* to a weight, and the matrix
units add them: they are given each activation twice. Then 1MAD is 1024 + n and -1534, with n the sum of the four bytes
that `dp4a` set into the fraction, and 3INST the two halves as they come, not rounded to float16 once more as the
release's are (Tseng, Sun, Hou, De Sa 2024, "QTIP", arXiv:2406.11235, section 3.1). HYB's two halves are two weights.

Weights are exact in float16 and would not be in bfloat16. So activations in bfloat16 become float16, once a power of
two has brought a row's largest to 2^14: exact for all above 2^-31 of it, and the rest is off by less than 2^-38 of it.
Sums take the power back.
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, multiprocessors
from kernels.product import choices
from kernels.product.triton import finish
from kernels.trellis_product.codes import DECODE, DIVISOR, spread
from kernels.trellis_product.packing import STEP_VALUES, SUPER, TrellisWeights, validate

WARPS = 2  # with four, Triton takes the instructions of Hopper that want their operands in shared memory
# Programs that fit a multiprocessor, and turns of a ring that keep the 48 KiB of weights under way that
# `kernels.product.choices` asks for: a turn is 4 KiB at 2 bits. Registers leave room for 8 (16 tokens: 5), HYB's 32 KiB
# of table in each for 4.
RESIDENT = {8: 8, 16: 5}  # by rows of a tile
RESIDENT_HYB = 4
STAGES, STAGES_HYB = 4, 5


@triton.jit
def trellis(
    x,  # (M, K), rows x_stride apart
    words,  # (supers, 2 BITS, tiles, 16), int32
    scale,  # (1) or (N), float16
    table,  # (512), int32: pairs of float16
    factor,  # of the whole result
    out,  # (M, N)
    partial,  # (SPLITS, M, N), float32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    K,
    tiles,
    supers,
    x_stride,
    DECODE: tl.constexpr,
    BITS: tl.constexpr,
    V: tl.constexpr,
    BY_ROW: tl.constexpr,
    SCALED: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring. A turn covers 64 inputs, four tiles; a program 8 WARPS tiles of outputs."""
    BLOCK_N: tl.constexpr = 128 * WARPS
    STEPS: tl.constexpr = 16 // V  # of a row of a tile
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(0) * (8 * WARPS) + tl.arange(0, 8 * WARPS)
    known = (tile < tiles)[:, None]
    share = tl.cdiv(supers, SPLITS)
    first, last = tl.program_id(2) * share, min(supers, (tl.program_id(2) + 1) * share)
    if SCALED:
        up, down = powers(x, m, M, first * 64, min(K, last * 64), x_stride, BLOCK_M)
    if V == 2:
        table = spread(table)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for t in tl.range(first, last, num_stages=STAGES):
        at = words + (t * (2 * BITS) * tiles + tile)[:, None] * 16 + tl.arange(0, 16)[None, :]
        a, b, c = rows(at, tiles * 16, known, BITS, 8 * WARPS)
        k = t * 64 + tl.arange(0, 64)
        tokens = tl.load(x + m[:, None] * x_stride + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0)
        even, odd = tl.split(tl.reshape(tokens, (BLOCK_M, 4, 4, 2, 2)))
        for i in tl.static_range(STEPS // 4):
            v0, v1, v2, v3 = DECODE(a, b, c, table, i * V * BITS, 4 * BITS)
            values = tl.join(tl.join(v0, v2), tl.join(v1, v3))
            y = right(even, odd, i, V, BLOCK_M)
            if SCALED:
                y = (y.to(tl.float32) * up[None, :]).to(tl.float16)
            total = tl.dot(left(values, WARPS), y, total)
    total = tl.reshape(total, (8, WARPS, 2, 8, BLOCK_M))
    total = tl.reshape(tl.permute(total, (4, 1, 3, 0, 2)), (BLOCK_M, BLOCK_N))  # in order: tiles, and rows of each
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if SCALED:
        total *= down[:, None]
    if BY_ROW:
        total *= tl.load(scale + n, mask=n < N, other=0.0).to(tl.float32)[None, :] * factor
    else:
        total *= tl.load(scale).to(tl.float32) * factor
    whole = (m < M)[:, None] & (n < N)[None, :]
    if SPLITS == 1:
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=whole)
    else:
        finish(total, out, partial, tickets, m, n, M, N, N, whole, SPLITS)


@triton.jit
def powers(x, m, M, start, end, x_stride, BLOCK_M: tl.constexpr):
    """Powers of two that bring each token's largest activation in [start, end) to [2^14, 2^15), and their inverses."""
    WIDE: tl.constexpr = 4096 // BLOCK_M
    largest = tl.zeros([BLOCK_M], tl.float32)
    for at in tl.range(start, end, WIDE, num_stages=1):
        k = at + tl.arange(0, WIDE)
        inside = (m < M)[:, None] & (k < end)[None, :]
        tokens = tl.load(x + m[:, None] * x_stride + k[None, :], mask=inside, other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(tokens), 1))
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 15)  # biased by 127; less would overflow
    up = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    return up, ((exponent - 14) << 23).to(tl.float32, bitcast=True)


@triton.jit
def rows(at, plane, known, BITS: tl.constexpr, TILES: tl.constexpr):
    """The first, second and third 32 bits from the begin of each row of a tile: (TILES, 4, 16), uint32."""
    a = four(at, plane, known, TILES)
    if BITS == 2:
        b = after(a, TILES)
        c = b
    elif BITS == 3:
        low = tl.load(at + 4 * plane, mask=known, other=0, eviction_policy="evict_first").to(tl.uint32, bitcast=True)
        high = tl.load(at + 5 * plane, mask=known, other=0, eviction_policy="evict_first").to(tl.uint32, bitcast=True)
        both = tl.reshape(tl.join(low, high), (TILES, 4, 8))
        b = tl.reshape(tl.join(both << 16, both & 0xFFFF0000), (TILES, 4, 16)) | (after(a, TILES) >> 16)
        c = b
    else:
        b = four(at + 4 * plane, plane, known, TILES)
        c = after(a, TILES)
    return a, b, c


@triton.jit
def four(at, plane, known, TILES: tl.constexpr):
    """Four planes of 16 bytes a lane as (TILES, 4, 16): row 4 j + p of a tile is word j of plane p."""
    a = tl.load(at, mask=known, other=0, eviction_policy="evict_first")
    b = tl.load(at + plane, mask=known, other=0, eviction_policy="evict_first")
    c = tl.load(at + 2 * plane, mask=known, other=0, eviction_policy="evict_first")
    d = tl.load(at + 3 * plane, mask=known, other=0, eviction_policy="evict_first")
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (TILES, 4, 16)).to(tl.uint32, bitcast=True)


@triton.jit
def after(a, TILES: tl.constexpr):
    """Row r + 1 in place of row r, and the first in place of the last. A thread has all: names of registers change."""
    even8, odd8 = tl.split(tl.reshape(a, (TILES, 4, 8, 2)))
    even4, odd4 = tl.split(tl.reshape(even8, (TILES, 4, 4, 2)))
    even2, odd2 = tl.split(tl.reshape(even4, (TILES, 4, 2, 2)))
    even1, odd1 = tl.split(even2)
    of4 = tl.reshape(tl.join(odd2, tl.join(odd1, even1)), (TILES, 4, 4))
    of8 = tl.reshape(tl.join(odd4, of4), (TILES, 4, 8))
    return tl.reshape(tl.join(odd8, of8), (TILES, 4, 16))


@triton.jit
def left(values, WARPS: tl.constexpr):
    """Registers (8 WARPS, 4, 16, 2, 2) as halves (128 WARPS, 32), lane by lane as the matrix units hold them."""
    low = values.to(tl.uint16).to(tl.float16, bitcast=True)
    high = (values >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
    # warp, tile down, tile across, row and its lowest bit, step and its lowest bit, half
    halves = tl.reshape(tl.join(low, high), (WARPS, 8, 4, 8, 2, 2, 2, 2))
    return tl.reshape(tl.permute(halves, (3, 0, 4, 1, 5, 2, 6, 7)), (128 * WARPS, 32))


@triton.jit
def right(even, odd, I: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr):
    """Activations for step `I` of each quarter of a row, (32, BLOCK_M), from those of even and odd inputs."""
    if V == 1:
        first, second = tl.split(even if I % 2 == 0 else odd)
        one = first if I < 2 else second
        both = tl.join(one, one)  # (BLOCK_M, 4, 4, 2)
    else:
        even0, even1 = tl.split(even)
        odd0, odd1 = tl.split(odd)
        both = tl.join(even0 if I == 0 else even1, odd0 if I == 0 else odd1)
    return tl.reshape(tl.permute(tl.reshape(both, (BLOCK_M, 4, 2, 2, 2)), (2, 1, 3, 4, 0)), (32, BLOCK_M))


def plan(x: torch.Tensor, weights: TrellisWeights) -> Launch:
    """The launch of `trellis_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    supers, planes, tiles, _ = weights.words.shape
    for name, size in (
        ("x", x.numel()),
        ("words", weights.words.numel()),
        ("out", x.shape[0] * weights.outputs),
    ):
        if not 0 < size < 2**31:
            raise ValueError(f"{name} has {size} numbers, expected 1 to 2^31 - 1")
    M, N = x.shape[0], weights.outputs
    block_m, block_n = 8 if M <= 8 else 16, 128 * WARPS  # sums of more tokens than 16 take too many registers
    across, down = triton.cdiv(N, block_n), triton.cdiv(M, block_m)
    resident = RESIDENT_HYB if weights.code == "hyb" else RESIDENT[block_m]
    share = triton.cdiv(supers, choices.splits_for(across * down, supers, multiprocessors(x.device), resident))
    splits = triton.cdiv(supers, share)  # none of which is idle
    out, several = torch.empty((M, N), dtype=x.dtype, device=x.device), splits > 1
    return Launch(
        function=trellis,
        grid=(across, down, splits),
        arguments={
            "x": x, "words": weights.words, "scale": weights.scale,
            "table": None if weights.table is None else weights.table.view(torch.int32),
            "factor": 1 / DIVISOR if weights.code == "1mad" else 1.0, "out": out,
            "partial": x.new_empty((splits, M, N), dtype=torch.float32) if several else None,
            "tickets": x.new_zeros(across * down, dtype=torch.int32) if several else None,
            "M": M, "N": N, "K": weights.inputs, "tiles": tiles, "supers": supers, "x_stride": x.stride(0),
        },
        constants={
            "DECODE": DECODE[weights.code], "BITS": weights.bits, "V": STEP_VALUES[weights.code],
            "BY_ROW": weights.scale.numel() > 1, "SCALED": x.dtype == torch.bfloat16, "WARPS": WARPS,
            "BLOCK_M": block_m, "SPLITS": splits,
            "STAGES": STAGES_HYB if weights.code == "hyb" else STAGES,
        },
        output=out,
        loop_bytes=planes * 8 * WARPS * 64,
        loop_weights=block_n * SUPER,
        num_warps=WARPS,
    )  # fmt: skip


def trellis_product(x: torch.Tensor, weights: TrellisWeights) -> torch.Tensor:
    """Multiply x (rows, inputs), float16 or bfloat16, with transposed weights: (rows, outputs) in the type of x.

    Weights are exact, sums in float32, the same bits in every run; an infinite activation gives NaN. Raises
    `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
