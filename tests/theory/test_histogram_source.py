import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from theory.blahut_arimoto import default_slopes, rate_distortion
from theory.histogram_source import Histogram, histogram_of
from theory.rate_distortion import ecsq_point
from theory.sources import Laplace, gaussian, quadrature, shannon_lower
from theory.variance_mixture import fit_variances

STEPS = Histogram(edges=(0.0, 0.5, 1.0, 3.0), masses=(0.5, 0.1, 0.4))


def test_all_figures_agree_with_integration():
    ends = [0.5, 1.0, 3.0]
    even = [quad(f, 0, 3, points=ends[:2])[0] for f in (STEPS.density, lambda x: x**2 * STEPS.density(x))]
    assert even == pytest.approx([0.5, STEPS.variance / 2], rel=1e-9)
    h = quad(lambda x: -STEPS.density(x) * np.log2(STEPS.density(x)), 0, 3, points=ends[:2])[0]
    assert STEPS.entropy_bits == pytest.approx(2 * h, rel=1e-9)
    for x in (0.0, 0.2, 0.9, 2.0, 3.0, 9.0):
        inside = [end for end in ends if x < end < 3] or None
        for power, found in enumerate((STEPS.tail(x), STEPS.tail_moment(x), STEPS.tail_square(x))):
            above = quad(lambda x, k=power: x**k * STEPS.density(x), min(x, 3), 3, points=inside)[0]
            assert found == pytest.approx(above, abs=1e-9)
    assert STEPS.density([-0.2, 3.0]).tolist() == [0.5, 0.0]


def test_panels_end_at_the_jumps():
    x, mass = quadrature(STEPS, 0.3)
    assert mass.sum() == pytest.approx(1, abs=1e-12) and mass @ x**2 == pytest.approx(STEPS.variance, rel=1e-12)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.lists(st.floats(1e-3, 1), min_size=6, max_size=6))
def test_a_finer_histogram_of_the_same_density_is_the_same_source(widths, weights):
    p = np.array(weights[: len(widths)]) / sum(weights[: len(widths)])
    edges = np.append(0.0, np.cumsum(widths))
    halves = np.sort(np.append(edges, (edges[1:] + edges[:-1]) / 2))
    one = Histogram(edges=tuple(edges), masses=tuple(p))
    other = Histogram(edges=tuple(halves), masses=tuple(np.repeat(p, 2) / 2))
    assert other.variance == pytest.approx(one.variance, rel=1e-9)
    assert other.entropy_bits == pytest.approx(one.entropy_bits, abs=1e-9)


def test_the_uniform_densitys_quantizer_is_in_closed_form():
    box = Histogram(edges=(0.0, 3.5), masses=(1.0,))
    entropy, error = ecsq_point(1.0, box)  # seven whole cells
    assert entropy == pytest.approx(np.log2(7)) and error == pytest.approx(1 / 12)


@pytest.mark.parametrize("source", [gaussian(), Laplace()])
def test_the_histogram_of_many_samples_has_the_sources_curve(source):
    n = 100_000
    x = source.draw(np.random.default_rng(0), (n,))
    found = histogram_of(x)
    slopes = default_slopes(source, 6, 3.0)
    mine, exact = rate_distortion(found, slopes), rate_distortion(source, slopes)
    assert (mine.upper - mine.lower).max() < 5e-3
    # The variance of a histogram of bins h is off by at most h^2 / 4 where the density falls, and here h = 1 / 8;
    # that of log2 of n samples' variance is kurtosis - 1 over n, of which the half is the rate's error.
    sigma = np.sqrt((np.mean(x**4) / np.mean(x**2) ** 2 - 1) / n) / np.log(4)
    assert mine.rate(exact.distortion) == pytest.approx(exact.upper, abs=4 * sigma + 1 / 64 / np.log(4) + 2e-3)


def test_the_histogram_and_the_mixture_fitted_to_it_agree():
    x = Laplace().draw(np.random.default_rng(3), (50_000,))
    found = histogram_of(x, 48)
    ends = found.corners
    both = np.concatenate([-ends[:0:-1], ends])
    half = np.array(found.masses) * len(x) / 2
    mixture = fit_variances(both, np.concatenate([half[::-1], half])).mixture
    D = np.array([0.3, 0.1, 0.03]) * found.variance
    curves = [rate_distortion(source, default_slopes(source, 10, 3.0)).rate(D) for source in (found, mixture)]
    assert curves[0] == pytest.approx(curves[1], abs=0.02)  # five components for a corner at zero


def test_samples_follow_the_histogram():
    x = STEPS.draw(np.random.default_rng(0), (50_000,))
    for end, p in ((0.5, 0.5), (1.0, 0.4)):
        assert np.mean(np.abs(x) > end) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / len(x)))
    assert np.mean(x) == pytest.approx(0, abs=4 * np.sqrt(STEPS.variance / len(x)))
    assert np.mean(x**2) == pytest.approx(STEPS.variance, abs=4 * np.std(x**2) / np.sqrt(len(x)))


def test_bins_hold_all_values_once():
    x = np.concatenate([np.random.default_rng(0).standard_normal(1000), [100.0, -100.0]])
    found = histogram_of(x, 10)
    assert sum(found.masses) == pytest.approx(1) and found.reach > 100
    widest = np.array(found.masses) @ np.diff(found.corners**2)  # by which a square may be off in its bin
    assert found.variance == pytest.approx(np.mean(x**2), abs=widest)
    assert shannon_lower(found, 0) < found.variance


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Histogram(edges=(0.0, 1.0), masses=(0.5, 0.5)), "n masses and n [+] 1 rising edges"),
        (lambda: Histogram(edges=(0.1, 1.0), masses=(1.0,)), "rising edges from 0"),
        (lambda: Histogram(edges=(0.0, 1.0, 2.0), masses=(1.0, 0.0)), "positive masses of sum 1"),
        (lambda: Histogram(edges=(0.0, 1.0), masses=(0.9,)), "positive masses of sum 1"),
        (lambda: histogram_of([]), "expected finite values"),
        (lambda: histogram_of([0.0, 0.0]), "not all of them zero"),
        (lambda: histogram_of([1.0, np.nan]), "expected finite values"),
        (lambda: histogram_of([5.0, -5.0]), "expected values below"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
