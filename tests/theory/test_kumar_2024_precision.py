"""The fit finds a law that made the points, says how sure it is, and refuses what it cannot know."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.kumar_2024_precision import (
    PARAMETERS,
    Law,
    Observations,
    _centered,
    _jacobian,
    _residuals,
    _values,
    fit,
    left_out_errors,
)

TRUE = Law(E=1.6, A=180.0, alpha=0.42, B=900.0, beta=0.5, gamma=1.4)
SHAPES = np.array([2e5, 8e5, 3e6, 7e6])
BITS = np.array([1, 1.58, 2, 3, 4, 16])


def points_of(law, noise=0.0, per_parameter=(0.1, 1.0, 10.0), seed=0):
    N, level, P = (x.ravel() for x in np.meshgrid(SHAPES, per_parameter, BITS, indexing="ij"))
    loss = law.loss(N, level * N, P) * np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
    return Observations(parameters=N, tokens=level * N, bits=P, loss_nats=loss)


def test_points_without_noise_give_the_law_back():
    found = fit(points_of(TRUE), np.random.default_rng(0), replicates=0)
    # residuals are solved for to about 1e-12 and come back at most `condition` times as large
    for name in PARAMETERS:
        assert getattr(found.law, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name
    assert found.rms < 1e-9 and found.condition < 1e6
    assert found.ranges == {"parameters": (2e5, 7e6), "tokens": (2e4, 7e7), "bits": (1, 16)}
    assert found.covers(1e6, 1e6, 2) and not found.covers(1e9, 1e6, 2) and not found.covers(1e6, 1e6, 0.5)


def test_noisy_points_give_intervals_that_hold_the_law():
    found = fit(points_of(TRUE, noise=0.005), np.random.default_rng(1), replicates=100)
    for name in PARAMETERS:
        low, high = found.interval(name, 0.99)
        assert low <= getattr(TRUE, name) <= high, (name, low, high)
    assert 0.0025 < found.rms < 0.0075  # the noise, half of it either way
    low, high = found.band(1e6, 1e6, 2.0, 0.99)
    assert low <= TRUE.loss(1e6, 1e6, 2.0) <= high
    narrow, wide = (np.diff(found.interval("gamma", c)) for c in (0.5, 0.95))
    assert narrow < wide


def test_the_same_generator_gives_the_same_fit():
    a, b = (fit(points_of(TRUE, noise=0.01), np.random.default_rng(7), replicates=5) for _ in range(2))
    assert a.law == b.law and np.array_equal(a.draws, b.draws)


def test_a_single_point_far_off_moves_the_law_little():
    points = points_of(TRUE)
    loss = points.loss_nats.copy()
    loss[5] *= 1.5
    law = fit(replace(points, loss_nats=loss), np.random.default_rng(0), replicates=0).law
    assert law.gamma == pytest.approx(TRUE.gamma, rel=0.01)


def test_tokens_in_proportion_to_parameters_are_told_from_them_by_widths_alone():
    every = fit(points_of(TRUE), np.random.default_rng(0), replicates=0)
    one = fit(points_of(TRUE, per_parameter=(0.1,)), np.random.default_rng(0), replicates=0)
    assert one.condition > 2 * every.condition
    same = points_of(TRUE, per_parameter=(0.1, 1.0))
    same = same.chosen(same.bits == 16)  # then gamma has nothing to be found by
    assert fit(same, np.random.default_rng(0), replicates=0).condition > 100 * every.condition


def test_what_is_left_out_is_predicted_where_the_law_holds():
    points = points_of(TRUE)
    errors = left_out_errors(points, list(points.parameters))
    assert errors.shape == points.loss_nats.shape and np.abs(errors).max() < 1e-5
    other = replace(points, loss_nats=np.where(points.parameters == 7e6, 2 * points.loss_nats, points.loss_nats))
    of_others = left_out_errors(other, list(points.parameters))[points.parameters == 7e6]
    assert of_others == pytest.approx(-0.5, abs=1e-4)  # half of what was measured


def test_too_few_points_are_refused():
    points = points_of(TRUE)
    with pytest.raises(ValueError, match="5 points: a law of 6 parameters"):
        fit(points.chosen(np.arange(5)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="a law of 6 parameters"):
        left_out_errors(points.chosen(np.arange(8)), ["a"] * 4 + ["b"] * 4)


def test_points_that_are_none_are_refused():
    points = points_of(TRUE)
    with pytest.raises(ValueError, match="every one of tokens must be positive"):
        replace(points, tokens=-points.tokens)
    with pytest.raises(ValueError, match="four vectors of one length"):
        replace(points, bits=points.bits[:3])
    with pytest.raises(ValueError, match="a group for each of 72 points"):
        left_out_errors(points, [1])
    with pytest.raises(ValueError, match="confidence 1"):
        fit(points, np.random.default_rng(0), replicates=2).interval("E", 1.0)


@given(st.integers(0, 10**6))
def test_the_jacobian_is_the_derivative(seed):
    rng, points = np.random.default_rng(seed), points_of(TRUE)
    theta = _centered(TRUE, points) + rng.normal(0, 0.1, 6)
    step = 1e-5
    for k in range(6):
        moved = step * np.eye(6)[k]
        slope = (_residuals(theta + moved, points) - _residuals(theta - moved, points)) / (2 * step)
        # the third derivative is of order 10^2 (log D squared times a slope): step^2 / 6 times that
        assert np.allclose(_jacobian(theta, points)[:, k], slope, rtol=0, atol=1e-7)


def test_coordinates_go_there_and_back():
    points = points_of(TRUE)
    assert np.allclose(_values(_centered(TRUE, points), points), [getattr(TRUE, name) for name in PARAMETERS])


def test_precision_counts_as_size():
    assert TRUE.effective(1e6, 16) == pytest.approx(1e6, rel=1e-4)
    assert np.all(np.diff(TRUE.loss(1e6, 1e6, BITS)) < 0)
    assert TRUE.effective(1e6, 1) == pytest.approx(1e6 * (1 - np.exp(-1 / 1.4)))
