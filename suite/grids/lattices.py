"""Lattices: the nearest point of Z^n, D_n and E8, and how much error their cells leave.

Conway and Sloane 1982, "Fast quantizing and decoding algorithms for lattice quantizers and codes", IEEE Transactions on
Information Theory 28; and "Voronoi regions of lattices, second moments of polytopes, and quantization", same volume.

    Z^n   integers
    D_n   integers of even sum
    E8    D8 and D8 + 1/2: all integers, or all halves of odd integers, of even sum

The normalized second moment of a lattice of n dimensions is G = E|x - Q(x)|^2 / (n V^(2/n)), x uniform and V the volume
of a cell: the squared error per value where a cell has volume 1. A ball would have the least.

Ties: halves are rounded up. In D_n the coordinate that is rounded the other way is the first of those farthest from
their integers; one that is an integer itself is raised. So adding a point of Z^n or D_n to x adds it to the nearest
point, exactly, on ties too. In E8 a tie between both cosets goes to the integers.
"""

import math

import torch


def nearest_integer(x: torch.Tensor) -> torch.Tensor:
    """The point of Z^n nearest to `x` (..., n); halves go up.

    >>> nearest_integer(torch.tensor([-0.5, 0.49, 0.5, 1.5]))
    tensor([0., 0., 1., 2.])
    """
    below = x.floor()
    return below + (x - below >= 0.5)  # x - below is exact, x + 1/2 would not be


def nearest_d(x: torch.Tensor) -> torch.Tensor:
    """The point of D_n nearest to `x` (..., n): integers of even sum.

    >>> nearest_d(torch.tensor([0.6, 0.1, 0.0]))
    tensor([0., 0., 0.])
    """
    point = nearest_integer(x)
    gap = x - point
    worst = gap.abs().argmax(-1, keepdim=True)  # the first of them
    other = torch.where(gap.gather(-1, worst) >= 0, 1.0, -1.0).to(x.dtype)
    odd = point.remainder(2).sum(-1, keepdim=True).remainder(2)
    return point.scatter_add(-1, worst, other * odd)


def nearest_e8(x: torch.Tensor) -> torch.Tensor:
    """The point of E8 nearest to `x` (..., 8); `ValueError` for other dimensions.

    >>> nearest_e8(torch.full((8,), 0.4))
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """
    if x.shape[-1] != 8:
        raise ValueError(f"E8 has 8 dimensions, found points of shape {tuple(x.shape)}")
    whole, half = nearest_d(x), nearest_d(x - 0.5) + 0.5
    nearer = ((x - half) ** 2).sum(-1, keepdim=True) < ((x - whole) ** 2).sum(-1, keepdim=True)
    return torch.where(nearer, half, whole)


SECOND_MOMENT_Z = 1 / 12
SECOND_MOMENT_E8 = 929 / 12960


def second_moment_d(n: int) -> float:
    """G of D_n, n >= 2: 2^(-2/n) (1/12 + 1 / (2 n (n + 1))).

    >>> round(second_moment_d(4), 7)  # 13 / (120 sqrt 2)
    0.0766032
    """
    if n < 2:
        raise ValueError(f"n {n!r}: D_n has at least 2 dimensions")
    return 2 ** (-2 / n) * (1 / 12 + 1 / (2 * n * (n + 1)))


def second_moment_ball(n: int) -> float:
    """G of a ball of n dimensions, which no lattice reaches for n > 1: Gamma(n/2 + 1)^(2/n) / ((n + 2) pi)."""
    return math.exp(2 / n * math.lgamma(n / 2 + 1)) / ((n + 2) * math.pi)
