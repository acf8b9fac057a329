"""Lanczos quadrature against dense eigenvalues: exact moments, bounds that hold, error bars that cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from theory.spectra.ubaru_2017_quadrature import Estimate, density, spectral_measure

EPS = np.finfo(float).eps


def matrix(n, seed, kind="gaussian"):
    """A symmetric matrix (n, n) with its eigenvalues and eigenvectors."""
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = {"gaussian": rng.normal(size=n), "power": np.arange(1, n + 1) ** -2.0,
              "twofold": np.repeat(rng.normal(size=n), 2)[:n]}[kind]  # fmt: skip
    return (V * values) @ V.T, values, V


cases = given(n=st.integers(2, 40), steps=st.integers(1, 12), seed=st.integers(0, 10**6),
              kind=st.sampled_from(["gaussian", "power", "twofold"]))  # fmt: skip


@cases
def test_the_rule_integrates_polynomials_up_to_twice_its_nodes_exactly(n, steps, seed, kind):
    A, values, V = matrix(n, seed, kind)
    u = np.random.default_rng(seed + 1).normal(size=n)
    u /= np.linalg.norm(u)
    rule, mass = spectral_measure(aslinearoperator(A), u, steps), (V.T @ u) ** 2
    size = np.abs(values).max()
    assert rule.weights.sum() == pytest.approx(1, abs=n * EPS) and (rule.weights >= 0).all()
    assert (np.diff(rule.nodes) > 0).all() or len(rule.nodes) == 1
    for p in range(2 * steps):
        # a power p carries p factors, each rounded as a product of n terms
        assert abs(rule.integral(lambda x, p=p: (x / size) ** p) - mass @ (values / size) ** p) < 20 * (p + 1) * n * EPS
    assert rule.rayleigh == pytest.approx(u @ A @ u, abs=20 * n * size * EPS)


@cases
def test_the_rule_between_two_vectors_is_exact_up_to_one_less_than_its_nodes(n, steps, seed, kind):
    A, values, V = matrix(n, seed, kind)
    u, w = np.random.default_rng(seed + 1).normal(size=(2, n))
    rule = spectral_measure(aslinearoperator(A), u, steps, w)
    both, size = (V.T @ u) * (V.T @ w) / np.linalg.norm(u), np.abs(values).max()
    for p in range(len(rule.nodes)):
        error = rule.cross @ (rule.nodes / size) ** p - both @ (values / size) ** p
        assert abs(error) < 20 * (p + 1) * n * EPS * np.linalg.norm(w)
    assert rule.cross_above(-np.inf) == pytest.approx(u @ w / np.linalg.norm(u), abs=20 * n * EPS * np.linalg.norm(w))


@cases
def test_cumulated_weights_bound_the_measure_and_residuals_the_eigenvalues(n, steps, seed, kind):
    A, values, V = matrix(n, seed, kind)
    u = np.random.default_rng(seed + 1).normal(size=n)
    rule, mass = spectral_measure(aslinearoperator(A), u, steps), (V.T @ u) ** 2 / (u @ u)
    slack = 1e-9  # nodes that have converged lie within rounding of an eigenvalue, on either side
    for k, node in enumerate(rule.nodes):
        below, up_to = mass[values < node - slack].sum(), mass[values <= node + slack].sum()
        assert rule.weights[:k].sum() <= up_to + slack and below <= rule.weights[: k + 1].sum() + slack
        for x in (node - 2 * slack, node + 0.1):
            low, high = rule.bounds_above(x)
            assert low - slack <= mass[values >= x + slack].sum() and mass[values >= x - slack].sum() <= high + slack
        assert np.abs(values - node).min() <= rule.residuals[k] + 100 * n * EPS * np.abs(values).max()


def test_a_start_in_few_eigenvectors_is_met_exactly_and_early():
    A, values, V = matrix(30, 5, "power")
    rule = spectral_measure(aslinearoperator(A), V[:, 3] * 2 + V[:, 7], 10)
    heavy = rule.weights > 1e-12  # the others are rounding's: the start is in two eigenvectors to 1e-16 only
    assert rule.nodes[heavy] == pytest.approx(values[[7, 3]], abs=1e-12)
    assert rule.weights[heavy] == pytest.approx([0.2, 0.8], abs=1e-12)
    assert len(spectral_measure(aslinearoperator(np.eye(30)), V[:, 3], 10).nodes) == 1
    assert rule.above([0.0, 0.03, 1.1]) == pytest.approx([1.0, 0.8, 0.0])
    assert rule.rayleigh_above(0.05) == pytest.approx(0.8 * values[3])


def test_many_steps_lose_no_orthogonality_after_eigenvalues_have_converged():
    A, values, _ = matrix(60, 8, "power")  # the first eigenvalues converge within a few steps
    rule = spectral_measure(aslinearoperator(A), np.ones(60), 60)
    # without reorthogonalization copies of the largest would stand in the place of the small ones
    assert np.sort(rule.nodes)[::-1][:40] == pytest.approx(np.sort(values)[::-1][:40], rel=1e-6)


@pytest.mark.parametrize("f", [lambda x: x, lambda x: x**2, np.exp], ids=["trace", "square", "exponential"])
def test_error_bars_of_traces_cover(f):
    misses, repeats = 0, 60
    for seed in range(repeats):
        A, values, _ = matrix(50, seed)
        found = density(aslinearoperator(A), starts=12, steps=10, rng=np.random.default_rng(seed)).trace(f)
        misses += abs(found.value - f(values).sum()) > 3.1 * found.se  # t of 11 degrees: 1% beyond 3.1
    assert misses <= 5  # 0.6 expected; six or more have a chance below 1e-4


def test_the_density_counts_eigenvalues():
    A, values, _ = matrix(200, 3)
    found = density(aslinearoperator(A), starts=20, steps=40, rng=np.random.default_rng(0))
    for x in (-1.0, 0.0, 1.0):
        # between two nodes, about 1/40 of the mass, the rule knows nothing
        assert abs(found.above(x).value - (values >= x).mean()) < 4 * found.above(x).se + 1 / 40
    low, high = found.ends
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert high == pytest.approx(values.max(), rel=1e-3)


def test_bad_starts_are_refused_and_single_ones_have_no_error_bar():
    A = aslinearoperator(np.eye(3))
    for start, steps in ((np.zeros(3), 2), (np.ones(2), 2), (np.ones(3), 0)):
        with pytest.raises(ValueError, match="expected a vector of 3"):
            spectral_measure(A, start, steps)
    assert np.isnan(Estimate.of([1.0]).se) and Estimate.of([1.0, 3.0]) == Estimate(2.0, 1.0)
