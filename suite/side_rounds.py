"""Rounding a matrix and what is left of it by turns: codes for W - B A, a side branch for W - Q."""

from collections.abc import Callable
from dataclasses import replace

import torch

from suite.adaptation.low_rank import LowRank, best_of_rank
from suite.quantized import Quantized
from suite.side import LowRankSide
from suite.statistics import quadratic

DAMPING = 0.01  # of the mean of H's diagonal, as in error feedback


def with_side(
    W: torch.Tensor, rounded: Callable[[torch.Tensor], Quantized], how: LowRank, H: torch.Tensor | None
) -> Quantized:
    """`W` (out, in) rounded with a side branch beside it, of all rounds the one with the least error.

    Errors are those of what is stored, of the weights, or of the outputs by `H` (in, in) where the branch is weighted.
    A full round may raise the error, since a grid is fitted anew to what is left (Li et al. 2023, LoftQ,
    arXiv:2310.08659, keep the last round; here it is the best one). Raises `ValueError` without an `H` to weigh by.
    """
    if how.weighted and H is None:
        raise ValueError("a weighted side branch needs the layer's inputs")
    rest, tried = W, list[tuple[float, Quantized]]()
    for _ in range(how.rounds):
        plain = rounded(rest)
        side = side_of(W - plain.dequantize().to(W), how, H)
        found = replace(plain, side=side)
        tried.append((error_of(W, found, how, H), found))
        rest = W - side.product(W.dtype)
    return min(tried, key=lambda one: one[0])[1]  # the first of equals


def side_of(E: torch.Tensor, how: LowRank, H: torch.Tensor | None) -> LowRankSide:
    """The best branch for a residual `E` (out, in), as it is stored."""
    damped = H + ridge_of(H) * torch.eye(len(H), dtype=H.dtype) if how.weighted and H is not None else None
    return LowRankSide.stored(*best_of_rank(E, how.adapters.rank, damped))


def ridge_of(H: torch.Tensor) -> torch.Tensor:
    """What is added to the diagonal of `H` (in, in), which may have no inverse."""
    return DAMPING * H.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)


def error_of(W: torch.Tensor, found: Quantized, how: LowRank, H: torch.Tensor | None) -> float:
    """The squared error of what is stored: of weights, or of outputs where the branch is weighted."""
    E = W - found.dequantize().to(W)
    return quadratic(E, H) if how.weighted and H is not None else float(E.double().square().sum())
