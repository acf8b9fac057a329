"""Figures of outliers on tensors whose figures are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.outliers.metrics import (
    CRITERIA,
    MASSIVE_RATIO,
    NORMAL_RATIO,
    Smoothed,
    best_alpha,
    captured,
    dynamic_range,
    eigenvector_incoherence,
    excess_kurtosis,
    incoherence,
    max_to_median,
    outlier_channels,
    saliences,
    smoothed,
)
from suite.statistics import quadratic
from suite.transforms import smooth_scale


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sylvester(n):
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / math.sqrt(n)


def rotation(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


@pytest.mark.parametrize(
    ("draw", "kurtosis"),
    [
        (lambda r, n: r.normal(size=n), 0.0),
        (lambda r, n: r.uniform(size=n), -1.2),
        (lambda r, n: r.laplace(size=n), 3.0),
        (lambda r, n: r.standard_t(12, size=n), 6 / 8),
        (lambda r, n: 5 + 3 * r.normal(size=n), 0.0),  # of no place and no scale
    ],
    ids=["Gaussian", "uniform", "Laplace", "Student", "moved"],
)
def test_kurtosis_of_known_sources(draw, kurtosis):
    rng = np.random.default_rng(1)
    found = np.array([excess_kurtosis(torch.from_numpy(draw(rng, 50_000))) for _ in range(20)])
    # four standard errors of the mean; the estimator's own bias is of the order of 1 / n
    assert found.mean() == pytest.approx(kurtosis, abs=4 * found.std(ddof=1) / math.sqrt(20) + 1e-3)


def test_a_hadamard_spreads_one_hot_rows_over_all_channels():
    n = 64
    X = 7 * torch.eye(n, dtype=torch.float64)[torch.arange(0, n, 5)]
    assert dynamic_range(X) == n and incoherence(X) == pytest.approx(math.sqrt(n))
    assert max_to_median(X) == math.inf
    assert excess_kurtosis(X) == pytest.approx(n**2 / (n - 1) - 6)  # 1 / pq - 6 of a Bernoulli variable, p = 1 / n
    turned = X @ sylvester(n)
    assert dynamic_range(turned) == pytest.approx(1) and incoherence(turned) == pytest.approx(1)
    assert max_to_median(turned) == pytest.approx(1)
    assert excess_kurtosis(turned) < -1.9  # two values; the first column alone is not balanced


def test_incoherence_of_eigenvectors_is_that_of_the_basis():
    n = 32
    values = torch.arange(1, n + 1, dtype=torch.float64)
    for basis in (torch.eye(n, dtype=torch.float64), sylvester(n), rotation(n)):
        expected = float(basis.abs().max()) * math.sqrt(n)
        assert eigenvector_incoherence(basis * values @ basis.T) == pytest.approx(expected, rel=1e-9)


def test_channels_that_inputs_never_reach_do_not_count():
    H = torch.zeros(8, 8, dtype=torch.float64)
    H[:4, :4] = sylvester(4) * torch.tensor([1.0, 2, 3, 4], dtype=torch.float64) @ sylvester(4).T
    assert eigenvector_incoherence(H) == pytest.approx(math.sqrt(8) / 2)  # not sqrt(8), as that of a dead channel is


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_figures_have_no_scale(seed, scale):
    X = normal(17, 12, seed=seed)
    H = X.T @ X / 17
    for figure in (excess_kurtosis, max_to_median, incoherence, dynamic_range):
        assert figure(scale * X) == pytest.approx(figure(X), rel=1e-9)
    assert eigenvector_incoherence(scale * H) == pytest.approx(eigenvector_incoherence(H), rel=1e-6)


@given(st.integers(0, 1000))
def test_bounds(seed):
    X = normal(9, 12, seed=seed) ** 3
    assert 1 <= dynamic_range(X) <= 12
    assert 1 <= incoherence(X) <= math.sqrt(9 * 12)
    assert 1 <= max_to_median(X) and excess_kurtosis(X) >= -2


@given(st.integers(0, 1000))
def test_a_rotation_of_both_moves_no_energy(seed):
    X, W, B = normal(40, 12, seed=seed), normal(7, 12, seed=seed + 1), rotation(12, seed=seed + 2)
    H, turned = X.T @ X / 40, B.T @ (X.T @ X / 40) @ B
    assert quadratic(W @ B, turned) == pytest.approx(quadratic(W, H), rel=1e-10)
    assert torch.linalg.norm(X @ B) == pytest.approx(float(torch.linalg.norm(X)), rel=1e-12)


@pytest.mark.parametrize("figure", [excess_kurtosis, max_to_median, incoherence, dynamic_range])
def test_nothing_to_measure_is_not_a_number(figure):
    assert math.isnan(figure(torch.zeros(3, 4)))
    assert math.isnan(eigenvector_incoherence(torch.zeros(4, 4)))


def test_rows_of_zeros_have_no_range():
    assert dynamic_range(torch.tensor([[0.0, 0.0], [1.0, 3.0]])) == 1.5


def names(mask):
    return mask.nonzero().flatten().tolist()


def test_normal_and_massive_outliers_are_told_apart():
    X = normal(512, 64)
    X[:, 5] *= 100  # in every token
    X[:, 9] *= 5  # not enough
    X[::3, 11] *= 100  # in a third of the tokens, and not enough there
    X[0, 20] = X[7, 20] = -3e3  # in two tokens
    X[3, 5] = 1e5  # a normal one stays a normal one
    found = outlier_channels(X)
    assert names(found.normal) == [5] and names(found.massive) == [20]


def test_a_massive_token_outside_the_sample_is_seen_by_its_maximum():
    X = normal(512, 64)
    max_abs = X.abs().amax(0)
    max_abs[40] = 5e3
    assert names(outlier_channels(X, max_abs).massive) == [40] and names(outlier_channels(X).massive) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_rotation_leaves_neither(turned):
    X = normal(512, 64)
    X[:, 5] *= 100
    X[0, 20] = 3e3
    found = outlier_channels(X @ sylvester(64) if turned else X)
    assert (int(found.normal.sum()), int(found.massive.sum())) == ((0, 0) if turned else (1, 1))


@given(st.integers(0, 100))
def test_thresholds_are_where_they_are_said_to_be(seed):
    size = torch.ones(5, 8, dtype=torch.float64)
    signs = normal(5, 8, seed=seed).sign()
    size[:, 0], size[:, 1], size[0, 2], size[0, 3] = NORMAL_RATIO, NORMAL_RATIO - 0.1, MASSIVE_RATIO, MASSIVE_RATIO - 1
    found = outlier_channels(signs * size)
    assert names(found.normal) == [0] and names(found.massive) == [2]


def test_without_a_yardstick_there_is_no_outlier():
    X = torch.zeros(8, 8)
    X[:, 0] = 1.0
    found = outlier_channels(X)
    assert not found.normal.any() and not found.massive.any()


def per_row(bits):
    def rounded(x):
        step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return torch.round(x / step) * step

    return rounded


def planted(seed=0):
    """Inputs with outliers in two channels; weights of two layers."""
    X, weights = normal(256, 32, seed=seed), [normal(16, 32, seed=seed + 1), normal(8, 32, seed=seed + 2)]
    X[:, 3] *= 100
    X[:, 17] *= 60
    return X, weights, X.abs().amax(0)


def test_smoothing_is_that_of_the_transform_and_its_ends_are_the_extremes():
    X, weights, max_abs = planted()
    alphas = [i / 20 for i in range(21)]
    found = smoothed(weights, X, max_abs, alphas, per_row(4))
    assert [f.alpha for f in found] == alphas
    s = smooth_scale(weights, max_abs, 0.5)
    middle = found[10]
    assert middle.inputs == pytest.approx(dynamic_range(X / s), rel=1e-12)
    assert middle.weights == pytest.approx(dynamic_range(torch.cat(weights) * s), rel=1e-12)
    assert found[0].inputs > 2 * found[-1].inputs and found[-1].weights > 2 * found[0].weights
    for value in (lambda f: f.both, lambda f: f.error):
        alpha, interior = best_alpha(found, value)
        assert interior and 0.3 <= alpha <= 0.8


def test_without_rounding_scales_change_no_output():
    X, weights, max_abs = planted()
    found = smoothed(weights, X, max_abs, [0.0, 0.5, 1.0], lambda x: x)
    assert all(f.error < 1e-28 for f in found)  # squares of rounding errors of double precision


def test_an_optimum_at_an_end_is_not_interior():
    found = [Smoothed(alpha=a, inputs=1.0 + a, weights=1.0, error=1 - a) for a in (0.0, 0.5, 1.0)]
    assert best_alpha(found, lambda f: f.inputs) == (0.0, False)
    assert best_alpha(found, lambda f: f.error) == (1.0, False)
    assert best_alpha(found, lambda f: abs(f.alpha - 0.5)) == (0.5, True)
    assert found[0].both == pytest.approx(math.sqrt(2))


def errors(seed=0, out=24, n=32):
    X, W = normal(200, n, seed=seed), normal(out, n, seed=seed + 1)
    X[:, 3] *= 50
    return X, W, per_row(3)(W) - W, X.T @ X / 200


def test_everything_captures_all_and_the_worst_capture_most():
    X, W, E, H = errors()
    fractions = [0.01, 0.05, 0.2, 1.0]
    found = {name: captured(E, H, salience, fractions) for name, salience in
             saliences(W, E, H, X.abs().mean(0)).items()}  # fmt: skip
    assert tuple(found) == CRITERIA
    for name, points in found.items():
        n = W.numel() if name.endswith("weights") else W.shape[1]
        assert [f for f, _ in points] == [max(1, round(f * n)) / n for f in fractions]
        assert points[-1][1] == pytest.approx(1)
    # one channel of 32 carries nearly all of the inputs' energy
    assert all(found[name][0][1] > 0.9 for name in CRITERIA if not name.endswith("weights"))
    assert found["worst weights"][1][1] > found["salient weights"][1][1] > 0


@given(st.integers(0, 1000), st.integers(1, 31))
def test_captured_channels_are_captured_columns(seed, n):
    _, _, E, H = errors(seed)
    salience, left = normal(32, seed=seed + 2), E.clone()
    left[:, salience.argsort(descending=True)[:n]] = 0
    ((protected, share),) = captured(E, H, salience, [n / 32])
    assert protected == n / 32 and share == pytest.approx(1 - quadratic(left, H) / quadratic(E, H), abs=1e-12)
    ((_, same),) = captured(E, H, salience.expand(24, 32), [n / 32])  # all weights of a column are as salient
    assert share == pytest.approx(same, abs=1e-12)


def test_with_uncorrelated_inputs_shares_are_sums_and_the_worst_are_the_best():
    _, W, E, _ = errors()
    H = torch.diag(torch.arange(1.0, 33, dtype=torch.float64))
    weighted = H.diagonal() * E**2
    top = weighted.flatten().sort(descending=True).values
    for fraction, share in captured(E, H, weighted, [0.02, 0.3]):
        n = round(fraction * W.numel())
        assert share == pytest.approx(float(top[:n].sum() / top.sum()), rel=1e-12)
        for name, salience in saliences(W, E, H, torch.ones(32)).items():
            if name.endswith("weights"):
                assert captured(E, H, salience, [fraction])[0][1] <= share + 1e-12


def test_no_error_has_no_share():
    assert math.isnan(captured(torch.zeros(3, 4), torch.eye(4, dtype=torch.float64), torch.ones(3, 4), [0.5])[0][1])
