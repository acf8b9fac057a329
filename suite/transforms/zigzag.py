"""DuQuant's zigzag permutation, and its two rotations around it.

Lin et al. 2024, "DuQuant", arXiv:2406.01721, section 3.2: a rotation spreads outliers within blocks of channels; the
permutation then deals channels to the blocks by size, there and back, so that all blocks have as much to bear; a second
rotation spreads within blocks again. Blocks are of 128 channels, or of the largest divisor of the channels below that.

Rotations are fitted on the sampled input rows (512, in); the release takes the first batch of calibration.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from suite.statistics import LayerStatistics
from suite.transforms.greedy import Exchange, search
from suite.transforms.maps import GreedyRotation, Permutation

ALL_SITES = ("q_proj", "o_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zigzag:
    """Channels dealt to blocks by their largest value, at run time, where a layer's name ends in one of `sites`."""

    place: ClassVar[str] = "online"
    sites: tuple[str, ...] = ALL_SITES
    block: int = 128

    def __post_init__(self) -> None:
        _check_at_least_one(block=self.block)

    def fit(
        self, weights: list[torch.Tensor], statistics: LayerStatistics, generator: torch.Generator
    ) -> tuple[Permutation, ...]:
        """The permutation for inputs with these statistics."""
        return (zigzag(statistics.max_abs, block_of(len(statistics.max_abs), self.block)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DualRotation:
    """Greedy rotation, then `permutations` times the zigzag permutation and another rotation, at run time.

    `steps` is how many exchanges a rotation may take; `exchange` is the paper's "column" of the largest value, or the
    "release"'s way (see `suite.transforms.greedy`).
    """

    place: ClassVar[str] = "online"
    sites: tuple[str, ...] = ALL_SITES
    block: int = 128
    steps: int = 256
    permutations: int = 1
    exchange: Exchange = "column"

    def __post_init__(self) -> None:
        _check_at_least_one(block=self.block, steps=self.steps)
        if self.permutations < 0:
            raise ValueError(f"permutations {self.permutations!r}: expected 0 or more")

    def fit(
        self, weights: list[torch.Tensor], statistics: LayerStatistics, generator: torch.Generator
    ) -> tuple[GreedyRotation | Permutation, ...]:
        """The rotations and permutations, in turn, for inputs with these statistics."""
        X, found = statistics.sample, list[GreedyRotation | Permutation]()
        for turn in range(1 + self.permutations):
            if turn:
                found.append(zigzag(X.abs().amax(0), block_of(X.shape[1], self.block)))
                X = found[-1].forward(X)
            found.append(self._rotation(X, generator))
            X = found[-1].forward(X)
        return tuple(found)

    def _rotation(self, X: torch.Tensor, generator: torch.Generator) -> GreedyRotation:
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        block = block_of(X.shape[1], self.block)
        exchanges = search(X, block, self.steps, seed, self.exchange)
        return GreedyRotation(n_in=X.shape[1], block=block, seed=seed, exchanges=exchanges, exchange=self.exchange)


def zigzag(max_abs: torch.Tensor, block: int) -> Permutation:
    """Deal channels of decreasing `max_abs` (in,) to the in / block blocks, there and back; equal ones as they come.

    With two to a block, the k-th largest meets the k-th smallest. Within a block they stay decreasing.

    >>> zigzag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 3).order
    (5, 2, 1, 4, 3, 0)
    """
    blocks = len(max_abs) // block
    dealt = max_abs.argsort(descending=True, stable=True).reshape(block, blocks)
    dealt[1::2] = dealt[1::2].flip(1)
    return Permutation(order=tuple(dealt.T.reshape(-1).tolist()))


def block_of(n: int, block: int) -> int:
    """The largest divisor of `n` that is at most `block`.

    >>> block_of(768, 128), block_of(172, 128)
    (128, 86)
    """
    return next(b for b in range(min(n, block), 0, -1) if n % b == 0)


def _check_at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} {count!r}: expected at least 1")
