"""Trace estimators: unbiased within their error bars, exact at low rank, and the second better than the first."""

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from theory.spectra.meyer_2021_hutchpp import hutchinson_trace, hutchpp_trace


def operator(values, seed=0):
    V = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return aslinearoperator((V * values) @ V.T)


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchpp_trace])
def test_error_bars_cover_the_trace(estimate):
    values, repeats = np.random.default_rng(9).normal(size=40), 80
    A, rng = operator(values), np.random.default_rng(1)
    found = [estimate(A, 45, rng) for _ in range(repeats)]
    scores = np.array([(e.value - values.sum()) / e.se for e in found])
    assert np.mean(np.abs(scores) > 3) <= 5 / repeats  # t of 14 degrees: 1% beyond 3, six of 80 below 1e-3
    # unbiased: the mean of 80 is within four of its own standard errors
    assert abs(np.mean([e.value for e in found]) - values.sum()) < 4 * np.std([e.value for e in found]) / repeats**0.5


def test_hutchinsons_variance_is_twice_the_squares_off_the_diagonal():
    A, rng = operator(np.arange(20.0)), np.random.default_rng(2)
    dense = A.matmat(np.eye(20))
    variance = 2 * (np.sum(dense**2) - np.sum(np.diag(dense) ** 2))
    found = hutchinson_trace(A, 4000, rng).se ** 2 * 4000
    assert found == pytest.approx(variance, rel=4 * (2.5 / 4000) ** 0.5)  # a variance's own spread, kurtosis up to 4.5


def test_a_low_rank_is_found_exactly():
    values = np.r_[np.arange(1.0, 6.0), np.zeros(45)]
    found = hutchpp_trace(operator(values), 15, np.random.default_rng(3))
    assert found.value == pytest.approx(15, abs=1e-11) and found.se < 1e-11


def test_large_eigenvalues_cost_hutchpp_less():
    A, rng = operator(np.arange(1, 101) ** -2.0), np.random.default_rng(4)
    plain, better = (np.mean([f(A, 30, rng).se for _ in range(10)]) for f in (hutchinson_trace, hutchpp_trace))
    assert better < plain / 10


def test_too_few_products_are_refused():
    with pytest.raises(ValueError, match="expected at least 6"):
        hutchpp_trace(operator(np.ones(4)), 5, np.random.default_rng(0))
