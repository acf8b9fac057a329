"""What the products compute, in float64."""

import torch

from kernels.byte_product.packing import ByteWeights


def values(codes: torch.Tensor, format: str, inputs: int) -> torch.Tensor:
    """What bytes (rows, bytes) stand for: (rows, inputs) in float64."""
    if format == "int4":
        codes = torch.stack([(codes << 4) >> 4, codes >> 4], dim=-1).flatten(1)
    return codes[:, :inputs].double()


def byte_product_reference(x: torch.Tensor, x_scale: torch.Tensor, weights: ByteWeights) -> torch.Tensor:
    """Give codes x times their scales (rows,) and the transposed weights: (rows, outputs), float64."""
    sums = integer_sums_reference(x, weights)
    return sums * x_scale.double()[:, None] * weights.scale.double()


def integer_sums_reference(x: torch.Tensor, weights: ByteWeights) -> torch.Tensor:
    """The same without scales: for integers exact, all sums being far below 2^53."""
    W = values(weights.codes, weights.format, weights.inputs)
    return values(x, weights.format, weights.inputs) @ W.T
