"""Weights whose activations are quantized, too: a row of bytes for each output, as matrix units of 8 bits want them.

Those units multiply four bytes of neighboring inputs at once, of both factors, so inputs are contiguous, and there is
nothing to decode: int8 and E4M3 are stored as they are. Integers of 4 bits lie two in a byte in two's complement, the
first in the low nibble, in weights and activations alike: the sum over inputs is one over the low nibbles and one over
the high ones.

Scales are per output; a scale for a group of inputs would need sums of every group in float32.
"""

from dataclasses import dataclass

import torch

from kernels.codes import two_in_a_byte
from kernels.inputs import require

FORMATS = {"int8": torch.int8, "int4": torch.int8, "e4m3": torch.float8_e4m3fn}  # with the type of their bytes
LIMITS = {"int8": 128, "int4": 8}  # codes lie in [-limit, limit)
MAX_INPUTS = 2**17 - 1  # 128 * 128 each, which 16 * 16 times 8 * 8 is as well, stay below 2^31 in sum
ROW = 16  # rows are filled up to a multiple of so many bytes, for loads of 16


@dataclass(frozen=True, slots=True)
class ByteWeights:
    """Weights (outputs, inputs) of a format of `FORMATS`: `codes` (outputs, bytes), `scale` (outputs,) in float32."""

    codes: torch.Tensor
    scale: torch.Tensor
    outputs: int
    inputs: int
    format: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of activations, and of one of weights before it is filled up."""
        return bytes_of(self.inputs, self.format)


def bytes_of(inputs: int, format: str) -> int:
    """Bytes that `inputs` codes take."""
    return inputs // 2 if format == "int4" else inputs


def pack(codes: torch.Tensor, scale: torch.Tensor, *, format: str) -> ByteWeights:
    """Lay out codes (outputs, inputs) of "int8", "int4" (both as int8) or "e4m3" (float8_e4m3fn), scales (outputs,).

    Rows are filled up with zeros to multiples of 16 bytes. Raises `ValueError` for other formats and types, for codes
    out of range, for odd numbers of 4-bit inputs, for shapes that do not match, and for more than 2^17 - 1 inputs,
    where sums could overflow.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    require("codes", codes, shape=(None, None), dtypes=(FORMATS[format],))
    outputs, inputs = codes.shape
    if outputs == 0 or not 0 < inputs <= MAX_INPUTS:
        raise ValueError(f"codes has shape {(outputs, inputs)}, expected outputs and 1 to {MAX_INPUTS} inputs")
    found = (two_in_a_byte(codes) if format == "int4" else codes).view(torch.int8)
    full = found.new_zeros(outputs, _filled(found.shape[1]))
    full[:, : found.shape[1]] = found
    weights = ByteWeights(full.view(FORMATS[format]), scale, outputs, inputs, format)
    validate(weights)
    return weights


def validate(weights: ByteWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together and 32-bit integers reach all of them."""
    if weights.format not in FORMATS:
        raise ValueError(f"format is {weights.format!r}, expected one of {', '.join(FORMATS)}")
    if not 0 < weights.inputs <= MAX_INPUTS or (weights.format == "int4" and weights.inputs % 2):
        raise ValueError(f"weights have {weights.inputs} inputs, expected 1 to {MAX_INPUTS}, of 4 bits an even number")
    shape = (weights.outputs, _filled(weights.row_bytes))
    require("codes", weights.codes, shape=shape, dtypes=(FORMATS[weights.format],))
    if not 0 < weights.codes.numel() < 2**31:
        raise ValueError(f"codes take {weights.codes.numel()} bytes, expected 1 to 2^31 - 1")
    require("scale", weights.scale, shape=(weights.outputs,), dtypes=(torch.float32,), device=weights.codes.device)


def _filled(nbytes: int) -> int:
    return -(-nbytes // ROW) * ROW
