import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from suite.grids import BellSplit
from suite.grids.lloyd_max import gaussian_mse, lloyd_max
from theory.experiment import Setting
from theory.histogram_source import Histogram
from theory.huang_2024_billm import (
    EXPERIMENTS,
    SOURCES,
    best_split,
    distance,
    least_rate,
    residual_orders,
    rounded_bells,
    rounded_residuals,
    split_error,
)
from theory.sources import GaussianMixture, Laplace, gaussian, shannon_lower

MIXTURE = GaussianMixture(weights=(0.7, 0.3), variances=(0.2, 4.0))


def test_the_gaussians_orders_meet_the_table():
    a, error = residual_orders(gaussian(), 5)
    assert a[:3] == pytest.approx([0.797885, 0.482624, 0.268441], abs=1e-6)
    assert error[:3] == pytest.approx([1 - 2 / np.pi, 0.130454, 0.058394], abs=1e-6)
    assert error[3:] == pytest.approx([0.0330, 0.0227], abs=2e-4)  # four digits, by Monte Carlo


def test_the_laplacians_first_orders_are_in_closed_form():
    a, error = residual_orders(Laplace(variance=2.0), 2)
    assert a[0] == pytest.approx(1) and error[0] == pytest.approx(1)  # E|x| = b = 1
    assert a[1] == pytest.approx(2 / np.e)  # E ||x| - 1|, |x| exponential


@pytest.mark.parametrize("source", [*SOURCES.values(), MIXTURE])
def test_greedy_residuals_of_samples_leave_what_is_said(source):
    n, orders = 200_000, 5
    a, error = residual_orders(source, orders)
    x = source.draw(np.random.default_rng(0), (n,))
    inside = np.abs(x) < 30 * np.sqrt(source.variance)  # Student's fourth moment is infinite: the rest is exact
    beyond = 2 * float(source.tail_square(30 * np.sqrt(source.variance)))
    left = x[inside]
    for k in range(orders):
        left = left - a[k] * np.where(left > 0, 1, -1)
        squares = left**2
        sigma = np.std(squares) / np.sqrt(n)
        # |x| - c beyond 30 deviations is at most |x|
        assert error[k] == pytest.approx(squares.sum() / n, abs=4 * sigma + beyond)


@given(st.sampled_from([*SOURCES.values(), MIXTURE]), st.integers(1, 8))
def test_every_order_lowers_the_error_and_none_reaches_the_limit(source, orders):
    a, error = residual_orders(source, orders)
    assert (a > 0).all() and (np.diff(error) < 0).all()
    assert (error > shannon_lower(source, np.arange(1, orders + 1))).all()


def test_a_uniform_density_is_what_binary_residuals_are_made_for():
    a, error = residual_orders(Histogram(edges=(0.0, 1.0), masses=(1.0,)), 6)
    assert a == pytest.approx(2.0 ** -np.arange(1, 7)) and error == pytest.approx(4.0 ** -np.arange(1, 7) / 3)


def test_the_best_split_of_a_gaussian_is_lloyd_and_maxs():
    border, error = best_split(gaussian())
    levels = lloyd_max(4)
    assert border == pytest.approx((levels[2] + levels[3]) / 2, abs=1e-4)
    assert error == pytest.approx(gaussian_mse(levels), rel=1e-9)


@pytest.mark.parametrize("source", [Laplace(), MIXTURE, SOURCES["Student's t of 3"]])
def test_the_best_split_is_halfway_between_its_levels(source):
    border, error = best_split(source)

    def off(p):
        inner = 1 - 2 * source.tail(p), 2 * (source.tail_moment(0.0) - source.tail_moment(p))
        return p - (inner[1] / inner[0] + source.tail_moment(p) / source.tail(p)) / 2

    assert border == pytest.approx(brentq(off, border / 2, border * 2), rel=1e-3)  # the error is flat there
    assert error <= split_error(source, border * 1.05) and error <= split_error(source, border / 1.05)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_bells_of_long_rows_meet_the_closed_form(name):
    source, n = SOURCES[name], 8192
    x = source.draw(np.random.default_rng(1), (8, n))
    W = torch.from_numpy(x)
    fitted = BellSplit(group=n, score="magnitude", center=False, most=2).fit(W)
    found = float((W - fitted.decode(fitted.nearest(W))).square().mean())
    kept = np.abs(x) < 30 * np.sqrt(source.variance)
    # what is left of a weight is at most itself, so that its deviation bounds the error's; scales fitted to a row
    # take off some of it, and of two columns of 8192 the salient one has little to say
    sigma = np.std((x**2)[kept]) / np.sqrt(x.size)
    beyond = 2 * float(source.tail_square(30 * np.sqrt(source.variance)))
    assert found == pytest.approx(best_split(source)[1], abs=4 * sigma + beyond)


@pytest.mark.parametrize("orders", [1, 2, 3])
def test_the_suites_residuals_meet_the_closed_form(orders):
    x = SOURCES["Gaussian"].draw(np.random.default_rng(2), (64, 2048))
    found, exact = rounded_residuals(x, orders), residual_orders(gaussian(), orders)[1][-1]
    sigma = np.sqrt(2 / x.size)  # of the mean square, which is more than that of the error
    assert found <= exact + 4 * sigma
    if orders < 3:  # the nearest of four sums is what greedy signs take; of eight it may be a better one
        assert found == pytest.approx(exact, abs=4 * sigma)


def test_true_bits_count_everything():
    x = SOURCES["Gaussian"].draw(np.random.default_rng(0), (16, 256))
    found = rounded_bells(x, "as published")
    assert found["bits"] == 2 + 8 * 16 / 128 + 1 / 16  # codes, eight numbers a row of a block, a mark a column
    assert found["published bits"] == pytest.approx(1 + found["salient"] + 1 / 128)
    assert rounded_bells(x, "without means")["bits"] == 2 + 4 * 16 / 128 + 1 / 16
    assert found["entropy bits"] < found["bits"]
    assert rounded_bells(x, "nearest of four levels")["error"] <= found["error"]


def test_least_rates_are_closed_forms_where_there_are_any():
    assert least_rate(gaussian(), 0.1) == pytest.approx(np.log2(10) / 2, abs=2e-3)
    assert least_rate(Laplace(), 1e-3) == pytest.approx(np.log2(np.e / np.pi * 1e3) / 2, abs=2e-3)
    assert least_rate(SOURCES["Student's t of 3"], 2.0) == 0


def test_what_is_stored_is_far_from_the_limit_and_what_is_counted_beyond_it():
    found = distance("Gaussian", "as published", "reference", 0)
    assert found["distance"] > 1
    assert found["distance"] - found["bits"] + found["published bits"] < 0
    assert found == distance("Gaussian", "as published", "reference", 0)


def test_the_experiment_of_residuals_says_its_figures():
    points = EXPERIMENTS[0].measure(Setting(effort=0.1))
    assert "Gaussian 2.09 times at two orders (2.09)" in EXPERIMENTS[0].sentence(points)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError, match=f"border {bad}"):
        split_error(gaussian(), bad)
    with pytest.raises(ValueError, match="orders 0: expected at least 1"):
        residual_orders(gaussian(), 0)
