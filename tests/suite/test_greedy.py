"""DuQuant: orthogonal steps, the best prefix, channels dealt in zigzag; by every definition's plain twin."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.statistics import statistics_of
from suite.transforms import DualRotation, SmoothScale, Zigzag
from suite.transforms.greedy import draws, even_row, random_orthogonal, rotation, search, swapped
from suite.transforms.maps import GreedyRotation, Permutation
from suite.transforms.zigzag import block_of, zigzag

EPS = 2.0**-52
seeds = st.integers(0, 10**6)
exchanges = pytest.mark.parametrize("exchange", ["column", "release"])


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outliers(seed, rows, n):
    """Inputs with a few large channels and one massive value."""
    X = gaussian(seed, rows, n) * gaussian(seed + 1, n).mul(1.5).exp()
    X[seed % rows, seed % n] = 100.0
    return X


def assert_orthogonal(R, limit):
    assert float((R @ R.T - torch.eye(len(R), dtype=R.dtype)).abs().max()) <= limit


def even_row_of_the_release(n):
    """The plane rotations that the release multiplies up, one after the other (Hsu1023/DuQuant, get_rot.py)."""
    R = torch.eye(n, dtype=torch.float64)
    for i in range(n - 1):
        cosine, sine = (i + 2) ** -0.5, ((i + 1) / (i + 2)) ** 0.5
        plane = torch.eye(n, dtype=torch.float64)
        plane[i, i] = plane[i + 1, i + 1] = cosine
        plane[i, i + 1], plane[i + 1, i] = -sine, sine
        R = plane @ R
    return swapped(R, n - 1)


@pytest.mark.parametrize("n", [1, 2, 3, 43, 128])
def test_the_first_row_is_even_and_the_matrix_that_of_the_release(n):
    R = even_row(n)
    assert_orthogonal(R, 4 * n * EPS)
    assert torch.equal(R[0], torch.full((n,), n**-0.5, dtype=torch.float64))
    torch.testing.assert_close(R, even_row_of_the_release(n), rtol=0, atol=4 * n * EPS)


@given(st.integers(1, 40), seeds)
def test_random_orthogonal_matrices_are_orthogonal_and_follow_from_the_generator(n, seed):
    Q, again = (random_orthogonal(n, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(Q, again)
    assert_orthogonal(Q, 32 * n * EPS)  # Householder's n reflections, each good to a few roundings


def test_random_orthogonal_matrices_are_uniform():
    """The trace of a Haar matrix has mean 0 and variance 1 for any n; without the signs its mean is far from 0."""
    generator, n, draws_ = torch.Generator().manual_seed(0), 8, 2000
    traces = torch.stack([random_orthogonal(n, generator).trace() for _ in range(draws_)])
    assert abs(float(traces.mean())) <= 4 / draws_**0.5
    assert abs(float(traces.var()) - 1) <= 4 * (2 / draws_) ** 0.5  # four standard errors, were it Gaussian


@exchanges
def test_a_step_keeps_the_first_column_of_the_even_row_and_draws_the_others(exchange):
    steps = draws(16, 3, exchange)
    first, second = next(steps), next(steps)
    for drawn in (first, second):
        assert_orthogonal(drawn, 1e-13)
        assert torch.equal(drawn[:, 0], even_row(16)[:, 0])  # sums with zeros
    assert torch.equal(first, second) == (exchange == "release")


@exchanges
@settings(deadline=None, max_examples=30)
@given(block=st.integers(1, 24), blocks=st.integers(1, 3), seed=seeds)
def test_the_search_is_its_plain_twin_step_by_step(exchange, block, blocks, seed):
    X = outliers(seed, 7, block * blocks)
    found = search(X, block, 12, seed, exchange)
    x, chosen, peaks, matrices = X.reshape(-1, block), [], [], draws(block, seed, exchange)
    for _ in range(12 if block > 1 else 0):
        peaks.append(float(x.max() - x.min()))
        place = int(x.abs().flatten().argmax())
        chosen.append(place % block if exchange == "column" else place // block % block)
        E = torch.eye(block, dtype=torch.float64)
        E[[0, chosen[-1]]] = E[[chosen[-1], 0]]
        x = x @ (E @ next(matrices) @ E)
    peaks.append(float(x.max() - x.min()))
    best = min(range(len(peaks)), key=lambda i: peaks[i])
    assert found == tuple(chosen[:best])
    m = GreedyRotation(n_in=block * blocks, block=block, seed=seed, exchanges=found, exchange=exchange)
    after = m.forward(X)
    error = 64 * (1 + len(found)) * block * EPS * float(X.norm(dim=1).max())
    assert abs(float(after.max() - after.min()) - min(peaks)) <= error
    assert float(after.max() - after.min()) <= float(X.max() - X.min()) + error  # no step at all is a prefix too


@exchanges
def test_many_steps_stay_orthogonal(exchange):
    R = rotation(128, 5, tuple(range(128)) * 2, exchange)
    assert_orthogonal(R, 1e-12)  # 256 products, each good to some 128 roundings, which add up like a walk


@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_zigzag_deals_each_channel_once_and_there_and_back(block, blocks, seed):
    sizes = gaussian(seed, block * blocks).abs()
    m = zigzag(sizes, block)
    assert sorted(m.order) == list(range(block * blocks))
    dealt: list[list[int]] = [[] for _ in range(blocks)]
    for i, channel in enumerate(sizes.argsort(descending=True, stable=True).tolist()):
        turn, place = divmod(i, blocks)
        dealt[place if turn % 2 == 0 else blocks - 1 - place].append(channel)
    assert list(m.order) == [channel for one in dealt for channel in one]


@given(st.integers(1, 12), st.integers(2, 12), seeds)
def test_blocks_have_as_much_to_bear(block, blocks, seed):
    """Sums of two blocks differ by no more than the largest and the smallest channel do.

    Dealt turn by turn, a block's lead of one turn is taken back by the next: differences alternate in sign, and those
    of all turns together span no more than the range of the sizes.
    """
    sizes = gaussian(seed, block * blocks).abs()
    sums = sizes[list(zigzag(sizes, block).order)].reshape(blocks, block).sum(1)
    assert float(sums.max() - sums.min()) <= float(sizes.max() - sizes.min()) * (1 + 2 * block * EPS)


def test_equal_channels_are_dealt_as_they_come():
    assert zigzag(torch.ones(6), 3).order == (0, 3, 4, 1, 2, 5)


@pytest.mark.parametrize(
    ("n", "most", "block"), [(768, 128, 128), (172, 128, 86), (64, 128, 64), (43, 20, 1), (1, 8, 1)]
)
def test_blocks_divide_the_channels(n, most, block):
    assert block_of(n, most) == block


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([24, 43, 60]), st.integers(0, 2), st.sampled_from(["column", "release"]), seeds)
def test_dual_rotation_turns_deals_and_turns_again(n, permutations, exchange, seed):
    X = outliers(seed, 9, n)
    transform = DualRotation(block=16, steps=10, permutations=permutations, exchange=exchange)
    maps, again = (transform.fit([gaussian(0, 4, n)], statistics_of(X), torch.Generator().manual_seed(seed))
                   for _ in range(2))  # fmt: skip
    assert maps == again
    kinds = [GreedyRotation, *[Permutation, GreedyRotation] * permutations]
    assert [type(m) for m in maps] == kinds
    x, peaks = X.float(), []
    for m in maps:
        assert m.n_in == m.n_out == n and getattr(m, "block", 16) <= 16
        x = m.forward(x)
        peaks.append(float(x.max() - x.min()))
    assert all(later <= earlier * (1 + 2.0**-16) for earlier, later in pairwise(peaks))


def test_zigzag_alone_looks_at_the_largest_value_of_all_tokens():
    X = gaussian(0, 600, 8).abs().clamp(max=5)
    X[599] = torch.arange(8) + 10.0
    (m,) = Zigzag(block=4).fit([], statistics_of(X), torch.Generator())
    assert m.order == (7, 4, 3, 0, 6, 5, 2, 1)


def test_rotation_after_smoothing_lowers_the_peak_of_heavy_inputs():
    """What the method is for: on inputs with large channels the peak falls to a fraction."""
    X = outliers(3, 512, 256)
    statistics, W = statistics_of(X), gaussian(9, 32, 256)
    s = SmoothScale(alpha=0.6).fit([W], statistics, lambda s: 0.0)
    there = statistics.scaled(s)
    x = there.sample
    for m in DualRotation(steps=32).fit([W * s], there, torch.Generator().manual_seed(0)):
        x = m.forward(x)
    assert float(x.max() - x.min()) < 0.6 * float(there.sample.max() - there.sample.min())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Zigzag(block=0), "block 0: expected at least 1"),
        (lambda: DualRotation(block=0), "block 0: expected at least 1"),
        (lambda: DualRotation(steps=0), "steps 0: expected at least 1"),
        (lambda: DualRotation(permutations=-1), "permutations -1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
