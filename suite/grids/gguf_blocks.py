"""The bytes of GGUF blocks: where seven number formats keep their codes and scales.

Layouts as llama.cpp defines them (ggml-org/llama.cpp, ggml-common.h; read by gguf-py/gguf/quants.py). A block is
`block` consecutive inputs of one row; sub-blocks of `group` share a scale. Fields in the order in which they are
stored, with their bytes; d and dmin are float16, little-endian, s and m the integers of a sub-block, q of a value:

    type   block  group  bytes  fields                                     value
    q2_k     256     16     84  s, m [16]; q [64]; d; dmin                 d s q - dmin m       s, m, q: 4, 4, 2 bits
    q3_k     256     16    110  high q [32]; low q [64]; s [12]; d         d (s - 32) (q - 4)   s, q: 6, 3 bits
    q4_k     256     32    144  d; dmin; s, m [12]; q [128]                d s q - dmin m       s, m, q: 6, 6, 4 bits
    q5_k     256     32    176  d; dmin; s, m [12]; high q [32]; low [128] d s q - dmin m       s, m, q: 6, 6, 5 bits
    q6_k     256     16    210  low q [128]; high q [64]; s [16]; d        d s (q - 32)         s, q: 8 (signed), 6 bits
    q4_0      32     32     18  d; q [16]                                  d (q - 8)            q: 4 bits
    q8_0      32     32     34  d; q [32]                                  d q                  q: 8 bits (signed)

A byte never holds neighbors. Where each value gives `width` bits, 8 / width values that lie `run` apart share a byte,
the first in the lowest bits: the nibbles of q4_k's byte j are values j and j + 32, those of q4_0's j and j + 16, those
of q6_k's j and j + 64; a byte of 2-bit fields holds values 32 apart; bit k of byte j of a 1-bit field is of value
32 k + j. In q2_k a byte is s + 16 m. q3_k's high bit is often called inverted, since a reader that takes its two low
bits as q subtracts 4 where the bit is not set: over codes q = 0 .. 7 for -4 .. 3 it is plainly the third bit. Its
16 scales of 6 bits are 8 bytes of low nibbles, of s[j] and s[j + 8], then 4 bytes of high pairs, of s[i], s[i + 4], ..
The 12 bytes of q4_k and q5_k: byte i < 4 is s[i] with the two high bits of s[i + 4] above it, byte 4 + i the same of m,
byte 8 + i the low nibbles of s[i + 4] and m[i + 4].
"""

from dataclasses import dataclass
from typing import Literal

import torch

from suite.grids.stored import from_bits, to_bits

GgufType = Literal["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q8_0"]
_SIGN = 0x80  # offset binary and two's complement differ in the sign bit


@dataclass(frozen=True, slots=True)
class Field:
    """Consecutive bytes of a block: `d` or `dmin`, the six-bit `pairs`, or `width` bits from `first` on of integers.

    A byte takes the bits of 8 / width integers `run` apart. Eight bits are a signed integer.
    """

    of: Literal["d", "dmin", "pairs", "scales", "codes"]
    first: int = 0
    width: int = 8
    run: int = 1

    def n_bytes(self, n_values: int) -> int:
        """Bytes that the field takes for the `n_values` integers that it is of."""
        return {"d": 2, "dmin": 2, "pairs": 12}.get(self.of, n_values * self.width // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A row of the table above; codes and scales are unsigned here, `zero` and `scale_zero` stand for 0."""

    bits: int
    block: int
    group: int
    fields: tuple[Field, ...]
    zero: int = 0
    scale_zero: int = 0

    @property
    def has_scales(self) -> bool:
        """Whether sub-blocks have integers of their own."""
        return self.block != self.group

    @property
    def has_mins(self) -> bool:
        """Whether sub-blocks have a second integer, that of their minimum."""
        return Field("dmin") in self.fields

    @property
    def scale_bits(self) -> int:
        """The width of a sub-block's integers."""
        return 6 if Field("pairs") in self.fields else sum(field.width for field in self.fields if field.of == "scales")

    def count(self, of: str) -> int:
        """How many integers a block has of a kind."""
        return self.block if of == "codes" else self.block // self.group * (2 if self.has_mins else 1)

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return sum(field.n_bytes(self.count(field.of)) for field in self.fields)


_D, _DMIN, _PAIRS = Field("d"), Field("dmin"), Field("pairs")
FORMATS: dict[str, Format] = {
    "q2_k": Format(
        bits=2, block=256, group=16, fields=(Field("scales", 0, 4, 16), Field("codes", 0, 2, 32), _D, _DMIN)
    ),
    "q3_k": Format(
        bits=3, block=256, group=16, zero=4, scale_zero=32,
        fields=(Field("codes", 2, 1, 32), Field("codes", 0, 2, 32),
                Field("scales", 0, 4, 8), Field("scales", 4, 2, 4), _D),
    ),
    "q4_k": Format(bits=4, block=256, group=32, fields=(_D, _DMIN, _PAIRS, Field("codes", 0, 4, 32))),
    "q5_k": Format(
        bits=5, block=256, group=32, fields=(_D, _DMIN, _PAIRS, Field("codes", 4, 1, 32), Field("codes", 0, 4, 32))
    ),
    "q6_k": Format(
        bits=6, block=256, group=16, zero=32, scale_zero=128,
        fields=(Field("codes", 0, 4, 64), Field("codes", 4, 2, 32), Field("scales"), _D),
    ),
    "q4_0": Format(bits=4, block=32, group=32, zero=8, fields=(_D, Field("codes", 0, 4, 16))),
    "q8_0": Format(bits=8, block=32, group=32, zero=128, fields=(_D, Field("codes"))),
}  # fmt: skip


def pack_blocks(form: Format, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Blocks (n, size), uint8, from float32 `d` and `dmin` (n,), uint8 `codes` (n, block) and `scales` (n, count).

    `scales` are the s of a block, then its m; scales in float16 must be in its range.
    """
    parts = []
    for field in form.fields:
        if field.of in ("d", "dmin"):
            bits = to_bits(values[field.of], 16)
            parts.append(torch.stack([bits & 0xFF, bits >> 8], dim=1).to(torch.uint8))
        elif field.of == "pairs":
            parts.append(_pack_pairs(values["scales"]))
        else:
            parts.append(_gather_bits(values[field.of], field))
    return torch.cat(parts, dim=1)


def unpack_blocks(form: Format, blocks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inverse of `pack_blocks`: blocks (n, size), uint8."""
    kinds = ("codes", "scales") if form.has_scales else ("codes",)
    found = {of: torch.zeros(len(blocks), form.count(of), dtype=torch.uint8) for of in kinds}
    sizes = [field.n_bytes(form.count(field.of)) for field in form.fields]
    for field, octets in zip(form.fields, blocks.split(sizes, dim=1), strict=True):
        if field.of in ("d", "dmin"):
            wide = octets.to(torch.int64)
            found[field.of] = from_bits(wide[:, 0] | wide[:, 1] << 8, 16)
        elif field.of == "pairs":
            found["scales"] = _unpack_pairs(octets)
        else:
            found[field.of] |= _scatter_bits(octets, field)
    return found


def _gather_bits(values: torch.Tensor, field: Field) -> torch.Tensor:
    """One byte for each 8 / width of the integers (n, count)."""
    if field.width == 8:
        return values ^ _SIGN
    runs = values.reshape(len(values), -1, 8 // field.width, field.run) >> field.first & (1 << field.width) - 1
    octets = runs[:, :, 0]
    for k in range(1, 8 // field.width):
        octets = octets | runs[:, :, k] << k * field.width
    return octets.reshape(len(values), -1)


def _scatter_bits(octets: torch.Tensor, field: Field) -> torch.Tensor:
    """The inverse of `_gather_bits`, in the bits' places."""
    if field.width == 8:
        return octets ^ _SIGN
    shifts = torch.arange(0, 8, field.width, dtype=torch.uint8)[:, None]
    runs = octets.reshape(len(octets), -1, 1, field.run) >> shifts & (1 << field.width) - 1
    return (runs << field.first).reshape(len(octets), -1)


def _pack_pairs(scales: torch.Tensor) -> torch.Tensor:
    """The 12 bytes of 8 s and 8 m of 6 bits: (n, 16) to (n, 12)."""
    s_low, s_high, m_low, m_high = scales.split(4, dim=1)
    whole = torch.cat([s_low | s_high >> 4 << 6, m_low | m_high >> 4 << 6], dim=1)
    return torch.cat([whole, s_high & 15 | (m_high & 15) << 4], dim=1)


def _unpack_pairs(octets: torch.Tensor) -> torch.Tensor:
    s, m, low = octets.split(4, dim=1)
    return torch.cat([s & 63, low & 15 | s >> 6 << 4, m & 63, low >> 4 | m >> 6 << 4], dim=1)
