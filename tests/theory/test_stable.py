import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import levy_stable

from theory.entropy.stable import by_characteristic_function, draw, hill, log_density, summed
from theory.entropy.tails import KNOWN, fitted, stability

N = 100_000


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 1.8, 1.95])
def test_the_density_is_that_of_scipy(alpha):
    x = np.array([0.0, 0.5, 2.0, 5.0, 11.0, 12.5, 30.0, 100.0])
    assert log_density(x, alpha) == pytest.approx(np.log(levy_stable.pdf(x, alpha, 0)), abs=1e-4)


def test_cauchy_and_gauss_are_its_ends():
    x = np.linspace(-30, 30, 61)
    assert log_density(x, 1.0) == pytest.approx(-np.log(np.pi * (1 + x**2)), abs=1e-4)
    assert log_density(x, 2.0) == pytest.approx(-(x**2) / 4 - np.log(4 * np.pi) / 2)


@settings(max_examples=25)
@given(st.floats(1.0, 2.0))
def test_the_density_integrates_to_one(alpha):
    x = np.linspace(0, 12, 4801)
    inside = 2 * np.trapezoid(np.exp(log_density(x, alpha)), x)
    far = np.geomspace(12, 1e9, 4000)
    assert inside + 2 * np.trapezoid(np.exp(log_density(far, alpha)), far) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("alpha", "quantile"), [(1.0, 1.0), (2.0, 0.6744898 * 2**0.5)])
def test_samples_have_the_quartile_of_their_law(alpha, quantile):
    x = draw(alpha, np.random.default_rng(0), (N,))
    # the density at the quartile is above .15 for both: a standard error of sqrt(3/16 / N) / .15 = .0091
    assert np.quantile(x, 0.75) == pytest.approx(quantile, abs=0.03)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8])
def test_both_estimates_find_alpha_of_stable_samples_with_a_small_bias(alpha):
    found = [by_characteristic_function(draw(alpha, np.random.default_rng(seed), (N,))) for seed in range(5)]
    assert np.mean(found) == pytest.approx(alpha, abs=0.01)
    assert fitted(draw(alpha, np.random.default_rng(0), (N,)))["stable"][1] == pytest.approx(alpha, abs=0.02)


def test_hill_is_exact_on_a_power_law_and_biased_upward_near_two():
    u = (np.arange(N) + 0.5) / N
    assert hill(u ** (-1 / 1.5), 0.01) == pytest.approx(1.5, rel=0.01)
    high = [hill(draw(1.8, np.random.default_rng(seed), (N,)), 0.002) for seed in range(8)]
    assert 1.8 < np.mean(high) < 2.1  # the bias of a tail that is not yet a power: +0.1 or so
    with pytest.raises(ValueError, match="expected 10 to 99"):
        hill(np.ones(100), 0.01)


def test_finite_variance_passes_for_stable_by_its_estimate_alone_and_fails_all_three_tests():
    for name in ("Laplace", "Student of 4"):
        found = stability(KNOWN[name](np.random.default_rng(1), N), 0)
        assert found["alpha"] < 1.8  # the trap
        assert found["tail index"] > 2.5
        assert found["alpha of sums of 16 less of one"] > 0.1
        assert found["nats, stable over the best rival"] < -0.003


def test_stable_samples_pass_all_three_tests():
    for name, alpha in (("stable of 1.5", 1.5), ("stable of 1.8", 1.8)):
        found = stability(KNOWN[name](np.random.default_rng(1), N), 0)
        assert found["alpha"] == pytest.approx(alpha, abs=0.03)
        assert found["tail index"] < 2.1
        assert abs(found["alpha of sums of 16 less of one"]) < 0.05
        assert found["nats, stable over the best rival"] > 0.002


def test_of_a_gaussian_stable_is_the_gaussian():
    fits = fitted(np.random.default_rng(2).standard_normal(N))
    assert fits["stable"][1] > 1.99 and fits["stable"][0] == pytest.approx(fits["Gaussian"][0], abs=1e-4)
    assert fits["generalized Gaussian"][1] == pytest.approx(2, abs=0.05)


def test_each_family_finds_its_own_samples_and_shape():
    rng = np.random.default_rng(3)
    student = fitted(rng.standard_t(5, N))
    assert max(student, key=lambda name: student[name][0]) == "Student"
    assert student["Student"][1] == pytest.approx(5, rel=0.1)
    laplace = fitted(rng.laplace(size=N))
    assert laplace["Laplace"][0] > max(laplace[name][0] for name in ("stable", "Gaussian", "Student"))
    assert laplace["generalized Gaussian"][1] == pytest.approx(1, abs=0.05)


def test_sums_leave_out_what_does_not_fill_one():
    assert summed([1.0, 2.0, 3.0, 4.0, 5.0], 2).tolist() == [3.0, 7.0]
    with pytest.raises(ValueError, match=r"alpha 0\.5"):
        log_density(0.0, 0.5)
