import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.rounding.feedback import factor
from theory.bounds.instances import Endless, adversarial, dispersed, haar, power_law, rounded
from theory.bounds.pivots import ORDERS, factored, permutation, targets_missed

seeds, widths = st.integers(0, 2**32 - 1), st.integers(1, 12)


def gram(seed, n, tokens=None):
    """H = X^T X / tokens of correlated inputs; singular where there are fewer tokens than channels."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((tokens or 2 * n + 2, n)) @ rng.standard_normal((n, n))
    return X, X.T @ X / len(X)


@given(seeds, widths, st.sampled_from(ORDERS), st.floats(0, 0.5))
def test_pivots_are_what_later_channels_do_not_explain(seed, n, order, damping):
    X, H = gram(seed, n)
    found = factored(H, order, damping)
    ridge = damping * np.diag(H).mean()
    stacked = np.concatenate([X, np.sqrt(len(X) * ridge) * np.eye(n)])[:, found.perm]
    for j in range(n):
        rest, column = stacked[:, j + 1 :], stacked[:, j]
        left = column - rest @ np.linalg.lstsq(rest, column, rcond=None)[0] if j + 1 < n else column
        # least squares and Cholesky both lose half the digits that the condition number takes
        assert found.d[j] == pytest.approx(left @ left / len(X), rel=1e-6, abs=1e-12 * np.trace(H))
    slack = 1e-9 * n
    assert np.log(found.d).sum() == pytest.approx(np.linalg.slogdet(H + ridge * np.eye(n))[1], abs=slack * 10)
    assert found.d.sum() <= (np.trace(H) + n * ridge) * (1 + slack)


@given(seeds, widths, st.sampled_from(ORDERS), st.sampled_from([0.0, 0.01, 0.3]))
def test_the_factor_is_the_suites(seed, n, order, damping):
    H = gram(seed, n)[1]
    R, perm, fallbacks = factor(torch.from_numpy(H.copy()), order, damping)
    found = factored(H, order, damping)
    assert not fallbacks
    assert found.perm.tolist() == perm.tolist()
    assert found.R == pytest.approx(R.numpy(), rel=1e-9, abs=1e-9 * np.sqrt(np.trace(H)))


def test_fewer_tokens_than_channels_need_damping():
    H = gram(3, 8, tokens=4)[1]
    with pytest.raises(ValueError, match="not positive definite with damping 0"):
        factored(H - 1e-9 * np.eye(8))
    assert factored(H, damping=0.01).d.min() > 0
    assert factored(np.zeros((2, 2)), damping=0.5).d == pytest.approx([0.5, 0.5], rel=1e-15)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"square Gram matrix, found shape \(2, 3\)"):
        factored(np.ones((2, 3)))
    with pytest.raises(ValueError, match="order 'up'"):
        permutation(np.eye(2), "up")


@given(seeds, widths, st.sampled_from(ORDERS))
def test_misses_follow_from_the_outcome(seed, n, order):
    H = gram(seed, n)[1]
    W = dispersed(3, n, 0.5, np.random.default_rng(seed))
    E = W - rounded(W, H, 0.5, order=order, damping=0.01)
    missed = targets_missed(E, factored(H, order, 0.01))
    # what is rounded is a sum of n terms: eps n times the largest weight and the largest factor
    unit = np.abs(factored(H, order, 0.01).R / np.diag(factored(H, order, 0.01).R)).max()
    assert np.abs(missed).max() <= 0.25 + 2e-16 * n * n * (np.abs(W).max() + np.abs(E).max()) * (1 + unit)


def test_instances_are_what_they_say():
    rng = np.random.default_rng(0)
    H = power_law(16, 1.5, rng)
    values = np.linalg.eigvalsh(H)[::-1]
    assert values / values[0] == pytest.approx(np.arange(1, 17) ** -1.5)
    assert np.trace(H) == pytest.approx(16)
    blocks = power_law(16, 1.5, rng, block=4)
    assert not blocks[:4, 4:].any()
    assert np.linalg.eigvalsh(blocks)[::-1] == pytest.approx(values)
    Q = haar(9, rng)
    assert Q @ Q.T == pytest.approx(np.eye(9), abs=1e-14)
    assert adversarial(5, 1.0, rng).shape == (8, 5)
    assert np.array_equal(rounded(np.array([[0.6, -1.4, 250.0]]), None, 0.5), [[0.5, -1.5, 250.0]])


def test_steps_by_pivots_are_as_the_ladder_says():
    H = power_law(8, 2.0, np.random.default_rng(1))
    fitted = Endless(0.25, pivots=True).fit(torch.zeros(2, 8, dtype=torch.float64), torch.from_numpy(H))
    steps = fitted.steps.numpy()
    assert np.log2(steps).mean() == pytest.approx(-2, abs=1e-6)  # a float32 step
    spread = np.log2(steps) + np.log2(factored(H).d) / 2
    assert spread.max() - spread.min() <= 0.25 + 1e-9  # a quarter octave
