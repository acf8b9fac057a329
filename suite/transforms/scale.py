"""Channel scales: SmoothQuant's balance of the maxima, AWQ's search over powers of the mean activation.

Xiao et al. 2022, "SmoothQuant", arXiv:2211.10438, eq. 4; Lin et al. 2023, "AWQ", arXiv:2306.00978, section 3.2. AWQ's
release measures a candidate at the output of the attention or MLP; the paper, and this file, at the outputs of the
linear layers that share the input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from suite.statistics import LayerStatistics

Score = Callable[[torch.Tensor], float]  # of scales (in,): the layers' output error after quantization
Source = Literal["norm", "linear"]  # what makes the scaled channels: a norm's gain, or the rows of a linear layer

_ALPHAS = tuple(i / 20 for i in range(1, 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothScale:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); `alpha="search"` takes the best of 0.05, 0.10, .. 0.95."""

    place: ClassVar[str] = "fold"
    alpha: float | Literal["search"] = 0.5
    sources: tuple[Source, ...] = ("norm",)

    def __post_init__(self) -> None:
        if self.alpha != "search" and not (isinstance(self.alpha, (int, float)) and 0 <= self.alpha <= 1):
            raise ValueError(f'alpha {self.alpha!r}: expected a number from 0 to 1, or "search"')

    def fit(self, weights: list[torch.Tensor], statistics: LayerStatistics, score: Score) -> torch.Tensor:
        """The scales (in,) for `weights` (out, in) that share an input with these statistics."""
        if self.alpha != "search":
            return smooth_scale(weights, statistics.max_abs, float(self.alpha))
        candidates = [smooth_scale(weights, statistics.max_abs, alpha) for alpha in _ALPHAS]
        return min(candidates, key=score)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqScale:
    """s = mean|X|^r, the best of r = 0, 1/steps, .. (steps - 1)/steps; r = 0 is no scaling at all."""

    place: ClassVar[str] = "fold"
    steps: int = 20
    sources: tuple[Source, ...] = ("norm", "linear")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps!r}: expected at least 1")

    def fit(self, weights: list[torch.Tensor], statistics: LayerStatistics, score: Score) -> torch.Tensor:
        """The scales (in,) for `weights` (out, in) that share an input with these statistics."""
        candidates = [awq_scale(statistics.mean_abs, i / self.steps) for i in range(self.steps)]
        return min(candidates, key=score)


def smooth_scale(weights: list[torch.Tensor], max_abs: torch.Tensor, alpha: float) -> torch.Tensor:
    """SmoothQuant's scales (in,); maxima below 1e-5 count as 1e-5, as in the release.

    At alpha = 1/2 the maxima of input and weights become equal: sqrt(max|X_j| max|W_j|) each.
    """
    columns = torch.stack([W.abs().amax(0) for W in weights]).amax(0).clamp(min=1e-5)
    return (max_abs.to(columns.dtype).clamp(min=1e-5) ** alpha / columns ** (1 - alpha)).clamp(min=1e-5)


def awq_scale(mean_abs: torch.Tensor, ratio: float) -> torch.Tensor:
    """AWQ's scales (in,): mean|X|^ratio, at least 1e-4, divided by the geometric mean of its extremes."""
    s = (mean_abs**ratio).clamp(min=1e-4)
    return s / (s.max() * s.min()).sqrt()
