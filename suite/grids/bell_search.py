"""How BiLLM divides a block of columns: which are salient, and where the two bells of the others part.

Huang et al. 2024, arXiv:2402.04291; candidates and quantiles are those of the release. Errors are summed over all rows
of a block `S` (out, k), of weights or of scores; mu and a belong to a row. `center=False` has mu = 0.
"""

import torch

_QUANTILES = (0.10, 0.90, 81)  # from, to, how many
_AT_ONCE = 1 << 17  # values of candidates looked at together: what is computed of them stays in a core's cache
Pair = tuple[torch.Tensor, torch.Tensor]  # mu and a, (.., out, 1)


def salient_columns(S: torch.Tensor, totals: torch.Tensor, most: int, center: bool) -> torch.Tensor:
    """Which columns (k,) are salient, bool: those of the largest `totals` (k,), of equal ones the earlier.

    As many, from 1 to below `most` and k, as give the least error when they and the others are each read in two
    orders; of equal errors the fewest. A block of one column has none.
    """
    ranking, n = torch.argsort(totals, descending=True, stable=True), S.shape[1]
    ranked, place = S[:, ranking], torch.arange(n)
    best = 0
    if min(most, n) > 1:
        errors = []
        for counts in torch.arange(1, min(most, n)).split(max(1, _AT_ONCE // S.numel())):
            first = (place < counts[:, None, None]).expand(-1, len(S), -1)
            errors.append(two_orders(ranked, first, center)[1] + two_orders(ranked, ~first, center)[1])
        best = 1 + int(torch.cat(errors).argmin())
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
    size, errors = x.abs(), []
    for some in borders.split(max(1, _AT_ONCE // x.numel())):
        part = size >= some[:, None, None]
        errors.append(one_order(x, part, center)[1] + one_order(x, ~part, center)[1])
    return size >= borders[torch.cat(errors).argmin()]


def one_order(x: torch.Tensor, mask: torch.Tensor, center: bool) -> tuple[Pair, torch.Tensor]:
    """Mean and distance (.., out, 1) of the values of `x` (.., out, k) in `mask`, and the squared error (..,).

    Rows without values have 0.
    """
    weight = mask.to(x.dtype)
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mu = (x * weight).sum(-1, keepdim=True) / count * center
    distance = (x - mu).abs_().mul_(weight)
    a = distance.sum(-1, keepdim=True) / count
    return (mu, a), distance.square_().sum((-2, -1)) - (count * a.square()).sum((-2, -1))


def two_orders(x: torch.Tensor, mask: torch.Tensor, center: bool) -> tuple[tuple[Pair, Pair], torch.Tensor]:
    """Mean and distance of both orders of the values of `x` (.., out, k) in `mask`, and their squared error (..,)."""
    (mu, a), _ = one_order(x, mask, center)
    left = x - mu
    again, error = one_order(left - torch.where(left > 0, a, -a), mask, center)
    return ((mu, a), again), error
