import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.entropy import description_length as described
from theory.entropy import mantissa_noise as noise
from theory.entropy.divergence import base_of, rounded
from theory.entropy.weights import trained

LAW = {b: 3.0 * 4.0**-b for b in described.WIDTHS}


@given(st.floats(0.1, 10), st.floats(-2.5, 2.5))
def test_where_kl_is_a_power_of_four_the_minimum_is_where_it_is_said_to_be(c, log_n):
    nats, n = {b: c * 4.0**-b for b in described.WIDTHS}, 4.0 ** (3 + log_n)
    said = described.best_width(c, n)
    found = described.least(nats, n)
    assert found == pytest.approx(min(8, max(1, said)), abs=0.05 if not 1.1 < said < 7.9 else 1e-3)
    if 1.1 < said < 7.9:  # the data part of the least description is 1 / (2 ln 2) bits
        nats_there = c * 4.0**-said
        assert n * nats_there / math.log(2) == pytest.approx(1 / (2 * math.log(2)))
        assert described.length(said, nats_there, n) == pytest.approx(said + 0.7213475)


def test_the_rise_is_one_bit_for_the_law_and_half_of_one_for_its_square():
    assert described.rise(LAW, (3.0, 7.0)) == pytest.approx(1, abs=1e-3)
    assert described.constant(LAW) == pytest.approx(3)
    steep = {b: 3.0 * 16.0**-b for b in described.WIDTHS}
    assert described.rise(steep, (3.0, 7.0)) == pytest.approx(0.5, abs=1e-3)
    assert math.isnan(described.rise(LAW, (20.0, 30.0)))


@given(st.integers(0, 23), st.integers(0, 100))
def test_only_the_lowest_bits_change(k, seed):
    W = np.random.default_rng(seed).standard_normal((4, 5)).astype(np.float32)
    found = noise.randomized(W, k, np.random.default_rng(seed))
    assert found.dtype == np.float32 and (found.view(np.uint32) >> k == W.view(np.uint32) >> k).all()
    if k == 0:
        assert np.array_equal(found, W)


def test_the_error_of_random_bits_is_the_predicted_one():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((300, 300)).astype(np.float32)
    for k in (12, 18, 22):
        E = noise.randomized(W, k, rng).astype(float) - W
        # squares of differences of uniforms have 1.2 times their mean as deviation: 90,000 of them, 3 sigma
        measured = np.square(E).sum() / np.square(W, dtype=float).sum()
        assert measured == pytest.approx(noise.predicted_nmse(W, k), rel=0.03)
    with pytest.raises(ValueError, match="24 mantissa bits"):
        noise.randomized(W, 24, rng)


def test_mantissas_that_are_uniform_give_three_sevenths():
    W = (1 + (np.arange(1 << 14) + 0.5) / (1 << 14)).astype(np.float32)
    assert noise.predicted_nmse(W, 23) == pytest.approx(3 / 7 / 6, rel=1e-4)


def test_bits_are_read_off_between_and_beyond_what_was_measured():
    found = {10: 1e-6, 12: 16e-6}
    assert noise.bits_at(found, 4.0**3 * 1e-6) == pytest.approx(13)
    assert noise.bits_at(found, 1e-6 / 4) == pytest.approx(9)


def test_an_unchanged_model_has_no_divergence_and_fewer_bits_have_more():
    base = base_of("reference", 256, 0)
    eight, three = (base.nats(rounded("reference", bits)) for bits in (8, 3))
    assert 0 < eight < 1e-3 < three
    assert abs(base.nats(trained_tensors())) < 1e-7


def trained_tensors():
    import torch

    return {name: torch.from_numpy(W) for name, W in trained("reference").items()}
