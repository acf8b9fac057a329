"""What windows of a trellis stand for: two halves in float16 a register, at two to four instructions a window.

Every code is one function, compiled in: `DECODE(a, b, c, table, AT, APART)` gives the registers of the four windows of
16 bits that begin at bits AT, AT + APART, .. of rows whose first, second and third 32 bits are a, b and c. Halves of
1MAD and 3INST sum to a weight, those of HYB are two weights (Tseng, Sun, Hou, De Sa 2024, "QTIP", arXiv:2406.11235,
section 3.1; the constants are those of the release, Cornell-RelaxML/qtip at e90c6688, lib/codebook/bitshift.py).
"""

import triton
import triton.language as tl

from kernels.launch import interpreted

INTERPRETED = tl.constexpr(interpreted())
DIVISOR = 147.800537109375  # of 1MAD


@triton.jit
def one_mad(a, b, c, table, AT: tl.constexpr, APART: tl.constexpr):
    """Four windows of 1MAD: 1024 + n in the low half, -1534 in the high one."""
    s0, s1 = window(a, b, c, AT), window(a, b, c, AT + APART)
    s2, s3 = window(a, b, c, AT + 2 * APART), window(a, b, c, AT + 3 * APART)
    return bytes_of(s0), bytes_of(s1), bytes_of(s2), bytes_of(s3)


@triton.jit
def bytes_of(state):
    """The linear congruence of 1MAD, and the sum of its bytes as float16."""
    x = state * 34038481 + 76625530
    if INTERPRETED:
        total = 0xE5FE6400 + (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24)
    else:
        asm: tl.constexpr = "dp4a.u32.u32 $0, $1, 0x01010101, 0xE5FE6400;"
        total = tl.inline_asm_elementwise(asm, "=r,r", [x], dtype=tl.uint32, is_pure=True, pack=1)
    return total


@triton.jit
def three_inst(a, b, c, table, AT: tl.constexpr, APART: tl.constexpr):
    """Four windows of 3INST: halves whose sum is the weight."""
    if APART == 8:
        v0, v2 = two_inst(shifted(a, b, c, AT))
        v1, v3 = two_inst(shifted(a, b, c, AT + 8))
    elif APART == 16:
        v0, v1 = two_inst(shifted(a, b, c, AT))
        v2, v3 = two_inst(shifted(a, b, c, AT + 32))
    else:
        v0 = halves_of(window(a, b, c, AT) * 89226354 + 64248484)
        v1 = halves_of(window(a, b, c, AT + APART) * 89226354 + 64248484)
        v2 = halves_of(window(a, b, c, AT + 2 * APART) * 89226354 + 64248484)
        v3 = halves_of(window(a, b, c, AT + 3 * APART) * 89226354 + 64248484)
    return v0, v1, v2, v3


@triton.jit
def two_inst(both):
    """3INST of the two windows of 16 bits in a word.

    What the high one adds to the low one's product is subtracted by a multiplication, and not masked before it: shifts
    and masks share a pipe of half rate (CUDA C++ Programming Guide, arithmetic throughput), and the multiplier waits.
    """
    high = (both >> 16) * 89226354 + 64248484
    mixed = both * 89226354 + 0x5E785AA4  # 64248484 (1 + 2^16)
    if INTERPRETED:
        low = mixed - (high << 16)
    else:
        asm: tl.constexpr = "mad.lo.u32 $0, $1, 0xFFFF0000, $2;"
        low = tl.inline_asm_elementwise(asm, "=r,r,r", [high, mixed], dtype=tl.uint32, is_pure=True, pack=1)
    return halves_of(high), halves_of(low)


@triton.jit
def halves_of(x):
    """(x & 0x8FFF8FFF) ^ 0x3B603B60 with the mask kept in a register, as `kernels.product.triton.raised` explains."""
    if INTERPRETED:
        return (x & 0x8FFF8FFF) ^ 0x3B603B60
    known: tl.constexpr = "or.b32 mask, mask, 0x8FFF8FFF; lop3.b32 $0, $1, mask, 0x3B603B60, 0x6a;"
    asm: tl.constexpr = f"{{ .reg .b32 mask; mov.u32 mask, %ctaid.z; shr.u32 mask, mask, 16; {known} }}"
    return tl.inline_asm_elementwise(asm, "=r,r", [x], dtype=tl.uint32, is_pure=True, pack=1)


@triton.jit
def hyb(a, b, c, table, AT: tl.constexpr, APART: tl.constexpr):
    """Four windows of HYB: pairs of weights from the table."""
    v0, v1 = pair_of(ending(a, b, c, AT), table), pair_of(ending(a, b, c, AT + APART), table)
    v2, v3 = pair_of(ending(a, b, c, AT + 2 * APART), table), pair_of(ending(a, b, c, AT + 3 * APART), table)
    return v0, v1, v2, v3


@triton.jit
def pair_of(state, table):
    """The pair that HYB's hash of the low 16 bits of `state` points at, its first value with the hash's sign.

    An entry takes 64 bytes in shared memory, so that the hash less its other bits is the distance to it.
    """
    x = state * state + state
    if INTERPRETED:
        pair = tl.load(table + (x >> 6 & 511).to(tl.int32)).to(tl.uint32, bitcast=True) ^ (x & 0x8000)
    else:
        at = (x & 0x7FC0) + table
        asm: tl.constexpr = "ld.shared.b32 $0, [$1]; lop3.b32 $0, $0, $2, 0x8000, 0x78;"
        pair = tl.inline_asm_elementwise(asm, "=&r,r,r", [at, x], dtype=tl.uint32, is_pure=True, pack=1)
    return pair


@triton.jit
def spread(table):
    """Copy the table of HYB to shared memory, 16 times, and give each lane the address of its first entry there.

    32 lanes ask for 32 random entries. From one copy they would wait for the most wanted of 32 banks, which has 3.4 to
    serve on average (a simulation); with a copy for two lanes it has 2, and 32 KiB leave room for four programs.
    """
    if INTERPRETED:
        return table
    asm: tl.constexpr = "{ .shared .align 128 .b8 pairs[32768]; mov.u32 $0, pairs; add.u32 $0, $0, $1; }"
    base = tl.inline_asm_elementwise(asm, "=r,r", [tl.program_id(2) >> 16], dtype=tl.uint32, is_pure=False, pack=1)
    i = tl.arange(0, 512 * 16)
    pair = tl.load(table + i // 16)
    store: tl.constexpr = "st.shared.b32 [$1], $2; mov.u32 $0, 0;"
    at = base + (i * 4).to(tl.uint32)
    tl.inline_asm_elementwise(store, "=r,r,r", [at, pair], dtype=tl.uint32, is_pure=False, pack=1)
    tl.debug_barrier()
    lane: tl.constexpr = "{ .reg .b32 t; mov.u32 t, %laneid; and.b32 t, t, 15; shl.b32 t, t, 2; add.u32 $0, $1, t; }"
    return tl.inline_asm_elementwise(lane, "=r,r", [base], dtype=tl.uint32, is_pure=False, pack=1)


@triton.jit
def shifted(a, b, c, AT: tl.constexpr):
    """The 32 bits of a row from bit `AT` on, the first bit highest."""
    if AT < 32:
        high, low = a, b
    else:
        high, low = b, c
    if AT % 32 == 0:
        word = high
    else:
        word = (high << AT % 32) | (low >> (32 - AT % 32))
    return word


@triton.jit
def window(a, b, c, AT: tl.constexpr):
    """The 16 bits of a row from bit `AT` on. Windows a byte apart share their shift: one operation each, rarely two."""
    word = shifted(a, b, c, AT // 32 * 32 + AT % 8)
    if AT % 32 < 8:
        found = word >> 16
    elif AT % 32 < 16:
        found = word >> 8 & 0xFFFF
    elif AT % 32 < 24:
        found = word & 0xFFFF
    else:
        found = shifted(a, b, c, AT - 16) & 0xFFFF
    return found


@triton.jit
def ending(a, b, c, AT: tl.constexpr):
    """The same 16 bits, with others above them."""
    if AT < 16:
        word = a >> (16 - AT)
    else:
        word = shifted(a, b, c, AT - 16)
    return word


DECODE = {"1mad": one_mad, "3inst": three_inst, "hyb": hyb}
