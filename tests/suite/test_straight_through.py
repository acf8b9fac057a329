"""Straight-through gradients against closed forms, differences of the surrogate, and ParetoQ's release."""

import math

import golden
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from suite.adaptation.straight_through import fake_quantized, straight_through, tuned, within
from suite.grids import E8P, Integer, RealScale, Scaled, Steps
from suite.grids.integer import CONVENTIONS

WITH_ZEROS = ("asymmetric", "real-zero")
SYMMETRIC = [
    *(Integer(bits=3, group=5, convention=c, scale_bits=32) for c in CONVENTIONS if c not in WITH_ZEROS),
    Integer(bits=4, group="row", axis=1, scale_bits=32, convention="full-range"),
    Integer(bits=2, group=3, axis=0, scale_bits=32, convention="narrow"),
    Scaled(element="e2m1", group=8, scale=RealScale(bits=32)),
    Scaled(element="seq3", group="row", scale=RealScale(bits=32)),
    Scaled(element="seq4", group=6, scale=RealScale(bits=32)),
    Scaled(element="ternary", group="tensor", scale=RealScale(statistic="absmean", bits=32)),
    Scaled(element="binary", group="row", scale=RealScale(statistic="absmean", bits=32)),
    Scaled(element="nf4", group=7, axis="flat", scale=RealScale(bits=32)),
]  # fmt: skip
grids = pytest.mark.parametrize("grid", SYMMETRIC, ids=str)


def drawn(seed, shape=(6, 13)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def learning(grid, W, shrink=1.0):
    """The grid fitted to W with scales that want gradients, smaller by `shrink` so that values lie beyond."""
    values = {name: (shrink * x).detach().clone().requires_grad_(True) for name, x in grid.fit(W).tunable().items()}
    return tuned(grid.fit(W), values), values


def test_the_forward_pass_is_exact_and_the_gradient_that_of_the_identity():
    x, g = drawn(0)
    x = (x * 1e3).requires_grad_(True)
    rounded = x.detach().round() * 0.1
    out = straight_through(x, rounded)
    out.backward(g)
    assert torch.equal(out, rounded) and torch.equal(x.grad, g)


@grids
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), shrink=st.floats(0.2, 1.5))
def test_gradients_equal_their_closed_forms(grid, seed, shrink):
    W, g = drawn(seed)
    fitted, values = learning(grid, W, shrink)
    W.requires_grad_(True)
    inside = within(W, fitted)
    out = fake_quantized(W, fitted, inside)
    out.backward(g)
    scale = fitted.layout.expand(fitted.scale).detach().expand_as(W)
    level = out.detach() / scale
    assert torch.equal(out, fitted.decode(fitted.nearest(W.detach())))
    assert torch.equal(W.grad, g * inside)
    per_value = g * (level - torch.where(inside, W.detach() / scale, 0.0))
    wanted = fitted.layout.grouped(per_value, 0.0).sum(-1)
    assert torch.allclose(values["scale"].grad, wanted, rtol=1e-6, atol=1e-9 * float(g.abs().sum()))


@grids
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), shrink=st.floats(0.2, 1.5), beyond=st.floats(0, 0.5))
def test_scales_and_values_share_a_homogeneous_gradient(grid, seed, shrink, beyond):
    """Euler: v(c x; c s) = c v(x; s), hence s dL/ds + sum x dL/dx = sum v dL/dv for L = sum g v."""
    W, g = drawn(seed)
    fitted, values = learning(grid, W, shrink)
    W.requires_grad_(True)
    out = fake_quantized(W, fitted, within(W, fitted, beyond))
    out.backward(g)
    s = values["scale"]
    left = (s * s.grad).sum() + (W * W.grad).sum()
    assert math.isclose(float(left.detach()), float((g * out).sum().detach()), rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), shrink=st.floats(0.3, 1.2))
def test_real_zero_points_get_their_gradient_from_beyond_the_range(seed, shrink):
    W, g = drawn(seed)
    fitted, values = learning(Integer(bits=3, group=5, convention="real-zero", scale_bits=32), W, shrink)
    W.requires_grad_(True)
    inside = within(W, fitted)
    fake_quantized(W, fitted, inside).backward(g)
    scale = fitted.layout.expand(fitted.scale.detach())
    wanted = fitted.layout.grouped(torch.where(inside, 0.0, -g * scale), 0.0).sum(-1)
    assert torch.allclose(values["zero"].grad, wanted, rtol=1e-9, atol=1e-9 * float((g * scale).abs().sum()))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), shrink=st.floats(0.3, 1.2))
def test_a_central_difference_of_the_surrogate_agrees(seed, shrink):
    """With rounding errors held, v = s (clamp(x / s) + error) is smooth wherever no value crosses an end."""
    W, g = drawn(seed)
    fitted, values = learning(Integer(bits=3, group="row", convention="full-range", scale_bits=32), W, shrink)
    s = values["scale"].detach()
    ratio = (W / s).clamp(-4, 3)
    errors = ratio.round() - ratio
    h = 1e-6
    near = ((W / s + 4).abs() < 1e-4) | ((W / s - 3).abs() < 1e-4)
    assume(not bool(near.any()))

    def surrogate(x, s):
        return float((g * s * ((x / s).clamp(-4, 3) + errors)).sum())

    W.requires_grad_(True)
    fake_quantized(W, fitted, within(W, fitted)).backward(g)
    direction, _ = drawn(seed + 1)
    W0 = W.detach()
    along_x = (surrogate(W0 + h * direction, s) - surrogate(W0 - h * direction, s)) / (2 * h)
    along_s = (surrogate(W0, s * (1 + h)) - surrogate(W0, s * (1 - h))) / (2 * h)
    size = float(g.abs().sum() * W0.abs().max())
    assert math.isclose(along_x, float((W.grad * direction).sum()), abs_tol=1e-6 * size)
    assert math.isclose(along_s, float((values["scale"].grad * s).sum()), abs_tol=1e-6 * size)


@grids
def test_rounding_again_changes_nothing(grid):
    W, _ = drawn(4)
    fitted = grid.fit(W)
    once = fake_quantized(W, fitted)
    assert torch.equal(fake_quantized(once, fitted), once)


def test_constant_codes_leave_the_unrounded_value_out_of_the_gradient():
    W, g = drawn(5)
    fitted, values = learning(Integer(bits=2, group="row", convention="narrow", scale_bits=32), W)
    W.requires_grad_(True)
    out = fake_quantized(W, fitted, within(W, fitted), constant=True)
    out.backward(g)
    level = out.detach() / values["scale"].detach()
    assert torch.allclose(values["scale"].grad, (g * level).sum(1, keepdim=True))


def test_grids_of_blocks_pass_everything_and_have_no_range():
    W = torch.randn(4, 16, generator=torch.Generator().manual_seed(6))
    fitted = E8P().fit(W)
    x = W.clone().requires_grad_(True)
    fake_quantized(x, fitted).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(W))
    with pytest.raises(ValueError, match="eight dimensions"):
        within(W, fitted)


def test_a_grid_without_a_scale_is_not_measured_in_it():
    W = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
    fitted = Steps(bits=3).fit(W, torch.eye(16, dtype=torch.float64))
    assert within(W, fitted).dtype == torch.bool
    with pytest.raises(ValueError, match="no scale"):
        within(W, fitted, beyond=0.5)


# ParetoQ's release, at w_bits: the grid, how far beyond the last level gradients pass, and what it adds there
SEQ = {0: ("seq3", 0.99 - 2 / 3), 2: ("seq4", 0.99 - 3 / 4)}
PARETOQ = [row for row in golden.rows("vector-rotation-adapters") if row["method"] == "ParetoQ"]


@golden.needed
@pytest.mark.parametrize("row", PARETOQ, ids=lambda r: f"{r['weights']}-{r['config']['bits_name']}-{r['seed']}")
def test_paretoq_as_released(row):
    bits, values = row["config"]["w_bits"], row["values"]
    W, g, alpha = (torch.tensor(values[name]) for name in ("weight", "upstream_grad", "alpha"))
    real = RealScale(bits=32)
    if bits in SEQ:
        grid, beyond = Scaled(element=SEQ[bits][0], group="row", scale=real), SEQ[bits][1]
    elif bits == 1:
        grid, beyond = Scaled(element="binary", group="row", scale=RealScale(statistic="absmean", bits=32)), 0.0
    else:
        grid, beyond = Integer(bits=bits, group="row", convention="full-range", scale_bits=32), 0.0
    alpha.requires_grad_(True)
    fitted = tuned(grid.fit(W), {"scale": alpha})
    W.requires_grad_(True)
    # its ternary gradient takes 1 for what is clipped, where the level is 2/3
    out = fake_quantized(W, fitted, within(W, fitted, beyond), constant=bits == 1, overshoot=1 / 3 if bits == 0 else 0)
    out.backward(g)
    scale = 1 / math.sqrt(W.numel() * max(1, 2 ** (bits - 1) - 1))
    assert torch.allclose(out, torch.tensor(values["forward"]), rtol=1e-6)
    assert torch.equal(W.grad, torch.tensor(values["grad_weight"]))
    assert torch.allclose(alpha.grad * scale, torch.tensor(values["grad_alpha"]), rtol=1e-5, atol=1e-6)


@golden.needed
def test_paretoq_releases_a_ternary_gradient_that_is_not_that_of_its_forward_pass():
    row = next(row for row in PARETOQ if row["config"] == PARETOQ[0]["config"] | {"w_bits": 0, "bits_name": "1.58"})
    W, g, alpha = (torch.tensor(row["values"][name]) for name in ("weight", "upstream_grad", "alpha"))
    alpha.requires_grad_(True)
    fitted = tuned(Scaled(element="seq3", group="row", scale=RealScale(bits=32)).fit(W), {"scale": alpha})
    fake_quantized(W, fitted, within(W, fitted, SEQ[0][1])).backward(g)
    released = torch.tensor(row["values"]["grad_alpha"]) * math.sqrt(W.numel())
    clipped = W.abs() > 0.99 * alpha.detach()
    assert clipped.any()
    assert torch.allclose(released - alpha.grad, (g * W.sign() * clipped / 3).sum(1, keepdim=True), atol=1e-5)
