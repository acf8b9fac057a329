"""A tile's products with keys and with values, from codes and from float16: device functions of `attend`.

A tile's `PARTS` stretches of `PART` tokens are the first axis of everything, one for each warp. Keys and values are the
left operands, 16 rows of a matrix instruction at a time, and query heads the 8 columns of the right one. The channels
at one place of neighboring words are a run: a step of the product with keys, and rows of the one with values. Runs that
no matrix instruction takes are filled up to `WIDE` with zeros in registers. A token of `D` channels has words for
`BLOCK` of them at a time.
"""

# Tuples grow while loops unroll:
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from kernels.launch import interpreted
from kernels.product.triton import raised, shifted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def scores(
    q, keys, key_scale, key_least, first, BITS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Products (PARTS, PART, heads) with packed keys of the tokens from `first` (PARTS, 1, 1) on."""
    PIECES: tl.constexpr = 16 // BITS
    RUN: tl.constexpr = BLOCK // PIECES
    WIDE: tl.constexpr = q[0].shape[1]
    t = first + along(1, PART)
    pair = first // GROUP * (D // 2) + along(2, WIDE // 2)
    words = ()
    for block in tl.static_range(D // BLOCK):
        words += (filled(keys + t * (D // PIECES) + block * RUN, 2, RUN, WIDE),)
    found = tl.zeros([q[0].shape[0], PART, q[0].shape[2]], tl.float32)
    for run in tl.static_range(D // RUN):
        if RUN == WIDE:
            scale = pairs(tl.load(key_scale + pair + run * (RUN // 2)))
            least = pairs(tl.load(key_least + pair + run * (RUN // 2)))
        else:
            within = along(2, WIDE // 2) < RUN // 2
            scale = pairs(tl.load(key_scale + pair + run * (RUN // 2), mask=within, other=0))
            least = pairs(tl.load(key_least + pair + run * (RUN // 2), mask=within, other=0))
        piece = number(words[run % (D // BLOCK)], scale, least, run // (D // BLOCK), BITS)
        found = tl.dot(piece, q[run], found)
    return found


@triton.jit
def sums_of_values(
    total, p, less, values, value_scale, value_least, first, BITS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`less` times the runs of `total` (PARTS, WIDE, heads), and packed values of the tokens from `first` times p."""
    PIECES: tl.constexpr = 16 // BITS
    RUN: tl.constexpr = BLOCK // PIECES
    WIDE: tl.constexpr = total[0].shape[1]
    t = first + along(2, PART)
    words = ()
    for block in tl.static_range(D // BLOCK):
        words += (filled(values + t * (D // PIECES) + block * RUN, 1, RUN, WIDE),)
    pair = first // TILE * (D // GROUP * TILE // 2) + first % TILE // 2 + along(2, PART // 2)
    scale = pairs(tl.load(value_scale + pair))
    least = pairs(tl.load(value_least + pair))
    found = ()
    for run in tl.static_range(D // RUN):
        if run * RUN % GROUP == 0 and run > 0:
            scale = pairs(tl.load(value_scale + pair + run * RUN // GROUP * (TILE // 2)))
            least = pairs(tl.load(value_least + pair + run * RUN // GROUP * (TILE // 2)))
        piece = number(words[run % (D // BLOCK)], scale, least, run // (D // BLOCK), BITS)
        found += (tl.dot(piece, p, total[run] * less),)
    return found


@triton.jit
def window_scores(
    q, keys, first, n, rows, D: tl.constexpr, RUN: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Products (PARTS, PART, heads) with float16 keys of the tokens from `first` on, of which there are `n`."""
    t = first + along(1, PART)
    at = keys + (t % rows if RING else t) * D
    found = tl.zeros([q[0].shape[0], PART, q[0].shape[2]], tl.float32)
    for j in tl.static_range(len(q)):
        found = tl.dot(numbers(at + j * RUN, t < n, 2, RUN, q[0].shape[1], MASKED), q[j], found)
    return tl.where(t < n, found, float("-inf")) if MASKED else found


@triton.jit
def window_sums(
    total, p, less, values, first, n, rows, D: tl.constexpr, RUN: tl.constexpr, PART: tl.constexpr,
    MASKED: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """`less` times the runs of `total`, and float16 values of the tokens from `first` on times p."""
    t = first + along(2, PART)
    at = values + (t % rows if RING else t) * D
    found = ()
    for j in tl.static_range(len(total)):
        piece = numbers(at + j * RUN, t < n, 1, RUN, total[0].shape[1], MASKED)
        found += (tl.dot(piece, p, total[j] * less),)
    return found


@triton.jit
def along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0 to `SIZE` - 1 along one of three axes."""
    place = tl.arange(0, SIZE)
    return place[None, :, None] if AXIS == 1 else place[None, None, :]


@triton.jit
def filled(at, AXIS: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr):
    """`RUN` words along `AXIS` from each of the addresses `at` on, and zeros up to `WIDE`."""
    c = along(AXIS, WIDE)
    if RUN == WIDE:
        words = tl.load(at + c)
    else:
        words = tl.load(at + c, mask=c < RUN, other=0)
    return words


@triton.jit
def numbers(at, there, AXIS: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr):
    """The same of float16 numbers; zeros besides, if `MASKED`, where they are not `there`."""
    c = along(AXIS, WIDE)
    if MASKED:
        values = tl.load(at + c, mask=there & (c < RUN), other=0.0)
    else:
        values = filled(at, AXIS, RUN, WIDE)
    return values


@triton.jit
def pairs(words):
    """The low and the high halves of int32 (PARTS, 1, n) as float16, one after the other: (PARTS, 1, 2 n)."""
    low = (words & 0xFFFF).to(tl.int16)
    high = (words >> 16).to(tl.int16)
    both = tl.join(low, high).reshape([words.shape[0], 1, 2 * words.shape[2]])
    return both.to(tl.float16, bitcast=True)


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
