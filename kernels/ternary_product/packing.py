"""Ternary weights, four or five to a byte, as the kernel reads them.

A byte belongs to one output. Byte r of a tile carries the inputs r, r + 64, r + 128, ...: its four or five fields are
the pieces of the tile, so that one field of a tile's 64 bytes gives the weights of 64 consecutive inputs, four of them
in a register, which is how matrix units take bytes.

Four to a byte: each is a field of two bits in two's complement, the first one lowest. Five to a byte, 1.6 bits each
where log2(3) = 1.585 is the least: with digits d = t + 1 the byte stores v = 81 d0 + 27 d1 + 9 d2 + 3 d3 + d4 as the
fraction u / 256 just above v / 243, u = ceil(256 v / 243). Then floor(3^i u / 256) = floor(3^i v / 243) are the first i
digits, and no byte need be divided: 3^i u < 2^16 for i up to 5, and u / 256 exceeds v / 243 by less than 1 / 256,
too little to reach the next multiple of 1 / 243.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require

ROWS = 64  # bytes of an output in a tile: four loads of 16 bytes, two steps of 32 inputs of a matrix unit
PER_BYTE = (4, 5)
MAX_INPUTS = 2**18 - 1  # |sums| of the kernel, in its units of 1/64 at most 64 * 128 an input, stay below 2^31
_POWERS = (81, 27, 9, 3, 1)


@dataclass(frozen=True, slots=True)
class TernaryWeights:
    """Weights (outputs, inputs) of -1, 0, 1 times `scale`.

    `words` (tiles, outputs, 64) are bytes, `per_byte` weights in each; `scale` is one float32 for the matrix, (1,), or
    one for each output, (outputs,).
    """

    words: torch.Tensor
    scale: torch.Tensor
    outputs: int
    inputs: int
    per_byte: int


def pack(trits: torch.Tensor, scale: torch.Tensor, *, per_byte: int = 5) -> TernaryWeights:
    """Lay out trits (outputs, inputs), int8 in {-1, 0, 1}, with `scale` (1,) or (outputs,) in float32.

    Inputs are filled up with zeros to whole tiles of 64 `per_byte`. Raises `ValueError` for other values, for shapes
    that do not match, for more than 2^18 - 1 inputs (int32 sums could overflow) and for 2^31 bytes or more.
    """
    if per_byte not in PER_BYTE:
        raise ValueError(f"{per_byte} weights to a byte, expected one of {PER_BYTE}")
    require("trits", trits, shape=(None, None), dtypes=(torch.int8,))
    outputs, inputs = trits.shape
    if not 0 < inputs <= MAX_INPUTS or outputs == 0:
        raise ValueError(f"trits has shape {(outputs, inputs)}, expected outputs and 1 to {MAX_INPUTS} inputs")
    if not -1 <= int(trits.min()) <= int(trits.max()) <= 1:
        raise ValueError(f"trits lie in [{int(trits.min())}, {int(trits.max())}], expected [-1, 1]")
    tiles = _tiles(inputs, per_byte)
    full = trits.new_zeros(outputs, tiles * per_byte * ROWS)
    full[:, :inputs] = trits
    pieces = full.view(outputs, tiles, per_byte, ROWS).permute(2, 1, 0, 3)
    code = _two_bits(pieces) if per_byte == 4 else _base_three(pieces)
    words = code.to(torch.uint8).view(torch.int8).contiguous()
    weights = TernaryWeights(words, scale, outputs, inputs, per_byte)
    validate(weights)
    return weights


def unpack(weights: TernaryWeights) -> torch.Tensor:
    """The inverse of `pack`: int8 trits (outputs, inputs), by division where the kernel multiplies."""
    validate(weights)
    code = weights.words.to(torch.int32) & 0xFF
    if weights.per_byte == 4:
        fields = [(code >> 2 * i) & 3 for i in range(4)]
        pieces = [field - 4 * (field >> 1) for field in fields]
    else:
        value = code * 243 // 256
        pieces = [value // power % 3 - 1 for power in _POWERS]
    trits = torch.stack(pieces).permute(2, 1, 0, 3).reshape(weights.outputs, -1)
    return trits[:, : weights.inputs].to(torch.int8).contiguous()


def validate(weights: TernaryWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together and 32-bit integers reach all of them."""
    if weights.per_byte not in PER_BYTE:
        raise ValueError(f"{weights.per_byte} weights to a byte, expected one of {PER_BYTE}")
    if not 0 < weights.inputs <= MAX_INPUTS:
        raise ValueError(f"weights have {weights.inputs} inputs, expected 1 to {MAX_INPUTS}")
    shape = (_tiles(weights.inputs, weights.per_byte), weights.outputs, ROWS)
    require("words", weights.words, shape=shape, dtypes=(torch.int8,))
    if weights.words.numel() >= 2**31:
        raise ValueError(f"words take {weights.words.numel()} bytes, expected less than 2^31: split the matrix")
    scales = 1 if weights.scale.shape == (1,) else weights.outputs
    require("scale", weights.scale, shape=(scales,), dtypes=(torch.float32,), device=weights.words.device)


def _tiles(inputs: int, per_byte: int) -> int:
    return -(-inputs // (per_byte * ROWS))


def _two_bits(pieces: torch.Tensor) -> torch.Tensor:
    code = torch.zeros_like(pieces[0], dtype=torch.int32)
    for i, piece in enumerate(pieces):
        code |= (piece.to(torch.int32) & 3) << 2 * i
    return code


def _base_three(pieces: torch.Tensor) -> torch.Tensor:
    value = torch.zeros_like(pieces[0], dtype=torch.int32)
    for piece in pieces:
        value = 3 * value + piece + 1
    return (value * 256 + 242) // 243
