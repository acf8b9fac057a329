"""What the codebook product computes, in float64."""

import torch

from kernels.codebook_product.packing import CodebookWeights, out_of_tiles


def dequantize(weights: CodebookWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64."""
    first, second = out_of_tiles(weights.codes, weights.outputs, weights.inputs).long().unbind(-1)
    books = weights.codebooks.double()
    vectors = books[0][first] + books[1][second] if len(books) == 2 else books[0][first + 256 * second]
    return weights.scale.double()[:, None] * vectors.flatten(1)[:, : weights.inputs]


def codebook_product_reference(x: torch.Tensor, weights: CodebookWeights) -> torch.Tensor:
    """Activations x (rows, inputs) times the transposed weights: (rows, outputs), float64."""
    return x.double() @ dequantize(weights).T
