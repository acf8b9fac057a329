"""Element formats of 4, 6 and 8 bits: what a code means, and where the kernel's words keep its bits.

A code is a sign, `exponent` bits and `mantissa` bits, most significant first, with a bias of 2^(exponent - 1) - 1 and
with subnormals: (-1)^s 2^(e - bias) 1.m, and (-1)^s 2^(1 - bias) 0.m at e = 0. E4M3 keeps its highest magnitude for
NaN, E5M2 its highest exponent for infinities and NaN; the others are numbers throughout. Sources: OCP Microscaling
Formats (MX) 1.0, section 5.3; OCP 8-bit Floating Point Specification (OFP8) 1.0.

Half precision has the same fields, only wider: a magnitude with its mantissa below bit 10 and its exponent above, the
sign at bit 15, reads as the number times a power of two, subnormals included. So words keep magnitudes whole, side by
side from bit 0 upwards, and signs in the bits that are left at the top: each magnitude moves to its place by a shift,
each sign by another, shared where they can be (`SIGNS`: of all orders of the signs, one with the fewest operations for
float16 and bfloat16 together).
"""

from dataclasses import dataclass

from kernels.product.words import Layout

# Plane and bit of the sign of every code in a row of words, by the width of a code.
SIGNS = {
    4: ((0, 13), (0, 12), (0, 14), (0, 15)),
    6: ((2, 14), (0, 15), (2, 12), (2, 10), (1, 15), (2, 15), (2, 11), (2, 13)),
    8: ((0, 14), (0, 15)),
}


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A sign, `exponent` and `mantissa` bits; magnitudes above `top` are infinity or NaN."""

    name: str
    exponent: int
    mantissa: int
    top: int

    @property
    def bits(self) -> int:
        """The width of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """The exponent bias."""
        return 2 ** (self.exponent - 1) - 1


E2M1 = FloatFormat("e2m1", 2, 1, 0x07)
E2M3 = FloatFormat("e2m3", 2, 3, 0x1F)
E3M2 = FloatFormat("e3m2", 3, 2, 0x1F)
E4M3 = FloatFormat("e4m3", 4, 3, 0x7E)
E5M2 = FloatFormat("e5m2", 5, 2, 0x7B)
FORMATS = (E2M1, E2M3, E3M2, E4M3, E5M2)


def layout_of(format: FloatFormat, group: int) -> Layout:
    """Tiles of 32 rows, or of 16 rows of two words where only 16 inputs share a scale."""
    return Layout(format.bits, rows=16, words=2) if group == 16 else Layout(format.bits)


def places(layout: Layout, piece: int) -> list[tuple[int, int, int, int]]:
    """Where magnitude and sign of `piece` lie: (plane, bit in the word, mask, bit in the code) of each, lowest bits."""
    width = layout.bits - 1
    plane, place = divmod(piece, 3 if layout.bits == 6 else 16 // layout.bits)
    sign_plane, sign_bit = SIGNS[layout.bits][piece % len(SIGNS[layout.bits])]
    if layout.bits != 6:  # codes do not reach over words
        sign_plane = plane
    return [(plane, place * width, 2**width - 1, 0), (sign_plane, sign_bit, 1, width)]
