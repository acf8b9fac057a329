"""Fixed-width coding, and the empirical entropy that an entropy coder could reach."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Every code takes the grid's bits."""


def entropy_bits(codes: torch.Tensor) -> float:
    """Bits that `codes` take at their empirical entropy of order 0: n H, without a table.

    >>> entropy_bits(torch.tensor([0, 1, 2, 3]))
    8.0
    >>> entropy_bits(torch.tensor([7, 7, 7, 7]))
    0.0
    """
    counts = torch.bincount(codes.reshape(-1).to(torch.int64)).double()
    shares = counts[counts > 0] / counts.sum()
    return float(counts.sum() * (shares * -shares.log2()).sum()) + 0.0
