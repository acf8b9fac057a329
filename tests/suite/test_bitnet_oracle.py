"""BitNet b1.58 against the layers of `transformers`: outputs, gradients, and the packed layer of its checkpoints.

Their scales are float32 and ours are stored in float16, which grids may set: with float32 the same codes and, to
rounding, the same numbers; with float16 codes that differ only where a weight lies that near to a threshold.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parametrize
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from suite.adaptation.quantization_aware import FakeInputs, FakeQuantize
from suite.grids import RealScale
from suite.methods import method_named

RECIPE = method_named("bitnet-tuned").recipe()
STORED = RECIPE.weights.grid
WIDE = replace(STORED, scale=RealScale(statistic="absmean", bits=32))


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Their functions as they are written, without a compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def ours(W: torch.Tensor, grid) -> torch.nn.Linear:
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = W.clone()
    parametrize.register_parametrization(layer, "weight", FakeQuantize(W, grid, RECIPE.adaptation))
    layer.register_forward_pre_hook(FakeInputs(RECIPE.activations.grid))
    return layer


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_outputs_and_gradients_are_those_of_the_training_layer(seed):
    W, x, g = draw(seed, 24, 40) * 0.02, draw(seed + 100, 3, 7, 40), draw(seed + 200, 3, 7, 24)
    theirs = AutoBitLinear(40, 24, bias=False, online_quant=True)
    theirs.weight.data = W.clone()
    mine, inputs = ours(W, WIDE), [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(part) for layer, part in zip((mine, theirs), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    for y in outputs:
        y.backward(g)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.parametrizations.weight.original.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_packed_layer_computes_what_the_trained_one_does(seed):
    W, x = draw(seed, 24, 40) * 0.02, draw(seed + 100, 7, 40)
    fitted = WIDE.fit(W)
    levels = (fitted.decode(fitted.nearest(W)) / fitted.scale).round()
    theirs = BitLinear(40, 24, bias=False, dtype=torch.float32)
    theirs.weight.copy_(pack_weights(levels.clone()))  # which changes its argument
    theirs.weight_scale.fill_(1 / float(fitted.scale))  # this class divides by it, the other one multiplies
    with torch.no_grad():
        torch.testing.assert_close(ours(W, WIDE)(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_a_stored_scale_moves_only_codes_at_thresholds():
    W = draw(0, 256, 256) * 0.02
    stored, wide = STORED.fit(W), WIDE.fit(W)
    differ = stored.nearest(W) != wide.nearest(W)
    ratio = (W.abs() / wide.scale)[differ]
    assert bool(((ratio - 0.5).abs() <= 0.5 * 2.0**-11).all())  # half a unit of float16's last place
    assert abs(float(stored.scale / wide.scale) - 1) <= 2.0**-11
