"""Coded weights back to their bit patterns, (outputs, inputs), for whoever wants the matrix itself.

A program decodes 64 outputs over its share of the inputs, four pieces of a tile at a time: 64 inputs of an output are
written together, 128 bytes of BF16. Then, once all its threads are done, it goes through its outputs' escapes and
overwrites those of its own inputs; no other program writes there.
"""

import torch
import triton
import triton.language as tl

from kernels.coded_product.packing import PIECES, ROWS, TILE, CodedWeights, validate
from kernels.coded_product.pieces import exponent_words, patterns
from kernels.launch import Launch, multiprocessors
from kernels.product import choices
from kernels.product import triton as shared

BLOCK_N, WARPS, STAGES, LANES = 64, 4, 3, 16
RESIDENT = 4  # programs of a multiprocessor: rings of 45 KiB


@triton.jit
def decoded(
    words,  # (tiles, WORDS + 3, ROWS, columns), int16
    base,  # (columns), uint8
    start,  # (columns + 1), int32
    place,  # (escapes), int16
    value,  # (escapes), int16 or uint8
    out,  # (N, K), like value
    N,
    K,
    columns,
    tiles,
    share,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE_K: tl.constexpr,
    WHOLE_N: tl.constexpr,
):
    """See the module's docstring."""
    EACH: tl.constexpr = PIECES // WORDS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, ROWS)
    known = n < columns
    low = tl.load(base + n, mask=known, other=0).to(tl.int16)[None, :]
    first_tile = tl.program_id(1) * share
    end_tile = min(tiles, first_tile + share)
    row = out + n.to(tl.int64)[:, None] * K
    for t in tl.range(first_tile, end_tile, num_stages=STAGES):
        at = words + (t * ((WORDS + 3) * ROWS) + r)[:, None] * columns + n[None, :]
        a, b, c = exponent_words(at + WORDS * ROWS * columns, ROWS * columns, known, WHOLE_N)
        for quarter in tl.static_range(4):
            even = shared.once(at + quarter * 4 // EACH * ROWS * columns, known, WHOLE_N)
            odd = even
            if EACH == 2:
                odd = shared.once(at + (quarter * 2 + 1) * ROWS * columns, known, WHOLE_N)
            p0 = patterns(even, a, b, c, low, quarter * 4, EACH)
            p1 = patterns(even, a, b, c, low, quarter * 4 + 1, EACH)
            p2 = patterns(odd, a, b, c, low, quarter * 4 + 2, EACH)
            p3 = patterns(odd, a, b, c, low, quarter * 4 + 3, EACH)
            four = tl.permute(tl.join(tl.join(p0, p2), tl.join(p1, p3)), (1, 2, 3, 0))
            k = t * (PIECES * ROWS) + quarter * (4 * ROWS) + tl.arange(0, 4 * ROWS)[None, :]
            inside = (n < N)[:, None]
            if not WHOLE_K:
                inside = inside & (k < K)
            tl.store(row + k, tl.reshape(four, (BLOCK_N, 4 * ROWS)).to(out.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # every thread's patterns are written before escapes replace some
    first = tl.load(start + n, mask=n < N, other=0)
    last = tl.load(start + n + 1, mask=n < N, other=0)
    for ahead in tl.range(0, tl.max(last - first, 0), LANES, num_stages=1):
        i = first[:, None] + ahead + tl.arange(0, LANES)[None, :]
        there = i < last[:, None]
        k = tl.load(place + i, mask=there, other=0).to(tl.int32) & 0xFFFF
        own = there & (k >= first_tile * (PIECES * ROWS)) & (k < end_tile * (PIECES * ROWS))
        tl.store(row + k, tl.load(value + i, mask=own, other=0), mask=own)


def plan_decode(weights: CodedWeights) -> Launch:
    """The launch of `decode_patterns`."""
    validate(weights)
    tiles, planes, _, padded = weights.words.shape
    for name, size in (("words", weights.words.numel()), ("escapes", weights.escapes)):
        if size >= 2**31:
            raise ValueError(f"{name} has {size} numbers, expected at most 2^31 - 1")
    device, across = weights.words.device, triton.cdiv(weights.outputs, BLOCK_N)
    share = triton.cdiv(tiles, choices.splits_for(across, tiles, multiprocessors(device), RESIDENT))
    out = torch.empty((weights.outputs, weights.inputs), dtype=weights.format.pattern, device=device)
    return Launch(
        function=decoded,
        grid=(across, triton.cdiv(tiles, share)),
        arguments={
            "words": weights.words, "base": weights.base, "start": weights.start, "place": weights.place,
            "value": weights.value, "out": out, "N": weights.outputs, "K": weights.inputs, "columns": padded,
            "tiles": tiles, "share": share,
        },
        constants={
            "WORDS": planes - 3, "ROWS": ROWS, "PIECES": PIECES, "BLOCK_N": BLOCK_N, "LANES": LANES, "STAGES": STAGES,
            "WHOLE_K": weights.inputs == tiles * TILE, "WHOLE_N": padded % BLOCK_N == 0,
        },
        output=out,
        loop_bytes=2 * planes * ROWS * BLOCK_N,
        loop_weights=TILE * BLOCK_N,
        num_warps=WARPS,
        num_stages=STAGES,
    )  # fmt: skip


def decode_patterns(weights: CodedWeights) -> torch.Tensor:
    """The bit patterns (outputs, inputs): int16 of bfloat16, uint8 of float8_e4m3fn. Raises `ValueError` as `plan`."""
    return plan_decode(weights).run()


def decode(weights: CodedWeights) -> torch.Tensor:
    """The weights (outputs, inputs) in their type, bit for bit."""
    return decode_patterns(weights).view(weights.dtype)
