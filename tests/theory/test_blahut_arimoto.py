import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.blahut_arimoto import default_slopes, rate_distortion
from theory.rate_distortion import reverse_waterfilling_rate
from theory.sources import GaussianMixture, Laplace, gaussian, shannon_lower

MIXTURE = GaussianMixture(weights=(0.2, 0.6, 0.2), variances=(0.05, 0.7, 2.85))


@pytest.fixture(scope="module")
def laplace():
    return rate_distortion(Laplace())


@pytest.fixture(scope="module")
def mixture():
    return rate_distortion(MIXTURE)


def test_the_gaussian_meets_its_closed_form():
    curve = rate_distortion(gaussian())
    exact = np.maximum(-np.log2(curve.distortion) / 2, 0)
    assert (curve.lower <= exact + 1e-9).all() and (exact <= curve.upper + 1e-5).all()  # its D at rate 0 is 1 + 3e-6
    assert (curve.upper - curve.lower).max() < 1e-4
    D = np.geomspace(1e-6, 2, 200)  # also beyond both ends
    assert curve.rate(D) == pytest.approx(np.maximum(-np.log2(D) / 2, 0), abs=5e-4)


def plain_iteration(density, s, reach=14.0, step=0.05, iterations=4000):
    """The least rate + s distortion (nats) by the textbook's iteration, on one grid for inputs and outputs."""
    x = np.arange(-reach, reach + step / 2, step)
    p = density(x)
    p /= p.sum()
    k = np.exp(-s * (x[:, None] - x) ** 2)
    q = np.full(len(x), 1 / len(x))
    for _ in range(iterations):
        q *= k.T @ (p / (k @ q))
    return -p @ np.log(k @ q)


@pytest.mark.parametrize("source", [gaussian(), Laplace(), MIXTURE])
@pytest.mark.parametrize("s", [0.8, 4.0])
def test_the_textbooks_iteration_agrees(source, s):
    curve = rate_distortion(source, [s])
    lagrangian = curve.upper[0] * np.log(2) + s * curve.distortion[0]
    # the Laplacian's corner costs its sums over the step h about h^2 / 3 of them
    assert lagrangian == pytest.approx(plain_iteration(source.density, s), abs=2e-3)


@pytest.mark.parametrize("name", ["laplace", "mixture"])
def test_the_bounds_are_close_and_on_the_right_side(name, request):
    curve = request.getfixturevalue(name)
    source = {"laplace": Laplace(), "mixture": MIXTURE}[name]
    shannon = np.log2(shannon_lower(source, 0) / curve.distortion) / 2
    assert (curve.lower <= curve.upper).all() and (curve.lower >= shannon - 1e-9).all()
    assert (curve.upper <= np.maximum(-np.log2(curve.distortion) / 2, 0) + 1e-4).all()  # the Gaussian is the hardest
    assert (curve.upper - curve.lower).max() < 5e-3
    moderate = curve.lower > 0.1
    assert (curve.upper - curve.lower)[moderate].max() < 2.5e-3
    assert (curve.upper - shannon)[curve.lower > 4].max() < 1e-4  # tight at high rates


def test_shannons_bound_is_not_tight_for_the_laplacian_at_low_rates(laplace):
    shannon = np.log2(shannon_lower(Laplace(), 0) / laplace.distortion) / 2
    middle = (laplace.distortion > 0.5) & (laplace.distortion < 0.8)
    assert middle.sum() >= 2 and (laplace.lower - shannon)[middle].min() > 0.01


def test_a_mixture_costs_at_least_what_it_does_with_its_variances_known(mixture):
    known = reverse_waterfilling_rate(MIXTURE.variances, mixture.distortion, MIXTURE.weights)
    assert (mixture.upper >= known - 1e-9).all()
    label = -np.dot(MIXTURE.weights, np.log2(MIXTURE.weights))  # which sends the label, then codes as if it were known
    assert (mixture.lower <= known + label).all()


def test_a_curve_falls_and_is_convex(mixture):
    D, R = mixture.distortion[::-1], mixture.upper[::-1]
    assert (np.diff(D) >= -1e-12).all()
    D, R = D[D < 0.99], R[D < 0.99]
    slopes = np.diff(R) / np.diff(D)
    assert (slopes < 0).all() and (np.diff(slopes) > 0).all()


@pytest.mark.parametrize("source", [Laplace(), MIXTURE])
def test_only_relative_errors_matter(source):
    scaled = (
        Laplace(variance=1e-4)
        if isinstance(source, Laplace)
        else dataclasses.replace(source, variances=tuple(1e-4 * v for v in source.variances))
    )
    one, other = (rate_distortion(s, default_slopes(s, 6, 4.0)) for s in (source, scaled))
    assert other.distortion == pytest.approx(1e-4 * one.distortion, rel=1e-6)
    assert other.upper == pytest.approx(one.upper, abs=1e-6) and other.lower == pytest.approx(one.lower, abs=1e-6)


def test_interpolation_agrees_with_the_points_between(laplace):
    between = rate_distortion(Laplace(), default_slopes(Laplace(), 9, 5.0) * 1.17)
    assert laplace.rate(between.distortion) == pytest.approx(between.upper, abs=6e-4)
    assert laplace.rate([1.0, 5.0]).tolist() == [0, 0]
    assert laplace.rate(1e-9) == pytest.approx(np.log2(shannon_lower(Laplace(), 0) / 1e-9) / 2, abs=1e-4)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.01, 20)), min_size=1, max_size=4), st.floats(0.2, 200))
def test_the_bounds_never_cross(parts, slope):
    weights, variances = np.array(parts).T
    source = GaussianMixture(weights=tuple(weights / weights.sum()), variances=tuple(variances))
    curve = rate_distortion(source, [slope / source.variance])
    assert 0 <= curve.lower[0] <= curve.upper[0] < curve.lower[0] + 0.02
    known = reverse_waterfilling_rate(source.variances, min(curve.distortion[0], source.variance), source.weights)
    assert known <= curve.upper[0] + 1e-5


@pytest.mark.parametrize("bad", [[0.0], [-1.0], [np.nan], [], [[1.0]]])
def test_bad_slopes_are_named(bad):
    with pytest.raises(ValueError, match="expected positive, finite slopes in a vector"):
        rate_distortion(gaussian(), bad)


def test_a_bad_distortion_is_named(laplace):
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0"):
        laplace.rate([1.0, 0.0])
