"""What the products compute, in float64."""

import torch

from kernels.byte_product.packing import ByteWeights
from kernels.codes import values


def byte_product_reference(x: torch.Tensor, x_scale: torch.Tensor, weights: ByteWeights) -> torch.Tensor:
    """Give codes x times their scales (rows,) and the transposed weights: (rows, outputs), float64."""
    sums = integer_sums_reference(x, weights)
    return sums * x_scale.double()[:, None] * weights.scale.double()


def integer_sums_reference(x: torch.Tensor, weights: ByteWeights) -> torch.Tensor:
    """The same without scales: for integers exact, all sums being far below 2^53."""
    W = values(weights.codes, weights.format)[:, : weights.inputs]  # without what fills rows up
    return values(x, weights.format) @ W.T
