"""Fake quantization as parametrizations: what is trained is what is stored; LSQ's start, gradient scale and formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from suite.activations import quantize_activations
from suite.adaptation.quantization_aware import (
    FakeInputs,
    FakeQuantize,
    Gradient,
    Perturbation,
    QuantizationAware,
    largest_code,
    started,
)
from suite.adaptation.training import Schedule
from suite.grids import E8P, Codebooks, Integer, RealScale, Scaled, Unscaled
from suite.methods import METHODS
from suite.methods.lsq import LSQ
from suite.methods.paretoq import PARETOQ
from suite.quantize import quantize_layer
from suite.recipe import Target, trains

ONE = Schedule(steps=1)
LEARNED = QuantizationAware(schedule=ONE)
FITTED = QuantizationAware(schedule=ONE, learned="nothing")


def matrix(seed=0, shape=(6, 40)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded_layer(W, grid, how):
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight = nn.Parameter(W.clone())
    fake = FakeQuantize(layer.weight, grid, how)
    parametrize.register_parametrization(layer, "weight", fake)
    return layer, fake


@pytest.mark.parametrize("grid", [Integer(bits=3, group=16), Integer(bits=4, group=8, convention="real-zero"),
                                  Scaled(element="e2m1", group=8), Scaled(element="seq4", group="row"),
                                  Scaled(element="binary", group="row", scale=RealScale(statistic="absmean")),
                                  Codebooks(code_bits=3, length=4, scale="row")], ids=str)  # fmt: skip
@pytest.mark.parametrize("how", [LEARNED, FITTED], ids=["learned", "fitted"])
def test_what_is_trained_is_bit_for_bit_what_is_stored(grid, how):
    if isinstance(grid, Codebooks):
        how = QuantizationAware(schedule=ONE, learned=how.learned, gradient=Gradient(range="open"))
    layer, fake = rounded_layer(matrix(), grid, how)
    with torch.no_grad():
        for x in fake.learned.values():
            x.mul_(1.0371)  # no number of float16
    W = layer.parametrizations.weight.original.detach()
    stored = quantize_layer(W, Target(grid), None, torch.Generator(), learned=fake.values())
    assert torch.equal(layer.weight.detach(), stored.dequantize())
    back = type(stored).from_bytes(stored.to_bytes(), stored.header())
    assert torch.equal(back.dequantize(), layer.weight.detach())


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), shrink=st.floats(0.3, 1.5))
def test_a_learned_step_has_the_gradient_of_lsq(seed, bits, shrink):
    """d/ds = round(w/s) - w/s within [-Qn, Qp], -Qn below, Qp above; over sqrt(N Qp)."""
    W, g = matrix(seed).double(), matrix(seed + 1).double()
    grid = Integer(bits=bits, group="row", convention="full-range", scale_bits=32)
    how = QuantizationAware(schedule=ONE, start="lsq")
    layer, fake = rounded_layer(W, grid, how)
    with torch.no_grad():
        fake.learned["scale"].mul_(shrink)
    layer.weight.backward(g)
    s = fake.values()["scale"].detach()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ratio = W / s
    per_weight = torch.where(ratio < low, low, torch.where(ratio > high, high, ratio.round() - ratio))
    wanted = (g * per_weight).sum(1, keepdim=True) / math.sqrt(W.numel() * high)
    assert torch.allclose(fake.learned["scale"].grad, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    latent = layer.parametrizations.weight.original
    assert torch.equal(latent.grad, g * ((ratio >= low) & (ratio <= high)))


def test_steps_begin_as_lsq_and_lsq_plus_say():
    W = matrix()
    grid = Integer(bits=3, group=16, convention="full-range")
    groups = W[:, :16], W[:, 16:32], W[:, 32:]
    lsq = started(grid.fit(W), W, "lsq")["scale"]
    assert torch.allclose(lsq, torch.stack([2 * g.abs().mean(1) / math.sqrt(3) for g in groups], 1))
    plus = started(grid.fit(W), W, "lsq+")["scale"]
    ends = [[(g.mean(1) + sign * 3 * g.std(1, correction=0)).abs() for sign in (-1, 1)] for g in groups]
    assert torch.allclose(plus, torch.stack([torch.maximum(*pair) / 4 for pair in ends], 1), rtol=1e-5)
    assert torch.equal(started(grid.fit(W), W, "range")["scale"], grid.fit(W).scale)


def test_signed_scales_keep_their_signs():
    W = matrix()
    grid = Integer(bits=3, group=16, convention="signed-max")
    assert torch.equal(started(grid.fit(W), W, "lsq")["scale"].sign(), grid.fit(W).scale.sign())


def test_a_scale_that_training_takes_to_zero_keeps_what_can_be_stored_and_its_gradient():
    layer, fake = rounded_layer(matrix(), Integer(bits=3, group="row", convention="full-range"), LEARNED)
    with torch.no_grad():
        fake.learned["scale"].zero_()
    layer.weight.sum().backward()
    assert bool(torch.isfinite(layer.weight).all())
    assert bool(torch.isfinite(fake.learned["scale"].grad).all()) and bool(fake.learned["scale"].grad.any())


def test_a_fitted_grid_follows_the_weights():
    layer, fake = rounded_layer(matrix(), Integer(bits=3, group="row"), FITTED)
    assert not list(fake.parameters())
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(4)
    grid = Integer(bits=3, group="row").fit(4 * matrix())
    assert torch.equal(layer.weight.detach(), grid.decode(grid.nearest(4 * matrix())))


def test_grids_without_parameters_learn_none():
    with pytest.raises(ValueError, match="no real parameters to learn"):
        FakeQuantize(matrix(), Scaled(element="float16", group="tensor", scale=Unscaled()), LEARNED)
    with pytest.raises(ValueError, match="begins at its own range"):
        FakeQuantize(matrix(shape=(8, 32)), E8P(), QuantizationAware(schedule=ONE, start="lsq"))


def test_inputs_are_rounded_token_by_token_and_pass_gradients():
    grid = Integer(bits=8, group="row", convention="full-range", scale_bits=32)
    layer, inputs = nn.Linear(40, 3, bias=False), FakeInputs(grid)
    layer.register_forward_pre_hook(inputs)
    x = matrix(shape=(2, 5, 40)).requires_grad_(True)
    y = layer(x)
    assert torch.equal(y, nn.functional.linear(quantize_activations(x, grid, 0.0), layer.weight))
    y.sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand_as(x))


def test_a_static_scale_is_learned_from_the_first_inputs_on():
    grid = Integer(bits=4, group="tensor", convention="full-range", scale_bits=32)
    inputs = FakeInputs(grid)
    x = matrix(shape=(7, 40)).requires_grad_(True)
    (y,) = inputs(nn.Identity(), (x,))
    step = float(inputs.step.detach())
    assert math.isclose(step, 2 * float(x.detach().abs().mean()) / math.sqrt(7), rel_tol=1e-6)
    assert torch.allclose(y, (x / step).round().clamp(-8, 7) * step)
    y.sum().backward()
    ratio = x.detach() / step
    per_value = torch.where(ratio < -8, -8, torch.where(ratio > 7, 7, ratio.round() - ratio))
    assert math.isclose(float(inputs.step.grad), float(per_value.sum()) / math.sqrt(40 * 7), rel_tol=1e-4, abs_tol=1e-5)
    with pytest.raises(ValueError, match="integers of one scale"):
        FakeInputs(Scaled(element="e4m3", group="tensor"))


def test_both_ends_of_a_static_range_are_learned_as_lsq_plus_has_it():
    """b = -s z: within the range a step has round(u) - u and an offset 0, beyond it the code and 1 (equations 5, 6)."""
    grid = Integer(bits=3, group="tensor", convention="real-zero", scale_bits=32)
    inputs, x = FakeInputs(grid), (matrix(shape=(7, 40)).relu() - 0.1).requires_grad_(True)
    (y,) = inputs(nn.Identity(), (x,))
    s, z = inputs.step.detach(), inputs.zero.detach()
    whole = grid.fit_range(*(end.reshape(1, 1) for end in x.detach().aminmax()), (7, 40))
    assert float((y - x).detach().square().sum()) <= float((whole.rounded(x.detach()) - x.detach()).square().sum())
    u = x.detach() / s + z
    codes = u.round().clamp(0, 7)
    assert torch.allclose(y, (codes - z) * s, atol=1e-6)
    y.sum().backward()
    inside, sizes = (u >= 0) & (u <= 7), math.sqrt(40 * 3)
    assert torch.equal(x.grad, inside.float()) and not bool(inside.all())
    of_step = torch.where(inside, codes - u, codes - z)  # at fixed z; LSQ+'s n or p is that at fixed b
    assert math.isclose(float(inputs.step.grad), float(of_step.sum()) / sizes, rel_tol=1e-4, abs_tol=1e-5)
    assert math.isclose(float(inputs.zero.grad), float((~inside).sum() * -s) / sizes, rel_tol=1e-4, abs_tol=1e-6)
    low, high = inputs.span
    assert torch.allclose(quantize_activations(x, grid, (low, high)), y.detach(), atol=1e-6)


def test_bitnets_integer_path_is_its_fake_quantized_path():
    """Codes times codes in integers, scales outside: the same sum in float64, up to its own rounding."""
    W, x = matrix(shape=(12, 64)).double(), matrix(1, (5, 64)).double()
    weights = Scaled(element="ternary", group="tensor", scale=RealScale(statistic="absmean", bits=32))
    inputs = Integer(bits=8, group="row", convention="full-range", scale_bits=32)
    fitted, tokens = weights.fit(W), inputs.fit(x)
    levels = torch.tensor(fitted.element.levels, dtype=torch.float64)[fitted.nearest(W).long()]
    codes = tokens.nearest(x).to(torch.int64) - 128
    whole = codes @ levels.to(torch.int64).T
    fake = tokens.decode(tokens.nearest(x)) @ fitted.decode(fitted.nearest(W)).T
    assert torch.allclose(whole * tokens.scale * fitted.scale, fake, rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("method", [LSQ, PARETOQ], ids=lambda m: m.name)
def test_published_widths_have_as_many_levels(method):
    for bits in method.bits:
        target = method.recipe(bits=bits).weights
        fitted = target.grid.fit(matrix())
        values = torch.unique(fitted.decode(fitted.nearest(matrix(1, (6, 4000))[:, :40])) / fitted.scale)
        assert len(values) <= fitted.n_codes == math.ceil(2**bits), method.name
        assert largest_code(fitted) == {1: 1, 1.58: 1, 2: 1}.get(bits, 2 ** (int(bits) - 1) - 1)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"hidden": -1.0}, {"scratch": True, "loss": "cakld"},
                                   {"sub_norm": True}])  # fmt: skip
def test_training_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"expected|from scratch"):
        QuantizationAware(schedule=ONE, **wrong)
    with pytest.raises(ValueError, match="noise 0"):
        Perturbation(noise=0)
    with pytest.raises(ValueError, match="beyond -1"):
        Gradient(beyond=-1)


def test_methods_that_train_say_so():
    for method in METHODS:
        learns = method.needs == "training" and method.name != "spinquant"
        assert trains(method.recipe(bits=method.bits[-1])) == learns
