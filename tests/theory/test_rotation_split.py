"""The split of a rotation's gain: an identity, invariants of rotations, and predictions that roundings meet."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from suite.grids import Integer
from suite.models.checkpoint import load_model
from suite.tokens import Tokens
from suite.transforms import RotateResidual
from theory.spectra.rotation import CHANGES, ROUNDINGS, planted, rotation_splits, splits_of

GRID = Integer(bits=4, group="row", convention="narrow", scale_bits=32)


def split_of(W, H, R, grid, rounding, change="rotated"):
    return next(s for s in splits_of(W, H, R, grid) if (s.rounding, s.change) == (rounding, change))


def layer(n_out, n_in, seed, outliers=0.0):
    """Weights and a Gram matrix of power-law spectrum; each row has a weight of `outliers` standard deviations."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n_out, n_in, generator=g, dtype=torch.float64)
    if outliers:
        W[torch.arange(n_out), torch.randint(n_in, (n_out,), generator=g)] = outliers
    V = RotateResidual(kind="orthogonal").fit(n_in, g)
    H = (V * torch.arange(1, n_in + 1, dtype=torch.float64) ** -1.0) @ V.T
    return W, (H + H.T) / 2, RotateResidual(kind="orthogonal").fit(n_in, g)


@settings(max_examples=20)
@given(n_out=st.integers(1, 6), n_in=st.integers(2, 24), seed=st.integers(0, 10**6), group=st.sampled_from(["row", 5]),
       rounding=st.sampled_from(ROUNDINGS), outliers=st.sampled_from([0.0, 20.0]))  # fmt: skip
def test_the_terms_add_up_and_rotations_leave_what_they_must(n_out, n_in, seed, group, rounding, outliers):
    W, H, R = layer(n_out, n_in, seed, outliers)
    try:
        found = split_of(W, H, R, Integer(bits=3, group=group, convention="narrow", scale_bits=32), rounding)
    except ValueError:  # a group of one small weight, in whose steps a large one has no code
        assume(group == "row")
        raise
    assert found.step + found.pivots + found.meeting == pytest.approx(found.predicted, abs=1e-9)
    if group == "row":
        assert found.meeting == pytest.approx(0, abs=1e-9)
    if rounding == "nearest":
        assert found.pivots == pytest.approx(0, abs=1e-9)  # a trace
    still = split_of(W, H, torch.eye(n_in, dtype=torch.float64), GRID, rounding)
    assert still.step == still.pivots == still.meeting == still.measured == still.measured_at_equal_step == 0


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_roundings_meet_the_prediction_where_steps_are_small(rounding):
    W, H, R = layer(256, 64, 1)
    found = split_of(W, H, R, Integer(bits=5, group="row", convention="narrow", scale_bits=32), rounding)
    # A mean of 256 rows: e^2 is uniform's, of relative spread 0.9, over the effective number of pivots, (sum d)^2 / sum
    # d^2 = 9 of a trace of k^-1 and more; both arms and the base-2 logarithm: four standard errors.
    sigma = 2**0.5 * 0.9 / (256 * 9) ** 0.5 / np.log(2)
    assert abs(found.measured - found.predicted) < 4 * sigma
    assert abs(found.measured_at_equal_step - found.pivots) < 4 * sigma


def test_outliers_of_weights_cost_by_their_step_and_nothing_else():
    W, H, R = layer(64, 64, 2, outliers=30.0)
    fine = Integer(bits=6, group="row", convention="narrow", scale_bits=32)  # steps of one deviation of the others
    for found in (split_of(W, H, R, fine, rounding) for rounding in ROUNDINGS):
        # sigma is (1 + 30^2 / 64)^(1/2) = 3.9 after the rotation, and the largest of 64 some 2.6 sigma: 30 / 10, twice
        assert -4.5 < found.step < -2.5
        assert found.measured == pytest.approx(found.predicted, abs=0.3)  # four sigma, 64 rows in place of 256
        assert found.measured_at_equal_step == pytest.approx(found.pivots, abs=0.3)
    coarse = split_of(W, H, R, GRID, "nearest")  # steps of 4.3 deviations leave the others at zero: less than uniform's
    assert coarse.measured_at_equal_step == pytest.approx(np.log2((30 / 7) ** 2 / 12), abs=0.3)


def test_a_planted_outlier_costs_by_the_step_wherever_it_is():
    W, H, R = layer(256, 64, 4)
    fine = Integer(bits=6, group="row", convention="narrow", scale_bits=32)
    assert int((planted(W, 5) != W).sum()) == 256 and torch.equal(planted(W, 5)[:, 5], 2 * W.abs().amax(1))
    for found in splits_of(W, H, R, fine):
        if found.change != "rotated":
            assert (found.step, found.pivots, found.meeting) == (pytest.approx(2), 0, pytest.approx(0, abs=1e-12))
            assert found.measured == pytest.approx(2, abs=0.15)  # four sigma, as above
            assert found.measured_at_equal_step == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("convention", ["asymmetric", "half-integer", "real-zero"])
def test_grids_that_store_zeros_are_refused(convention):
    W, H, R = layer(2, 4, 0)
    with pytest.raises(ValueError, match="expected full-range, narrow or span"):
        split_of(W, H, R, Integer(bits=4, convention=convention), "nearest")


def test_too_many_bits_are_refused():
    W, H, R = layer(2, 4, 0)
    with pytest.raises(ValueError, match="8 bits leave no room"):
        split_of(W, H, R, Integer(bits=8, group="row", convention="full-range", scale_bits=32), "nearest")


def test_a_model_is_split_layer_by_layer(tmp_path):
    checkpoint = load_model(str(tiny.save(tiny.model_of("llama", num_hidden_layers=2), tmp_path)))
    rows = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (8, 32))
    tokens = Tokens(rows, np.arange(8))
    found = list(rotation_splits(checkpoint, tokens, seed=3))
    names = [checkpoint.architecture.full_name(i, x) for i in range(2) for x in checkpoint.architecture.layers]
    assert [(s.layer, s.rounding, s.change) for s in found] == [
        (n, r, c) for n in names for r in ROUNDINGS for c in CHANGES
    ]
    assert all(s.step + s.pivots + s.meeting == pytest.approx(s.predicted, abs=1e-9) for s in found)
    again = list(rotation_splits(checkpoint, tokens, seed=3, blocks=1))
    assert again == found[: len(again)] and len(again) == len(found) // 2
    other = next(iter(rotation_splits(checkpoint, tokens, seed=4, kind="orthogonal")))
    assert other.step != found[0].step and other.pivots == pytest.approx(0, abs=1e-9)
