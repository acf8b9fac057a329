import numpy as np
import pytest

from theory.experiment import Setting
from theory.replication import interval, replicated, seeds_of


def test_nineteen_intervals_of_twenty_hold_the_mean():
    rng, n = np.random.default_rng(0), 4000
    held = [low <= 1 <= high for _, low, high in (interval(rng.normal(1, 2, 3)) for _ in range(n))]
    assert np.mean(held) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / n))


def test_one_value_and_equal_values_are_their_own_interval():
    assert interval([2.0]) == (2.0, 2.0, 2.0) == interval([2.0, 2.0])


def test_seeds_follow_the_setting():
    assert list(seeds_of(Setting(seed=7))) == [7, 8, 9]
    assert len(seeds_of(Setting(effort=10), 5)) == 50 and len(seeds_of(Setting(effort=0.01), 5)) == 5


def test_points_have_their_interval():
    point = replicated("a", 1, [1.0, 2.0, 3.0])
    assert (point.series, point.x, point.y, point.predicted) == ("a", 1.0, 2.0, False)
    assert point.low is not None and point.high is not None and point.low < 2 < point.high


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0]]])
def test_what_has_no_mean_is_named(bad):
    with pytest.raises(ValueError, match="expected finite values in a vector"):
        interval(bad)
