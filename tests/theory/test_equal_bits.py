import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.grids import Integer
from theory.bounds.instances import dispersed, power_law
from theory.expansion.equal_bits import (
    EXPERIMENTS,
    STORAGES,
    Outcome,
    at_equal_bits,
    branched,
    break_even_bits,
    comparison,
    expanded,
    high_rate_ratio,
    plain,
    synthetic,
)
from theory.expansion.franco_2025_null_space import Spread, random_basis
from theory.experiment import Point
from theory.rate_distortion import ecsq_point


@given(st.floats(1.01, 3), st.floats(0.05, 1))
def test_expansion_pays_below_its_break_even_rate(ratio, sums):
    there = break_even_bits(ratio, sums)
    assert there > 0
    assert high_rate_ratio(there, ratio, sums) == pytest.approx(1)
    assert high_rate_ratio(there / 2, ratio, sums) < 1 < high_rate_ratio(2 * there, ratio, sums)


def test_every_bit_is_counted():
    W, H = synthetic(0)
    beside = Integer(bits=3, group="row").fit(torch.from_numpy(W)).beside_bits
    assert plain(STORAGES["width"], W, H, 3).bits == 3 + beside / W.size
    T = random_basis(64, 80, np.random.default_rng(0))
    assert expanded(STORAGES["width"], W, H, 3, T).bits == 3 * 80 / 64 + beside / W.size
    branch = 16 * 2 * (128 + 64) / W.size
    for known in (True, False):
        assert branched(STORAGES["width"], W, H, 3, 2, known).bits == 3 + (beside / W.size) + branch


def test_entropy_is_that_of_the_codes():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((400, 64))
    found = plain(STORAGES["entropy"], W, np.eye(64), 0.5)
    # feedback among channels without correlation is rounding to nearest; -log2 p of a Gaussian deviates by log2 e over
    # the root of 2, its squared error over a cell by 2 over the root of 5 of its mean
    assert found.bits == pytest.approx(ecsq_point(0.5)[0] + 32 / W.size, abs=4 * 1.02 / np.sqrt(W.size))
    assert found.error == pytest.approx(0.25 / 12, rel=4 * 2 / np.sqrt(5 * W.size))


def test_high_rate_theory_is_met_at_high_rate():
    rng = np.random.default_rng(0)
    H, T, step = power_law(32, 1.0, rng), random_basis(32, 40, rng), 2.0**-6
    W = dispersed(600, 32, step, rng)
    knob = step / W.std()
    a, b = plain(STORAGES["entropy"], W, H, knob), expanded(STORAGES["entropy"], W, H, knob, T)
    # both at the same step over the deviation: the same entropy for a code, so that r times the bits give the factor
    sums = Spread.of_feedback(T.T @ H @ T, 0.01).output_error / Spread.of_feedback(H, 0.01).output_error
    assert b.error / a.error == pytest.approx(sums / 1.25, rel=0.03)


def test_rates_between_are_mixed_or_interpolated():
    curve = [Outcome(2, 0.16), Outcome(3, 0.04)]
    assert at_equal_bits(curve, 2.5, straight=True) == pytest.approx(0.10)
    assert at_equal_bits(curve, 2.5, straight=False) == pytest.approx(0.08)
    with pytest.raises(ValueError, match=r"3\.100 bits: plain codes were measured from 2\.000 to 3\.000"):
        at_equal_bits(curve, 3.1, straight=True)


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_seed_says_everything_and_each_way_has_its_bits(storage):
    W, H = synthetic(1)
    found = comparison(W, H, storage, 1)
    assert found == comparison(W, H, storage, 1)
    assert {name for name, _ in found} >= {"rotated alone", "branch after the fact, rank 1", "predicted, 1.125 times"}
    assert all(bits > 1 and ratio > 0 for bits, ratio in found.values())


def test_the_sentence_says_what_the_points_say():
    def points(ratio):
        names = (
            "rotated alone",
            "random basis, 1.5 times",
            "branch known to feedback, rank 1",
            "branch after the fact",
        )
        return [Point(series=name, x=2.0, y=ratio, low=ratio, high=ratio) for name in names]

    say = EXPERIMENTS[0].sentence
    assert "in 1 of 1 cases, between 2.00 and 2.00 bits (at best 0.50 times" in say(points(0.5))
    assert "in 0 of 1 cases (at best 2.00 times" in say(points(2.0))
