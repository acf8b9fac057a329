import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from theory.bounds import zhang_2023_spfq as spfq
from theory.bounds.instances import dispersed
from theory.bounds.lybrand_2021_gpfq import path_following
from theory.bounds.zhang_2025_supnorm import alike
from theory.experiment import Setting

STEP = 0.25


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12))
@settings(max_examples=80)
def test_the_covariance_is_that_of_the_unrolled_recursion_and_below_the_largest_column(seed, m, n):
    X = np.random.default_rng(seed).standard_normal((m, n))
    V, columns = spfq.covariance(X), []
    for t in range(n):
        c = X[:, t]
        for later in range(t + 1, n):
            x = X[:, later]
            c = c - x * (x @ c) / (x @ x)
        columns.append(c)
    C = np.stack(columns, axis=1)
    largest = (X**2).sum(0).max()
    assert V == pytest.approx(C @ C.T, rel=1e-9, abs=1e-9 * largest)
    assert np.linalg.eigvalsh(V).max() <= largest * (1 + 1e-9)
    assert spfq.sup_norm_upper(X, STEP, 0.1) <= spfq.sup_norm_simple_upper(X, STEP, 0.1) * (1 + 1e-9)


@pytest.mark.parametrize("near", [True, False])
def test_errors_have_the_covariance_over_dispersed_weights(near):
    rng, rows, m, n = np.random.default_rng(1), 20_000, 4, 9
    X = alike(m, n, rng) if near else rng.standard_normal((m, n))
    W = dispersed(rows, n, STEP, rng)
    E = (W - path_following(W, X, spfq.stochastic(STEP, rng))) @ X.T
    V = spfq.covariance(X)
    products = E[:, :, None] * E[:, None, :]
    sigma = products.std(0) / rows**0.5
    assert np.abs(products.mean(0) - STEP**2 / 6 * V).max() <= 5 * sigma.max()
    assert np.abs(E.mean(0)).max() <= 5 * (E.std(0) / rows**0.5).max()


@pytest.mark.parametrize("near", [True, False])
def test_the_guarantee_holds_as_often_as_it_says(near):
    rng, rows, m, n, eta = np.random.default_rng(2), 3000, 6, 20, 0.1
    X = alike(m, n, rng) if near else rng.standard_normal((m, n))
    W = np.tile(STEP * (0.5 + rng.integers(-9, 9, n)), (rows, 1))  # the largest variance to begin with
    largest = np.abs((W - path_following(W, X, spfq.stochastic(STEP, rng))) @ X.T).max(1)
    assert (largest > spfq.sup_norm_upper(X, STEP, eta)).sum() <= binom.isf(1e-6, rows, eta)
    assert largest.max() > spfq.sup_norm_upper(X, STEP, eta) / 3  # not out of all reach


def test_it_is_right_in_the_mean():
    x = np.full(20_000, 0.3)
    rounded = spfq.stochastic(1.0, np.random.default_rng(0))(x)
    assert set(rounded) == {0.0, 1.0}
    assert rounded.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(x)))
    with pytest.raises(ValueError, match="eta 1"):
        spfq.sup_norm_upper(np.eye(2), 1.0, 1)


def test_the_experiment_says_what_it_found():
    said = spfq.EXPERIMENT.sentence(spfq.EXPERIMENT.measure(Setting(effort=0.1)))
    assert "nearly parallel inputs: the median goes from" in said
