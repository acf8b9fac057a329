import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import zhang_2025_order as by
from theory.bounds.pivots import ORDERS
from theory.experiment import Setting


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 2))
@settings(max_examples=40)
def test_no_order_is_below_the_geometric_mean_or_the_best_of_all(seed, n, spread):
    H = by.unequal(n, spread, np.random.default_rng(seed))
    best = by.exhaustive(H)
    assert by.least_lower(H) <= best * (1 + 1e-9)
    for order in ORDERS:
        assert best <= by.pivot_sum(H, order) * (1 + 1e-9)
        assert by.pivot_sum(H, order) <= np.trace(H) * (1 + 1e-9)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-0.99, 0.99))
def test_decreasing_norms_are_best_for_two_channels(a, b, correlation):
    c = correlation * np.sqrt(a * b)
    H = np.array([[a, c], [c, b]])
    assert by.pivot_sum(H, "given") == pytest.approx(a + b - c**2 / b, rel=1e-9)
    assert by.pivot_sum(H, "decreasing") == pytest.approx(by.exhaustive(H), rel=1e-9)


def test_decreasing_norms_are_not_best_for_three():
    """Two large channels alike and a smaller one apart from both: whom the order should part is not in the norms."""
    rng, worse = np.random.default_rng(0), 0
    for _ in range(50):
        H = by.unequal(3, 0.5, rng)
        worse += by.pivot_sum(H, "decreasing") > by.exhaustive(H) * (1 + 1e-6)
    assert worse > 0


def test_orders_matter_only_where_channels_differ():
    H = np.eye(6)
    assert {by.pivot_sum(H, order) for order in ORDERS} == {6.0}
    with pytest.raises(ValueError, match="9 channels have too many orders"):
        by.exhaustive(np.eye(9))


def test_the_experiment_measures_what_pivots_predict():
    points = by.EXPERIMENT.measure(Setting(effort=0.34))
    pairs = [(p.y, q.y) for p in points for q in points if q.series == f"{p.series}: pivots" and q.x == p.x]
    # the mean of 4 x 128 rows of 48 channels: five times sqrt((1/180) sum d^2 / 512) over sum d / 12, at most 5 * 1.8%
    assert len(pairs) == 20 and all(abs(a / b - 1) < 0.09 for a, b in pairs)
    assert "decreasing norm" in by.EXPERIMENT.sentence(points)
