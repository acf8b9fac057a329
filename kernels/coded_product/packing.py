"""BF16 and FP8 weights without loss: sign and fraction as they are, exponents in 3 bits, a list of what does not fit.

Trained weights use few exponents (Zhang et al. 2025, DFloat11, arXiv:2504.11651; Yang et al. 2025, ECF8,
arXiv:2510.02676). An output's weights within eight neighboring exponents, its *window*, take the place in it; the
others, 1.2% of a Gaussian's (those below 1/64 of the window's end), are *escapes*: input and bit pattern, 32 bits (24
for FP8). Huffman codes come closer to the entropy, but a thread that reads them waits for each code's length to find
the next. Here every weight's bits have a fixed place, so decoding is shifts and masks, two weights at a time, and
escapes are one short sparse product.

Bits a weight with everything that is stored, of all matrices of the reference model (most have 256 inputs, where 40
bits an output are 0.16 a weight) and of 1024 x 4096 numbers of N(0, 0.02^2); FP8 is E4M3, the largest weight 448.
DFloat11's are reckoned: optimal codes, and the 5/64 of them that its threads cost. "Exponents" is
`suite.coding.exponents`, whose chunks are too long for a GPU; the entropy is that of a matrix's exponents. Tests
measure the table again.

                     this    DFloat11  exponents   entropy   escapes
    BF16 reference  11.55       10.82      10.61     10.57     1.31%
    BF16 Gaussian   11.38       10.80      10.60     10.55     1.16%
    FP8 reference    7.44        6.83       6.61      6.57     1.29%
    FP8 Gaussian     7.34        6.80       6.60      6.54     1.38%

What the difference buys: 3.4 instruction slots a weight where a Huffman code of one thread's own stream was reckoned
at 12, and all threads at once, at any place.

A window is an output's own, so outputs may differ in scale. Weights that are often zero or spread over more than eight
exponents take more, at most 43 bits (31 for FP8): this format is for trained, dense weights.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require
from kernels.product.words import columns

ROWS = 16  # of a tile's words
PIECES = 16  # weights of an output in a row of words: 3 words hold 16 exponents
TILE = ROWS * PIECES  # inputs
WINDOW = 8  # exponents
MOST_INPUTS = 1 << 16  # an escape's input takes 16 bits
CHUNK = 1 << 22  # weights packed at a time


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point type: `mantissa` bits, words of 16 bits that hold 16 signs and fractions, and its patterns."""

    mantissa: int
    words: int
    pattern: torch.dtype  # as stored
    top: int  # the highest exponent field of a finite number
    bias: int

    @property
    def planes(self) -> int:
        """Words for 16 weights: signs and fractions, then exponents."""
        return self.words + 3


FORMATS = {
    torch.bfloat16: Format(mantissa=7, words=8, pattern=torch.int16, top=254, bias=127),
    torch.float8_e4m3fn: Format(mantissa=3, words=4, pattern=torch.uint8, top=15, bias=7),
}


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """Weights (outputs, inputs) of `dtype`, bit for bit.

    `words` int16 (tiles, planes, 16, columns) hold, of input r + 16 p of a tile in word r, the piece p: see `pieces`.
    `base` uint8 (columns) is the lowest exponent field of an output's window; 0 means that its weights are zeros,
    but for escapes. Escapes of output n are numbers `start[n]` to `start[n + 1]` (int32, (columns + 1)): `place` int16
    is the input modulo 2^16, `value` the pattern. In `words` they have sign, fraction and exponent 0.
    """

    words: torch.Tensor
    base: torch.Tensor
    start: torch.Tensor
    place: torch.Tensor
    value: torch.Tensor
    outputs: int
    inputs: int
    dtype: torch.dtype

    @property
    def format(self) -> Format:
        """What there is to know of `dtype`."""
        return FORMATS[self.dtype]

    @property
    def escapes(self) -> int:
        """How many weights are outside their windows."""
        return self.place.numel()

    def bits(self) -> int:
        """Bits of everything that is stored, padding included."""
        return 8 * sum(part.nbytes for part in (self.words, self.base, self.start, self.place, self.value))


def fraction_at(words: int, piece: int) -> tuple[int, int, int]:
    """Where sign and fraction of `piece` lie: (word, the sign's bit, the fraction's lowest bit).

    Two pieces share a word of BF16 signs and fractions, four one of FP8: the first where bfloat16 has them, the second
    there once the word's bytes are exchanged; the third and fourth 4 bits lower than these.
    """
    each = PIECES // words
    order = piece % each
    low = 4 if each == 4 else 0  # the lowest bit of a fraction in bfloat16, less 4 for FP8's second pair
    down = 4 * (order // 2)
    return piece // each, ((15 - down) + 8 * (order % 2)) % 16, (low - down + 8 * (order % 2)) % 16


def exponent_at(piece: int) -> list[tuple[int, int, int, int]]:
    """Where the exponent of `piece` lies: (word, lowest bit there, bits, lowest bit in the code)."""
    if piece < 15:
        return [(piece // 5, 1 + 3 * (piece % 5), 3, 0)]
    return [(word, 0, 1, word) for word in range(3)]  # each word has one spare bit


def pack(weights: torch.Tensor) -> CodedWeights:
    """Code `weights` (outputs, inputs), bfloat16 or float8_e4m3fn, any patterns. They are read `CHUNK` at a time.

    Raises `ValueError` for other types, for no weights, and for more than 2^16 inputs.
    """
    require("weights", weights, shape=(None, None), dtypes=tuple(FORMATS))
    if not weights.numel() or weights.shape[1] > MOST_INPUTS:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected 1 to {MOST_INPUTS} inputs and an output")
    outputs, inputs = weights.shape
    kind, tiles, padded = FORMATS[weights.dtype], -(-inputs // TILE), columns(outputs)
    words = weights.new_zeros((tiles, kind.planes, ROWS, padded), dtype=torch.int16)
    base = weights.new_zeros(padded, dtype=torch.uint8)
    counts = weights.new_zeros(padded, dtype=torch.int64)
    place, value = [], []
    step = max(1, CHUNK // inputs)
    for at in range(0, outputs, step):
        patterns = weights[at : at + step].view(kind.pattern).to(torch.int32) & (2 ** (8 * weights.itemsize) - 1)
        lowest, outside = windows(patterns, kind)
        part = slice(at, at + patterns.shape[0])
        base[part], counts[part] = lowest, outside.sum(1)
        place.append(outside.nonzero()[:, 1].to(torch.int16))
        value.append(patterns[outside].to(kind.pattern))
        words[..., part] = _words(patterns.masked_fill(outside, 0), lowest, outside, kind)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if int(start[-1]) >= 1 << 31:
        raise ValueError(f"weights has {int(start[-1])} weights outside their windows, expected fewer than 2^31")
    return CodedWeights(
        words=words, base=base, start=start.to(torch.int32), place=torch.cat(place), value=torch.cat(value),
        outputs=outputs, inputs=inputs, dtype=weights.dtype,
    )  # fmt: skip


def windows(patterns: torch.Tensor, kind: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """The window's lowest exponent field, of each row of int32 `patterns`, and which of them are outside.

    The window is the one that holds most; of several, the lowest. That of base 0 holds zeros and nothing else: then a
    product need not tell zero from the number that pattern would be with an exponent.
    """
    magnitude = patterns & ((1 << (8 * kind.pattern.itemsize - 1)) - 1)
    field = magnitude >> kind.mantissa
    normal = (field > 0) & (field <= kind.top)
    if kind.top == 15:  # E4M3 has no infinity, and one NaN among the numbers of its highest exponent
        normal &= magnitude != 127
    zero = magnitude == 0
    rows = patterns.shape[0]
    cell = torch.arange(rows, device=patterns.device)[:, None] * 256 + field
    held = torch.bincount(cell[normal], minlength=256 * rows).view(rows, 256)
    sums = held.cumsum(1)
    cover = sums[:, WINDOW : kind.top + 1] - sums[:, : kind.top + 1 - WINDOW]  # of windows from 1 on
    base = torch.cat([zero.sum(1, keepdim=True), cover], 1).argmax(1)
    low = base[:, None]
    inside = torch.where(low == 0, zero, normal & (field >= low) & (field < low + WINDOW))
    return base.to(torch.uint8), ~inside


def _words(patterns: torch.Tensor, base: torch.Tensor, outside: torch.Tensor, kind: Format) -> torch.Tensor:
    """Patterns int32 (outputs, inputs) as words (tiles, planes, 16, outputs), int16."""
    sign = 8 * kind.pattern.itemsize - 1
    code = ((patterns & ((1 << sign) - 1)) >> kind.mantissa) - base.to(torch.int32)[:, None]
    code = code.masked_fill(outside, 0)
    fraction = (patterns & ((1 << kind.mantissa) - 1)) | (patterns >> sign << kind.mantissa)
    tiles = -(-patterns.shape[1] // TILE)
    full = patterns.new_zeros(tiles * TILE, patterns.shape[0])
    full[: patterns.shape[1]] = ((fraction << 3) | code).T
    words = patterns.new_zeros(tiles, kind.planes, ROWS, patterns.shape[0])
    for piece, part in enumerate(full.view(tiles, PIECES, ROWS, -1).unbind(1)):
        word, at_sign, at_fraction = fraction_at(kind.words, piece)
        words[:, word] |= ((part >> 3) & ((1 << kind.mantissa) - 1)) << at_fraction
        words[:, word] |= (part >> (3 + kind.mantissa)) << at_sign
        for word, at, width, low in exponent_at(piece):
            words[:, kind.words + word] |= ((part >> low) & ((1 << width) - 1)) << at
    return words.to(torch.int16)


def validate(weights: CodedWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together.

    What `start` and `place` say is not looked at, which would wait for a GPU: `pack` made them.
    """
    if weights.dtype not in FORMATS:
        raise ValueError(f"weights are {weights.dtype}, expected {' or '.join(map(str, FORMATS))}")
    if not (weights.outputs > 0 and 0 < weights.inputs <= MOST_INPUTS):
        raise ValueError(f"weights have {weights.outputs} outputs and {weights.inputs} inputs, expected 1 to 2^16")
    padded, device = columns(weights.outputs), weights.words.device
    kind = weights.format
    shape = (-(-weights.inputs // TILE), kind.planes, ROWS, padded)
    require("words", weights.words, shape=shape, dtypes=(torch.int16,))
    require("base", weights.base, shape=(padded,), dtypes=(torch.uint8,), device=device)
    require("start", weights.start, shape=(padded + 1,), dtypes=(torch.int32,), device=device)
    require("place", weights.place, shape=(None,), dtypes=(torch.int16,), device=device)
    require("value", weights.value, shape=(weights.escapes,), dtypes=(kind.pattern,), device=device)
