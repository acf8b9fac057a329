"""Pieces of coded words, as numbers for matrix units and as the bit patterns that were coded.

`EACH` pieces share a word of signs and fractions: 2 of BF16, 4 of FP8. The exponents of all 16 are in three words.
"""

import triton
import triton.language as tl

from kernels.float_product.triton import moved
from kernels.product import triton as shared


@triton.jit
def exponent_words(at, plane, known, WHOLE: tl.constexpr):
    """The words at the addresses `at`, one `plane` of words further on, and two."""
    return (
        shared.once(at, known, WHOLE),
        shared.once(at + plane, known, WHOLE),
        shared.once(at + 2 * plane, known, WHOLE),
    )


@triton.jit
def lined(fractions, ORDER: tl.constexpr):
    """Words with sign and fraction of their piece `ORDER` where bfloat16 has them, among others'."""
    if ORDER % 2 == 1:
        fractions = turned(fractions)
    if ORDER >= 2:
        fractions = moved(fractions, 4)
    return fractions


@triton.jit
def halves(fractions, a, b, c, PIECE: tl.constexpr, EACH: tl.constexpr, DTYPE: tl.constexpr):
    """Piece `PIECE` as 2^(code - 7) 1.f in `DTYPE`; `EACH` pieces share a word of `fractions`."""
    HALF: tl.constexpr = DTYPE == tl.float16
    LOW: tl.constexpr = 10 if HALF else 7  # the lowest bit of the exponent
    FRACTION: tl.constexpr = 0x7F if EACH == 2 else 0x70
    exponents = raised_exponents(a, b, c, PIECE, LOW, 0x2000 if HALF else 0x3C00)  # 8 of 15, 120 of 127
    line = lined(fractions, PIECE % EACH)
    if HALF:
        bits = (moved(line, 3) & (FRACTION << 3)) | exponents
        bits = (line & -0x8000) | bits
    else:
        bits = (line & (FRACTION - 0x8000)) | exponents
    return shared.as_half(bits, DTYPE)


@triton.jit
def raised_exponents(a, b, c, PIECE: tl.constexpr, LOW: tl.constexpr, MAGIC: tl.constexpr):
    """The code of `PIECE` at bit `LOW`, and the rest of the exponent, `MAGIC`."""
    if PIECE < 15:
        word = a if PIECE < 5 else (b if PIECE < 10 else c)
        bits = shared.raised(moved(word, LOW - 1 - PIECE % 5 * 3), 7 << LOW, MAGIC)
    else:
        bits = shared.raised(moved(a, LOW), 1 << LOW, MAGIC)
        bits |= moved(b, LOW + 1) & (2 << LOW)
        bits |= moved(c, LOW + 2) & (4 << LOW)
    return bits


@triton.jit
def turned(words):
    """Words with their bytes exchanged, two in one operation."""
    if shared.INTERPRETED:
        return (words << 8) | ((words >> 8) & 0xFF)
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, 0, 0x2301;", "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2
    )


@triton.jit
def patterns(fractions, a, b, c, low, PIECE: tl.constexpr, EACH: tl.constexpr):
    """Bit patterns of piece `PIECE` in int16, whose windows begin at exponent `low`; `EACH` pieces share a word."""
    line = lined(fractions, PIECE % EACH)
    if EACH == 2:
        result = (line & -0x7F81) | (raised_exponents(a, b, c, PIECE, 7, 0) + (low << 7))
    else:
        exponents = raised_exponents(a, b, c, PIECE, 3, 0) + (low << 3)
        result = (moved(line, -8) & 0x80) | (moved(line, -4) & 0x07) | exponents
    return result
