import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.experiment import Setting
from theory.limits.su_2021_rope import (
    BASE,
    EXPERIMENT,
    content_kernel,
    frequencies,
    kernel,
    logarithmic_law,
    scatter,
    slope,
    told_apart,
)


def test_published_values():
    D = [1, 4, 16, 64, 256, 1024, 4096]
    told = [0.970, 0.759, 0.620, 0.477, 0.321, 0.204, -0.053]
    assert kernel(D, frequencies("geometric")) == pytest.approx(told, abs=1e-3)


@given(st.integers(1, 256), st.floats(1.5, 1e6), st.floats(0, 1e5))
def test_a_kernel_is_one_at_zero_and_never_beyond(pairs, base, D):
    w = frequencies("geometric", pairs, base)
    assert kernel(0.0, w) == pytest.approx(1)
    assert abs(kernel(D, w)) <= 1 + 1e-12
    assert kernel(-D, w) == kernel(D, w)


@given(st.floats(1, 4096), st.sampled_from([1e4, 5e5]))
def test_the_integral_is_the_limit_of_many_pairs(D, base):
    pairs = 1 << 15
    # Euler and Maclaurin: the ends, then a second term that is smaller still at so many pairs
    ends = (np.cos(D) - np.cos(D / base)) / (2 * pairs)
    found = kernel(D, frequencies("geometric", pairs, base))
    assert found == pytest.approx(logarithmic_law(D, base) + ends, abs=(D * np.log(base) / pairs) ** 2 / 12 + 1e-6)


def test_what_aliases_scatters_about_the_law():
    assert scatter([1.0, 16.0]).tolist() == [0, 0] and scatter(4096.0) == pytest.approx(np.sqrt(36 / 2) / 64, rel=0.02)
    D = np.exp(np.random.default_rng(0).uniform(np.log(500), np.log(4000), 2000))
    off = kernel(D, frequencies("geometric")) - logarithmic_law(D)
    # all distances share 64 frequencies, and a gap of more than half a turn is no random phase quite yet
    assert np.sqrt(np.mean(off**2) / np.mean(scatter(D) ** 2)) == pytest.approx(1, abs=0.15)


def test_the_law_is_a_logarithm_between_the_ends():
    for D in (64.0, 256.0, 1024.0):
        simple = 1 - (np.euler_gamma + np.log(D)) / np.log(BASE)
        # Ci(D) < 1 / D, and Ci(x) - gamma - ln x > -x^2 / 4
        assert logarithmic_law(D) == pytest.approx(simple, abs=(1 / D + (D / BASE) ** 2 / 4) / np.log(BASE))


def test_evenly_spaced_frequencies_are_the_dirichlet_kernel():
    m, D = 64, np.array([3.0, 10.0, 50.0])
    x = D / (2 * m)
    dirichlet = (np.sin((2 * m + 1) * x) / np.sin(x) - 1) / (2 * m)
    assert kernel(D, frequencies("even", m)) == pytest.approx(dirichlet, abs=1e-12)


def test_content_of_equal_energies_on_the_mean_is_the_plain_kernel():
    D = 2.0 ** np.arange(12)
    found = content_kernel(D, "geometric", 0)
    # 64 pairs of energies from 256 chi-squares of two degrees each
    assert found == pytest.approx(kernel(D, frequencies("geometric")), abs=4 / np.sqrt(256 * 64))


@given(st.floats(-3, 3), st.floats(0.1, 10))
def test_the_slope_of_a_power_is_its_exponent(a, scale):
    x = np.array([1.0, 2.0, 4.0])
    assert slope(x, scale * x**a) == pytest.approx(a, abs=1e-9)


def test_distances_are_told_apart_less_and_less():
    found = told_apart(np.array([8.0, 64.0, 512.0]), 0)
    assert (found > 0).all() and (np.diff(found) < 0).all()
    assert np.isnan(slope(np.array([1.0, 2.0]), np.array([1.0, -1.0])))


def test_the_sentence_follows_the_points():
    points = EXPERIMENT.measure(Setting(effort=0.1))
    assert "At distance 64" in EXPERIMENT.sentence(points)
    with pytest.raises(ValueError, match="pairs 0, base 10"):
        frequencies("even", 0, 10.0)
