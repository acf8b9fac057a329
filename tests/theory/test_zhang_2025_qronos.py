import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.rounding import Qronos
from theory.bounds import zhang_2025_qronos as qronos
from theory.bounds.instances import rounded_by
from theory.bounds.pivots import ORDERS, factored, targets_missed
from theory.experiment import Setting

STEP = 0.25


def case(seed, n, level, m=40):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((m, n)) @ rng.standard_normal((n, n))
    return rng.standard_normal((4, n)), X, X + level * rng.standard_normal(X.shape)


def by_suite(W, X, Xq, order, damping):
    how = Qronos(order=order, damping=damping, relative_to="mean")
    return rounded_by(how, W, STEP, Xq.T @ Xq / len(X), X.T @ Xq / len(X))


@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.floats(0, 2), st.sampled_from(ORDERS), st.floats(1e-4, 0.3))
@settings(max_examples=80)
def test_the_square_completes_and_the_bound_holds(seed, n, level, order, damping):
    W, X, Xq = case(seed, n, level)
    H = Xq.T @ Xq / len(X)
    Q = by_suite(W, X, Xq, order, damping)
    about = qronos.mismatch(W, X, Xq, order=order, damping=damping)
    ridge = damping * np.diag(H).mean()
    error = ((W @ X.T - Q @ Xq.T) ** 2).sum(1) / len(X)
    missed = targets_missed(about.target - Q, factored(H, order, damping))
    whole = about.lost + (missed**2) @ about.d
    size = ((W @ X.T) ** 2).sum(1).max() / len(X)
    assert error + ridge * ((W - Q) ** 2).sum(1) == pytest.approx(whole, rel=1e-9, abs=1e-9 * size)
    assert (error <= about.upper(STEP) * (1 + 1e-9) + 1e-9 * size).all()
    late = np.delete(np.abs(missed), about.channel, axis=1)
    assert late.size == 0 or late.max() <= STEP / 2 + 1e-9 * np.abs(about.target).max()
    first = about.first - Q[:, about.channel]
    assert np.abs(first).max() <= STEP / 2 + 1e-9 * np.abs(W).max()


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=30)
def test_no_real_weights_are_below_what_is_lost(seed, n):
    W, X, Xq = case(seed, n, 0.7)
    best = np.linalg.lstsq(Xq, X @ W.T, rcond=None)[1] / len(X)
    assert qronos.mismatch(W, X, Xq).lost == pytest.approx(best, rel=1e-8)


def test_matched_inputs_lose_nothing_and_have_the_plain_bound():
    W, X, _ = case(0, 6, 0.0)
    about = qronos.mismatch(W, X, X, damping=0.01)
    assert about.lost == pytest.approx(np.zeros(4), abs=1e-12 * (W**2).sum())
    assert about.target == pytest.approx(W)
    plain = STEP**2 / 4 * factored(X.T @ X / len(X), "decreasing", 0.01).d.sum()
    assert about.upper(STEP) == pytest.approx(np.full(4, plain), rel=1e-9)


def test_correction_helps_where_inputs_differ():
    W, X, Xq = case(1, 16, 2.0, m=80)
    found = [((W @ X.T - qronos.rounded(W, X, Xq, STEP, correct=c) @ Xq.T) ** 2).sum() for c in (True, False)]
    assert found[0] < found[1]


def test_the_experiment_says_what_it_found():
    said = qronos.EXPERIMENT.sentence(qronos.EXPERIMENT.measure(Setting(effort=0.5)))
    assert "least possible 0;" in said  # without a mismatch
