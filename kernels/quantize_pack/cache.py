"""Keys and values rounded and packed for `kernels.cache_attention`: keys by channel, values by token.

A program has 32 tokens of a head, 64 of values, all their channels, and reads them once; groups of more keys are read
twice, and found in the cache the second time. Pieces of a token's channels meet in words without leaving their threads.

Codes and scales are those of `cache_attention.pack`, which rounds differences of float16 numbers in float64: of up to
40 bits, they have no place in float32. What decides is kept all the same. A difference is rounded to 24 bits to odd:
cut off, and its last bit set if anything was lost (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded
sums", IEEE Transactions on Computers 57). Whatever it is compared with has 16 bits at most, where float16 scales and
halves of codes change, so it is above, equal or below as the difference itself; and a quotient of two numbers that
differ, rounded to 24 bits, does not reach the place between two codes, or between two scales, unless they are equal.

A group of equal values has the scale 0, one with NaN or infinity scale and least value NaN; codes are 0 in both.
"""

import torch
import triton
import triton.language as tl

from kernels.cache_attention.packing import PART, TILE, WIDTHS
from kernels.inputs import require, require_multiple
from kernels.launch import Launch
from kernels.quantize_pack.integers import inverse_of, quotient
from kernels.quantize_pack.triton import INTERPRETED, ordered
from kernels.rounding import nearest_integer

HEADS = (64, 128)  # channels that pieces divide into powers of two


@triton.jit
def quantize_tokens(
    x,  # (sequences, length, D)
    words,  # (sequences, capacity, D BITS / 16), int16
    scale,  # keys: (sequences, capacity / GROUP, D), values: (sequences, tiles, D / GROUP, TILE)
    least,
    length,
    capacity,
    KEYS: tl.constexpr,
    BITS: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """See the module's docstring; a sequence is one of a head."""
    sequence = tl.program_id(0)
    x += sequence.to(tl.int64) * length * D
    words += sequence.to(tl.int64) * capacity * (D * BITS // 16)
    i = tl.arange(0, TOKENS)
    c = tl.arange(0, D * BITS // 16)
    if KEYS:
        group = tl.program_id(1)
        at = (sequence.to(tl.int64) * (capacity // GROUP) + group) * D
        keys(x, words, scale + at, least + at, length, group * GROUP, i, c, BITS, D, GROUP, TOKENS)
    else:
        token = tl.program_id(1) * TOKENS + i
        at = (sequence.to(tl.int64) * (capacity // TILE) + token // TILE) * (D // GROUP) * TILE + token % TILE
        values(x, words, scale, least, length, token, at, c, BITS, D, GROUP, TOKENS, TILE)


@triton.jit
def keys(
    x, words, scale, least, length, first, i, c, BITS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """Pack a group of tokens, each channel with a scale of its own."""
    PIECES: tl.constexpr = 16 // BITS
    WIDTH: tl.constexpr = D // PIECES
    if GROUP == TOKENS:
        held = pieces(x, first + i, c, length, D, PIECES)
        word = tl.zeros([TOKENS, WIDTH], tl.int32)
        for j in tl.static_range(PIECES):
            low, high = tl.min(ordered(held[j].to(tl.float32)), 0), tl.max(ordered(held[j].to(tl.float32)), 0)
            step, lowest = stepped(low, high, scale + j * WIDTH + c, least + j * WIDTH + c, True, BITS)
            word |= codes(held[j], step[None, :], lowest[None, :], BITS) << (j * BITS)
        tl.store(words + (first + i).to(tl.int64)[:, None] * WIDTH + c[None, :], word.to(tl.int16))
    else:
        steps = ()
        lows = ()
        for j in tl.static_range(PIECES):
            low = ordered(piece(x, first + i, j * WIDTH + c, length, D).to(tl.float32))
            high = low
            for turn in range(1, GROUP // TOKENS):
                more = ordered(piece(x, first + turn * TOKENS + i, j * WIDTH + c, length, D).to(tl.float32))
                low = tl.minimum(low, more)
                high = tl.maximum(high, more)
            low, high = tl.min(low, 0), tl.max(high, 0)
            step, lowest = stepped(low, high, scale + j * WIDTH + c, least + j * WIDTH + c, True, BITS)
            steps += (step,)  # type: ignore[assignment]
            lows += (lowest,)  # type: ignore[assignment]
        for turn in range(GROUP // TOKENS):
            token = first + turn * TOKENS + i
            held = pieces(x, token, c, length, D, PIECES)
            word = tl.zeros([TOKENS, WIDTH], tl.int32)
            for j in tl.static_range(PIECES):
                word |= codes(held[j], steps[j][None, :], lows[j][None, :], BITS) << (j * BITS)
            tl.store(words + token.to(tl.int64)[:, None] * WIDTH + c[None, :], word.to(tl.int16))


@triton.jit
def values(
    x, words, scale, least, length, token, at, c, BITS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Pack tokens, each with a scale for every group of channels: of `EACH` pieces, or of a part of one."""
    PIECES: tl.constexpr = 16 // BITS
    WIDTH: tl.constexpr = D // PIECES
    EACH: tl.constexpr = GROUP // WIDTH if GROUP > WIDTH else 1
    PARTS: tl.constexpr = WIDTH // GROUP if GROUP < WIDTH else 1
    held = pieces(x, token, c, length, D, PIECES)
    word = tl.zeros([TOKENS, WIDTH], tl.int32)
    spot = at[:, None] + tl.arange(0, PARTS)[None, :] * TILE
    for g in tl.static_range(PIECES // EACH):
        low = ordered(held[g * EACH].to(tl.float32))
        high = low
        for j in tl.static_range(1, EACH):
            more = ordered(held[g * EACH + j].to(tl.float32))
            low = tl.minimum(low, more)
            high = tl.maximum(high, more)
        low = tl.min(low.reshape(TOKENS, PARTS, WIDTH // PARTS), 2)
        high = tl.max(high.reshape(TOKENS, PARTS, WIDTH // PARTS), 2)
        to = spot + g * PARTS * TILE
        step, lowest = stepped(low, high, scale + to, least + to, True, BITS)
        for j in tl.static_range(EACH):
            cut = held[g * EACH + j].reshape(TOKENS, PARTS, WIDTH // PARTS)
            code = codes(cut, step[:, :, None], lowest[:, :, None], BITS)
            word |= code.reshape(TOKENS, WIDTH) << ((g * EACH + j) * BITS)
    tl.store(words + token.to(tl.int64)[:, None] * WIDTH + c[None, :], word.to(tl.int16))


@triton.jit
def pieces(x, token, c, length, D: tl.constexpr, PIECES: tl.constexpr):
    """All channels of tokens: those that are the lowest in their words, those that are the next, and so on."""
    held = ()
    for j in tl.static_range(PIECES):
        held += (piece(x, token, j * (D // PIECES) + c, length, D),)  # type: ignore[assignment]
    return held


@triton.jit
def piece(x, token, channel, length, D: tl.constexpr):
    """Channels of tokens, zeros beyond the last token."""
    at = x + token.to(tl.int64)[:, None] * D + channel[None, :]
    return tl.load(at, mask=(token < length)[:, None], other=0.0)


@triton.jit
def stepped(low, high, scale, least, there, BITS: tl.constexpr):
    """Store scale and least value of groups between `ordered` bounds, and give them, in float16."""
    low = (low ^ ((low >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    high = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    usable = (low > float("-inf")) & (high < float("inf"))  # neither NaN nor infinity
    low = tl.where(usable, low, float("nan"))
    top = tl.full(low.shape, (1 << BITS) - 1, tl.float32)
    step = quotient(to_odd(high, low), top, inverse_of(top)).to(tl.float16)
    tl.store(scale, step, mask=there)
    tl.store(least, low.to(tl.float16), mask=there)
    return step, low.to(tl.float16)


@triton.jit
def to_odd(x, low):
    """Round x - low, two float16 numbers of which low is not the greater, to 24 bits to odd.

    On a GPU: it is cut off and rounded up, and where the two differ, so do their last bits. One is odd.
    """
    if INTERPRETED:
        d = x - low
        back = d - x
        lost = (x - (d - back)) - (low + back)  # exactly x - low - d (Knuth's TwoSum)
        bits = d.to(tl.int32, bitcast=True)
        toward = (lost > 0).to(tl.int32) - (lost < 0).to(tl.int32)
        return (bits + tl.where((bits & 1) == 0, toward, 0)).to(tl.float32, bitcast=True)
    asm: tl.constexpr = ODD_ASSEMBLY
    return tl.inline_asm_elementwise(asm, "=r,r,r", [x, low], dtype=tl.float32, is_pure=True, pack=1)


# lop3's table for a | ((a ^ b) & c): 0xF8 = 0xF0 | ((0xF0 ^ 0xCC) & 0xAA) (PTX ISA)
ODD_ASSEMBLY = tl.constexpr(
    "{ .reg .b32 cut, up; sub.rz.f32 cut, $1, $2; sub.rp.f32 up, $1, $2; lop3.b32 $0, cut, up, 1, 0xF8; }"
)


@triton.jit
def codes(x, step, low, BITS: tl.constexpr):
    """Round (x - low) / step to nearest, halves to even; where they are NaN, 0."""
    scale = step.to(tl.float32)
    scale = tl.where(scale == 0, 1.0, scale)  # differences are below 2^-20 then, and codes 0
    level = quotient(to_odd(x.to(tl.float32), low.to(tl.float32)), scale, inverse_of(scale))
    return nearest_integer(tl.minimum(tl.maximum(level, 0.0), (1 << BITS) - 1))


def plan(x: torch.Tensor, what: str, bits: int, group: int = 32, capacity: int | None = None) -> Launch:
    """The launch of `quantize_keys` and `quantize_values`: `what` is "keys" or "values"."""
    if what not in ("keys", "values"):
        raise ValueError(f"what is {what!r}, expected keys or values")
    require(what, x, shape=(None, None, None, None), dtypes=(torch.float16,))
    batch, heads, length, width = x.shape
    capacity = -(-(length if capacity is None else capacity) // TILE) * TILE
    if not x.numel() or capacity < length:
        raise ValueError(f"{what} has shape {tuple(x.shape)}, expected 1 to {capacity} tokens, the capacity")
    if bits not in WIDTHS or width not in HEADS:
        raise ValueError(f"heads of {width} channels in {bits} bits, expected one of {HEADS} in one of {WIDTHS}")
    by_key = what == "keys"
    require_multiple("group", group, PART if by_key else 16)
    require_multiple("capacity" if by_key else "channels", capacity if by_key else width, group)
    shape = (batch, heads, capacity // group, width) if by_key else (
        batch, heads, capacity // TILE, width // group, TILE)  # fmt: skip
    tokens = PART if by_key else 2 * PART
    words = x.new_empty((batch, heads, capacity, width * bits // 16), dtype=torch.int16)
    scale, least = x.new_empty(shape), x.new_empty(shape)
    return Launch(
        function=quantize_tokens,
        grid=(batch * heads, capacity // (group if by_key else tokens)),
        arguments={
            "x": x, "words": words, "scale": scale, "least": least, "length": length, "capacity": capacity,
        },
        constants={
            "KEYS": by_key, "BITS": bits, "D": width, "GROUP": group, "TOKENS": tokens, "TILE": TILE,
        },
        output=(words, scale, least), loop_bytes=2 * tokens * width, loop_weights=tokens * width,
        num_warps=1 if by_key else width * bits // 64,  # 16 bytes of a piece in a thread; a channel in few threads
        max_registers=255,
    )  # fmt: skip


def quantize_keys(
    keys: torch.Tensor, *, bits: int, group: int = 32, capacity: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Round keys (batch, heads, n, D), float16, by channel: `keys`, `key_scale` and `key_least` of a `Cache`.

    `group` tokens share a scale, those beyond n counted as zeros, up to `capacity` (n, in whole tiles of 128). Raises
    `ValueError` for what does not fit; the last group may have to be rounded again when its other tokens are known.
    """
    return plan(keys, "keys", bits, group, capacity).run()


def quantize_values(
    values: torch.Tensor, *, bits: int, group: int = 32, capacity: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Round values (batch, heads, n, D), float16, by token: `values`, `value_scale` and `value_least` of a `Cache`.

    `group` channels share a scale. Tokens beyond n have scale and codes 0. Raises `ValueError` for what does not fit.
    """
    return plan(values, "values", bits, group, capacity).run()
