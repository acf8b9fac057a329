import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theory.limits.bit_flips import (
    FORMATS,
    GROUP,
    Place,
    Stored,
    as_bfloat16,
    flipped_float,
    flipped_scale,
    median_change,
    places,
)

finite = st.floats(-1e3, 1e3, width=32)


@given(st.lists(finite, min_size=1), st.integers(0, 31))
def test_a_flip_undoes_itself_and_changes_every_value(values, bit):
    x = np.array(values, dtype=np.float32)
    once = flipped_float(x, "fp32", bit)
    assert (once.view(np.uint32) != x.view(np.uint32)).all()
    assert flipped_float(once, "fp32", bit).tobytes() == x.tobytes()
    assert (flipped_float(x, "fp32", 31) == -x).all()


@given(st.lists(finite, min_size=1))
def test_bfloat16_is_torchs(values):
    x = np.array(values, dtype=np.float32)
    assert as_bfloat16(x).tobytes() == torch.from_numpy(x).bfloat16().float().numpy().tobytes()


@given(st.floats(1e-4, 10), st.integers(0, 15))
def test_a_scale_keeps_its_other_bits(scale, bit):
    x = np.array([scale], dtype=np.float16)
    assert int(x.view(np.uint16)[0]) ^ int(flipped_scale(x, bit).view(np.uint16)[0]) == 1 << bit


@pytest.mark.parametrize("form", FORMATS)
def test_places_are_all_stored_bits(form):
    found = places(form)
    assert len(set(found)) == len(found) == {"fp32": 32, "bf16": 16, "int8": 24, "int4": 20}[form]
    assert sum(place.share for place in found) == pytest.approx(1)


def test_published_medians_of_bfloat16():
    told = {0: 0.003, 6: 0.195, 8: 1.6, 9: 10.1, 15: 1.34}
    for bit, value in told.items():
        assert median_change(Place("bf16", "float", bit), 0.02) == pytest.approx(value, rel=0.05)
    assert median_change(Place("bf16", "float", 14), 0.02) > 1e38


def test_the_sign_is_twice_the_median_weight():
    for form, bit in (("fp32", 31), ("bf16", 15)):
        assert median_change(Place(form, "float", bit), 0.02) == pytest.approx(2 * 0.67449, rel=1e-2)
    # mantissa bits halve exactly
    at = [median_change(Place("fp32", "float", bit), 0.02) for bit in (20, 21, 22)]
    assert at[1] / at[0] == pytest.approx(2, rel=1e-3) and at[2] / at[1] == pytest.approx(2, rel=1e-3)


@given(st.sampled_from(["int8", "int4"]), st.floats(1e-2, 10))
def test_codes_double_from_bit_to_bit_and_are_bounded_by_the_range(form, sigma):
    bits = {"int8": 8, "int4": 4}[form]
    found = [median_change(Place(form, "code", bit), sigma) for bit in range(bits)]
    assert np.allclose(np.diff(np.log2(found)), 1)
    # the median largest of 128: (2 Phi(m) - 1)^128 = 1/2
    assert found[-1] == pytest.approx(2.78 * 2 ** (bits - 1) / (2 ** (bits - 1) - 1), rel=0.01)


@pytest.mark.parametrize("form", FORMATS)
def test_closed_forms_are_what_gaussian_matrices_do(form):
    sigma, rng = 0.03, np.random.default_rng(0)  # scales lie within an octave, away from its ends
    stored = Stored.of(torch.from_numpy(sigma * rng.standard_normal((64, 2 * GROUP))).float(), form)
    for place in places(form):
        told = median_change(place, sigma)
        sizes = []
        for _ in range(301):
            vector = np.abs(stored.flip(place, rng)[1])
            sizes.append(np.median(vector[vector != 0]) / sigma if (vector != 0).any() else 0.0)
        if not 0 < told < np.inf:
            continue
        # medians of heavy-tailed sizes, of 301: within a quarter of the distribution's middle half, and binary steps
        assert np.log2(np.median(sizes) / told) == pytest.approx(0, abs=1.0), place


@given(st.sampled_from(["int8", "int4"]), st.integers(0, 100))
def test_a_flip_is_a_change_of_what_is_read(form, seed):
    rng = np.random.default_rng(seed)
    stored = Stored.of(torch.from_numpy(rng.standard_normal((3, GROUP + 10))).float(), form)
    for place in (Place(form, "code", 1), Place(form, "scale", 9)):
        row, added = stored.flip(place, rng)
        assert 0 <= row < 3 and added.shape == (GROUP + 10,)
        if place.part == "code":
            assert (added != 0).sum() == 1
            scale = float(stored.scales[row, int(np.flatnonzero(added)[0]) // GROUP])
            assert abs(added).max() == pytest.approx(2 * scale)
        else:  # the lowest bit of 5 of the exponent is 10: this is the mantissa's highest, by a half at most
            whole = stored.values[row] != 0
            assert (abs(added[whole & (added != 0)]) <= 0.5001 * abs(stored.values[row][whole & (added != 0)])).all()


def test_a_bad_deviation_is_named():
    with pytest.raises(ValueError, match="sigma 0"):
        median_change(Place("bf16", "float", 0), 0)
