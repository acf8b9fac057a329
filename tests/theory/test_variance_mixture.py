import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import ndtr

from theory.variance_mixture import fit_variances

EDGES = np.linspace(-16, 16, 1025)


def expected_counts(weights, variances, edges=EDGES, samples=1e7):
    open_edges = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    return samples * sum(w * np.diff(ndtr(open_edges / np.sqrt(v))) for w, v in zip(weights, variances, strict=True))


@settings(max_examples=30)
@given(arrays(int, 40, elements=st.integers(0, 1000)), st.integers(1, 4))
def test_the_likelihood_never_falls(counts, components):
    counts[20] += 1
    fit = fit_variances(np.linspace(-4, 4, 41), counts, components)
    assert (np.diff(fit.log_likelihood) > -1e-12).all()
    assert sum(fit.mixture.weights) == pytest.approx(1) and list(fit.mixture.variances) == sorted(fit.mixture.variances)


def test_bins_are_no_samples_at_their_middles():
    wide = np.linspace(-6, 6, 7)  # two standard deviations a bin: middles would give a variance of 4/3
    (variance,) = fit_variances(wide, expected_counts([1], [1], wide), 1).mixture.variances
    assert variance == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("weights, variances", [((1.0,), (1.7,)), ((0.7, 0.3), (0.25, 2.75)), ((0.9, 0.1), (0.1, 9.0))])
def test_known_mixtures_are_recovered(weights, variances):
    mixture = fit_variances(EDGES, expected_counts(weights, variances), len(weights)).mixture
    assert mixture.variances == pytest.approx(variances, rel=1e-3)
    assert mixture.weights == pytest.approx(weights, rel=1e-3)


def test_a_fit_has_the_counts_likelihood():
    counts = expected_counts((0.5, 0.3, 0.2), (0.3, 1.0, 2.75))
    share = counts[counts > 0] / counts.sum()
    best = share @ np.log(share) + np.log(2)  # of |x|, one bin for two
    assert fit_variances(EDGES, counts, 5).log_likelihood[-1] == pytest.approx(best, abs=1e-5)


def test_laplace_weights_are_fitted_by_five_variances():
    edges = np.clip(EDGES, -15.99, 15.99)
    mass = np.diff(np.where(edges < 0, np.exp(np.sqrt(2) * edges) / 2, 1 - np.exp(-np.sqrt(2) * edges) / 2))
    fit = fit_variances(EDGES, mass, 5)
    assert fit.mixture.variance == pytest.approx(1, rel=1e-3)
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    inside = (np.abs(middles) > 0.1) & (np.abs(middles) < 4)
    exact = np.exp(-np.sqrt(2) * np.abs(middles)) / np.sqrt(2)
    assert fit.mixture.density(middles)[inside] == pytest.approx(exact[inside], rel=0.1)


def test_outliers_and_zeros_alone_are_no_trouble():
    counts = np.zeros(1024)
    counts[512], counts[0], counts[-1] = 1e6, 1, 1
    mixture = fit_variances(EDGES, counts, 3).mixture
    assert min(mixture.variances) == pytest.approx((1 / 64) ** 2)  # half a bin
    assert max(mixture.variances) > 200


@pytest.mark.parametrize("bins", [40, 41])
def test_a_bin_astride_zero_counts_once(bins):
    edges = np.linspace(-5, 5, bins + 1)
    (variance,) = fit_variances(edges, expected_counts([1], [1], edges), 1).mixture.variances
    assert variance == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "edges, counts, message",
    [
        ([-1, 0, 1], [1], r"got shapes \(3,\) and \(1,\)"),
        ([-1, 1, 0], [1, 1], "rising edges"),
        ([-1, 0, 2], [1, 1], "symmetric about zero, got -1"),
        ([-1, 0, 1], [0, 0], "one is positive"),
        ([-1, 0, 1], [2, -1], "not negative"),
        ([-1, 0, 1], [np.nan, 1], "not negative"),
    ],
)
def test_bad_histograms_are_named(edges, counts, message):
    with pytest.raises(ValueError, match=message):
        fit_variances(edges, counts)


def test_components_are_counted_from_one():
    with pytest.raises(ValueError, match="at least one component, got 0"):
        fit_variances([-1, 0, 1], [1, 1], 0)
