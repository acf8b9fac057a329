"""What the trellis product computes, in float64.

The codes are those of Tseng, Sun, Hou, De Sa 2024, "QTIP", arXiv:2406.11235, section 3.1, with the constants of the
release (Cornell-RelaxML/qtip at e90c6688, lib/codebook/bitshift.py).
"""

import torch

from kernels.trellis_product.packing import SIDE, STATE_BITS, TrellisWeights, from_words


def states_of(codes: torch.Tensor, width: int) -> torch.Tensor:
    """States (.., steps) of rings of steps of `width` bits: the 16 bits that begin with each step's."""
    needed = -(-STATE_BITS // width)
    states = torch.zeros_like(codes)
    for later in range(needed):
        states = states << width | codes.roll(-later, -1)
    return states >> (needed * width - STATE_BITS)


def one_mad(states: torch.Tensor) -> torch.Tensor:
    """1MAD (Alg. 1): a linear congruence, and the sum of its four bytes, standardized as in the release."""
    x = states * 34038481 + 76625530 & 0xFFFFFFFF
    total = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24)
    return (total - 510).double() / 147.800537109375


def three_inst(states: torch.Tensor) -> torch.Tensor:
    """3INST (Alg. 2): the halves of a linear congruence made float16, and their sum, which is not rounded again."""
    x = (states * 89226354 + 64248484 & 0x8FFF8FFF) ^ 0x3B603B60
    low, high = ((x >> shift & 0xFFFF).to(torch.int32).to(torch.int16).view(torch.float16) for shift in (0, 16))
    return low.double() + high.double()


def hyb(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """HYB (section 3.1.2): a hash whose bits are the index of a pair of values, and the sign of the first: (.., 2)."""
    x = states * states + states
    first, second = table.double()[x >> 6 & 511].unbind(-1)
    return torch.stack([torch.where(x >> 15 & 1 == 1, -first, first), second], -1)


def values_of(weights: TrellisWeights) -> torch.Tensor:
    """Weights (outputs, inputs) in float64 before their scale."""
    states = states_of(from_words(weights), weights.step_bits)
    if weights.table is not None:
        values = hyb(states, weights.table)
    else:
        values = one_mad(states) if weights.code == "1mad" else three_inst(states)
    tiles, across = states.shape[:2]
    whole = values.reshape(tiles, across, SIDE, SIDE).transpose(1, 2).reshape(tiles * SIDE, -1)
    return whole[: weights.outputs, : weights.inputs]


def trellis_product_reference(x: torch.Tensor, weights: TrellisWeights) -> torch.Tensor:
    """Multiply x (rows, inputs) with the transposed weights: (rows, outputs), float64."""
    return x.double() @ (values_of(weights) * weights.scale.double()[:, None]).T
