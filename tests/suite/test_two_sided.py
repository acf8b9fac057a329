"""Levels with a scale for either side of zero: a plain twin, symmetries, exact size, gradients, BitDistiller's release.

What every grid promises is tested in test_grids.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from suite.adaptation.quantization_aware import FakeQuantize, Gradient, QuantizationAware
from suite.adaptation.straight_through import fake_quantized, tuned, within
from suite.adaptation.training import Schedule
from suite.grids import TwoSided
from suite.grids.elements import ELEMENTS
from suite.quantize import quantize_layer, quantize_matrix
from suite.recipe import Recipe, Target
from suite.rounding import Feedback

LEVELS = ELEMENTS["n2f3"].levels
PLAIN = TwoSided(group=5, scale_bits=32)
seeds = st.integers(0, 2**31)


def matrix(seed=0, shape=(6, 13), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def both(grid, W):
    fitted = grid.fit(W)
    codes = fitted.nearest(W)
    return fitted, codes, fitted.decode(codes)


def plain(values):
    """A group's values as they are read, one by one, each of its own side's levels."""
    high, low = max(values), min(values)
    found = []
    for x in values:
        side = [level * high for level in LEVELS if level >= 0] if x >= 0 else [-level * low for level in LEVELS
                                                                               if level <= 0]  # fmt: skip
        found.append(min(side, key=lambda level: abs(x - level)))
    return found


@settings(max_examples=25)
@given(seed=seeds)
def test_each_side_is_rounded_on_its_own(seed):
    W = matrix(seed, dtype=torch.float64)
    _, _, Q = both(PLAIN, W)
    wanted = [[x for start in (0, 5, 10) for x in plain(row[start : start + 5])] for row in W.tolist()]
    # a side without values has levels that no value is near; scales are stored in float32
    assert torch.allclose(Q, torch.tensor(wanted, dtype=torch.float64), rtol=2.0**-23, atol=0)


@settings(max_examples=25)
@given(seed=seeds)
def test_the_sides_change_places_with_the_sign(seed):
    W = matrix(seed)
    assert torch.equal(PLAIN.fit(-W).scale, PLAIN.fit(W).scale.flip(0))
    for element in ("ternary", "seq3"):  # levels that are symmetric
        grid = TwoSided(element=element, group=5)
        assert torch.equal(both(grid, -W)[2], -both(grid, W)[2])


@settings(max_examples=25)
@given(seed=seeds, k=st.integers(-3, 8))
def test_powers_of_two_change_scales_alone(seed, k):
    W = matrix(seed)
    for grid in (PLAIN, TwoSided(group=5)):
        (one, codes, _), (other, again, _) = both(grid, W), both(grid, W * 2.0**k)
        assert torch.equal(codes, again)
        if grid.scale_bits == 32 or float(one.scale.min()) > 2.0**-11:  # normal numbers of float16, still at k = -3
            assert torch.equal(other.scale, one.scale * 2.0**k)


@settings(max_examples=25)
@given(seed=seeds)
def test_both_ends_of_a_group_are_met(seed):
    W = matrix(seed, (4, 20))
    _, _, Q = both(TwoSided(group=10, scale_bits=32), W)
    ends = W.reshape(4, 2, 10).aminmax(dim=-1)
    found = Q.reshape(4, 2, 10).aminmax(dim=-1)
    two = (ends.min < 0) & (ends.max > 0)
    assert bool(two.any()) and torch.equal(found.min[two], ends.min[two]) and torch.equal(found.max[two], ends.max[two])


@pytest.mark.parametrize(("grid", "shape", "beside"), [
    (TwoSided(), (16, 256), 2 * 16 * 2 * 16), (TwoSided(), (3, 130), 2 * 16 * 2 * 3),
    (TwoSided(scale_bits=32, group=64), (5, 64), 2 * 32 * 5), (TwoSided(group="tensor"), (5, 7), 2 * 16),
    (TwoSided(group="row"), (5, 7), 2 * 16 * 5),
], ids=str)  # fmt: skip
def test_three_bits_and_two_scales_are_all_there_is(grid, shape, beside):
    fitted, codes, _ = both(grid, matrix(0, shape))
    assert fitted.n_bits == 3 * math.prod(shape) + beside == 3 * math.prod(shape) + fitted.beside_bits
    assert len(fitted.to_bytes(codes)) == -(-fitted.n_bits // 8)


def test_a_group_of_128_takes_three_and_a_quarter_bits():
    q = quantize_matrix(matrix(0, (8, 512)), recipe=Recipe(weights=Target(TwoSided())))
    assert q.n_bits == (3 + 32 / 128) * 8 * 512


def test_a_side_without_values_takes_the_scale_of_the_other_and_zeros_have_one():
    W = torch.tensor([[0.5, 2.0, 0.25], [-3.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    fitted, codes, Q = both(TwoSided(group="row"), W)
    assert fitted.scale[:, :, 0].tolist() == [[2, 3, 1], [2, 3, 1]]
    assert bool(torch.isfinite(Q).all()) and torch.equal(Q[2], W[2])
    assert codes[1, 2] == LEVELS.index(0.0) and Q[0, 1] == 2 and Q[1, 0] == -3


def test_ties_go_to_the_even_place():
    W = torch.tensor([[-1.0, -0.5, 0.5, 1.0], [-2.0, -1.0, 1.5, 3.0]])
    _, codes, _ = both(TwoSided(element="ternary", group="row"), W)
    assert codes.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2]]


def test_scales_too_small_to_be_stored_are_the_smallest_that_can():
    W = torch.tensor([[1e-12, -1.0], [1e-12, -1e-12]])
    fitted, _, Q = both(TwoSided(group="row"), W)
    assert fitted.scale[1, 0, 0] == fitted.scale.min() == 2.0**-24
    assert Q.tolist() == [[0, -1], [0, 0]]
    turned = fitted.tuned({"scale": torch.full_like(fitted.scale, -1.0)})
    back = turned.grid.restore([values for values, _ in turned.beside()], turned.header())
    assert back.scale.tolist() == torch.full_like(fitted.scale, 2.0**-24).tolist()


def test_scales_that_are_not_positive_are_refused():
    grid = TwoSided(group="row")
    fitted, _, _ = both(grid, matrix(0, (1, 4)))
    with pytest.raises(ValueError, match="expected positive scales, found 0"):
        grid.restore([torch.tensor([0, 0x3C00])], fitted.header())


def test_groups_of_columns_in_another_order_come_back():
    W, grid = matrix(0, (6, 40)), TwoSided(group=8)
    H = torch.diag(torch.linspace(1, 9, 40, dtype=torch.float64))
    rounded = Feedback(order="decreasing").round(W, grid, H, torch.Generator())
    header = rounded.grid.header()
    assert header["grouped"] is True
    back, codes = grid.from_bytes(rounded.grid.to_bytes(rounded.codes), header)
    assert torch.equal(back.decode32(codes), rounded.grid.decode32(rounded.codes))


@pytest.mark.parametrize(("wrong", "why"), [({"element": "n2f4"}, "element 'n2f4'"), ({"group": 0}, "group 0"),
                                            ({"scale_bits": 8}, "scale_bits 8")])  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        TwoSided(**wrong)


@pytest.mark.parametrize(("element", "why"), [("e2m1", "ascending levels"), ("binary", "both sides of a zero")])
def test_levels_without_two_sides_are_unsupported(element, why):
    grid = TwoSided(element=element)
    assert why in grid.unsupported and why in Target(grid).unsupported
    with pytest.raises(ValueError, match=why):
        grid.fit(matrix())
    with pytest.raises(ValueError, match="are not fitted one by one"):
        TwoSided(group="tensor").fit(matrix()).refit(matrix(), 0, torch.arange(13), None)


# training on it


def learning(grid, W, shrink=1.0):
    """The grid fitted to W with scales that want gradients, smaller by `shrink` so that values lie beyond."""
    scale = (shrink * grid.fit(W).scale).detach().clone().requires_grad_(True)
    return tuned(grid.fit(W), {"scale": scale}), scale


@settings(max_examples=15)
@given(seed=seeds, shrink=st.floats(0.3, 1.4))
def test_gradients_equal_their_closed_forms_on_either_side(seed, shrink):
    """dv/ds of a side: level - x/s of its values within, the last level of those beyond (LSQ, of any levels)."""
    W, g = matrix(seed, dtype=torch.float64), matrix(seed + 1, dtype=torch.float64)
    fitted, scale = learning(PLAIN, W, shrink)
    W.requires_grad_(True)
    inside = within(W, fitted)
    out = fake_quantized(W, fitted, inside)
    out.backward(g)
    x, v, s = W.detach(), out.detach(), fitted.scale_of(W).detach()
    assert torch.equal(out, fitted.decode(fitted.nearest(x)))
    assert torch.equal(inside, (x / s >= -1) & (x / s <= 1)) and torch.equal(W.grad, g * inside)
    per_value = g * (v / s - torch.where(inside, x / s, 0.0))
    for side, below in enumerate((x < 0, x >= 0)):
        wanted = fitted.layout.grouped(torch.where(below, per_value, 0.0), 0.0).sum(-1)
        assert torch.allclose(scale.grad[side], wanted, rtol=1e-9, atol=1e-12 * float(g.abs().sum()))
    left = (scale.detach() * scale.grad).sum() + (x * W.grad).sum()  # Euler: homogeneous in weights and scales
    assert math.isclose(float(left), float((g * v).sum()), rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("learned", ["scales", "nothing"])
def test_what_is_trained_is_bit_for_bit_what_is_stored(learned):
    W, grid = matrix(0, (6, 40)), TwoSided(group=16)
    layer = nn.Linear(40, 6, bias=False)
    layer.weight = nn.Parameter(W.clone())
    how = QuantizationAware(schedule=Schedule(steps=1), learned=learned, gradient=Gradient(range="open"))
    fake = FakeQuantize(layer.weight, grid, how)
    parametrize.register_parametrization(layer, "weight", fake)
    with torch.no_grad():
        for x in fake.learned.values():
            x.mul_(1.0371)  # no number of float16
    stored = quantize_layer(W, Target(grid), None, torch.Generator(), learned=fake.values())
    assert torch.equal(layer.weight.detach(), stored.dequantize())
    assert torch.equal(type(stored).from_bytes(stored.to_bytes(), stored.header()).dequantize(), layer.weight.detach())
    layer.weight.sum().backward()
    assert torch.equal(layer.parametrizations.weight.original.grad, torch.ones_like(W))
    assert all(bool(x.grad.isfinite().all()) and bool(x.grad.any()) for x in fake.learned.values())


def test_as_released():
    """Three groups of eight through `SteN2F3Quantizer(8)` of DD-DuDa/BitDistiller at 9faaab8, float32 scales."""
    W = torch.tensor([[-0.75, -0.5, -0.25, -0.125, 0.0, 0.25, 0.625, 1.25],
                      [0.5, -2.0, 1.0, -0.375, 3.0, 0.125, -0.625, 1.75],
                      [-8.0, -4.0, -2.0, -1.0, -0.5, 0.0625, 0.03125, -3.0]])  # fmt: skip
    released = torch.tensor([
        [-0.75, -0.40126705169677734, -0.18519854545593262, -0.18519854545593262, 0.0, 0.22917190194129944,
         0.47749245166778564, 1.25],
        [0.5500125885009766, -2.0, 1.145981788635254, -0.4938628077507019, 3.0, 0.0, -0.4938628077507019,
         1.8689570426940918],
        [-8.0, -4.280181884765625, -1.9754512310028076, -1.9754512310028076, 0.0, 0.0625, 0.023874621838331223,
         -1.9754512310028076]])  # fmt: skip
    assert torch.equal(both(TwoSided(group=8, scale_bits=32), W)[2], released)
