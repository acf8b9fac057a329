import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.statistics import SAMPLE, Accumulator, statistics_of

EPS = 2.0**-52


def inputs(seed, tokens, n_in=5):
    return torch.randn(tokens, n_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_are_what_they_say():
    X = inputs(0, 40)
    found = statistics_of(X)
    torch.testing.assert_close(found.gram, sum(torch.outer(x, x) for x in X) / 40, rtol=0, atol=40 * 16 * EPS)
    torch.testing.assert_close(found.mean_abs, X.abs().mean(0), rtol=40 * EPS, atol=0)
    assert torch.equal(found.max_abs, X.abs().amax(0))
    assert torch.equal(found.sample, X.float())
    assert found.tokens == 40


@settings(max_examples=50)
@given(st.integers(0, 99), st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_parts_give_what_the_whole_gives(seed, sizes):
    X = inputs(seed, sum(sizes))
    accumulator = Accumulator(X.shape[1], len(X))
    for part in X.split(sizes):
        accumulator.add(part)
    parts, whole = accumulator.finish(), statistics_of(X)
    # sums of n terms of size at most max|x|^2, in another order
    largest = float(X.abs().max())
    torch.testing.assert_close(parts.gram, whole.gram, rtol=0, atol=len(X) * EPS * largest**2)
    torch.testing.assert_close(parts.mean_abs, whole.mean_abs, rtol=0, atol=len(X) * EPS * largest)
    assert torch.equal(parts.max_abs, whole.max_abs)
    assert torch.equal(parts.sample, whole.sample)
    assert parts.tokens == whole.tokens


def test_rows_and_positions_are_both_tokens():
    X = inputs(1, 12)
    accumulator = Accumulator(5, 12)
    accumulator.add(X.reshape(3, 4, 5))
    assert torch.equal(accumulator.finish().gram, statistics_of(X).gram)


@pytest.mark.parametrize("tokens", [1, 2, SAMPLE - 1, SAMPLE, SAMPLE + 1, 5000])
def test_sampled_rows_are_spread_evenly_from_the_first_to_the_last(tokens):
    rows = statistics_of(torch.arange(tokens, dtype=torch.float64)[:, None]).sample[:, 0].double()
    assert len(rows) == min(SAMPLE, tokens)
    ideal = torch.linspace(0, tokens - 1, len(rows), dtype=torch.float64)
    assert float((rows - ideal).abs().max()) <= 0.5 + tokens * 2.0**-24  # to the nearest row, found in float32
    assert rows[0] == 0 and rows[-1] == tokens - 1
    assert tokens == 1 or bool((rows.diff() > 0).all())


def test_scaled_statistics_are_those_of_scaled_inputs():
    X, s = inputs(2, 30), torch.tensor([0.25, 1.0, 3.0, 7.0, 100.0], dtype=torch.float64)
    found, direct = statistics_of(X).scaled(s), statistics_of(X / s)
    torch.testing.assert_close(found.gram, direct.gram, rtol=0, atol=30 * 16 * 16 * EPS)
    torch.testing.assert_close(found.mean_abs, direct.mean_abs, rtol=60 * EPS, atol=0)
    assert torch.equal(found.max_abs, direct.max_abs)
    torch.testing.assert_close(found.sample, direct.sample, rtol=2.0**-22, atol=0)
    assert found.tokens == direct.tokens


@settings(max_examples=30)
@given(st.lists(st.integers(-8, 8), min_size=5, max_size=5))
def test_scaling_by_powers_of_two_and_back_changes_nothing(exponents):
    s = torch.tensor(exponents, dtype=torch.float64).exp2()
    found = statistics_of(inputs(3, 20))
    back = found.scaled(s).scaled(1 / s)
    for name in ("gram", "mean_abs", "max_abs", "sample"):
        assert torch.equal(getattr(back, name), getattr(found, name))
