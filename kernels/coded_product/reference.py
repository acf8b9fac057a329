"""What coded weights are, and their product in float64."""

import torch

from kernels.coded_product.packing import PIECES, CodedWeights, exponent_at, fraction_at


def decode_reference(weights: CodedWeights) -> torch.Tensor:
    """The bit patterns (outputs, inputs): int16 of bfloat16, uint8 of float8_e4m3fn."""
    kind = weights.format
    words = weights.words.to(torch.int32) & 0xFFFF
    base = weights.base.to(torch.int32)
    pieces = []
    for piece in range(PIECES):
        word, sign, fraction = fraction_at(kind.words, piece)
        pattern = (words[:, word] >> fraction) & ((1 << kind.mantissa) - 1)
        pattern |= ((words[:, word] >> sign) & 1) << (8 * kind.pattern.itemsize - 1)
        code = torch.zeros_like(pattern)
        for plane, at, width, low in exponent_at(piece):
            code |= ((words[:, kind.words + plane] >> at) & ((1 << width) - 1)) << low
        pieces.append(pattern | (code + base << kind.mantissa))
    patterns = torch.stack(pieces, 1).reshape(-1, base.numel()).T[: weights.outputs, : weights.inputs]
    patterns = patterns.to(kind.pattern).contiguous()
    counts = weights.start.diff()[: weights.outputs].long()
    output = torch.repeat_interleave(torch.arange(weights.outputs, device=counts.device), counts)
    patterns[output, weights.place.long() & 0xFFFF] = weights.value
    return patterns


def coded_product_reference(x: torch.Tensor, weights: CodedWeights) -> torch.Tensor:
    """Give x (rows, inputs) times the transposed weights: (rows, outputs), float64."""
    return x.double() @ decode_reference(weights).view(weights.dtype).double().T
