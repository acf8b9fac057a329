"""One kernel that rounds a weight matrix and packs it, for every layout of 16-bit words.

A program reads a tile of the matrix, all its pieces before it looks at any, finds the least and the largest value of
every group, makes the scale of them, rounds, and puts codes of the same row of words together: they are held by the
same thread, since a piece is a run of consecutive inputs. Only words change places, through shared memory, because
weights lie input after input and words output after output. So a matrix is read once and its words written once, in
16 bytes a thread, where groups end within a tile. Longer ones (a scale for an output) are read twice: a program takes
a whole group, its statistics first, and finds most of it in the cache again. Groups that do not fit in either way
(96 inputs in tiles of 128) are measured by every tile that they reach into.

An H200 copies 4.3 TB/s and starts 29.6e12 instructions of a thread a second: float16 to 4 bits, 2.5 bytes a weight,
leaves 17 of them for a weight, and 0.6 of the speed of a copy 28.

A format is two functions, compiled in. `SCALE(low, high, factor, RULE, ...)` gives, for each output, the scale and the
zero point as they are stored, and `side`, a tuple of what rounding needs. `ENCODE(x, side, table, RULE, ...)` gives
codes. Everything is in float32, divisions and products rounded once and never fused with a sum.

A group with NaN or infinity has the scale NaN and the lowest codes. Codes that pad outputs and inputs are 0, and so are
their scales.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.float_product.formats import places
from kernels.inputs import require, require_multiple
from kernels.launch import Launch, interpreted
from kernels.product import words as layouts
from kernels.product.words import Layout, Places, fields

INTERPRETED = tl.constexpr(interpreted())
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32)
VALUES = 64  # of a thread


@triton.jit
def quantize(
    W,  # (N, K)
    words,  # (tiles, PLANES, ROWS, columns), int16
    scale,  # (groups, columns), or one integer for all pieces of a tile: (tiles, columns)
    zero,  # (groups, columns), or None
    table,  # what ENCODE looks up, or None
    factor,  # what SCALE is told of the whole matrix, or None
    N,
    K,
    columns,
    tiles,
    scale_columns,
    SCALE: tl.constexpr,
    ENCODE: tl.constexpr,
    RULE: tl.constexpr,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,  # of formats with signs and exponents, else None
    REACH: tl.constexpr,
    PLANES: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    LONG: tl.constexpr,
    ABREAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """See the module's docstring."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, ROWS)
    columns = tl.multiple_of(columns, 8)  # by `kernels.product.words.columns`
    if LONG:
        SPAN: tl.constexpr = GROUP // (PIECES * ROWS)
        group = tl.program_id(0)
        low, high = measured(W, n, r, group * GROUP, N, K, GROUP, PIECES, ROWS, BLOCK_N, WHOLE)
        stored, other, side = settled(low, high, factor, SCALE, RULE, BITS, MANTISSA, REACH, BLOCK)
        keep(scale, zero, stored, other, group, n, N, scale_columns, True, BLOCK)
        for t in range(group * SPAN, min((group + 1) * SPAN, tiles)):
            tile(W, words, scale, zero, table, factor, N, K, columns, scale_columns, n, r, t, side, SCALE, ENCODE, RULE,
                 BITS, MANTISSA, REACH, PLANES, PIECES, ROWS, GROUP, RUN, True, ABREAST, BLOCK, BLOCK_N,
                 WHOLE)  # fmt: skip
    else:
        tile(W, words, scale, zero, table, factor, N, K, columns, scale_columns, n, r, tl.program_id(0), None, SCALE,
             ENCODE, RULE, BITS, MANTISSA, REACH, PLANES, PIECES, ROWS, GROUP, RUN, False, ABREAST, BLOCK, BLOCK_N,
             WHOLE)  # fmt: skip


@triton.jit
def tile(
    W, words, scale, zero, table, factor, N, K, columns, scale_columns, n, r, t, side, SCALE: tl.constexpr,
    ENCODE: tl.constexpr, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr,
    PLANES: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
    LONG: tl.constexpr, ABREAST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Pack tile t of outputs n, and find its scales unless `side` is known."""
    held = ()
    for i in tl.static_range(PIECES):
        held += (piece(W, n, (t * PIECES + i) * ROWS + r, N, K, WHOLE),)  # type: ignore[assignment]
    a = tl.zeros([BLOCK_N, ROWS], tl.int32)
    b = a
    c = a
    marks = tl.zeros([BLOCK_N], tl.int64 if PIECES == 8 else tl.int32)
    for run in tl.static_range(PIECES // RUN):
        start = (t * PIECES + run * RUN) * ROWS
        if not LONG:
            if GROUP == RUN * ROWS:
                low, high = bounds(held, n, start + r, N, K, run * RUN, RUN, ROWS, WHOLE)
            else:
                low, high = measured(W, n, r, start // GROUP * GROUP, N, K, GROUP, 1, ROWS, BLOCK_N, WHOLE)
            stored, other, side = settled(low, high, factor, SCALE, RULE, BITS, MANTISSA, REACH, BLOCK)
            if ABREAST:
                byte = tl.where((n < N) & (start < K), stored, 0).to(marks.dtype)
                marks |= byte << (8 * run)
            else:
                outputs = tl.where(start < K, N, 0)
                first = start % GROUP == 0
                keep(scale, zero, stored, other, start // GROUP, n, outputs, scale_columns, first, BLOCK)
        for i in tl.static_range(RUN):
            k = start + i * ROWS + r
            code = ENCODE(held[run * RUN + i].to(tl.float32), side, table, RULE, BITS, MANTISSA, REACH)
            if not WHOLE:
                code = tl.where((n < N)[:, None] & (k < K)[None, :], code, 0)
            a = put(a, code, BITS, MANTISSA is not None, run * RUN + i, 0)
            if PLANES > 1:
                b = put(b, code, BITS, MANTISSA is not None, run * RUN + i, 1)
            if PLANES > 2:
                c = put(c, code, BITS, MANTISSA is not None, run * RUN + i, 2)
    if ABREAST:
        tl.store(scale + t * columns + n, marks, mask=n < columns)
    at = words + (t * (PLANES * ROWS) + r)[:, None] * columns + n[None, :]
    there = (n < columns)[None, :]
    tl.store(at, tl.trans(a.to(tl.int16)), mask=there)
    if PLANES > 1:
        tl.store(at + ROWS * columns, tl.trans(b.to(tl.int16)), mask=there)
    if PLANES > 2:
        tl.store(at + 2 * ROWS * columns, tl.trans(c.to(tl.int16)), mask=there)


@triton.jit
def piece(W, n, k, N, K, WHOLE: tl.constexpr):
    """Weights of outputs n and inputs k, zeros beyond the matrix."""
    at = W + n.to(tl.int64)[:, None] * K + k[None, :]
    if WHOLE:
        x = tl.load(at)
    else:
        x = tl.load(at, mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
    return x


@triton.jit
def stretched(low, high, x, n, k, N, K, WHOLE: tl.constexpr):
    """The least and the largest values so far and x; NaN, once there is one."""
    least = x.to(tl.float32)
    most = least
    if not WHOLE:
        inside = (n < N)[:, None] & (k < K)[None, :]
        least = tl.where(inside, least, float("inf"))
        most = tl.where(inside, most, float("-inf"))
    low = tl.minimum(low, least, propagate_nan=tl.PropagateNan.ALL)
    high = tl.maximum(high, most, propagate_nan=tl.PropagateNan.ALL)
    return low, high


@triton.jit
def bounds(held, n, k, N, K, FIRST: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """The least and the largest of `RUN` pieces at every place (outputs, ROWS)."""
    low = tl.full([n.shape[0], ROWS], float("inf"), tl.float32)
    high = -low
    for i in tl.static_range(RUN):
        low, high = stretched(low, high, held[FIRST + i], n, k + i * ROWS, N, K, WHOLE)
    return low, high


@triton.jit
def measured(
    W, n, r, start, N, K, GROUP: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """`bounds` of a group that begins at input `start`, read `EACH` pieces at a time."""
    low = tl.full([BLOCK_N, ROWS], float("inf"), tl.float32)
    high = -low
    for turn in range(0, tl.cdiv(min(GROUP, K - start), EACH * ROWS)):
        held = ()
        for i in tl.static_range(EACH):
            held += (piece(W, n, start + (turn * EACH + i) * ROWS + r, N, K, WHOLE),)  # type: ignore[assignment]
        for i in tl.static_range(EACH):
            low, high = stretched(low, high, held[i], n, start + (turn * EACH + i) * ROWS + r, N, K, WHOLE)
    return low, high


@triton.jit
def ordered(x):
    """Integers in the order of float32 numbers, NaN at both ends; the function is its own inverse, but for types."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def settled(
    low, high, factor, SCALE: tl.constexpr, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr,
    REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What `SCALE` makes of the bounds of each output, or of all outputs of a block."""
    least = tl.min(ordered(low), 1)
    most = tl.max(ordered(high), 1)
    if BLOCK > 1:
        least = tl.zeros_like(least) + tl.min(least, 0)
        most = tl.zeros_like(most) + tl.max(most, 0)
    lowest = (least ^ ((least >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    highest = (most ^ ((most >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    usable = (lowest > float("-inf")) & (highest < float("inf"))  # neither NaN nor infinity
    return SCALE(lowest, highest, usable, factor, RULE, BITS, MANTISSA, REACH)


@triton.jit
def keep(scale, zero, stored, other, group, n, N, columns, mine, BLOCK: tl.constexpr):
    """Write a group's scales and zero points, zeros where outputs are padding."""
    if BLOCK == 1:
        at = group * columns + n
        there = n < tl.where(mine, columns, 0)
    else:
        at = group * columns + n // BLOCK
        there = (n % BLOCK == 0) & (n < tl.where(mine, N, 0))
    kind: tl.constexpr = scale.dtype.element_ty
    tl.store(scale + at, tl.where(n < N, stored, 0).to(kind), mask=there)
    if zero is not None:
        tl.store(zero + at, tl.where(n < N, other, 0.0).to(zero.dtype.element_ty), mask=there)


@triton.jit
def put(
    word, code, BITS: tl.constexpr, SIGNS: tl.constexpr, PIECE: tl.constexpr, PLANE: tl.constexpr
):  # fmt: skip
    """`word` of plane `PLANE` with those bits of piece `PIECE` that lie in it."""
    for i in tl.static_range(parts(BITS, SIGNS, PIECE, PLANE)):
        word |= moved(code, BITS, part(BITS, SIGNS, PIECE, PLANE, i, 0), part(BITS, SIGNS, PIECE, PLANE, i, 1),
                      part(BITS, SIGNS, PIECE, PLANE, i, 2))  # fmt: skip
    return word


@triton.jit
def moved(code, BITS: tl.constexpr, SHIFT: tl.constexpr, MASK: tl.constexpr, AT: tl.constexpr):
    """The bits of `MASK`, from bit `AT` of a code on, at bit `SHIFT`."""
    bits = code
    if AT > 0:
        bits = bits >> AT
    if MASK + 1 < 1 << (BITS - AT):
        bits = bits & MASK
    return bits << SHIFT


def _places() -> dict[tuple[int, bool, int, int], list[tuple[int, int, int]]]:
    """Where pieces have their bits: see `part`, by width, whether codes have signs, piece and plane."""
    found: dict[tuple[int, bool, int, int], list[tuple[int, int, int]]] = {}
    for layout, where in ((layout, fields) for layout in map(Layout, (2, 3, 4, 8))):
        found |= _of(layout, where)
    for layout in (Layout(4, 16, 2), Layout(6), Layout(8)):
        found |= _of(layout, places)
    return found


def _of(layout: Layout, where: Places) -> dict[tuple[int, bool, int, int], list[tuple[int, int, int]]]:
    pieces = [(piece, where(layout, piece)) for piece in range(layout.pieces)]
    return {
        (layout.bits, where is places, piece, plane): [one[1:] for one in parts if one[0] == plane]
        for piece, parts in pieces for plane in range(3)
    }  # fmt: skip


_PLACES = _places()


@triton.constexpr_function
def parts(bits, signs, piece, plane):
    """How many stretches of a piece's bits lie in a plane."""
    return len(_PLACES[(bits, signs, piece, plane)])


@triton.constexpr_function
def part(bits, signs, piece, plane, index, what):
    """Of such a stretch: its lowest bit in the word, its mask, its lowest bit in the code."""
    return _PLACES[(bits, signs, piece, plane)][index][what]


def plan(
    W: torch.Tensor,
    *,
    layout: Layout,
    group: int | None,
    scale_type: torch.dtype,
    scale: Any,
    encode: Any,
    rule: str,
    mantissa: int | None = None,
    reach: float = 1.0,
    zeros: bool = False,
    table: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    block: int = 1,
    values: int = VALUES,
) -> Launch:
    """The launch that fills (words, scale) or, with `zeros`, (words, scale, zero), float16 as `scale` is.

    `group` None is one scale for all inputs of an output, `values` how many a thread rounds. Scales of a byte for each
    piece of a tile lie together where `scale_type` is that wide. Raises `ValueError` for what does not fit.
    """
    require("W", W, shape=(None, None), dtypes=WEIGHTS)
    if not 0 < W.numel():
        raise ValueError(f"W has shape {tuple(W.shape)}, expected at least one weight")
    outputs, inputs = W.shape
    tiles, columns = layout.tiles(inputs), layouts.columns(outputs)
    whole = tiles * layout.inputs
    fixed = block > 1 or scale_type not in (torch.float16, torch.float32)  # by the format: scales of a byte
    group = whole if group is None or (group >= inputs and not fixed) else group
    require_multiple("group", group, layout.rows)
    if tiles * layout.planes * layout.rows * columns >= 2**31:
        raise ValueError(f"W has shape {tuple(W.shape)}, expected less than 2^31 words of 16 bits")
    abreast = scale_type == (torch.int64 if layout.pieces == 8 else torch.int32)
    across = columns if block == 1 else layouts.columns(-(-outputs // block))
    words = W.new_empty((tiles, layout.planes, layout.rows, columns), dtype=torch.int16)
    shape = (tiles if abreast else -(-whole // group), across)
    stored = (W.new_empty if block == 1 else W.new_zeros)(shape, dtype=scale_type)  # blocks leave padding alone
    zero = torch.empty_like(stored) if zeros else None
    long = group % layout.inputs == 0 and group > layout.inputs
    block_n = max(1024 // layout.rows, 128 * values // layout.inputs, block)
    spans = triton.cdiv(tiles * layout.inputs, group) if long else tiles
    return Launch(
        function=quantize,
        grid=(spans, triton.cdiv(columns, block_n)),
        arguments={
            "W": W, "words": words, "scale": stored, "zero": zero, "table": table, "factor": factor, "N": outputs,
            "K": inputs, "columns": columns, "tiles": tiles, "scale_columns": across,
        },
        constants={
            "SCALE": scale, "ENCODE": encode, "RULE": rule, "BITS": layout.bits, "MANTISSA": mantissa, "REACH": reach,
            "PLANES": layout.planes, "PIECES": layout.pieces, "ROWS": layout.rows, "GROUP": group,
            "RUN": math.gcd(group // layout.rows, layout.pieces), "LONG": long, "ABREAST": abreast, "BLOCK": block,
            "BLOCK_N": block_n, "WHOLE": inputs == whole and outputs % block_n == 0,
        },
        output=(words, stored) if zero is None else (words, stored, zero),
        loop_bytes=block_n * layout.inputs * W.element_size(),
        loop_weights=block_n * layout.inputs,
        num_warps=block_n * min(layout.inputs // values, layout.rows // 8) // 32,  # 16 bytes of a piece in a thread
    )  # fmt: skip
