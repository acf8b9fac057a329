"""What the integer product computes, in float64."""

import torch

from kernels.integer_product.packing import IntegerWeights
from kernels.product.words import from_words


def dequantize(weights: IntegerWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64: s (q - z)."""
    codes = from_words(weights.words, weights.layout, weights.outputs, weights.inputs).double()
    group = torch.arange(weights.inputs, device=codes.device) // weights.group
    scale = weights.scale.double()[group, : weights.outputs].T
    if weights.zero is None:
        return scale * (codes - 2 ** (weights.bits - 1))
    return scale * (codes - weights.zero.double()[group, : weights.outputs].T)


def integer_product_reference(x: torch.Tensor, weights: IntegerWeights) -> torch.Tensor:
    """Give x (rows, inputs) times the transposed weights: (rows, outputs), float64."""
    return x.double() @ dequantize(weights).T
