"""How often each code occurs in a model's decoder blocks, for every alphabet that its grids use."""

from collections import Counter, defaultdict

import numpy as np
import torch

from suite.grids import Integer, KMeansTable
from suite.grids.exl2 import FittedExl2
from suite.grids.grid import Fitted
from suite.grids.scaled import FittedScaled
from suite.grids.shifted import FittedShifted
from suite.grids.steps import FittedSteps
from suite.grids.two_sided import FittedTwoSided
from suite.quantized import Quantized
from suite.store import Histogram

LARGEST = 4096  # different codes; of words as wide as BF16's a histogram shows nothing


class CodeCounts:
    """Counts of codes by alphabet and level, added up matrix after matrix."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[float]] = defaultdict(Counter)

    def add(self, found: Quantized) -> None:
        """Count the codes of one matrix."""
        streams = found.grid.streams(found.codes)
        for alphabet, stream in zip(_alphabets(found.grid, len(streams)), streams, strict=True):
            codes, counts = stream.unique(return_counts=True)
            for level, count in zip(_levels(found.grid, codes), counts.tolist(), strict=True):
                self._counts[alphabet][level] += count

    def histograms(self) -> list[Histogram]:
        """One for each alphabet of up to `LARGEST` codes."""
        small = ((alphabet, counts) for alphabet, counts in sorted(self._counts.items()) if len(counts) <= LARGEST)
        return [Histogram(stream=alphabet, levels=np.array(sorted(counts)),
                          counts=np.array([counts[level] for level in sorted(counts)], dtype=np.int64))
                for alphabet, counts in small]  # fmt: skip


def _alphabets(grid: Fitted, n_streams: int) -> list[int]:
    """A number for each stream that is the same wherever the alphabet is: EXL2's width, else its place."""
    return grid.widths.unique().tolist() if isinstance(grid, FittedExl2) else list(range(n_streams))


def _levels(fitted: Fitted, codes: torch.Tensor) -> list[float]:
    """What codes stand for in units of their scale, as far as that is the same in every group; else the codes."""
    if isinstance(fitted, FittedShifted):
        fitted = fitted.inner
    if isinstance(fitted, FittedScaled | FittedTwoSided) and not isinstance(fitted.grid.element, KMeansTable):
        levels = torch.tensor(fitted.element.levels, dtype=torch.float64)
        return (levels[codes.to(torch.int64)] + 0.0).tolist()  # the two zeros are one level
    if isinstance(fitted, FittedSteps):
        return (codes.double() - fitted.zero).tolist()
    if isinstance(fitted.grid, Integer) and fitted.grid.convention not in ("asymmetric", "real-zero"):
        return (codes.double() - fitted.grid.zero).tolist()
    return codes.double().tolist()
