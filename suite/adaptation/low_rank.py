"""Low-rank side branches: what is added to rounded weights, how it begins, and how it is trained.

W (out, in) is kept as Q + s B A, A (rank, in) and B (out, rank). `LowRank` is part of a recipe: the side branch of
weights that are rounded before, and stay as they are while A and B are trained, if they are. Adapters within the
quantizer, where Q(W + s B A) is trained, are `QuantizationAware.adapters`.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
arXiv:2106.09685, section 4.1: A begins with random numbers, B with zeros. What a side branch does best without training
follows from Eckart and Young 1936: of a residual E the r largest singular values, and of errors tr(E H E^T) of outputs
those of E L, H = L L^T.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from suite.adaptation.training import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """`rank` of the side branches, and s = `scale` (alpha over rank in the field's releases)."""

    rank: int = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank}: expected at least 1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale {self.scale}: expected a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A side branch beside rounded weights.

    Without `rounds` B begins with zeros. In a round the grid rounds W - B A, and B A becomes what is best of its rank
    for the residual W - Q, by the error of the weights or, `weighted`, of the outputs; the best round is kept. LoftQ is
    five of these; one is a correction of plain rounding.

    With a `schedule` the branch is trained on micro-batches of `rows`, by the `loss` of next tokens or of the
    unquantized model's predictions (as in `QuantizationAware`). `pooled` branches see their inputs summed over the
    grid's groups, and are merged into its real zero points (QA-LoRA). An `elastic` one has two paths beside A and B
    (IR-QLoRA): its input pooled to the rank, and its hidden state repeated to the outputs, each times a learned number.
    """

    adapters: Adapters = field(default_factory=Adapters)
    rounds: int = 0
    weighted: bool = False
    pooled: bool = False
    elastic: bool = False
    schedule: Schedule | None = None
    rows: int = 16
    loss: Literal["tokens", "forward-kl", "reverse-kl", "cakld"] = "tokens"
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.rows < 1:
            raise ValueError(f"rounds {self.rounds}, rows {self.rows}: expected at least 0, and at least 1")
        if not (math.isfinite(self.hidden) and self.hidden >= 0):
            raise ValueError(f"hidden {self.hidden}: expected a finite number, at least 0")
        if not self.rounds and self.schedule is None:
            raise ValueError("a side branch of zeros that nothing trains: expected rounds or a schedule")
        if (self.pooled or self.elastic) and self.schedule is None:
            raise ValueError("pooled and elastic branches are trained: expected a schedule")
        if self.pooled and (self.rounds or self.elastic):
            raise ValueError("a pooled branch begins with zeros, and has no other paths")

    @property
    def distills(self) -> bool:
        """Whether the unquantized model takes part."""
        return self.loss != "tokens" or self.hidden > 0


def best_of_rank(E: torch.Tensor, rank: int, H: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank) whose product is nearest to `E` (out, in), singular values shared by roots.

    With `H` (in, in), positive definite, the nearest in tr((E - B A) H (E - B A)^T). Ranks beyond the matrix's have
    zeros.
    """
    L = None if H is None else torch.linalg.cholesky(H.to(E.dtype))
    U, sigma, V = torch.linalg.svd(E if L is None else E @ L, full_matrices=False)
    found = min(rank, len(sigma))
    root = sigma[:found].sqrt()
    A, B = root[:, None] * V[:found], U[:, :found] * root
    if L is not None:
        A = torch.linalg.solve_triangular(L, A, upper=False, left=False)
    missing = rank - found
    return torch.nn.functional.pad(A, (0, 0, 0, missing)), torch.nn.functional.pad(B, (0, missing))


def begun(n_out: int, n_in: int, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in), uniform within 1 / sqrt(in) as in LoRA's release, and B (out, rank) of zeros, float32."""
    bound = 1 / math.sqrt(n_in)
    A = torch.rand(rank, n_in, generator=generator) * 2 * bound - bound
    return A, torch.zeros(n_out, rank)
