"""Weighted k-means of vectors: codebooks of any size for vectors of any length, from a generator alone.

Lloyd's iteration (Lloyd 1957; Linde, Buzo, Gray 1980, "An Algorithm for Vector Quantizer Design", IEEE Transactions on
Communications 28) from a start drawn by squared distance (Arthur, Vassilvitskii 2007, "k-means++: The Advantages of
Careful Seeding"). The start draws as many centers at once as keep it to 64 rounds, as k-means|| does (Bahmani et al.
2012, arXiv:1203.6402), so that it costs a few of Lloyd's iterations. A center that nothing is nearest to is
moved to the vector that is worst off. Numbers alone have an exact method, `suite.grids.lloyd_max.k_means`.
"""

import math

import torch

from suite.grids import lloyd_max

_ROUNDS = 64
_TOGETHER = 1 << 17  # distances computed in one go: they stay in a core's cache
_EXACT = 256  # centers of numbers that the exact method takes


def k_means(
    x: torch.Tensor,
    n: int,
    generator: torch.Generator,
    weight: torch.Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-5,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """`n` centers (n, g) for vectors `x` (m, g) with weights (m,) >= 0, in the type of `x`; a local optimum.

    Minimized is sum_i weight_i |x_i - nearest center|^2, which no iteration raises; they end when one lowers it by less
    than `tolerance` of itself. Vectors of weight 0 draw nothing; where all weights are 0, all count alike. Where there
    are no more than `n` different vectors, each of them is a center and the rest repeat the first. Raises `ValueError`
    for no vectors, n < 1, and negative weights.
    """
    if x.ndim != 2 or x.numel() == 0 or n < 1:
        raise ValueError(f"k-means: expected vectors (m, g) and n >= 1, found shape {tuple(x.shape)} and n = {n}")
    mass = torch.ones(len(x), dtype=x.dtype) if weight is None else weight.to(x.dtype)
    if mass.shape != (len(x),) or bool((mass < 0).any()):
        raise ValueError(f"k-means: expected {len(x)} weights >= 0, found shape {tuple(mass.shape)}")
    if not bool(mass.any()):
        mass = torch.ones_like(mass)
    if x.shape[1] == 1 and n <= _EXACT:
        return lloyd_max.k_means(x[:, 0], n, mass)[:, None].to(x.dtype)
    centers = spread_start(x, n, generator, mass) if start is None else start
    best, least = centers, math.inf
    for _ in range(iterations + 1):  # the last one only looks
        codes, squares = assign(x, centers)
        inertia = float((mass * squares).double().sum())
        converged = inertia >= least * (1 - tolerance)
        if inertia < least:
            best, least = centers, inertia
        if converged or inertia == 0:
            break
        centers = _moved(x, mass, codes, squares, centers)
    return best.clone()


def spread_start(x: torch.Tensor, n: int, generator: torch.Generator, weight: torch.Tensor) -> torch.Tensor:
    """`n` of the vectors `x` (m, g), drawn by weight times squared distance to those drawn before (k-means++).

    In about 64 rounds: from n > 65 on several are drawn by the same distances. Where fewer differ, the rest repeat
    the first.
    """
    squares = torch.full((len(x),), 1.0, dtype=x.dtype)
    centers = x[:0]
    together = -(-n // _ROUNDS)
    while len(centers) < n:
        running = (weight.double() * squares).cumsum(0)
        if float(running[-1]) == 0:
            return torch.cat([centers, centers[:1].expand(n - len(centers), -1)])
        count = min(together, n - len(centers)) if len(centers) else 1
        draws = torch.rand(count, generator=generator, dtype=torch.float64) * running[-1]
        drawn = x[torch.searchsorted(running, draws, right=True).clamp(max=_last(running))].unique(dim=0)
        new = (x - drawn).square_().sum(1) if len(drawn) == 1 else assign(x, drawn)[1]
        squares = new if not len(centers) else torch.minimum(squares, new)
        centers = torch.cat([centers, drawn])
    return centers


def _last(running: torch.Tensor) -> int:
    """The last place at which a running sum grows: a draw that is rounded up to all of it belongs there."""
    return int(torch.searchsorted(running, running[-1]))


def _moved(
    x: torch.Tensor, mass: torch.Tensor, codes: torch.Tensor, squares: torch.Tensor, centers: torch.Tensor
) -> torch.Tensor:
    """Every center at the mean of what is nearest to it; those of nothing at the vectors that are worst off."""
    total = torch.zeros(len(centers), dtype=x.dtype).index_add_(0, codes, mass)
    first = torch.zeros_like(centers).index_add_(0, codes, x * mass[:, None])
    empty = total == 0
    moved = torch.where(empty[:, None], centers, first / total.masked_fill(empty, 1.0)[:, None])
    count = min(int(empty.sum()), len(x))
    if count:
        worst = (mass * squares).topk(count)
        gain = worst.values > 0
        moved[empty.nonzero()[:count, 0][gain]] = x[worst.indices[gain]]
    return moved


def assign(x: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (m,), int64, of the center nearest to each of `x` (m, g), as `nearest_of`, and squared distances (m,)."""
    codes = nearest_of(x, centers)
    return codes, (x - centers[codes]).square_().sum(1)


def nearest_of(x: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Codes (m,), int64, of the center nearest to each of `x` (m, g), the lowest of equals.

    Nearest by |c|^2 / 2 - x . c in the type of `x`: a product of matrices.
    """
    fixed = centers.detach()
    half = fixed.square().sum(1) / 2
    found = [torch.from_numpy(torch.addmm(half, part, fixed.T, alpha=-1).numpy().argmin(1))  # thrice torch's speed
             for part in x.detach().split(max(1, _TOGETHER // len(fixed)))]  # fmt: skip
    return torch.cat(found)
