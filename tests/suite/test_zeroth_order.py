import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from suite.adaptation.training import Schedule, train
from suite.adaptation.zeroth_order import ZerothOrder


def quadratic(seed):
    draw = torch.Generator().manual_seed(seed)
    A, b = (torch.randn(6, n, generator=draw, dtype=torch.float64) for n in (4, 1))
    layer = nn.Linear(4, 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return layer, lambda part: (layer(A) - b).square().mean()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20), noise=st.floats(1e-3, 10))
def test_of_a_quadratic_the_slope_is_exactly_that_along_the_noise(seed, noise):
    layer, loss_of = quadratic(seed)
    wanted = torch.autograd.grad(loss_of(0), list(layer.parameters()))
    update = ZerothOrder(layer, noise=noise, seed=seed)
    before = [p.detach().clone() for p in layer.parameters()]
    update.gradient(loss_of, [0])
    (draws, slope), *_ = update._slopes
    exact = 0.0
    for (_, shift), gradient in zip(update._shifts, _by_name(layer, update, wanted), strict=True):
        shift.seed = draws
        exact += float((shift.noise(gradient) * gradient).sum())
    assert math.isclose(slope, exact, rel_tol=1e-8, abs_tol=1e-8)
    assert all(map(torch.equal, before, layer.parameters()))  # bit for bit where they were


def _by_name(layer, update, gradients):
    """Gradients in the order of the update's parameters; weight and bias differ in shape."""
    return [next(g for g in gradients if g.shape == parameter.shape) for parameter, _ in update._shifts]


def test_the_mean_over_directions_is_the_gradient():
    layer, loss_of = quadratic(1)
    wanted = torch.autograd.grad(loss_of(0), list(layer.parameters()))
    n = 4000
    update = ZerothOrder(layer, noise=1e-3, seed=5, directions=n)
    before = [p.detach().clone() for p, _ in update._shifts]
    update.gradient(loss_of, [0])
    update.descend(1.0, 0.0)
    size = math.sqrt(sum(float(g.square().sum()) for g in wanted))
    for (parameter, _), old, gradient in zip(update._shifts, before, _by_name(layer, update, wanted), strict=True):
        # one estimate of a coordinate has a variance of |g|^2 + g_i^2 at most
        assert float(((old - parameter.detach()) - gradient).abs().max()) < 5 * math.sqrt(2 / n) * size


def test_descent_follows_from_the_seed_and_resumes_bit_for_bit(tmp_path):
    def run(kill=None):
        layer, loss_of = quadratic(2)
        update = ZerothOrder(layer, noise=1e-2, seed=7)

        def after(step, loss_nats):
            if step == kill:
                raise KeyboardInterrupt

        where = tmp_path / "state.pt" if kill or (tmp_path / "state.pt").exists() else None
        train(layer, loss_of, Schedule(steps=20, rate=0.05), update=update, checkpoint=where, every=5, after=after)
        return [p.detach() for p in layer.parameters()]

    undisturbed = run()
    with pytest.raises(KeyboardInterrupt):
        run(kill=12)
    assert all(map(torch.equal, undisturbed, run()))


def test_a_quantized_weight_descends_where_it_has_no_gradient():
    class Rounded(nn.Module):
        def forward(self, w):
            return w.round()

    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.6)
    parametrize.register_parametrization(layer, "weight", Rounded())
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def loss_of(part):
        return layer(x).square().mean()

    before = float(loss_of(0).detach())
    train(layer, loss_of, Schedule(steps=150, rate=0.01, weight_decay=0.0),
          update=ZerothOrder(layer, noise=0.5, seed=1))  # fmt: skip
    assert float(loss_of(0).detach()) < before / 4


def test_nothing_is_recorded_for_a_gradient():
    layer, loss_of = quadratic(3)
    update = ZerothOrder(layer, noise=1e-2, seed=0)
    seen = []
    update.gradient(lambda part: seen.append(loss_of(part)) or seen[-1], [0])
    assert len(seen) == 2 and not any(loss.requires_grad for loss in seen)


def test_bad_input():
    with pytest.raises(ValueError, match="noise 0, directions 1"):
        ZerothOrder(nn.Linear(2, 2), noise=0, seed=0)
