"""Codes of a weight matrix as 16-bit words, laid out for `kernels.product.triton`.

A tile holds `pieces` x `rows` consecutive inputs of all outputs. Word r of a tile carries the codes of the inputs
r, r + rows, r + 2 rows, ...: its fields are the pieces, so that unpacking field j of a tile gives the weights of `rows`
consecutive inputs, ready for a matrix instruction, and a thread's 16-byte load covers eight outputs. Words of two
bytes, and not four, because a matrix instruction wants neighboring inputs in the halves of one register: the hardware's
transposing loads deliver them so, and one operation then unpacks both.

Widths that do not divide 16 take three words (planes) a row: codes of 3 bits five a word, and the sixteenth in the
three spare bits; codes of 6 bits two a word, and two more in the spare nibbles. Nothing is lost: 16 codes in 48 bits,
8 codes in 48 bits. Inputs are filled up with zero codes to whole tiles and outputs to a multiple of 8, for loads of
16 bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

WIDTHS = (1, 2, 3, 4, 6, 8, 16)  # of codes that a tile's words hold with no bit to spare
COLUMNS = 8  # outputs are padded to a multiple of this: 8 words are 16 bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """How codes of `bits` bits fill a tile: `rows` (16 or 32) words in each plane, `pieces` codes in a row of words.

    Widths that divide 16 take `words` planes: 2 make a tile of 16 rows as large as one of 32.
    """

    bits: int
    rows: int = 32
    words: int = 1

    @property
    def planes(self) -> int:
        """Words that share `pieces` codes."""
        return self.words if 16 % self.bits == 0 else 3

    @property
    def pieces(self) -> int:
        """Codes in a row of words."""
        return 16 * self.planes // self.bits

    @property
    def inputs(self) -> int:
        """Inputs that a tile covers."""
        return self.pieces * self.rows

    def tiles(self, inputs: int) -> int:
        """Tiles that `inputs` need."""
        return -(-inputs // self.inputs)


Places = Callable[[Layout, int], list[tuple[int, int, int, int]]]  # what `fields` is an example of


def columns(outputs: int) -> int:
    """Outputs with their padding."""
    return -(-outputs // COLUMNS) * COLUMNS


def to_words(codes: torch.Tensor, layout: Layout, places: Places | None = None) -> torch.Tensor:
    """Pack codes (outputs, inputs), integers in [0, 2^bits), into int16 words (tiles, planes, rows, columns(outputs)).

    `places(layout, piece)` says where bits lie, `fields` unless given. Raises `ValueError` for codes out of range.
    """
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < 2**layout.bits):
        raise ValueError(f"codes lie in [{int(codes.min())}, {int(codes.max())}], expected [0, {2**layout.bits - 1}]")
    outputs, inputs = codes.shape
    tiles = layout.tiles(inputs)
    full = torch.zeros(tiles * layout.inputs, columns(outputs), dtype=torch.int32, device=codes.device)
    full[:inputs, :outputs] = codes.T
    pieces = full.view(tiles, layout.pieces, layout.rows, -1).unbind(1)
    words = torch.zeros(tiles, layout.planes, layout.rows, full.shape[1], dtype=torch.int32, device=codes.device)
    for piece, part in enumerate(pieces):
        for plane, shift, mask, at in (places or fields)(layout, piece):
            words[:, plane] |= ((part >> at) & mask) << shift
    return words.to(torch.int16)


def per_group(values: torch.Tensor, layout: Layout, inputs: int, group: int) -> torch.Tensor:
    """Parameters (outputs, ceil(inputs / group)) as (groups, columns(outputs)), with zeros for what pads the tiles."""
    groups = -(-layout.tiles(inputs) * layout.inputs // group)
    laid = values.new_zeros(groups, columns(values.shape[0]))
    laid[: values.shape[1], : values.shape[0]] = values.T
    return laid


def from_words(
    words: torch.Tensor, layout: Layout, outputs: int, inputs: int, places: Places | None = None
) -> torch.Tensor:
    """The inverse of `to_words`: int32 codes (outputs, inputs)."""
    wide = words.to(torch.int32) & 0xFFFF
    zero = torch.zeros_like(wide[:, 0])
    known = [(places or fields)(layout, piece) for piece in range(layout.pieces)]
    pieces = [
        sum((((wide[:, plane] >> shift) & mask) << at for plane, shift, mask, at in parts), start=zero)
        for parts in known
    ]
    return torch.stack(pieces, 1).reshape(-1, words.shape[3])[:inputs, :outputs].T.contiguous()


def fields(layout: Layout, piece: int) -> list[tuple[int, int, int, int]]:
    """Where the bits of `piece` lie: (plane, lowest bit in the word, mask, lowest bit in the code)."""
    bits, word = layout.bits, 16 // layout.bits
    if bits not in WIDTHS:
        raise ValueError(f"codes of {bits} bits have no layout in 16-bit words; widths are {WIDTHS}")
    if 16 % bits == 0 or piece < 3 * word:
        return [(piece // word, piece % word * bits, 2**bits - 1, 0)]
    if bits == 3:  # one spare bit a word
        return [(plane, 15, 1, plane) for plane in range(3)]
    # 6 bits, a spare nibble a word: the middle one is shared
    return [(0, 12, 15, 0), (1, 12, 3, 4)] if piece == 6 else [(2, 12, 15, 0), (1, 14, 3, 4)]
