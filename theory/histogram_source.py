"""The source that a histogram is: magnitudes uniform within bins, both signs alike.

With it `blahut_arimoto`, the Shannon lower bound and the scalar quantizers take the weights of a layer as they are,
without a family of densities between (`variance_mixture` fits one). The entropy of a density that is constant in every
bin is exact, `h = 1 + sum_b p_b log2(width_b / p_b)`. What it says of errors far below a bin's width squared is about
the bins and not about the weights: there, the mixture is the better model. Imports no torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

_RATIO = 1.2  # of widths of neighboring bins, in the tail
_BODY = 3.0  # root mean squares that bins of one width cover


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A symmetric density, constant between `edges` of the magnitude (n + 1,), 0 first, of `masses` (n,) > 0, sum 1.

    >>> box = Histogram(edges=(0.0, 1.0), masses=(1.0,))
    >>> round(box.variance, 6), box.entropy_bits, box.density(0.5).item(), box.tail_moment(0.0).item()
    (0.333333, 1.0, 0.5, 0.25)
    """

    edges: tuple[float, ...]
    masses: tuple[float, ...]

    def __post_init__(self) -> None:
        ends, p = np.array(self.edges), np.array(self.masses)
        if len(ends) != len(p) + 1 or len(p) < 1 or ends[0] != 0 or not (np.diff(ends) > 0).all():
            raise ValueError(f"expected n masses and n + 1 rising edges from 0, got {len(p)} and {self.edges!r}")
        if not ((p > 0).all() and np.isclose(p.sum(), 1, rtol=0, atol=1e-9)):
            raise ValueError(f"expected positive masses of sum 1, got a least of {p.min()} and a sum of {p.sum()}")

    @property
    def variance(self) -> float:
        """`E[X^2]` of a uniform bin is `(a^2 + a b + b^2) / 3`."""
        a, b = self.corners[:-1], self.corners[1:]
        return float(np.array(self.masses) @ (a**2 + a * b + b**2) / 3)

    @property
    def scale(self) -> float:
        """The narrowest bin."""
        return float(np.diff(self.edges).min())

    @property
    def reach(self) -> float:
        """The last edge; nothing lies beyond it."""
        return float(self.edges[-1])

    @property
    def entropy_bits(self) -> float:
        """Exact; half of a bin's mass is on each side of zero."""
        p, width = np.array(self.masses), np.diff(self.edges)
        return float(1 + entr(p).sum() / np.log(2) + p @ np.log2(width))

    @property
    def corners(self) -> np.ndarray:
        """All edges, where the density jumps."""
        return np.array(self.edges)

    def density(self, x: ArrayLike) -> np.ndarray:
        """The density at `x`; shape of `x`; an edge belongs to the bin above it."""
        heights = np.append(np.array(self.masses) / np.diff(self.edges) / 2, 0.0)
        return heights[np.searchsorted(self.edges, np.abs(np.asarray(x, dtype=float)), side="right") - 1]

    def tail(self, x: ArrayLike) -> np.ndarray:
        """Linear between edges."""
        above = np.append(np.cumsum(np.array(self.masses)[::-1])[::-1], 0.0) / 2
        return np.interp(np.asarray(x, dtype=float), self.edges, above)

    def tail_moment(self, x: ArrayLike) -> np.ndarray:
        """Between edges linear in `x^2`."""
        middles = (self.corners[1:] + self.corners[:-1]) / 2
        above = np.append(np.cumsum((np.array(self.masses) * middles)[::-1])[::-1], 0.0) / 2
        return np.interp(np.asarray(x, dtype=float) ** 2, self.corners**2, above)

    def tail_square(self, x: ArrayLike) -> np.ndarray:
        """Between edges linear in `x^3`."""
        a, b = self.corners[:-1], self.corners[1:]
        squares = np.array(self.masses) * (a**2 + a * b + b**2) / 3
        above = np.append(np.cumsum(squares[::-1])[::-1], 0.0) / 2
        return np.interp(np.asarray(x, dtype=float) ** 3, self.corners**3, above)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent samples of this `shape`."""
        b = rng.choice(len(self.masses), size=shape, p=np.array(self.masses) / sum(self.masses))
        size = self.corners[b] + rng.random(shape) * np.diff(self.edges)[b]
        return np.where(rng.random(shape) < 0.5, -size, size)


def histogram_of(values: ArrayLike, bins: int = 24) -> Histogram:
    """The histogram of |values|: `bins` of one width up to three root mean squares, and wider and wider ones beyond.

    Empty bins are joined to the one before them. The first bin has to have a value, or `ValueError`: as well for no
    values, values that are not finite, and values that are all zero.
    """
    size = np.abs(np.asarray(values, dtype=float)).ravel()
    if not size.size or not np.isfinite(size).all() or not size.any():
        raise ValueError(f"expected finite values, not all of them zero, got {size.size} of sum {size.sum()}")
    width, most = _BODY * np.sqrt(np.mean(size**2)) / bins, float(size.max())
    ends = [width * k for k in range(bins + 1)]
    while ends[-1] <= most:
        ends.append(ends[-1] + width)
        width *= _RATIO
    last = int(np.searchsorted(ends, most, side="right"))
    counts, edges = np.histogram(size, bins=np.array(ends[: last + 1]))
    kept = counts > 0
    if not kept[0]:
        raise ValueError(f"expected values below {edges[1]:g}, an eighth of their root mean square or so, got none")
    starts = edges[:-1][kept]
    return Histogram(edges=(*starts.tolist(), float(edges[-1])), masses=tuple((counts[kept] / counts.sum()).tolist()))
