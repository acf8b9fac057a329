from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import chen_2025_babai as babai
from theory.bounds.instances import power_law, rounded
from theory.bounds.pivots import factored
from theory.bounds.zhang_2025_optq import NEAREST_UPPER, error_rows, squared_error
from theory.experiment import Setting

STEP = 0.25


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0, 2))
@settings(max_examples=1000)
def test_four_algorithms_give_the_same_codes(seed, n, exponent):
    rng = np.random.default_rng(seed)
    H, steps = power_law(n, exponent, rng), np.full(n, STEP)
    w = STEP * rng.uniform(-20, 20, n)
    codes = np.rint(rounded(w[None], H, STEP)[0] / STEP)
    for algorithm in (babai.gptq, babai.ldlq, babai.babai):
        # a tie within 1e-12 of a step has a chance of n 1e-12: none among these
        assert np.array_equal(algorithm(w, H, steps), codes), algorithm.__name__


@given(st.integers(0, 2**32 - 1), st.integers(1, 10))
@settings(max_examples=200)
def test_the_bound_holds_with_a_step_for_each_column(seed, n):
    rng = np.random.default_rng(seed)
    H, steps = power_law(n, 1.0, rng), 10.0 ** rng.uniform(-2, 1, n)
    w = rng.standard_normal(n) * 5
    found = [algorithm(w, H, steps) for algorithm in (babai.gptq, babai.ldlq, babai.babai)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[1], found[2])
    error = error_rows((w - found[0] * steps)[None], H)[0]
    assert error <= squared_error(NEAREST_UPPER, H, steps) * (1 + 1e-9)
    basis = np.linalg.qr((np.linalg.cholesky(H).T * steps)[:, ::-1])[1]
    assert (np.diag(basis) ** 2)[::-1] == pytest.approx(steps**2 * factored(H).d, rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 2))
@settings(max_examples=60)
def test_the_closest_point_is_that_of_trying_all_nearby(seed, n, exponent):
    rng = np.random.default_rng(seed)
    H, steps = power_law(n, exponent, rng), rng.uniform(0.5, 2, n)
    w = rng.uniform(-3, 3, n)
    found = babai.closest(w, H, steps)
    error = error_rows((w - babai.babai(w, H, steps) * steps)[None], H)[0]
    reach = int(np.sqrt(error / np.linalg.eigvalsh(H)[0]) / steps.min()) + 1  # no farther than the error allows
    if reach > 4:
        return
    near = np.rint(w / steps)
    every = np.array([near + shift for shift in product(range(-reach - 1, reach + 2), repeat=n)])
    assert found == pytest.approx(error_rows(w - every * steps, H).min(), rel=1e-9, abs=1e-14)
    assert found <= error * (1 + 1e-9)


def test_orthogonal_channels_are_rounded_alone():
    w, steps = np.array([0.3, -0.7, 1.6]), np.array([1.0, 0.5, 1.0])
    for algorithm in (babai.gptq, babai.ldlq, babai.babai):
        assert algorithm(w, np.diag([1.0, 2.0, 3.0]), steps).tolist() == [0, -1, 2]
    assert babai.closest(w, np.eye(3), steps) == pytest.approx(0.09 + 0.04 + 0.16)


def test_the_experiment_says_what_it_found():
    said = babai.EXPERIMENT.sentence(babai.EXPERIMENT.measure(Setting(effort=0.2)))
    assert "Babai 100.00%" in said and "closest lattice point" in said
