"""Tables of levels made for a density or for data: Lloyd-Max and k-means, of any size.

A Lloyd-Max table has every level at the centroid of its cell and every boundary halfway between levels (Lloyd 1957,
Max 1960): the least mean squared error of a fixed-rate scalar quantizer. For the Gaussian it is found by Newton's
method on the levels, whose Jacobian is tridiagonal, from Panter and Dite's asymptotic density (phi^(1/3), which is a
Gaussian of variance 3): quadratic convergence at every size, where Lloyd's own iteration needs 10^5 steps at 8 bits.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from scipy.linalg import solve_banded
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from suite.grids.elements import Table

_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianTable:
    """The table of 2^bits levels with the least squared error on a Gaussian of variance 1.

    `spacing="free"` is Lloyd-Max; "uniform" has levels +-step/2, +-3 step/2, .. with the best step.
    """

    bits: int
    spacing: Literal["free", "uniform"] = "free"

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise ValueError(f"bits {self.bits!r}: tables take 1 to 8")

    def table(self) -> Table:
        """The levels, ascending and symmetric, to be scaled by the root mean square."""
        levels = lloyd_max(2**self.bits) if self.spacing == "free" else uniform(2**self.bits)
        return Table(f"gaussian-{self.spacing}", self.bits, tuple(levels.tolist()), reach=float(levels[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansTable:
    """2^bits levels fitted to a matrix by k-means: stored in float16, charged once per matrix.

    With `weighted` every value counts with its input's H_jj, as in SqueezeLLM (Kim et al. 2023, arXiv:2306.07629,
    where the weight is a Fisher diagonal and every row has a table of its own).
    """

    bits: int
    weighted: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise ValueError(f"bits {self.bits!r}: tables take 1 to 8")

    def fit(self, x: torch.Tensor, weight: torch.Tensor | None) -> Table:
        """The table for the values `x`, with a weight for each or None."""
        levels = k_means(x.reshape(-1), 2**self.bits, None if weight is None else weight.reshape(-1))
        stored = levels.clamp(-65504, 65504).half().double().sort().values
        return Table("k-means", self.bits, tuple(stored.tolist()))


@cache
def lloyd_max(n: int) -> np.ndarray:
    """The `n` levels (n,) of the Lloyd-Max quantizer of a Gaussian of variance 1, ascending, float64.

    >>> [round(float(level), 4) for level in lloyd_max(4)]
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    y = norm.ppf((np.arange(n) + 0.5) / n) * math.sqrt(3)
    for _ in range(100):
        edges = _edges(y)
        density, mass = norm.pdf(edges), np.maximum(_mass(edges), _TINY)
        centroid = (density[:-1] - density[1:]) / mass
        finite = np.where(np.isfinite(edges), edges, 0.0)
        below = density[:-1] * (centroid - finite[:-1]) / mass / 2  # half of dcentroid / dedge, for each edge
        above = density[1:] * (finite[1:] - centroid) / mass / 2
        bands = np.zeros((3, n))
        bands[0, 1:], bands[1], bands[2, :-1] = -above[:-1], 1 - below - above, -below[1:]
        step = solve_banded((1, 1), bands, y - centroid)
        y = y - step
        if np.abs(step).max() < 1e-14:
            break
    y = (y - y[::-1]) / 2
    y.flags.writeable = False
    return y


@cache
def uniform(n: int) -> np.ndarray:
    """The `n` equally spaced levels (n,), symmetric, with the least squared error on a Gaussian of variance 1."""
    places = np.arange(n) - (n - 1) / 2
    best = minimize_scalar(lambda step: gaussian_mse(places * step), bounds=(1e-3, 3.0), method="bounded",
                           options={"xatol": 1e-12})  # fmt: skip
    y = places * best.x
    y.flags.writeable = False
    return y


def gaussian_mse(levels: np.ndarray) -> float:
    """E (x - nearest level)^2 for a Gaussian of variance 1 and ascending `levels`, in closed form."""
    edges = _edges(levels)
    finite = np.where(np.isfinite(edges), edges, 0.0)
    mass, first = _mass(edges), norm.pdf(edges[:-1]) - norm.pdf(edges[1:])
    second = mass + finite[:-1] * norm.pdf(edges[:-1]) - finite[1:] * norm.pdf(edges[1:])
    return float(np.sum(second - 2 * levels * first + levels**2 * mass))


def _edges(levels: np.ndarray) -> np.ndarray:
    return np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])


def _mass(edges: np.ndarray) -> np.ndarray:
    """Probability of each cell; in the upper half from the other tail, so that nothing cancels."""
    upper = norm.sf(edges[:-1]) - norm.sf(edges[1:])
    lower = norm.cdf(edges[1:]) - norm.cdf(edges[:-1])
    return np.where(edges[:-1] > 0, upper, lower)


def k_means(x: torch.Tensor, n: int, weight: torch.Tensor | None = None, iterations: int = 100) -> torch.Tensor:
    """`n` ascending levels, float64, for values `x` (m,) with weights (m,).

    In one dimension cells are intervals, so that dynamic programming finds the best ones: here among the edges of at
    most 2^10 bins, spaced as the cube root of the data's density (Panter and Dite). Lloyd's iteration then moves the
    edges to where they belong; the weighted squared error never rises in it, and an empty cell keeps its level. Beyond
    32 levels 2^9 bins do.
    """
    x, place = x.double().sort()
    mass = (torch.ones_like(x) if weight is None else weight.double()[place]).clamp(min=0)
    sums = torch.stack([mass, mass * x, mass * x * x]).cumsum(1)
    sums = torch.cat([torch.zeros(3, 1, dtype=x.dtype), sums], dim=1)  # of all values before a place
    levels = _best_intervals(x, sums, n)
    for _ in range(iterations):
        cut = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        ends = torch.cat([torch.zeros(1, dtype=cut.dtype), cut, torch.full((1,), len(x), dtype=cut.dtype)])
        inside, first, _ = sums[:, ends].diff()
        moved = torch.where(inside > 0, first / inside.clamp(min=_TINY), levels)
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels


def _best_intervals(x: torch.Tensor, sums: torch.Tensor, n: int) -> torch.Tensor:
    """The centroids of the `n` intervals of bins with the least squared error, ascending."""
    places = _spread(x, sums[0], 2**10 if n <= 32 else 2**9)
    ends = torch.cat([torch.tensor([0, len(x)]), torch.searchsorted(x, places)]).unique()
    total, first, second = sums[:, ends]
    mass = (total[None] - total[:, None]).clamp(min=_TINY)
    cost = (second[None] - second[:, None]) - (first[None] - first[:, None]) ** 2 / mass  # of bins [row, column)
    upward = torch.ones_like(cost, dtype=torch.bool).triu(1)
    cost = torch.where(upward, cost.clamp(min=0), math.inf)
    least, came_from = cost[0], []
    for _ in range(1, min(n, len(ends) - 1)):
        least, best = (least[:, None] + cost).min(0)
        came_from.append(best)
    cuts = [len(ends) - 1]
    for best in reversed(came_from):
        cuts.append(int(best[cuts[-1]]))
    places = torch.tensor([0, *reversed(cuts)])
    inside, moment = total[places].diff(), first[places].diff()
    levels = torch.where(inside > 0, moment / inside.clamp(min=_TINY), x[ends[places[1:]] - 1])
    return torch.cat([levels, levels[-1:].expand(n - len(levels))])


def _spread(x: torch.Tensor, total: torch.Tensor, n: int) -> torch.Tensor:
    """`n` places as dense as the cube root of the density of ascending `x`, with `total` mass before each of them."""
    edges = torch.linspace(float(x[0]), float(x[-1]), 2**12 + 1, dtype=x.dtype)
    mass = total[torch.searchsorted(x, edges[1:-1])]
    mass = torch.cat([mass[:1], mass.diff(), total[-1:] - mass[-1:]])
    running = (mass / total[-1].clamp(min=_TINY)).clamp(min=0).pow_(1 / 3).cumsum(0)
    wanted = (torch.arange(n, dtype=x.dtype) + 0.5) / n * running[-1]
    return edges[1:][torch.searchsorted(running, wanted).clamp(max=2**12 - 1)]
