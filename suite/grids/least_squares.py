"""Scales that are least squares for the codes that are nearest under them.

Codes and scale in turn, as k-means does: values go to the nearest level times s, and then s = sum x l / sum l^2 over
the levels l that they went to. Neither step raises the squared error, and since there are finitely many codes the two
come to rest at a fixed point, which for a scale with one boundary (ternary: |x| = s / 2) is the threshold of Li, Zhang,
Liu 2016, "Ternary Weight Networks", arXiv:1605.04711, solved and not approximated. Which fixed point depends
on where it starts; the best of `starts` is kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from suite.grids.elements import Element
from suite.grids.layout import Groups, in_chunks
from suite.grids.scales import RealScale, Stored, Widths, reciprocal

_MOST_SWEEPS = 200  # of the alternation, which ends by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares:
    """A float16 or float32 per group, ties to even: a fixed point of codes and scale.

    It starts at `statistic` times each of `starts` (see `RealScale`), and what is kept is the least squared error of
    all of them and of the statistic itself, each as it is stored; of equal ones the first.
    """

    statistic: Literal["absmax", "absmean", "rms"] = "absmean"
    starts: tuple[float, ...] = (1.0,)
    bits: Literal[16, 32] = 16

    clip = None
    separate = True

    def __post_init__(self) -> None:
        if not self.starts or min(self.starts) <= 0:
            raise ValueError(f"starts {self.starts!r}: expected positive numbers, at least one")

    @property
    def _plain(self) -> RealScale:
        return RealScale(statistic=self.statistic, bits=self.bits)

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """A scale for each group; of zeros, 1, or the least that can be stored where the element has no zero."""
        plain = self._plain.fit(groups, element)["scale"]
        values = groups.values.reshape(plain.numel(), -1)
        inside = torch.arange(values.shape[1]) < groups.members.expand(plain.shape).reshape(-1, 1)
        parts, start = [], 0
        for x in in_chunks(values):
            rows = slice(start, start + len(x))
            parts.append(self._best(x, inside[rows], plain.reshape(-1, 1)[rows], element))
            start += len(x)
        return {"scale": torch.cat(parts).reshape(plain.shape)}

    def _best(self, x: torch.Tensor, inside: torch.Tensor, plain: torch.Tensor, element: Element) -> torch.Tensor:
        best, least = plain, _error(x, inside, plain, element)
        for factor in self.starts:
            scale = alternate(x, inside, plain * factor, element)
            kind = torch.float16 if self.bits == 16 else torch.float32
            limit = torch.finfo(kind)
            stored = scale.clamp(limit.smallest_normal * limit.eps, limit.max).to(kind).to(x.dtype)
            error = _error(x, inside, stored, element)
            best, least = torch.where(error < least, stored, best), torch.minimum(error, least)
        return best

    def scale(self, stored: Stored) -> torch.Tensor:
        """The stored scales."""
        return stored["scale"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """Their reciprocals."""
        return reciprocal(stored["scale"])

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """The bits of the numbers."""
        return self._plain.integers(stored)

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The numbers that have these bits."""
        return self._plain.restore(integers, rows, columns)

    def widths(self, rows: int, columns: int) -> Widths:
        """One number for each group."""
        return self._plain.widths(rows, columns)


def alternate(x: torch.Tensor, inside: torch.Tensor, scale: torch.Tensor, element: Element) -> torch.Tensor:
    """The fixed point (n, 1) of codes and scale of groups `x` (n, width), positive, from `scale` on, unrounded.

    Where no value of a group reaches a level other than 0, its scale stays.
    """
    scale, moving = scale.clone(), torch.arange(len(x))
    levels = element.round(x * reciprocal(scale)) * inside
    for _ in range(_MOST_SWEEPS):
        mine, now = x[moving], scale[moving]
        above, below = (mine * levels).sum(1, keepdim=True), levels.square().sum(1, keepdim=True)
        scale[moving] = now = torch.where((above > 0) & (below > 0), above / below, now)
        after = element.round(mine * reciprocal(now)) * inside[moving]
        changed = (after != levels).any(1)
        moving, levels = moving[changed], after[changed]
        if not len(moving):
            break
    return scale


def _error(x: torch.Tensor, inside: torch.Tensor, scale: torch.Tensor, element: Element) -> torch.Tensor:
    gap = x - element.round(x * reciprocal(scale)) * scale
    return (gap.square() * inside).sum(1, keepdim=True)
