import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from theory.blau_2019_perception import (
    EXPERIMENT,
    dithered_rate,
    perception_distortion,
    sampled,
    scalar_distortion,
    squared_wasserstein,
    step_of,
)
from theory.experiment import Setting
from theory.rate_distortion import ecsq_point, gaussian_distortion

rates, perceptions = st.floats(0.01, 10), st.floats(0, 2)


@given(rates)
def test_perfect_perception_costs_at_most_a_factor_of_two(rate):
    perfect, least = perception_distortion(rate, 0), gaussian_distortion(rate)
    assert least <= perfect <= 2 * least
    # 2 (1 - rho) cancels, so that its absolute error is that of 1
    assert perfect == pytest.approx(2 * (1 - np.sqrt(1 - 4.0**-rate)), abs=1e-15)


def test_the_factor_is_two_at_rate_zero_and_one_at_high_rate():
    assert perception_distortion(0, 0) == 2
    assert perception_distortion(8, 0) * 4.0**8 == pytest.approx(1 + 4.0**-8 / 4, abs=1e-9)  # 2 (1 - rho) in a series


@given(rates, perceptions, perceptions)
def test_distortion_falls_in_both_and_is_convex_in_perception(rate, P, other):
    low, high = sorted((P, other))
    assert perception_distortion(rate, high) <= perception_distortion(rate, low)
    assert perception_distortion(rate + 0.1, P) <= perception_distortion(rate, P)
    middle = perception_distortion(rate, (P + other) / 2)
    assert middle <= (perception_distortion(rate, P) + perception_distortion(rate, other)) / 2 + 1e-15
    assert perception_distortion(rate, 1) == gaussian_distortion(rate)


@given(rates, perceptions, st.floats(0, 2))
def test_no_jointly_gaussian_pair_is_better(rate, P, s):
    """Any deviation s whose distribution is as near as P says."""
    if (1 - s) ** 2 <= P:
        rho = np.sqrt(1 - 4.0**-rate)
        assert perception_distortion(rate, P) <= 1 - 2 * rho * s + s**2 + 1e-12


def test_samples_of_a_pair_have_the_distance_and_the_error():
    rng, n, rate, P = np.random.default_rng(0), 400_000, 1.0, 0.01
    rho, s = np.sqrt(0.75), 0.9  # 1 - sqrt P, more than rho
    x = rng.standard_normal(n)
    y = s * (rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n))
    errors = (x - y) ** 2
    assert errors.mean() == pytest.approx(perception_distortion(rate, P), abs=4 * errors.std() / np.sqrt(n))
    # W2 = |1 - s| for deviations, of which the sample's is off by s / sqrt(2 n)
    assert np.sqrt(squared_wasserstein(y)) == pytest.approx(0.1, abs=4 * s / np.sqrt(2 * n) + 1e-3)


@pytest.mark.parametrize("rate", [0.5, 2.0])
@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_a_scalar_quantizer_lies_on_its_line(rate, kept):
    n = 200_000
    least = ecsq_point(step_of(rate, False))[1]
    P, D = sampled(rate, kept, False, seed=0)
    # the fourth moment of an error of a cell or two is a few times D squared
    sigma = 4 * D / np.sqrt(n)
    assert pytest.approx((1 + kept**2) * least, abs=4 * sigma) == D
    assert pytest.approx(scalar_distortion(least, P), abs=4 * sigma + 1e-3 * least) == D
    assert pytest.approx((1 - kept) ** 2 * least, abs=4 * sigma + 1e-4) == P


@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_dither_makes_the_error_independent_of_the_source(rate):
    n, step = 200_000, step_of(rate, True)
    noise = step**2 / 12
    _, D = sampled(rate, 0.0, True, seed=0)
    assert pytest.approx(noise / (1 + noise), rel=4 * 2 / np.sqrt(n)) == D  # Wiener's: c = 1 / (1 + noise)
    c = 1 / np.sqrt(1 + noise)
    P, D = sampled(rate, 1.0, True, seed=0)
    assert pytest.approx((1 - c) ** 2 + c**2 * noise, rel=4 * 2 / np.sqrt(n)) == D
    assert P < 0.2 * D  # of the right variance, and not Gaussian
    assert perception_distortion(rate, P) < D  # the limit is not met by scalars


def test_the_rate_of_a_dither_is_the_mean_over_it():
    step = 1.3
    mean = 0.0
    for u in np.linspace(-0.5, 0.5, 201)[:-1] * step:  # a periodic function: the sum is exact far beyond its nodes
        p = np.diff(norm.cdf((np.arange(-12, 13) - 0.5) * step - u))
        mean += -np.sum(p[p > 0] * np.log2(p[p > 0])) / 200
    assert dithered_rate(step) == pytest.approx(mean, abs=1e-8)


@given(st.floats(0.3, 5))
def test_the_step_has_its_rate_and_the_dither_costs_bits(rate):
    for dithered in (False, True):
        step = step_of(rate, dithered)
        found = dithered_rate(step) if dithered else ecsq_point(step)[0]
        assert found == pytest.approx(rate, abs=1e-6)
    assert step_of(rate, True) >= step_of(rate, False) * (1 - 1e-6)


def test_scalar_distortion_is_twice_the_least_at_zero():
    assert scalar_distortion([0.1, 0.2], 0).tolist() == pytest.approx([0.2, 0.4])
    assert scalar_distortion(0.1, 0.5) == pytest.approx(0.1)


def test_the_sentence_has_the_factor_two():
    points = EXPERIMENT.measure(Setting(effort=0.1))
    assert points == EXPERIMENT.measure(Setting(effort=0.1))
    assert "times for a scalar quantizer without" in EXPERIMENT.sentence(points)
    for rate in (1, 2, 3):
        found = sorted((p.x, p.y) for p in points if p.series == f"scalar, centroids to samples, {rate} bits")
        assert found[0][1] / found[-1][1] == pytest.approx(2, rel=0.02)


def test_negative_rates_and_perceptions_are_named():
    with pytest.raises(ValueError, match=r"not negative, got -1\.0 and 0\.0"):
        perception_distortion(-1.0, 0.0)
