"""What the float product computes, in float64."""

import torch

from kernels.float_product.formats import FloatFormat, places
from kernels.float_product.packing import FloatWeights
from kernels.product.words import from_words


def values(codes: torch.Tensor, format: FloatFormat) -> torch.Tensor:
    """The numbers that codes stand for, in float64, by the formats' definition."""
    codes = codes.to(torch.int64)
    sign = 1.0 - 2.0 * (codes >> (format.bits - 1))
    e = (codes >> format.mantissa) & (2**format.exponent - 1)
    fraction = (codes & (2**format.mantissa - 1)).double() / 2**format.mantissa
    return sign * (fraction + (e > 0)) * 2.0 ** (e.clamp(min=1) - format.bias).double()


def scales(weights: FloatWeights) -> torch.Tensor:
    """What multiplies every weight, without `factor`: (outputs, inputs) in float64."""
    stored = weights.scale
    if stored.dtype in (torch.int32, torch.int64):  # a byte for each piece of a tile
        tiles, columns = stored.shape
        stored = stored.view(torch.uint8).view(tiles, columns, -1).transpose(1, 2).reshape(-1, columns)
    if weights.scales == "e8m0":
        found = 2.0 ** (stored.double() - 127)
    elif weights.scales == "e4m3":
        found = (stored.to(torch.int16) << 7).view(torch.float16).double()
    else:
        found = stored.double()
    group = torch.arange(weights.inputs, device=stored.device) // weights.group
    block = torch.arange(weights.outputs, device=stored.device) // weights.block
    return found[group][:, block].T


def dequantize(weights: FloatWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64."""
    codes = from_words(weights.words, weights.layout, weights.outputs, weights.inputs, places)
    return values(codes, weights.format) * scales(weights) * weights.factor


def float_product_reference(x: torch.Tensor, weights: FloatWeights) -> torch.Tensor:
    """Activations x (rows, inputs) times the transposed weights: (rows, outputs), float64."""
    return x.double() @ dequantize(weights).T
