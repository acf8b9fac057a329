import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.experiment import Setting
from theory.grids.one_outlier import EXPERIMENT, zeroed, zeroed_share


def test_one_value_of_a_hundred_takes_all_others_to_zero():
    assert zeroed_share(100.0) == 1 == zeroed(100.0, "tensor", 0)
    assert zeroed(100.0, 32, 0) < 0.1


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 200), st.integers(0, 1000))
def test_the_share_is_the_closed_form(outlier, seed):
    p = zeroed_share(outlier)
    # of 4,095 samples; zero is a level, so that only their own range, short of 1 by a few thousandths, is off
    assert zeroed(outlier, "tensor", seed) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4095) + 2e-3)


def test_all_go_at_four_bits_from_29_on():
    assert zeroed_share(28.9) < 1 == zeroed_share(29.0)
    assert zeroed_share(100.0, bits=8) == pytest.approx(101 / 510)


def test_groups_leave_it_to_the_outliers_own():
    found = [zeroed(100.0, group, 0) for group in (32, 128)]
    own = 1 / 15  # what their own range rounds to zero
    for share, group in zip(found, (32, 128), strict=True):
        expected = (group - 1) / 4095 * (1 - own) + own
        assert share == pytest.approx(expected, abs=4 * np.sqrt(own / 4095))


def test_the_sentence_follows_the_points():
    points = EXPERIMENT.measure(Setting(effort=0.1))
    assert "100.0% with one scale" in EXPERIMENT.sentence(points)
    fewer = [p for p in points if p.x in (1.0, 100.0)]
    assert "all of them from 100 on" in EXPERIMENT.sentence(fewer)


def test_a_small_outlier_is_named():
    with pytest.raises(ValueError, match=r"outlier 0\.5: expected at least 1"):
        zeroed_share(0.5)
