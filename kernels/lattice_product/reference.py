"""What the lattice product computes, in float64."""

import torch

from kernels.lattice_product.packing import PLACES, POINTS, SIGNED, LatticeWeights, out_of_tiles


def dequantize(weights: LatticeWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64."""
    total = torch.zeros(weights.outputs, weights.inputs, dtype=torch.float64, device=weights.codes.device)
    for number in range(POINTS[weights.bits]):
        values = _points(weights, number).flatten(1)[:, : weights.inputs]
        total += values if number == 0 else values / weights.residual
    return weights.scale.double() * total


def _points(weights: LatticeWeights, number: int) -> torch.Tensor:
    """Points (outputs, blocks, 8) of unit scale."""
    code = out_of_tiles(weights.codes[:, :, number], weights.outputs, weights.inputs).long()
    places = torch.tensor(PLACES, device=code.device)
    values = ((weights.table[number][code][..., None] >> 4 * places & 15) - 8) / 2.0
    if number >= SIGNED[weights.bits]:
        return values.double()
    minus = _signs(weights, number)
    below = minus.sum(-1) % 2 == 1
    minus[..., 0] ^= below
    return values.double() * (1 - 2 * minus) + torch.where(below, -0.25, 0.25).double()[..., None]


def _signs(weights: LatticeWeights, number: int) -> torch.Tensor:
    """Sign bits (outputs, blocks, 8) as they are stored."""
    words = weights.signs[:, :, number].long()[..., None] >> torch.arange(4, device=weights.signs.device)
    spread = out_of_tiles(words.flatten(-2), weights.outputs, weights.inputs)
    return spread[..., None] >> 4 * torch.tensor(PLACES, device=spread.device) & 1


def lattice_product_reference(x: torch.Tensor, weights: LatticeWeights) -> torch.Tensor:
    """Activations x (rows, inputs) times the transposed weights: (rows, outputs), float64."""
    return x.double() @ dequantize(weights).T
