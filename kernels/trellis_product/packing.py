"""Weights on a bitshift trellis as the kernel reads them: every tile's ring of bits in words of 32.

A tile is 16 outputs times 16 inputs, row after row one sequence; its steps of `bits` (of twice as many for HYB, whose
steps are two weights) are a ring, first bit highest, and a state is a window of 16 bits of it. So row r of a tile is 16
`bits` bits, whose last windows reach at most 14 bits into row r + 1, the last row's into the first.

`words` (supers, 2 bits, tiles, 16): a super is 4 tiles across, 64 inputs; a tile is 2 `bits` planes of 4 words, which a
thread loads at once, and neighboring threads load neighboring words. Plane p holds, as its words j, the first 32 bits
of rows 4 j + p; with 4 bits plane 4 + p the other 32; with 3 bits plane 4 + p the last 16 of the rows 4 j + 2 p (in the
low half) and 4 j + 2 p + 1. Nothing is added but whole tiles at the ends, and a tile of zeros or more in a last super.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require

STEP_VALUES = {"1mad": 1, "3inst": 1, "hyb": 2}  # of a code: how many weights a state stands for
WIDTHS = (2, 3, 4)
STATE_BITS = 16
SIDE = 16  # of a tile
SUPER = 64  # inputs
TABLE_ENTRIES = 512


@dataclass(frozen=True, slots=True)
class TrellisWeights:
    """Weights (outputs, inputs): `words` int32, `scale` float16 of the matrix (1) or of each output.

    `table` (512, 2) float16 belongs to the code "hyb"; "1mad" and "3inst" compute their values.
    """

    words: torch.Tensor
    scale: torch.Tensor
    table: torch.Tensor | None
    outputs: int
    inputs: int
    bits: int
    code: str

    @property
    def step_bits(self) -> int:
        """Bits of a step of the trellis."""
        return self.bits * STEP_VALUES[self.code]


def pack(
    codes: torch.Tensor,
    scale: torch.Tensor,
    table: torch.Tensor | None = None,
    *,
    code: str,
    bits: int,
    outputs: int,
    inputs: int,
) -> TrellisWeights:
    """Lay out `codes` (ceil(outputs / 16), ceil(inputs / 16), steps), the bits of each step: 256 steps, of "hyb" 128.

    Raises `ValueError` for another code or width, shapes that do not match, codes out of range, and a table that is
    missing or has no use.
    """
    if code not in STEP_VALUES:
        raise ValueError(f"code {code!r}, expected one of {', '.join(STEP_VALUES)}")
    if bits not in WIDTHS:
        raise ValueError(f"weights of {bits} bits, expected one of {WIDTHS}")
    if outputs < 1 or inputs < 1:
        raise ValueError(f"weights ({outputs}, {inputs}), expected at least one")
    tiles, across, steps = -(-outputs // SIDE), -(-inputs // SIDE), SIDE**2 // STEP_VALUES[code]
    require("codes", codes, shape=(tiles, across, steps), dtypes=(torch.uint8, torch.int32, torch.int64))
    width = bits * STEP_VALUES[code]
    if not 0 <= int(codes.min()) <= int(codes.max()) < 2**width:
        raise ValueError(f"codes lie in [{int(codes.min())}, {int(codes.max())}], expected [0, {2**width - 1}]")
    words = _to_words(codes, bits, width)
    weights = TrellisWeights(words, scale, table, outputs=outputs, inputs=inputs, bits=bits, code=code)
    validate(weights)
    return weights


def _to_words(codes: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    tiles, across, _ = codes.shape
    supers = -(-across * SIDE // SUPER)
    row = torch.zeros(tiles, across, SIDE, dtype=torch.int64, device=codes.device)
    for step in codes.view(tiles, across, SIDE, -1).unbind(-1):
        row = (row << width) | step
    row = torch.nn.functional.pad(row, (0, 0, 0, 4 * supers - across))
    first = (row >> (16 * bits - 32)).view(tiles, supers, 4, 4, 4)  # tile, super, tile of it, j, p
    planes = [first.permute(1, 4, 0, 2, 3)]
    if bits == 3:
        low, high = (row & 0xFFFF).view(tiles, supers, 4, 4, 2, 2).unbind(-1)
        planes.append((low | high << 16).permute(1, 4, 0, 2, 3))
    if bits == 4:
        planes.append(row.view_as(first).permute(1, 4, 0, 2, 3))
    wide = torch.cat(planes, 1).reshape(supers, 2 * bits, tiles, 16) & 0xFFFFFFFF
    return torch.where(wide < 2**31, wide, wide - 2**32).to(torch.int32).contiguous()


def from_words(weights: TrellisWeights) -> torch.Tensor:
    """The inverse: codes (tiles, ceil(inputs / 16), steps), int64."""
    supers, planes, tiles, _ = weights.words.shape
    wide = weights.words.to(torch.int64).view(supers, planes, tiles, 4, 4).permute(2, 0, 3, 4, 1) & 0xFFFFFFFF
    row = wide[..., :4].reshape(tiles, 4 * supers, SIDE)
    if weights.bits == 3:
        both = wide[..., 4:]
        row = row << 16 | torch.stack([both & 0xFFFF, both >> 16], -1).view_as(row)
    if weights.bits == 4:
        row = row << 32 | wide[..., 4:].reshape(row.shape)
    width = weights.step_bits
    shifts = torch.arange(16 * weights.bits - width, -1, -width, device=row.device)
    steps = row[:, : -(-weights.inputs // SIDE), :, None] >> shifts & (2**width - 1)
    return steps.flatten(2)


def validate(weights: TrellisWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    device = weights.words.device
    supers, tiles = -(-weights.inputs // SUPER), -(-weights.outputs // SIDE)
    require("words", weights.words, shape=(supers, 2 * weights.bits, tiles, 16), dtypes=(torch.int32,))
    size = weights.outputs if weights.scale.numel() > 1 else 1
    require("scale", weights.scale, shape=(size,), dtypes=(torch.float16,), device=device)
    if (weights.code == "hyb") != (weights.table is not None):
        raise ValueError(f"a table goes with the code 'hyb' and no other, the code is {weights.code!r}")
    if weights.table is not None:
        require("table", weights.table, shape=(TABLE_ENTRIES, 2), dtypes=(torch.float16,), device=device)
