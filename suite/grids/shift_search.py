"""The shift of a block whose codes have the most entropy: information calibration.

Qin, Ma, Zheng, Li, Zhang, Liu, Luo, Liu, Magno 2024, "Accurate LoRA-Finetuning Quantization of LLMs via Information
Retention" (IR-QLoRA), arXiv:2402.05445, section 3.2, with the constants of its release (htqin/IR-QLoRA at e6fef4a).
A block w of m values is read as levels times absmax(w - tau), plus tau. Among

    tau = t + c absmax(w - t),    t the median,    c = lambda sigma k / n,    k = -n .. n,

the first is taken whose codes have the most entropy, -sum p log2 p over the levels, where p is a level's share of the
m codes. sigma is what a standard deviation is in units of NF4's largest level. The median is the lower of two.

Entropies are compared as integers, sums of n log2 n rounded to 2^-32, so that histograms which are permutations of
each other are equal; the release adds float32 numbers, and takes one of them for larger. k = 0 is a candidate: the
chosen entropy is never below that of the median. It may be below that of tau = 0, plain NF4, which is no candidate.
"""

import math
from functools import cache
from statistics import NormalDist

import torch

from suite.grids.elements import Table, boundaries
from suite.grids.layout import in_chunks
from suite.grids.scales import reciprocal

# 1 / ppf(0.9677083): the quantile that the largest level of NF4 and NF2 stands for (QLoRA, arXiv:2305.14314)
SIGMA = 1 / NormalDist().inv_cdf(0.9677083)
_ONE = 2.0**32  # of a bit


def entropy_shift(x: torch.Tensor, group: int, element: Table, most: float, steps: int) -> torch.Tensor:
    """Shifts (blocks,) for consecutive blocks of `group` values of `x` (n,), the last may be short.

    `most` is lambda, `steps` n. In the type of `x`; memory beyond its size does not grow with it.
    """
    whole = len(x) // group * group
    parts = list(in_chunks(x[:whole].reshape(-1, group))) if whole else []
    rest = [x[None, whole:]] if whole < len(x) else []
    return torch.cat([_searched(part, element, most, steps) for part in [*parts, *rest]])


def _searched(values: torch.Tensor, element: Table, most: float, steps: int) -> torch.Tensor:
    """Shifts (n,) for blocks (n, m)."""
    m = values.shape[1]
    ascending = values.sort(-1).values
    start, ends = ascending[:, (m - 1) // 2], (ascending[:, 0], ascending[:, -1])
    span = torch.maximum(start - ends[0], ends[1] - start)
    bounds = boundaries(element.levels, values.dtype).expand(len(values), -1).contiguous()
    cost, least, best = _table(m), torch.full((len(values),), torch.iinfo(torch.int64).max), start
    for k in range(-steps, steps + 1):
        tau = start + most * SIGMA * k / steps * span
        inverse = reciprocal(torch.maximum((ends[0] - tau).abs(), (ends[1] - tau).abs()))
        ratio = (ascending - tau[:, None]).mul_(inverse[:, None])  # ascending still: both steps are monotone
        below = torch.searchsorted(ratio, bounds, right=True)
        found = cost[torch.nn.functional.pad(torch.nn.functional.pad(below, (0, 1), value=m), (1, 0)).diff()].sum(-1)
        better = found < least
        best, least = torch.where(better, tau, best), torch.where(better, found, least)
    return best


@cache
def _table(m: int) -> torch.Tensor:
    """N log2 n for n = 0 .. m, int64 in units of 2^-32: entropy is log2 m less their sum over m."""
    return torch.tensor([round(n * math.log2(n) * _ONE) if n else 0 for n in range(m + 1)])


def code_entropy(codes: torch.Tensor, n_codes: int) -> torch.Tensor:
    """Entropy (n,) of each row of `codes` (n, m), in bits, float64: at most log2 of the smaller of m and `n_codes`.

    >>> code_entropy(torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1]]), 4)
    tensor([2., 0.], dtype=torch.float64)
    """
    n, m = codes.shape
    places = codes.to(torch.int64) + n_codes * torch.arange(n)[:, None]
    counts = torch.bincount(places.reshape(-1), minlength=n * n_codes).reshape(n, n_codes)
    table = _table(m)
    return (table[m] - table[counts].sum(-1)).double() / (_ONE * m)
