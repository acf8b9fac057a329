import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from theory.bounds import zhang_2025_supnorm as sup
from theory.bounds.instances import rounded
from theory.bounds.pivots import ORDERS, factored, targets_missed
from theory.experiment import Setting

STEP = 0.25


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from(ORDERS), st.floats(1e-3, 0.5))
@settings(max_examples=60)
def test_errors_are_responses_times_misses(seed, n, order, damping):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((7, n)) @ rng.standard_normal((n, n))
    H = X.T @ X / len(X)
    W = STEP * rng.uniform(-8, 8, (3, n))
    E = W - rounded(W, H, STEP, order=order, damping=damping)
    missed = targets_missed(E, factored(H, order, damping))
    found = missed @ sup.responses(X, order=order, damping=damping).T
    assert found == pytest.approx(E @ X.T, rel=1e-9, abs=1e-9 * np.abs(X).max() * STEP)
    assert np.abs(E @ X.T).max() <= sup.nearest_upper(sup.responses(X, order=order, damping=damping), STEP) * (1 + 1e-9)


def test_responses_are_orthogonal_where_all_channels_can_be_told_apart():
    X = np.random.default_rng(0).standard_normal((20, 6)) @ np.diag([3.0, 1, 1, 2, 1, 1])
    V = sup.responses(X)
    assert V.T @ V / 20 == pytest.approx(np.diag(factored(X.T @ X / 20).d), abs=1e-12)
    assert sup.responses(X, feedback=False) == pytest.approx(X)


@pytest.mark.parametrize("kind", ["random", "alike", "one channel"])
@pytest.mark.parametrize("feedback", [True, False])
def test_the_guarantee_holds_as_often_as_it_says(kind, feedback):
    """Of `draws` at most so many go beyond as a probability of eta allows, but for one case in a million."""
    rng, draws, eta, m, n = np.random.default_rng(1), 2000, 0.1, 24, 12
    X = sup.alike(m, n, rng) if kind == "alike" else rng.standard_normal((m, n))
    X[:, 1:] *= 1.0 if kind != "one channel" else 1e-3  # a two-point error: as far as a miss goes
    H = X.T @ X / m + 1e-12 * np.eye(n)
    W = np.full((draws, n), 0.5 * STEP)
    E = W - rounded(W, H if feedback else None, STEP, stochastic=True, seed=3)
    beyond = (np.abs(E @ X.T).max(1) > sup.stochastic_upper(sup.responses(X, feedback=feedback), STEP, eta)).sum()
    assert beyond <= binom.isf(1e-6, draws, eta)


def test_it_could_fail():
    """With a probability of almost one the guarantee is below what is typical, so that it is exceeded."""
    rng = np.random.default_rng(2)
    X = sup.alike(8, 16, rng)
    W = np.full((500, 16), 0.5 * STEP)
    largest = np.abs((W - rounded(W, None, STEP, stochastic=True)) @ X.T).max(1)
    assert (largest > sup.stochastic_upper(X, STEP, 0.999) / 3).mean() > 0.3


def test_adversarial_weights_are_what_memoryless_nearest_rounding_cannot_take():
    X = sup.alike(16, 64, np.random.default_rng(4))
    W = np.full((1, 64), 0.4999 * STEP)
    error = np.abs((W - rounded(W, None, STEP)) @ X.T).max()
    assert error == pytest.approx(0.9998 * sup.nearest_upper(X, STEP), rel=1e-6)  # all misses of one sign: the bound
    # 64 halves of a step against the root of 64 steps times sqrt(ln(640) / 2) = 1.80: 2.2 times
    assert error > 2 * sup.stochastic_upper(X, STEP, 0.05)


def test_bad_probabilities_are_refused():
    for eta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="expected between 0 and 1"):
            sup.stochastic_upper(np.eye(2), 1.0, eta)


def test_the_sentence_names_the_smaller_one():
    points = sup.EXPERIMENT.measure(Setting(effort=0.08))
    said = sup.EXPERIMENT.sentence(points)
    assert "adversarial without feedback: stochastic is smaller" in said
    swapped = [p.__class__(series=p.series.replace("nearest", "?").replace("stochastic", "nearest").replace("?",
               "stochastic") if "at most" not in p.series else p.series, x=p.x, y=p.y, predicted=p.predicted)
               for p in points]  # fmt: skip
    assert "adversarial without feedback: nearest is smaller" in sup.EXPERIMENT.sentence(swapped)
