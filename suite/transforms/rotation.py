"""Rotations that do not look at data: QuaRot's, and the larger Hadamard matrices of post-training model expansion.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman 2024, "QuaRot: Outlier-Free 4-Bit Inference
in Rotated LLMs", arXiv:2404.00456; Franco, Monteagudo-Lago, Colbert, Fraser, Blott 2025, arXiv:2503.17513.

A Hadamard matrix divided by sqrt(n) gives every channel the same share of an outlier; random signs before it keep that
and make it unlikely that outliers add up. Sizes for which none can be built are a `ValueError`: there is no rotation
of some of the channels in its place.
"""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch

from kernels.hadamard import hadamard, is_hadamard_size, next_sizes
from suite.statistics import LayerStatistics
from suite.transforms.greedy import random_orthogonal
from suite.transforms.maps import Hadamard, HeadHadamard

Kind = Literal["hadamard", "orthogonal"]
KINDS: tuple[str, ...] = Kind.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateResidual:
    """The residual stream turned by D H / sqrt(n), D random signs, or by a Haar random "orthogonal" matrix."""

    place: ClassVar[str] = "residual"
    kind: Kind = "hadamard"

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def fit(self, hidden: int, generator: torch.Generator) -> torch.Tensor:
        """The orthogonal matrix (hidden, hidden), float64; `ValueError` where there is no Hadamard matrix."""
        if self.kind == "orthogonal":
            return random_orthogonal(hidden, generator)
        signs = torch.randint(2, (hidden, 1), generator=generator, dtype=torch.float64) * 2 - 1
        return signs * _orthonormal(hidden, "the residual stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateValues:
    """What attention mixes turned head by head, by H / sqrt(n) or a Haar random "orthogonal" matrix for each block."""

    place: ClassVar[str] = "heads"
    kind: Kind = "hadamard"

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def fit(self, head_dim: int, generator: torch.Generator) -> torch.Tensor:
        """The orthogonal matrix (head_dim, head_dim), float64; `ValueError` where there is no Hadamard matrix."""
        if self.kind == "orthogonal":
            return random_orthogonal(head_dim, generator)
        return _orthonormal(head_dim, "a head")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateInputs:
    """A Hadamard matrix at run time, on the inputs of the layers whose names end in one of `sites`.

    With `steps` the inputs are expanded: zeros are appended up to that many Hadamard sizes beyond theirs.
    """

    place: ClassVar[str] = "online"
    sites: tuple[str, ...] = ("down_proj",)
    steps: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps {self.steps!r}: expected 0 or more")

    def fit(
        self, weights: list[torch.Tensor], statistics: LayerStatistics, generator: torch.Generator
    ) -> tuple[Hadamard, ...]:
        """The map for the inputs of `weights` (out, in); `ValueError` where there is no Hadamard matrix."""
        n = weights[0].shape[1]
        if self.steps:
            return (Hadamard(n_in=n, n_out=next(islice(next_sizes(n), self.steps - 1, None))),)
        _check(n, f"the inputs of {', '.join(self.sites)}")
        return (Hadamard(n_in=n, n_out=n),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateHeads:
    """A Hadamard matrix across the heads at run time, on what the output projection reads.

    With `RotateValues` the two are one Hadamard matrix over all channels, of which this is the part that grouped
    queries and the mixing of tokens leave to be done at run time.
    """

    place: ClassVar[str] = "across"

    def fit(self, heads: int, head_dim: int) -> tuple[HeadHadamard, ...]:
        """The map for `heads` query heads; `ValueError` where there is no Hadamard matrix."""
        _check(heads, "the heads")
        return (HeadHadamard(heads=heads, head_dim=head_dim),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateKeys:
    """A Hadamard matrix at run time, on queries and keys after the rotary embedding: their products stay the same."""

    place: ClassVar[str] = "keys"

    def fit(self, head_dim: int) -> Hadamard:
        """The map for queries and for keys; `ValueError` where there is no Hadamard matrix."""
        _check(head_dim, "a head")
        return Hadamard(n_in=head_dim, n_out=head_dim)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")


def _orthonormal(n: int, what: str) -> torch.Tensor:
    _check(n, what)
    return hadamard(n, torch.float64) / n**0.5


def _check(n: int, what: str) -> None:
    if not is_hadamard_size(n):
        raise ValueError(f"no Hadamard matrix of order {n} can be built, which is the size of {what}")
