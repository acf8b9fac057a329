"""Nearest points of lattices against a search of all that could be nearest, and what their cells leave on average."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grids.lattices import (
    SECOND_MOMENT_E8,
    SECOND_MOMENT_Z,
    nearest_d,
    nearest_e8,
    nearest_integer,
    second_moment_ball,
    second_moment_d,
)

LATTICES = {"Z8": (nearest_integer, 8), "D2": (nearest_d, 2), "D4": (nearest_d, 4), "D8": (nearest_d, 8),
            "E8": (nearest_e8, 8)}  # fmt: skip
lattices = pytest.mark.parametrize("name", LATTICES)
dyadic = st.integers(-(2**10), 2**10).map(lambda n: n / 64)  # sums and squares of these are exact


def uniform(n, count, side=2.0, seed=0, dtype=torch.float64):
    return torch.rand(count, n, generator=torch.Generator().manual_seed(seed), dtype=dtype) * side


def is_member(name, points):
    whole, even = points == points.round(), points.sum(-1) % 2 == 0
    if name == "Z8":
        return whole.all(-1)
    if name == "E8":
        half = (points - 0.5) == (points - 0.5).round()
        return (whole.all(-1) | half.all(-1)) & even
    return whole.all(-1) & even


def least_distance(name, x):
    """The squared distance to the nearest of all points within one of x in every coordinate: no other can be nearest.

    A point further than that from x in some coordinate has one nearer, by the step of 2 along it that all these have.
    With f the fractions of x, that of a corner c is |f|^2 + sum of c_i (1 - 2 f_i).
    """
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1])), dtype=x.dtype)
    least = []
    for shift in (0.0, 0.5) if name == "E8" else (0.0,):
        below = (x - shift).floor()
        f = x - shift - below
        distance = f.square().sum(1, keepdim=True) + (1 - 2 * f) @ corners.T
        even, odd = (distance[:, corners.sum(1) % 2 == parity].amin(1) for parity in (0, 1))
        there = torch.minimum(even, odd) if name == "Z8" else torch.where(below.sum(1) % 2 == 0, even, odd)
        least.append(there)
    return torch.stack(least).amin(0)


@lattices
def test_no_point_is_nearer_than_the_chosen_one(name):
    nearest, n = LATTICES[name]
    x = uniform(n, 100_000, side=4.0) - 2
    # distances are at most n and are sums of n squares, each of a few roundings
    assert bool((((x - nearest(x)) ** 2).sum(1) <= least_distance(name, x) + 4 * n * n * 2.0**-52).all())
    y = x[:10_000].float()
    found = ((y.double() - nearest(y).double()) ** 2).sum(1)
    assert bool((found <= least_distance(name, y.double()) + 4 * n * n * 2.0**-23).all())


@lattices
def test_what_is_found_is_of_the_lattice_and_its_own_nearest(name):
    nearest, n = LATTICES[name]
    for x in (uniform(n, 1000, 20.0) - 10, uniform(n, 1000, 20.0, dtype=torch.float32) - 10, torch.zeros(1, n)):
        points = nearest(x)
        assert points.dtype == x.dtype and bool(is_member(name, points).all())
        assert torch.equal(nearest(points), points)
        assert torch.equal(nearest(x.reshape(-1, 1, n)), points.reshape(-1, 1, n))


@lattices
@settings(max_examples=60)
@given(data=st.data())
def test_moving_by_a_point_moves_the_nearest_by_it(name, data):
    nearest, n = LATTICES[name]
    x, p = (torch.tensor(data.draw(st.lists(dyadic, min_size=n, max_size=n)), dtype=torch.float64) for _ in "xp")
    p = nearest_d(p) if name == "E8" else nearest(p)  # of E8 the integers: halves exchange the cosets, which break ties
    assert torch.equal(nearest(x + p), nearest(x) + p)


def test_halves_of_e8_move_it_where_there_is_no_tie():
    x, p = uniform(8, 2000), nearest_e8(uniform(8, 2000, seed=1) * 3)
    assert torch.allclose(nearest_e8(x + p), nearest_e8(x) + p, rtol=0, atol=0)


def test_ties_are_as_documented():
    assert nearest_integer(torch.tensor([-1.5, -0.5, 0.5, 1.5])).tolist() == [-1, 0, 1, 2]
    assert nearest_integer(torch.tensor([0.49999999999999994], dtype=torch.float64)).item() == 0
    assert nearest_d(torch.tensor([1.0, 0.0, 0.0])).tolist() == [2, 0, 0]  # what is an integer is raised
    assert nearest_d(torch.tensor([0.75, 0.25, 0.0])).tolist() == [0, 0, 0]  # the first of the farthest
    assert nearest_e8(torch.full((8,), 0.25)).tolist() == [0] * 8  # the integers before the halves


MOMENTS = [("Z8", 1, SECOND_MOMENT_Z), ("D4", 2, second_moment_d(4)), ("D8", 2, second_moment_d(8)),
           ("E8", 1, SECOND_MOMENT_E8)]  # fmt: skip


@pytest.mark.parametrize(("name", "volume", "exact"), MOMENTS)
def test_second_moments_are_the_exact_ones(name, volume, exact):
    nearest, n = LATTICES[name]
    x = uniform(n, 200_000)  # a cube of side 2 is a period of all of them
    error = ((x - nearest(x)) ** 2).sum(1) / n / volume ** (2 / n)
    assert abs(float(error.mean()) - exact) <= 3 * float(error.std()) / math.sqrt(len(x))


def test_closed_forms_are_those_of_the_book():
    assert second_moment_d(2) == pytest.approx(SECOND_MOMENT_Z)  # D2 is Z2, turned
    assert second_moment_d(4) == pytest.approx(13 / (120 * math.sqrt(2)))
    assert second_moment_ball(1) == pytest.approx(1 / 12)
    assert second_moment_ball(8) < SECOND_MOMENT_E8 < second_moment_d(8) < SECOND_MOMENT_Z


def test_no_distance_is_beyond_the_covering_radius():
    for name, radius in (("D4", 1.0), ("D8", math.sqrt(2)), ("E8", 1.0)):
        nearest, n = LATTICES[name]
        x = uniform(n, 100_000)
        assert float((x - nearest(x)).norm(dim=1).max()) <= radius * (1 + 2.0**-50)


def test_shortest_vectors_of_e8():
    whole = torch.cartesian_prod(*[torch.arange(-1.0, 2)] * 8)
    half = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 8)
    points = torch.cat([whole, half])
    points = points[is_member("E8", points)]
    norms = points.square().sum(1)
    assert float(norms[norms > 0].min()) == 2 and int((norms == 2).sum()) == 240


def test_bad_dimensions_are_errors():
    with pytest.raises(ValueError, match=r"8 dimensions, found points of shape \(3, 7\)"):
        nearest_e8(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        second_moment_d(1)
