"""Attention of one new token over a packed cache: codes become float16 between the loads and the matrix units.

    out = sum over t of p_t v_t,  p = softmax over t of (scaling q . k_t),  k = s c + m by channel, v = s c + m by token

Decoding reads the whole cache once for each token, so its bytes bound it. A program takes one sequence, one head of the
cache, up to eight of the query heads that share it and a stretch of the tokens (flash-decoding: Dao et al. 2023). Heads
are the columns of a matrix instruction, of which there are 8, and tokens or channels its 16 rows: padded to its rows,
heads would take twice the sums in registers, 246 of 255, and 0.3 more instruction slots a number. More heads than
eight are for other programs, which find the words in the second-level cache.

Each of the four warps has 32 tokens of a tile of 128 for itself (16 of 64 where heads have more than 128 channels):
their scores, their largest, their sums and their outputs never leave its registers, so that a turn of the loop waits
for no other warp; the four are brought together at the end (a batch of four in every `tl.dot` says just that). Codes
are set into the fraction of 1024, as in `kernels.integer_product`, and one fused multiply-add takes a code to a float16
number, rounded once.

Slots for each number, compiled for Hopper: 2.8 at 4 and 2 bits with 128 channels, 3.5 at 4 bits with 64. Others are
dearer. Runs of channels are padded to 16, 32, 64 or 128 in registers, not in memory: 64 channels at 2 bits make runs of
8, 5.8 slots; 80, 96 and 112 channels are reckoned as 128, and 80 and 112 are copied by 8 bytes at 4 bits and by 4 at 2.
256 channels fill the registers: at 4 bits they fit, at 2 and 16 bits a few words are spilled by Triton 3.9.

Tokens that are not read from codes yet, fewer than two tiles and a window, are left to the last program, which reads
them from the ring of the newest, with masks that the loop over codes does without. A cache of 16 bits is all ring, one
that does not close; of it, the last turn is left. Programs that share a sequence leave their largest score, their sum
and their outputs, and the last one to finish adds them up in a fixed order, so that the result does not depend on who
was last.

Queries are divided by a power of two that brings the largest of a head to 1, so that they fit float16 whatever their
type; scores, their exponentials (in powers of two) and all sums are float32. The exponentials meet values in float16.
"""

# Tuples grow while loops unroll:
# mypy: disable-error-code="assignment"

import math

import torch
import triton
import triton.language as tl

from kernels.cache_attention.packing import BLOCK, PART, TILE, Cache, validate
from kernels.cache_attention.products import scores, sums_of_values, window_scores, window_sums
from kernels.cache_attention.softmax import LOWEST, exponentials, finish
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, multiprocessors

HEADS = 8  # columns of a matrix instruction
PARTS = 4  # of a turn: one for each warp
PROGRAMS = 2  # on a multiprocessor
STAGES = {2: 5, 4: 4, 16: 3}  # of the ring
TURNS = 4  # of a program's loop, or more


@triton.jit
def attend(
    query,  # (B * H, SHARED, D)
    keys,  # (B * H, capacity, D / PIECES), int16
    key_scale,  # (B * H, capacity / KEY_GROUP, D / 2), int32: pairs of float16
    key_least,
    values,  # as keys
    value_scale,  # (B * H, tiles, D / VALUE_GROUP, TILE / 2), int32: pairs of float16
    value_least,
    window_keys,  # (B * H, rows, D), float16: token t in row t mod rows
    window_values,
    tokens,  # (B,), int32: all
    packed,  # (B,), int32: those that are read from codes, whole tiles
    out,  # (B * H, SHARED, D)
    partial,  # (B * H, SPLITS, SHARED, D), float32
    tops,  # (B * H, SPLITS, SHARED): largest scores, in units of a factor 2
    sums,  # (B * H, SPLITS, SHARED): of the exponentials
    tickets,  # one for each program that shares no sequence with another, zero before and after
    scaling,  # of scores, times log2(e)
    capacity,
    rows,
    H,
    BITS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
    KEY_GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    TILE: tl.constexpr,
):
    """See the module's docstring."""
    TURN: tl.constexpr = PARTS * PART
    PIECES: tl.constexpr = 16 // BITS
    RUN: tl.constexpr = BLOCK // PIECES
    CHUNKS: tl.constexpr = (SHARED + BLOCK_H - 1) // BLOCK_H
    head = tl.program_id(0) // CHUNKS
    split = tl.program_id(1)
    n = tl.load(tokens + head // H)
    whole = (n if BITS == 16 else tl.load(packed + head // H)) // TURN
    row = head.to(tl.int64)
    window_keys += row * rows * D
    window_values += row * rows * D
    if BITS < 16:
        keys += row * capacity * (D // PIECES)
        values += row * capacity * (D // PIECES)
        key_scale += row * (capacity // KEY_GROUP) * (D // 2)
        key_least += row * (capacity // KEY_GROUP) * (D // 2)
        value_scale += row * (D // VALUE_GROUP) * (capacity // 2)
        value_least += row * (D // VALUE_GROUP) * (capacity // 2)

    h = tl.program_id(0) % CHUNKS * BLOCK_H + tl.arange(0, BLOCK_H)
    part = tl.arange(0, PARTS)[:, None, None] * PART
    q, factor = scaled(query + row * SHARED * D, h, scaling, D, RUN, SHARED, PARTS)
    total = ()
    for _ in tl.static_range(len(q)):
        total += (tl.zeros(q[0].shape, tl.float32),)
    top = tl.full([PARTS, 1, BLOCK_H], LOWEST, tl.float32)
    weight = tl.zeros([PARTS, 1, BLOCK_H], tl.float32)

    share = tl.cdiv(whole, SPLITS)
    for t in tl.range(split * share, min(whole, (split + 1) * share), num_stages=STAGES):
        first = t * TURN + part
        if BITS == 16:
            score = window_scores(q, window_keys, first, n, rows, D, RUN, PART, False, False)
            top, weight, p, less = exponentials(score, factor, top, weight)
            total = window_sums(total, p, less, window_values, first, n, rows, D, RUN, PART, False, False)
        else:
            score = scores(q, keys, key_scale, key_least, first, BITS, D, BLOCK, KEY_GROUP, PART)
            top, weight, p, less = exponentials(score, factor, top, weight)
            total = sums_of_values(
                total, p, less, values, value_scale, value_least, first, BITS, D, BLOCK, VALUE_GROUP, PART, TILE
            )
    for t in tl.range(whole, tl.cdiv(n, TURN) if split == SPLITS - 1 else whole, num_stages=1):
        first = t * TURN + part
        score = window_scores(q, window_keys, first, n, rows, D, RUN, PART, True, BITS < 16)
        top, weight, p, less = exponentials(score, factor, top, weight)
        tl.debug_barrier()  # loads of values wait here: beside the keys they would not fit the registers
        total = window_sums(total, p, less, window_values, first, n, rows, D, RUN, PART, True, BITS < 16)

    highest = tl.max(top, 0)  # (1, BLOCK_H)
    less = tl.exp2(top - highest[None])
    weight = tl.sum(weight * less, 0)
    c = tl.arange(0, q[0].shape[1])[:, None]
    kept = (h < SHARED)[None, :]
    if SPLITS == 1:
        for j in tl.static_range(len(q)):
            found = tl.sum(total[j] * less, 0) / weight
            at = out + (row * SHARED + h)[None, :] * D + j * RUN + c
            tl.store(at, found.to(out.dtype.element_ty), mask=kept & (c < RUN))
    else:
        spot = ((row * SPLITS + split) * SHARED + h)[None, :]
        for j in tl.static_range(len(q)):
            tl.store(partial + spot * D + j * RUN + c, tl.sum(total[j] * less, 0), mask=kept & (c < RUN))
        tl.store(tops + spot, highest, mask=kept)
        tl.store(sums + spot, weight, mask=kept)
        tl.debug_barrier()  # every thread's sums are written before the ticket says so
        if tl.atomic_add(tickets + tl.program_id(0), 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            finish(out, partial, tops, sums, row, h, D, SHARED, SPLITS)
            tl.store(tickets + tl.program_id(0), 0)


@triton.jit
def scaled(query, h, scaling, D: tl.constexpr, RUN: tl.constexpr, SHARED: tl.constexpr, PARTS: tl.constexpr):
    """Queries as float16 runs (PARTS, WIDE, heads), the largest of a head between 1/2 and 1; the factor of scores."""
    WIDE: tl.constexpr = max(16, triton.next_power_of_2(RUN))
    WHOLE: tl.constexpr = triton.next_power_of_2(D)
    at = query + h[None, :] * D
    taken = (h < SHARED)[None, :]
    c = tl.arange(0, WHOLE)[:, None]
    largest = tl.max(tl.abs(tl.load(at + c, mask=taken & (c < D), other=0).to(tl.float32)), 0)
    # the exponent of the power of two above it, by its bits: 2^-100 stands for queries that are zero
    power = (tl.maximum(largest, 2.0**-100).to(tl.int32, bitcast=True) & 0x7F800000) + 0x00800000
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    q = ()
    c = tl.arange(0, WIDE)[:, None]
    for j in tl.static_range(D // RUN):
        loaded = tl.load(at + j * RUN + c, mask=taken & (c < RUN), other=0).to(tl.float32)
        piece = (loaded * inverse[None, :]).to(tl.float16)
        q += (tl.broadcast_to(piece[None], [PARTS, WIDE, h.shape[0]]),)
    return q, (power.to(tl.float32, bitcast=True) * scaling)[None, None, :]


def plan(query: torch.Tensor, cache: Cache, scaling: float | None = None) -> Launch:
    """The launch of `cache_attention`."""
    validate(cache)
    batch, kv_heads, rows, width = cache.window_keys.shape
    require("query", query, shape=(batch, None, width), dtypes=ACTIVATIONS, device=cache.window_keys.device)
    heads = query.shape[1]
    shared, left = divmod(heads, kv_heads)
    if left or not shared:
        raise ValueError(f"query has {heads} heads, expected a positive multiple of the cache's {kv_heads}")
    scaling = width**-0.5 if scaling is None else scaling
    if not 0 < scaling < math.inf:
        raise ValueError(f"scaling is {scaling}, expected a positive number")
    sequences = batch * kv_heads
    programs = sequences * triton.cdiv(shared, HEADS)
    turn = PARTS * (PART if width <= BLOCK else PART // 2)  # tokens
    splits = splits_for(programs, cache.capacity // turn, multiprocessors(query.device))
    out = torch.empty_like(query)
    split = splits > 1
    left_behind = (sequences, splits, shared)
    return Launch(
        function=attend,
        grid=(programs, splits),
        arguments={
            "query": query, "keys": cache.keys, "values": cache.values,
            "key_scale": _pairs(cache.key_scale), "key_least": _pairs(cache.key_least),
            "value_scale": _pairs(cache.value_scale), "value_least": _pairs(cache.value_least),
            "window_keys": cache.window_keys, "window_values": cache.window_values, "tokens": cache.tokens,
            "packed": cache.packed, "out": out,
            "partial": query.new_empty((*left_behind, width), dtype=torch.float32) if split else None,
            "tops": query.new_empty(left_behind, dtype=torch.float32) if split else None,
            "sums": query.new_empty(left_behind, dtype=torch.float32) if split else None,
            "tickets": query.new_zeros(programs, dtype=torch.int32) if split else None,
            "scaling": scaling * math.log2(math.e), "capacity": cache.capacity, "rows": rows, "H": kv_heads,
        },
        constants={
            "BITS": cache.bits, "D": width, "BLOCK": min(width, BLOCK), "SHARED": shared, "KEY_GROUP": cache.key_group,
            "VALUE_GROUP": cache.value_group, "BLOCK_H": HEADS, "PARTS": PARTS, "PART": turn // PARTS,
            "SPLITS": splits, "STAGES": STAGES[cache.bits], "TILE": TILE,
        },
        output=out,
        loop_bytes=2 * turn * width * cache.bits // 8,
        loop_weights=2 * turn * width,
        num_warps=PARTS,
    )  # fmt: skip


def _pairs(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.view(-1).view(torch.int32)


def splits_for(programs: int, tiles: int, multiprocessors: int) -> int:
    """Programs that share a sequence: they fill the machine once, and have some turns for their rings."""
    return max(1, min(PROGRAMS * multiprocessors // programs, tiles // TURNS))


def cache_attention(query: torch.Tensor, cache: Cache, scaling: float | None = None) -> torch.Tensor:
    """Attention of queries (batch, heads, D) over a cache: (batch, heads, D) in the type of the queries.

    Heads i * shared to (i + 1) * shared - 1 look at head i of the cache. `scaling` of the scores is 1 / sqrt(D) unless
    given. Keys and values are read as float16; the result is the same bits in every run. Sequences of no tokens give
    NaN. Raises `ValueError` for what does not fit.
    """
    return plan(query, cache, scaling).run()
