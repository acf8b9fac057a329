import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import lifar_2026_watersic as sic
from theory.bounds.instances import haar, power_law
from theory.experiment import Setting
from theory.rate_distortion import ECSQ_GAP_BITS_HIGHRATE


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_unevenness_is_not_negative_and_knows_no_unit(values, unit):
    found = sic.unevenness_bits(np.array(values))
    assert found >= -1e-12
    assert sic.unevenness_bits(unit * np.array(values)) == pytest.approx(found, abs=1e-9)
    assert sic.unevenness_bits(np.full(3, unit)) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 16), st.floats(0, 3))
@settings(max_examples=80)
def test_feedback_is_between_the_limit_and_rounding_alone(seed, n, exponent):
    rng = np.random.default_rng(seed)
    H = power_law(n, exponent, rng, block=4)
    low, middle, high = sic.watersic_gap_highrate(), sic.feedback_gap_highrate(H), sic.nearest_gap_highrate(H)
    assert low - 1e-9 <= middle <= high + 1e-9  # one determinant, and sum d <= tr H
    turn = haar(n, rng)
    turned = turn @ H @ turn.T
    assert sic.nearest_gap_highrate((turned + turned.T) / 2) == pytest.approx(high, abs=1e-7)


@pytest.mark.parametrize("exponent, feedback, nearest", [(0.5, 0.003, 0.090), (1.0, 0.030, 0.435), (1.5, 0.126, 1.089),
                                                         (2.0, 0.269, 1.977)])  # fmt: skip
def test_gaps_of_power_laws_are_those_computed_before(exponent, feedback, nearest):
    """64 channels in random bases: figures of one basis, computed independently; bases differ by about a tenth."""
    rng = np.random.default_rng(0)
    found = [sic.feedback_gap_highrate(power_law(64, exponent, rng)) for _ in range(20)]
    H = power_law(64, exponent, rng)
    assert sic.nearest_gap_highrate(H) - ECSQ_GAP_BITS_HIGHRATE == pytest.approx(nearest, abs=6e-4)
    assert (
        min(found) < feedback + ECSQ_GAP_BITS_HIGHRATE + 5e-4 and max(found) > feedback + ECSQ_GAP_BITS_HIGHRATE - 5e-4
    )


@pytest.mark.parametrize("feedback, pivots", [(False, False), (True, False), (True, True)])
def test_measured_gaps_meet_the_closed_forms_at_high_rates(feedback, pivots):
    rng, rows, n = np.random.default_rng(1), 4096, 32
    H = power_law(n, 1.0, rng, block=8)
    rate, found = sic.rate_and_gap(rng.standard_normal((rows, n)), H, 1 / 16, feedback=feedback, pivots=pivots)
    expected = (sic.watersic_gap_highrate() if pivots else
                sic.feedback_gap_highrate(H) if feedback else sic.nearest_gap_highrate(H))  # fmt: skip
    assert rate > 5
    # sampled: the sample's variance moves the entropy by up to 4 sqrt(1 / (2 rows n)) / ln 2 bits; the error's share is
    # less, as misses are bounded. An empirical entropy is low by (cells - 1) / (2 ln 2) per stream over its codes.
    sampled = 4 / np.sqrt(2 * rows * n) / np.log(2)
    cells = 2 * 5 * 16
    biased = cells / (2 * np.log(2) * rows * (1 if pivots else n))
    ladder = np.log(2) / 192 if pivots else 0.0
    assert expected - sampled - biased <= found <= expected + sampled + 2 * ladder + 1e-3


def test_the_experiments_say_what_they_found():
    spectrum, rate = sic.EXPERIMENTS
    points = spectrum.measure(Setting(effort=0.07))
    assert "WaterSIC" in spectrum.sentence(points)
    said = rate.sentence(rate.measure(Setting(effort=0.13)))
    assert "nearest" in said and "bits" in said
