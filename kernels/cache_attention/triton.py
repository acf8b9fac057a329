"""Attention of one new token over a packed cache: codes become float16 between the loads and the matrix units.

    out = sum over t of p_t v_t,  p = softmax over t of (scaling q . k_t),  k = s c + m by channel, v = s c + m by token

Decoding reads the whole cache once for each token, so its bytes bound it. A program takes one sequence, one head of the
cache and the query heads that share it, padded to the 16 rows of a matrix instruction, and a stretch of the tokens
(flash-decoding: Dao et al. 2023). Each of its four warps has 32 tokens of a tile of 128 for itself: their scores, their
largest, their sums and their outputs never leave its registers, so that a turn of the loop waits for no other warp; the
four are brought together at the end (a batch of four in every `tl.dot` says just that). A word's fields are channels
that lie `WIDE` apart: field j of all words of a token is the j-th run of channels, which is a step of the product with
keys and a part of the output for values. Codes are set into the fraction of 1024, as in `kernels.integer_product`, and
one fused multiply-add takes a code to a float16 number, rounded once.

Tokens that are not read from codes yet, fewer than two tiles and a window, are left to the last program, which reads
them from the ring of the newest, with masks that the loop over codes does without. A cache of 16 bits is all ring, one
that does not close; of it, the last tile is left. Programs that share a sequence leave their largest score, their sum
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

from kernels.cache_attention.packing import TILE, Cache, validate
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, interpreted, multiprocessors
from kernels.product.triton import raised, shifted

INTERPRETED = tl.constexpr(interpreted())
HEADS = 16  # rows of a matrix instruction
PARTS = 4  # of a tile: one for each warp
PROGRAMS = 2  # on a multiprocessor
STAGES = {2: 5, 4: 4, 16: 3}  # of the ring
TURNS = 4  # of a program's loop, or more
LOWEST = tl.constexpr(-3.0e38)  # below any score, and finite: differences of two are numbers


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
    tickets,  # (B * H,), zero before and after
    scaling,  # of scores, times log2(e)
    capacity,
    rows,
    H,
    BITS: tl.constexpr,
    D: tl.constexpr,
    SHARED: tl.constexpr,
    KEY_GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring."""
    TILE: tl.constexpr = PARTS * PART
    PIECES: tl.constexpr = 16 // BITS
    WIDE: tl.constexpr = D // PIECES
    STEP: tl.constexpr = WIDE if WIDE >= 16 else 16  # channels of a product with keys, a matrix instruction's at least
    head = tl.program_id(0)
    split = tl.program_id(1)
    n = tl.load(tokens + head // H)
    whole = (n if BITS == 16 else tl.load(packed + head // H)) // TILE
    row = head.to(tl.int64)
    window_keys += row * rows * D
    window_values += row * rows * D
    if BITS < 16:
        keys += row * capacity * WIDE
        values += row * capacity * WIDE
        key_scale += row * (capacity // KEY_GROUP) * (D // 2)
        key_least += row * (capacity // KEY_GROUP) * (D // 2)
        value_scale += row * (D // VALUE_GROUP) * (capacity // 2)
        value_least += row * (D // VALUE_GROUP) * (capacity // 2)

    h = tl.arange(0, BLOCK_H)
    c = tl.arange(0, WIDE)
    part = tl.arange(0, PARTS)[:, None, None] * PART
    heads = query + (row * SHARED + h)[:, None] * D
    taken = (h < SHARED)[:, None]
    largest = tl.max(tl.abs(tl.load(heads + tl.arange(0, D)[None, :], mask=taken, other=0).to(tl.float32)), 1)
    # the exponent of the power of two above it, by its bits: 2^-100 stands for queries that are zero
    power = (tl.maximum(largest, 2.0**-100).to(tl.int32, bitcast=True) & 0x7F800000) + 0x00800000
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    factor = (power.to(tl.float32, bitcast=True) * scaling)[None, :, None]
    q = ()
    for j in tl.static_range(D // STEP):
        loaded = tl.load(heads + j * STEP + tl.arange(0, STEP)[None, :], mask=taken, other=0).to(tl.float32)
        piece = (loaded * inverse[:, None]).to(tl.float16)
        q += (tl.broadcast_to(piece[None], [PARTS, BLOCK_H, STEP]),)
    total = ()
    for _ in tl.static_range(PIECES):
        total += (tl.zeros([PARTS, BLOCK_H, WIDE], tl.float32),)
    top = tl.full([PARTS, BLOCK_H, 1], LOWEST, tl.float32)
    weight = tl.zeros([PARTS, BLOCK_H, 1], tl.float32)

    share = tl.cdiv(whole, SPLITS)
    for t in tl.range(split * share, min(whole, (split + 1) * share), num_stages=STAGES):
        first = t * TILE + part
        if BITS == 16:
            score = window_scores(q, window_keys, first, n, rows, D, PART, False, False)
            top, weight, p, less = exponentials(score, factor, top, weight)
            total = window_sums(total, p, less, window_values, first, n, rows, D, PART, False, False)
        else:
            score = scores(q, keys, key_scale, key_least, first, BITS, D, KEY_GROUP, PART)
            top, weight, p, less = exponentials(score, factor, top, weight)
            total = sums_of_values(
                total, p, less, values, value_scale, value_least, first, BITS, D, VALUE_GROUP, PART, TILE
            )
    for t in tl.range(whole, tl.cdiv(n, TILE) if split == SPLITS - 1 else whole, num_stages=1):
        first = t * TILE + part
        score = window_scores(q, window_keys, first, n, rows, D, PART, True, BITS < 16)
        top, weight, p, less = exponentials(score, factor, top, weight)
        total = window_sums(total, p, less, window_values, first, n, rows, D, PART, True, BITS < 16)

    highest = tl.max(top, 0)  # (BLOCK_H, 1)
    less = tl.exp2(top - highest[None])
    weight = tl.sum(weight * less, 0)
    if SPLITS == 1:
        at = out + (row * SHARED + h)[:, None] * D + c[None, :]
        for j in tl.static_range(PIECES):
            found = tl.sum(total[j] * less, 0) / weight
            tl.store(at + j * WIDE, found.to(out.dtype.element_ty), mask=taken)
    else:
        spot = ((row * SPLITS + split) * SHARED + h)[:, None]
        for j in tl.static_range(PIECES):
            tl.store(partial + spot * D + j * WIDE + c[None, :], tl.sum(total[j] * less, 0), mask=taken)
        tl.store(tops + spot, highest, mask=taken)
        tl.store(sums + spot, weight, mask=taken)
        tl.debug_barrier()  # every thread's sums are written before the ticket says so
        if tl.atomic_add(tickets + head, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            finish(out, partial, tops, sums, row, D, SHARED, BLOCK_H, SPLITS)
            tl.store(tickets + head, 0)


@triton.jit
def scores(
    q, keys, key_scale, key_least, first, BITS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr
):
    """Products (PARTS, heads, PART) with packed keys of the tokens from `first` (PARTS, 1, 1) on."""
    PIECES: tl.constexpr = 16 // BITS
    WIDE: tl.constexpr = D // PIECES
    scale = ()
    least = ()
    for j in tl.static_range(PIECES):
        at = first // GROUP * (D // 2) + j * (WIDE // 2) + tl.arange(0, WIDE // 2)[None, :, None]
        scale += (pairs(tl.load(key_scale + at)),)
        least += (pairs(tl.load(key_least + at)),)
    t = first + tl.arange(0, PART)[None, None, :]
    words = tl.load(keys + t * WIDE + tl.arange(0, WIDE)[None, :, None])
    found = tl.zeros([q[0].shape[0], q[0].shape[1], PART], tl.float32)
    for j in tl.static_range(len(q)):
        if len(q) == PIECES:
            piece = number(words, scale[j], least[j], j, BITS)
        else:  # two, one after the other
            low = number(words, scale[2 * j], least[2 * j], 2 * j, BITS)
            high = number(words, scale[2 * j + 1], least[2 * j + 1], 2 * j + 1, BITS)
            piece = tl.join(low, high).permute(0, 3, 1, 2).reshape([low.shape[0], 2 * WIDE, PART])
        found = tl.dot(q[j], piece, found)
    return found


@triton.jit
def sums_of_values(
    total, p, less, values, value_scale, value_least, first, BITS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    PART: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`less` times the pieces of `total` (PARTS, heads, WIDE), and p times packed values of the tokens from `first`."""
    PIECES: tl.constexpr = 16 // BITS
    WIDE: tl.constexpr = D // PIECES
    scale = ()
    least = ()
    base = first // TILE * (D // GROUP * TILE // 2) + first % TILE // 2
    for group in tl.static_range(D // GROUP):
        at = group * (TILE // 2) + tl.arange(0, PART // 2)[None, :, None] + base
        scale += (pairs(tl.load(value_scale + at)),)
        least += (pairs(tl.load(value_least + at)),)
    t = first + tl.arange(0, PART)[None, :, None]
    words = tl.load(values + t * WIDE + tl.arange(0, WIDE)[None, None, :])
    found = ()
    for j in tl.static_range(PIECES):
        piece = number(words, scale[j * WIDE // GROUP], least[j * WIDE // GROUP], j, BITS)
        found += (tl.dot(p, piece, total[j] * less),)
    return found


@triton.jit
def window_scores(
    q, keys, first, n, rows, D: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr, RING: tl.constexpr
):
    """Products (PARTS, heads, PART) with float16 keys of the tokens from `first` on, of which there are `n`."""
    WIDE: tl.constexpr = q[0].shape[2]
    t = first + tl.arange(0, PART)[None, None, :]
    at = keys + (t % rows if RING else t) * D + tl.arange(0, WIDE)[None, :, None]
    found = tl.zeros([q[0].shape[0], q[0].shape[1], PART], tl.float32)
    for j in tl.static_range(len(q)):
        piece = tl.load(at + j * WIDE, mask=t < n, other=0.0) if MASKED else tl.load(at + j * WIDE)
        found = tl.dot(q[j], piece, found)
    return tl.where(t < n, found, float("-inf")) if MASKED else found


@triton.jit
def window_sums(
    total, p, less, values, first, n, rows, D: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """`less` times the pieces of `total`, and p times float16 values of the tokens from `first` on."""
    WIDE: tl.constexpr = total[0].shape[2]
    t = first + tl.arange(0, PART)[None, :, None]
    at = values + (t % rows if RING else t) * D + tl.arange(0, WIDE)[None, None, :]
    found = ()
    for j in tl.static_range(len(total)):
        piece = tl.load(at + j * WIDE, mask=t < n, other=0.0) if MASKED else tl.load(at + j * WIDE)
        found += (tl.dot(p, piece, total[j] * less),)
    return found


@triton.jit
def exponentials(score, factor, top, weight):
    """The largest score so far, the sum so far, 2^(score - largest) in float16, and what earlier sums are less."""
    highest = tl.maximum(top, tl.max(score, 2, keep_dims=True) * factor)
    less = tl.exp2(top - highest)
    p = tl.exp2(score * factor - highest)
    return highest, weight * less + tl.sum(p, 2, keep_dims=True), p.to(tl.float16), less


@triton.jit
def pairs(words):
    """The low and the high halves of int32 (PARTS, n, 1) as float16, one after the other: (PARTS, 2 n, 1)."""
    low = (words & 0xFFFF).to(tl.int16)
    high = (words >> 16).to(tl.int16)
    both = tl.join(low, high).permute(0, 1, 3, 2)
    return both.reshape([words.shape[0], 2 * words.shape[1], 1]).to(tl.float16, bitcast=True)


@triton.jit
def number(words, scale, least, PIECE: tl.constexpr, BITS: tl.constexpr):
    """Field `PIECE` of each word as scale * code + least, rounded to float16 once."""
    FIRST: tl.constexpr = 10 // BITS * BITS  # fields below this bit need no shift
    MOVE: tl.constexpr = PIECE * BITS // FIRST * FIRST
    AT: tl.constexpr = PIECE * BITS - MOVE
    if MOVE > 0:
        words = shifted(words, MOVE)
    value = raised(words, ((1 << BITS) - 1) << AT, 0x6400).to(tl.float16, bitcast=True)  # 1024 + code 2^AT
    code = value * (1.0 / (1 << AT)) - 1024.0 / (1 << AT)
    if INTERPRETED:  # it would round the product, too
        return (code.to(tl.float32) * scale.to(tl.float32) + least.to(tl.float32)).to(tl.float16)
    return tl.inline_asm_elementwise(
        "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [code, scale, least], dtype=tl.float16, is_pure=True, pack=2
    )


@triton.jit
def finish(
    out, partial, tops, sums, row, D: tl.constexpr, SHARED: tl.constexpr, BLOCK_H: tl.constexpr, SPLITS: tl.constexpr
):
    """Add up what the programs of a sequence have left, first to last."""
    h = tl.arange(0, BLOCK_H)
    taken = h < SHARED
    spot = row * SPLITS * SHARED + h
    highest = tl.load(tops + spot, mask=taken, other=0.0, cache_modifier=".cg")
    for split in tl.range(1, SPLITS):
        one = tl.load(tops + spot + split * SHARED, mask=taken, other=0.0, cache_modifier=".cg")
        highest = tl.maximum(highest, one)
    weight = tl.where(taken, 0.0, 1.0)
    total = tl.zeros([BLOCK_H, D], tl.float32)
    c = tl.arange(0, D)[None, :]
    for split in tl.range(SPLITS):
        at = spot + split * SHARED
        less = tl.exp2(tl.load(tops + at, mask=taken, other=0.0, cache_modifier=".cg") - highest)
        weight += less * tl.load(sums + at, mask=taken, other=0.0, cache_modifier=".cg")
        one = tl.load(partial + at[:, None] * D + c, mask=taken[:, None], other=0.0, cache_modifier=".cg")
        total += less[:, None] * one
    at = (row * SHARED + h)[:, None] * D + c
    tl.store(out + at, (total / weight[:, None]).to(out.dtype.element_ty), mask=taken[:, None])


def plan(query: torch.Tensor, cache: Cache, scaling: float | None = None) -> Launch:
    """The launch of `cache_attention`."""
    validate(cache)
    batch, kv_heads, rows, width = cache.window_keys.shape
    require("query", query, shape=(batch, None, width), dtypes=ACTIVATIONS, device=cache.window_keys.device)
    heads = query.shape[1]
    shared, left = divmod(heads, kv_heads)
    if left or not 1 <= shared <= HEADS:
        raise ValueError(f"query has {heads} heads, expected 1 to {HEADS} for each of the cache's {kv_heads}")
    scaling = width**-0.5 if scaling is None else scaling
    if not 0 < scaling < math.inf:
        raise ValueError(f"scaling is {scaling}, expected a positive number")
    programs = batch * kv_heads
    splits = splits_for(programs, cache.capacity // TILE, multiprocessors(query.device))
    out = torch.empty_like(query)
    split = splits > 1
    left_behind = (programs, splits, shared)
    words = 2 * TILE * width * cache.bits // 8
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
            "BITS": cache.bits, "D": width, "SHARED": shared, "KEY_GROUP": cache.key_group,
            "VALUE_GROUP": cache.value_group, "BLOCK_H": HEADS, "PARTS": PARTS, "PART": TILE // PARTS,
            "SPLITS": splits, "STAGES": STAGES[cache.bits],
        },
        output=out,
        loop_bytes=words,
        loop_weights=2 * TILE * width,
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
