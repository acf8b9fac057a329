"""How BiLLM divides a block of columns: which are salient, and where the two bells of the others part.

Huang et al. 2024, arXiv:2402.04291; candidates and quantiles are those of the release. Errors are summed over all rows
of a block `S` (out, k), of weights or of scores; mu and a belong to a row. `center=False` has mu = 0.
"""

import torch

_QUANTILES = (0.10, 0.90, 81)  # from, to, how many
Pair = tuple[torch.Tensor, torch.Tensor]  # mu and a, (out, 1)


def salient_columns(S: torch.Tensor, totals: torch.Tensor, most: int, center: bool) -> torch.Tensor:
    """Which columns (k,) are salient, bool: those of the largest `totals` (k,), of equal ones the earlier.

    As many, from 1 to below `most` and k, as give the least error when they and the others are each read in two
    orders; of equal errors the fewest. A block of one column has none.
    """
    ranking, n = torch.argsort(totals, descending=True, stable=True), S.shape[1]
    ranked, counts = S[:, ranking], range(1, min(most, n))
    errors = [float(two_orders(ranked[:, :i], center)[1] + two_orders(ranked[:, i:], center)[1]) for i in counts]
    best = counts[errors.index(min(errors))] if errors else 0
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, ranking[:best], True)


def sparse_part(S: torch.Tensor, salient: torch.Tensor, center: bool) -> torch.Tensor:
    """Which of the values (out, k') outside of `salient` columns are of the sparse part: |S| from the border on.

    The border is the quantile of |S| with the least error of both parts; quantiles count salient columns as zeros.
    """
    sizes, x = (S.abs() * ~salient).flatten().sort().values, S[:, ~salient]
    if x.shape[1] == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    place = torch.linspace(*_QUANTILES, dtype=torch.float64) * (len(sizes) - 1)
    below = place.floor().long()
    borders = torch.lerp(sizes[below], sizes[(below + 1).clamp(max=len(sizes) - 1)], (place - below).to(x.dtype))
    size = x.abs()
    errors = [float(one_order(x, size < p, center)[1] + one_order(x, size >= p, center)[1]) for p in borders]
    return size >= borders[errors.index(min(errors))]


def one_order(x: torch.Tensor, mask: torch.Tensor, center: bool) -> tuple[Pair, torch.Tensor]:
    """Mean mu and distance a of the values of `x` (out, k) in `mask`, row by row, 0 where there are none, and the squared error."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mu = (x * mask).sum(1, keepdim=True) / count * center
    distance = (x - mu).abs()
    a = (distance * mask).sum(1, keepdim=True) / count
    return (mu, a), ((distance - a).square() * mask).sum()


def two_orders(x: torch.Tensor, center: bool) -> tuple[tuple[Pair, Pair], torch.Tensor]:
    """Mean mu and distance a of both orders of all values of `x` (out, k), row by row, and the squared error of their signs."""
    everything = torch.ones((), dtype=torch.bool).expand_as(x)
    (mu, a), _ = one_order(x, everything, center)
    left = x - mu
    again, error = one_order(left - torch.where(left > 0, a, -a), everything, center)
    return ((mu, a), again), error
