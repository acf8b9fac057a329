"""Entries of codebooks, looked up; and for one token and two small codebooks, their inner products looked up instead.

An entry is 16 bytes, and a multiprocessor's cache brings 128 bytes in a cycle: 32 entries take 4 cycles at best, and
about 10 when drawn at random from 256, whose memory banks then clash. An H200's memory brings 32 codes of 8 bits in 1.7
cycles (4.3 TB/s, 1.755 GHz). So with 2 x 8 looking entries up reaches a sixth of the bandwidth, at most 1.4 times
bf16, and is left to several tokens. With one, `inner` multiplies eight inputs with all 256 entries on matrix units and
looks up the product for every output: a word, in a bank of its own for each of 32 vectors, in 1 cycle for 32. Making
the tables takes as long again for 512 outputs; with the codes' own passage it is 2.5 cycles for 32 codes, or 0.7 of the
bandwidth. Its 1.9 instruction slots a weight bind less: 1.7 would be all of it.

1 x 16 looks entries up in a codebook of 1 MB, that is in the second-level cache, which moves 32 bytes for eight weights
where bf16 takes 16 from memory: at one token it can only be faster than bf16 as far as that cache is more than twice
as fast as memory, or entries repeat. No order of the codes changes that.

With bfloat16 activations entries, which are float16, are multiplied as TF32: 10 bits of fraction and 8 of exponent hold
both types exactly.
"""

import torch
import triton
import triton.language as tl

from kernels.codebook_product.packing import BLOCKS, LENGTH, OUTPUTS, CodebookWeights, validate
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, multiprocessors
from kernels.product.triton import finish
from kernels.vector_product import triton as shared

GROUPS = 64  # of eight outputs, in a program of `inner`
WARPS = 8


@triton.jit
def values(entries, DTYPE: tl.constexpr):
    """The two float16 numbers in each int32 of a part of entries, in a new last dimension."""
    return shared.halves(entries).to(tl.float16, bitcast=True).to(DTYPE)


@triton.jit
def entries(table, at, DTYPE: tl.constexpr):
    """Entries number `at` (128, 8) as weights (128 outputs, 64 inputs), in the order of `packing.in_tiles`."""
    a, b, c, d = shared.four_looked_up(table, at)
    even = tl.join(values(a, DTYPE), values(c, DTYPE))
    odd = tl.join(values(b, DTYPE), values(d, DTYPE))
    eight = tl.join(even, odd).permute(0, 1, 3, 4, 2)  # values 4 i + 2 j + k at i, j, k
    return eight.reshape([2, 2, 8, 4, 4, 2, 2, 2, 2]).permute(4, 1, 5, 2, 0, 3, 6, 7, 8).reshape([128, 64])


@triton.jit
def octets(codes, t):
    """Two bytes for each of the codes (128, 8) of the t-th 64 inputs; row 64 i + 32 w + 4 a + b is vector 4 i + b."""
    row = tl.arange(0, 128)
    group = t // 4 * (16 * tl.num_programs(1)) + 16 * tl.program_id(1) + row // 4 % 16
    vector = t % 4 * 8 + row // 64 * 4 + row % 4
    found = tl.load(codes + ((group * 32 + vector) * 16)[:, None] + tl.arange(0, 16)[None, :])
    return tl.split(found.reshape([128, 8, 2]))


@triton.jit
def two_small(codes, signs, table, t, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """`DECODE` of two codebooks of 256 entries."""
    first, second = octets(codes, t)
    at = first if PLANE == 0 else second
    return entries(table + PLANE * 1024, at.to(tl.uint32), DTYPE)


@triton.jit
def one_large(codes, signs, table, t, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """`DECODE` of one codebook of 65,536 entries."""
    low, high = octets(codes, t)
    return entries(table, low.to(tl.uint32) | (high.to(tl.uint32) << 8), DTYPE)


@triton.jit
def spread(books, BOOK: tl.constexpr, DTYPE: tl.constexpr):
    """A codebook as a factor (16, 512): column 4 i + 2 q + j has entry 2 i + j in rows 8 q to 8 q + 7."""
    k = tl.arange(0, 16)[:, None]
    column = tl.arange(0, 512)[None, :]
    entry = column // 4 * 2 + column % 2
    at = books + (BOOK * 2048 + entry * 8 + k % 8)
    return tl.load(at, mask=k // 8 == column // 2 % 2, other=0.0).to(DTYPE)


@triton.jit
def products(tokens, book):
    """Inner products (8192,) of 32 vectors of activations with 256 entries, that of vector v and entry c at 32 c + v.

    `tokens` (16, 16) has vectors v and v + 16 side by side. A matrix unit gives neighboring entries to neighboring
    threads, whose words would then go to the same bank; this way only pairs of them do.
    """
    return tl.dot(tokens, book).reshape([16, 128, 2, 2]).permute(1, 3, 2, 0).reshape([8192])


@triton.jit
def inner(
    x,  # (1, K)
    codes,  # (tiles, groups, 32, 16)
    books,  # (2, 256, 8)
    scale,  # (columns,), or (1,) with scale_stride 0
    out,  # (1, N)
    partial,  # (SPLITS, 1, columns), float32
    tickets,  # one for each tile of the output, zero before and after
    N,
    K,
    columns,
    tiles,
    scale_stride,
    DTYPE: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Two codebooks of 256 entries and one token: a warp's thread v has vector v of a tile, for many outputs."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS * 32)[:, None] // 32
    within = tl.arange(0, GROUPS * 32)[:, None] % 32 * 16 + tl.arange(0, 16)[None, :]
    bank = tl.arange(0, 32)[None, :]
    v = tl.arange(0, 16)[:, None] + tl.arange(0, 16)[None, :] // 8 * 16
    first_book = spread(books, 0, DTYPE)
    second_book = spread(books, 1, DTYPE)
    share = tl.cdiv(tiles, SPLITS)
    start = tl.program_id(2) * share
    sums = tl.zeros([GROUPS * 8, 32], tl.float32)
    for t in tl.range(start, min(tiles, start + share), num_stages=STAGES):
        at = codes + (t * (columns // 8) + group) * 512 + within
        first, second = tl.split(tl.load(at, mask=group < columns // 8, other=0).reshape([GROUPS, 32, 8, 2]))
        k = t * 256 + v * 8 + tl.arange(0, 16)[None, :] % 8
        tokens = tl.load(x + k, mask=k < K, other=0).to(DTYPE)
        sums += looked_up(products(tokens, first_book), first, bank, GROUPS)
        sums += looked_up(products(tokens, second_book), second, bank, GROUPS)
    p = tl.arange(0, GROUPS * 8)  # 8 (8 w + a) + 2 j + h in each tile of 128
    n = tl.program_id(1) * (GROUPS * 8) + p // 128 * 128 + p % 8 // 2 * 32 + p // 64 % 2 * 16 + p % 2 * 8 + p // 8 % 8
    known = n < N
    total = (tl.sum(sums, 1) * tl.load(scale + n * scale_stride, mask=known, other=0.0).to(tl.float32))[None, :]
    if SPLITS == 1:
        tl.store(out + n[None, :], total.to(out.dtype.element_ty), mask=known[None, :])
    else:
        m = tl.arange(0, 1)
        finish(total, out, partial, tickets, m, n, 1, N, columns, known[None, :], SPLITS)


@triton.jit
def looked_up(table, octets, bank, GROUPS: tl.constexpr):
    """Words (8 GROUPS, 32) of `table` for the codes (GROUPS, 32, 8)."""
    code = octets.permute(0, 2, 1).reshape([GROUPS * 8, 32]).to(tl.int32)
    return tl.gather(table, (code * 32 + bank).reshape([GROUPS * 256]), 0).reshape([GROUPS * 8, 32])


def plan(x: torch.Tensor, weights: CodebookWeights) -> Launch:
    """The launch of `codebook_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.codes.device)
    small = len(weights.codebooks) == 2
    if small and x.shape[0] == 1:
        return _inner(x, weights)
    return shared.plan(
        x, weights.codes, weights.scale, table=weights.codebooks.view(torch.int32), outputs=weights.outputs,
        tile=(OUTPUTS, 64), decode=two_small if small else one_large, planes=2 if small else 1,
        loop_bytes=OUTPUTS * 64 // LENGTH * 2, dtype=_type(x), rows_at_once=16,
    )  # fmt: skip


def _inner(x: torch.Tensor, weights: CodebookWeights) -> Launch:
    tiles, groups = weights.codes.shape[:2]
    across, columns = triton.cdiv(groups, GROUPS), groups * 8
    splits = shared.splits_for(across, tiles, multiprocessors(x.device), 1)
    out, parts = torch.empty((1, weights.outputs), dtype=x.dtype, device=x.device), splits > 1
    return Launch(
        function=inner,
        grid=(1, across, splits),
        arguments={
            "x": x, "codes": weights.codes, "books": weights.codebooks, "scale": weights.scale, "out": out,
            "partial": x.new_empty((splits, 1, columns), dtype=torch.float32) if parts else None,
            "tickets": x.new_zeros(across, dtype=torch.int32) if parts else None,
            "N": weights.outputs, "K": weights.inputs, "columns": columns, "tiles": tiles,
            "scale_stride": int(weights.scale.shape[0] > 1),
        },
        constants={"DTYPE": _type(x), "GROUPS": GROUPS, "SPLITS": splits, "STAGES": 3},
        output=out,
        loop_bytes=GROUPS * BLOCKS * 16,
        loop_weights=GROUPS * 8 * BLOCKS * LENGTH,
        num_warps=WARPS,
    )  # fmt: skip


def _type(x: torch.Tensor) -> tl.dtype:
    return tl.float16 if x.dtype == torch.float16 else tl.float32


def codebook_product(x: torch.Tensor, weights: CodebookWeights) -> torch.Tensor:
    """Activations x (rows, inputs), float16 or bfloat16, times the transposed weights: (rows, outputs) in their type.

    Products are exact, sums are in float32, the same bits in every run. Raises `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
