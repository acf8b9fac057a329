"""QLoRA's layer: bitsandbytes' packed NF4 with double quantization on a CPU, and a branch beside it."""

import math

import bitsandbytes as bnb
import pytest
import torch

from suite.learning.adapters import Branch, FrozenLinear
from suite.methods import method_named
from suite.quantize import quantize_matrix


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_layers_with_branches_are_those_of_bitsandbytes(bias):
    """Outputs, and gradients of inputs through frozen weights. Theirs decode what they packed, ours their own bytes."""
    n_out, n_in, rank, scale = 40, 192, 3, 0.25
    W, A, B = drawn(0, n_out, n_in), drawn(1, rank, n_in), drawn(2, n_out, rank)
    b = drawn(4, n_out) if bias else None
    theirs = bnb.nn.Linear4bit(n_in, n_out, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict({"weight": W} | ({"bias": b} if bias else {}))
    q = quantize_matrix(W, method="nf4")
    assert q.grid.grid == method_named("qlora").recipe(bits=4).weights.grid  # the base that the method has
    ours = FrozenLinear(q, Branch(A, B, scale, None, False), b, torch.float32)
    x, other = (drawn(3, 2, 5, n_in).requires_grad_() for _ in range(2))
    towards = drawn(5, 2, 5, n_out)
    with torch.compiler.set_stance("force_eager"):
        wanted = theirs.to("cpu")(x) + scale * (x @ A.T @ B.T)
        found = ours(other)
        wanted.backward(towards)
        found.backward(towards)
    # sums of n products in float32, each of them rounded: some units in the last place of what is summed
    D = (W.abs() + scale * B.abs() @ A.abs()).detach()
    for one, two, size, n in ((found, wanted, x.abs() @ D.T, n_in), (other.grad, x.grad, towards.abs() @ D, n_out)):
        assert bool(((one - two).abs() <= 8 * 2.0**-24 * math.sqrt(n) * size).all())
    assert torch.equal(bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state), q.dequantize())
