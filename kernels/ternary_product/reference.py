"""What the ternary product computes, in float64."""

import torch

from kernels.ternary_product.packing import TernaryWeights, unpack


def dequantize(weights: TernaryWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64: trits times their scale."""
    return unpack(weights).double() * weights.scale.double()[:, None]


def ternary_product_reference(x: torch.Tensor, x_scale: torch.Tensor, weights: TernaryWeights) -> torch.Tensor:
    """Give x (rows, inputs), int8, times its scales (rows,) and the transposed weights: (rows, outputs), float64."""
    return x_scale.double()[:, None] * (x.double() @ dequantize(weights).T)
