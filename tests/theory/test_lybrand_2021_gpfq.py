import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import lybrand_2021_gpfq as gpfq
from theory.bounds import zhang_2023_spfq as spfq
from theory.bounds.instances import adversarial, dispersed
from theory.experiment import Setting

STEP = 0.25


def inputs(rng, m, n):
    """X (m, n) of one of four kinds."""
    X = rng.standard_normal((m, n))
    kind = rng.integers(4)
    if kind == 1:
        X = 1 + 1e-3 * X
    if kind == 2:
        X *= 10.0 ** rng.uniform(-3, 3, n)
    if kind == 3:
        X[:, rng.integers(n)] = 0
    return X


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=250)
def test_the_bound_holds_for_every_input_and_weight(seed, m, n):
    rng = np.random.default_rng(seed)
    X = inputs(rng, m, n)
    W = np.concatenate([adversarial(n, STEP, rng), dispersed(4, n, STEP, rng)])
    Q = gpfq.path_following(W, X, gpfq.nearest(STEP))
    error = (((W - Q) @ X.T) ** 2).sum(1)
    # the state is a sum of n columns, right to n eps of what goes in
    off = 4 * n * np.finfo(float).eps * np.abs(W).max(1) * np.abs(X).sum()
    upper = gpfq.squared_error_upper(X, STEP)
    assert (error <= upper * (1 + 1e-9) + 2 * np.sqrt(upper) * off + off**2).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=60)
def test_the_state_is_the_error_and_splits_in_orthogonal_parts(seed, m, n):
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((m, n)), dispersed(2, n, STEP, rng)
    Q = gpfq.path_following(W, X, gpfq.nearest(STEP))
    u = np.zeros((2, m))
    for t in range(n):
        x = X[:, t]
        before = u @ x / (x @ x)
        missed = W[:, t] + before - Q[:, t]
        assert np.abs(missed).max() <= STEP / 2 * (1 + 1e-9)
        u = u - np.outer(before, x) + np.outer(missed, x)
        assert u == pytest.approx((W - Q)[:, : t + 1] @ X[:, : t + 1].T, rel=1e-9, abs=1e-9 * np.abs(W).max() * m)


@pytest.mark.parametrize("tokens, n", [(1, 6), (4, 3), (4, 30), (12, 40)])
@pytest.mark.parametrize("stochastic, constant", [(False, 1 / 12), (True, 1 / 6)])
def test_gaussian_inputs_and_dispersed_weights_meet_the_closed_form(tokens, n, stochastic, constant):
    rng, draws = np.random.default_rng(3), 600
    errors = []
    for _ in range(draws):
        X, W = rng.standard_normal((tokens, n)), dispersed(1, n, STEP, rng)
        pick = spfq.stochastic(STEP, rng) if stochastic else gpfq.nearest(STEP)
        errors.append((((W - gpfq.path_following(W, X, pick)) @ X.T) ** 2).sum())
    sigma = np.std(errors, ddof=1) / draws**0.5
    assert np.mean(errors) == pytest.approx(gpfq.gaussian_error(constant, STEP, tokens, n), abs=4 * sigma)


def test_any_weights_on_gaussian_inputs_stay_below_the_mean_bound():
    rng, draws, tokens, n = np.random.default_rng(4), 300, 8, 64
    W = adversarial(n, STEP, rng)
    errors = []
    for _ in range(draws):
        X = rng.standard_normal((tokens, n))
        errors.append((((W - gpfq.path_following(W, X, gpfq.nearest(STEP))) @ X.T) ** 2).sum(1))
    mean, sigma = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1) / draws**0.5
    assert (mean <= gpfq.gaussian_error(1 / 4, STEP, tokens, n) + 4 * sigma).all()


def test_mismatched_inputs_are_followed():
    """One weight of 1, inputs half as large in the quantized model: two of them make up for it."""
    X, Xq, W = np.full((3, 1), 2.0), np.full((3, 1), 1.0), np.array([[1.0]])
    assert gpfq.path_following(W, X, gpfq.nearest(0.5), Xq).tolist() == [[2.0]]


def test_the_experiment_says_what_it_found():
    said = gpfq.EXPERIMENT.sentence(gpfq.EXPERIMENT.measure(Setting(effort=0.1)))
    assert "GPFQ -" in said and "SPFQ -" in said
