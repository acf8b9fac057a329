"""What the table product computes, in float64."""

import torch

from kernels.product.words import from_words
from kernels.table_product.packing import HEADER, LAYOUT, SECOND_BLOCK, TableWeights


def scales(weights: TableWeights) -> torch.Tensor:
    """Scales (outputs, ceil(inputs / group)) in float32."""
    groups = -(-weights.inputs // weights.group)
    stored = weights.scale[:groups, : weights.outputs].T
    if weights.second is None:
        return stored.float()
    offset, values = weights.second[0], weights.second[2:HEADER]
    block = torch.arange(weights.outputs * groups, device=stored.device).view(-1, groups)
    return values[stored.long()] * weights.second[HEADER + block // SECOND_BLOCK] + offset


def dequantize(weights: TableWeights, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights (outputs, inputs) in float64, the table's entries rounded to `dtype`."""
    codes = from_words(weights.words, LAYOUT, weights.outputs, weights.inputs)
    group = torch.arange(weights.inputs, device=codes.device) // weights.group
    return weights.table.to(dtype).double()[codes] * scales(weights).double()[:, group]


def table_product_reference(x: torch.Tensor, weights: TableWeights) -> torch.Tensor:
    """Give x (rows, inputs) times the transposed weights, entries rounded to x's type: (rows, outputs), float64."""
    return x.double() @ dequantize(weights, x.dtype).T
