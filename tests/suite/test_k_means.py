"""Weighted k-means: never uphill, never without an answer, and the best partition where that can be listed."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from suite.grids.k_means import assign, k_means, spread_start


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(m, g, seed=0):
    return torch.randn(m, g, generator=drawn(seed), dtype=torch.float64)


def inertia(x, centers, weight=None):
    squares = (x[:, None] - centers).square().sum(-1).amin(1)
    return float((squares if weight is None else weight * squares).sum())


@st.composite
def samples(draw):
    """Few vectors of small whole numbers, many of them alike, with weights of which some are 0."""
    m, g = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-3, 3), min_size=m * g, max_size=m * g))
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=m, max_size=m))
    return torch.tensor(values, dtype=torch.float64).reshape(m, g), torch.tensor(weights, dtype=torch.float64)


@settings(max_examples=150)
@given(samples(), st.integers(1, 14), st.integers(0, 99))
def test_more_iterations_never_raise_the_inertia(sample, n, seed):
    x, weight = sample
    effective = weight if bool(weight.any()) else torch.ones_like(weight)
    start = spread_start(x, n, drawn(seed), effective)
    before = inertia(x, start, effective)
    for iterations in range(1, 6):
        centers = k_means(x, n, drawn(seed), weight, iterations, tolerance=0)
        assert centers.shape == (n, x.shape[1]) and bool(torch.isfinite(centers).all())
        after = inertia(x, centers, effective)
        assert after <= before + 1e-12 * float((effective[:, None] * x.square()).sum())  # a few hundred roundings
        before = after


@settings(max_examples=100)
@given(samples(), st.integers(0, 99))
def test_as_many_centers_as_different_vectors_meet_all_of_them(sample, seed):
    x, weight = sample
    counted = x[weight > 0] if bool(weight.any()) else x
    n = len(counted.unique(dim=0))
    for more in (n, n + 3):
        centers = k_means(x, more, drawn(seed), weight)
        assert inertia(counted, centers) <= 1e-20  # the exact method of numbers divides sums by weights
        assert len(centers) == more


def test_a_start_repeats_the_first_where_there_are_fewer_vectors():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    centers = k_means(x, 5, drawn())
    assert torch.equal(centers.unique(dim=0), x[:2]) and torch.equal(centers[2:], centers[:1].expand(3, -1))
    assert assign(x, centers)[0].max() <= 1  # copies are never chosen


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_best_partition_from_one_of_few_starts(seed):
    """All 3^7 ways to part 7 vectors in three."""
    x, weight = vectors(7, 2, seed), torch.rand(7, generator=drawn(seed), dtype=torch.float64)
    best = math.inf
    for parts in product(range(3), repeat=7):
        where = torch.tensor(parts)
        total = 0.0
        for part in where.unique():
            inside, mass = x[where == part], weight[where == part]
            center = (mass[:, None] * inside).sum(0) / mass.sum()
            total += float((mass * (inside - center).square().sum(1)).sum())
        best = min(best, total)
    found = [inertia(x, k_means(x, 3, drawn(start), weight), weight) for start in range(12)]
    assert min(found) == pytest.approx(best, rel=1e-12)
    assert all(one >= best * (1 - 1e-12) for one in found)


def test_a_whole_weight_is_that_many_copies():
    """Every fixed point of one is one of the other: started alike, they end alike."""
    x, weight = vectors(40, 3), torch.arange(40) % 3 + 1
    copies = x.repeat_interleave(weight, dim=0)
    centers = k_means(x, 5, drawn(1), weight.double(), tolerance=0)
    codes = assign(copies, centers)[0]
    means = torch.stack([copies[codes == code].mean(0) for code in range(5)])
    assert torch.allclose(means, centers, rtol=0, atol=1e-13)


def test_weights_of_zero_draw_nothing_and_all_of_zero_count_alike():
    x = torch.cat([vectors(50, 2), vectors(50, 2, 1) + 1000])
    weight = torch.cat([torch.ones(50), torch.zeros(50)]).double()
    assert float(k_means(x, 8, drawn(), weight).abs().max()) < 100
    assert torch.equal(k_means(x, 8, drawn(), torch.zeros(100).double()), k_means(x, 8, drawn()))


def test_a_center_of_nothing_goes_where_it_helps_most():
    """Ten different vectors only, and more centers than rounds, which draw several at once and so the same ones."""
    hubs = 100 * torch.arange(10, dtype=torch.float64)[:, None] * torch.ones(1, 2, dtype=torch.float64)
    x = (hubs[:, None] + torch.zeros(1, 30, 1, dtype=torch.float64)).reshape(-1, 2)
    for seed in range(5):
        assert inertia(x, k_means(x, 200, drawn(seed))) == 0


@pytest.mark.parametrize(("n", "g"), [(16, 2), (64, 4), (128, 8)])
def test_it_is_as_good_as_another_implementation(n, g):
    """scipy's, whose weights are copies: the mean of five starts each, within three standard errors."""
    x, weight = vectors(2000, g), torch.arange(2000) % 3 + 1
    copies = x.repeat_interleave(weight, dim=0).numpy()
    ours = torch.tensor([inertia(x, k_means(x, n, drawn(seed), weight), weight) for seed in range(5)])
    theirs = torch.tensor([
        inertia(x, torch.from_numpy(kmeans2(copies, n, iter=50, minit="++", rng=seed)[0]), weight)
        for seed in range(5)])  # fmt: skip
    spread = float((ours.var() + theirs.var()).sqrt()) / 5**0.5
    assert float(ours.mean()) <= float(theirs.mean()) + 3 * spread


def test_it_follows_from_its_seed_and_leaves_everything_else_alone():
    x, weight = vectors(300, 4), torch.rand(300, generator=drawn(2), dtype=torch.float64)
    kept, state = (x.clone(), weight.clone()), torch.get_rng_state()
    first = k_means(x, 80, drawn(3), weight)
    assert torch.equal(first, k_means(x, 80, drawn(3), weight))
    assert not torch.equal(first, k_means(x, 80, drawn(4), weight))
    assert torch.equal(x, kept[0]) and torch.equal(weight, kept[1]) and torch.equal(torch.get_rng_state(), state)


def test_from_a_start_of_its_own_nothing_is_drawn_and_nothing_gets_worse():
    x, start = vectors(300, 3), vectors(16, 3, 1)
    generator = drawn(5)
    state = generator.get_state()
    found = k_means(x, 16, generator, start=start)
    assert torch.equal(generator.get_state(), state) and inertia(x, found) < inertia(x, start)
    assert torch.equal(k_means(x, 16, generator, start=found, tolerance=1e-12, iterations=1), found) or (
        inertia(x, k_means(x, 16, generator, start=found)) < inertia(x, found)
    )


def test_powers_of_two_scale_vectors_and_leave_weights_without_effect():
    x, weight = vectors(300, 4), torch.rand(300, generator=drawn(2), dtype=torch.float64)
    centers = k_means(x, 32, drawn(), weight)
    assert torch.equal(k_means(4 * x, 32, drawn(), weight), 4 * centers)
    assert torch.equal(k_means(x, 32, drawn(), weight * 8), centers)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 4))
def test_vectors_go_to_their_nearest_center_the_first_of_equals(m, n, g):
    x = torch.randint(-2, 3, (m, g), generator=drawn(m)).double()
    centers = torch.randint(-2, 3, (n, g), generator=drawn(n)).double()  # small whole numbers: no rounding at all
    distances = (x[:, None] - centers).square().sum(-1)
    codes, squares = assign(x, centers)
    assert torch.equal(squares, distances.amin(1)) and torch.equal(codes, distances.argmin(1))


@pytest.mark.parametrize(("x", "n", "weight"), [
    (torch.zeros(0, 2), 2, None), (torch.zeros(3), 2, None), (torch.zeros(3, 2), 0, None),
    (torch.zeros(3, 2), 2, torch.ones(2)), (torch.zeros(3, 2), 2, -torch.ones(3)),
])  # fmt: skip
def test_what_makes_no_sense_is_an_error(x, n, weight):
    with pytest.raises(ValueError, match="k-means: expected"):
        k_means(x, n, drawn(), weight)
