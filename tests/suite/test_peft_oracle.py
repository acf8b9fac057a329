"""LoRA as `peft` has it, beside and merged into weights, against ours; bitsandbytes' NF4 layer under both."""

import math

import pytest
import torch
from torch import nn

from suite.adaptation.low_rank import begun
from suite.learning.adapters import Branch, FrozenLinear, as_stored, dense
from suite.quantize import quantize_matrix

peft = pytest.importorskip("peft", reason="peft is not installed: it comes with the extra `oracles`")

N_OUT, N_IN, RANK, ALPHA = 24, 128, 4, 8.0
SCALE = ALPHA / RANK


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base(bits=4):
    return quantize_matrix(drawn(0, N_OUT, N_IN).float(), method="nf4" if bits == 4 else "nf2")


def theirs(layer, A=None, B=None):
    """A model of one layer with peft's LoRA around it, and that layer."""
    model = nn.Sequential()
    model.add_module("q", layer)
    found = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q"]))
    inner = found.base_model.model.q
    with torch.no_grad():
        for x, value in ((inner.lora_A.default.weight, A), (inner.lora_B.default.weight, B)):
            if value is not None:
                x.copy_(value)
    return found.to(layer.weight.dtype) if layer.weight.is_floating_point() else found


def plain_layer(q, bias=None):
    """The dequantized weights as an ordinary layer, float64."""
    layer = nn.Linear(N_IN, N_OUT, bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(q.dequantize())
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def same(found, wanted):
    """To 1e-12 of the largest: sums of up to 128 products in float64, in another order."""
    return bool(((found - wanted).abs() <= 1e-12 * wanted.abs().max()).all())


@pytest.mark.parametrize("bias", [None, drawn(5, N_OUT)], ids=["plain", "with bias"])
def test_outputs_and_gradients_are_those_of_peft(bias):
    A, B, q = drawn(1, RANK, N_IN), drawn(2, N_OUT, RANK), base()
    model = theirs(plain_layer(q, bias), A, B)
    ours = FrozenLinear(q, Branch(A.clone(), B.clone(), SCALE, None, False), bias, torch.float64)
    x, other = (drawn(3, 2, 7, N_IN).requires_grad_() for _ in range(2))
    wanted, found = model(x), ours(other)
    assert same(found, wanted)
    towards = drawn(4, *wanted.shape)
    wanted.backward(towards)
    found.backward(towards)
    inner = model.base_model.model.q
    assert same(ours.branch.A.grad, inner.lora_A.default.weight.grad) and same(other.grad, x.grad)
    assert same(ours.branch.B.grad, inner.lora_B.default.weight.grad)
    assert inner.base_layer.weight.grad is None and all(p is not ours.bias for p in ours.parameters() if p.grad is None
                                                        and p.requires_grad)  # fmt: skip


@pytest.mark.parametrize("bits", [2, 4])
def test_merged_weights_are_those_of_peft(bits):
    A, B, q = drawn(1, RANK, N_IN), drawn(2, N_OUT, RANK), base(bits)
    merged = theirs(plain_layer(q), A, B).merge_and_unload().q.weight.detach()
    branch = Branch(A, B, SCALE, None, False)
    assert same(q.dequantize().double() + dense(branch), merged)


def test_what_is_stored_is_what_peft_makes_of_float16():
    """The scale is within B as it is stored; a power of two, so that this alone rounds nothing."""
    A, B, q = drawn(1, RANK, N_IN), drawn(2, N_OUT, RANK), base()
    with torch.no_grad():
        kept = as_stored(q, Branch(A, B, SCALE, None, False))
    merged = theirs(plain_layer(q), A.half().double(), B.half().double()).merge_and_unload().q.weight.detach()
    # sums of five numbers in float32
    assert bool(((kept.dequantize() - merged).abs() <= 5 * 2.0**-23 * merged.abs().max()).all())
    assert kept.n_bits == q.n_bits + 16 * RANK * (N_IN + N_OUT)


def test_branches_begin_as_peft_begins_them():
    inner = theirs(plain_layer(base())).base_model.model.q
    A, B = begun(N_OUT, N_IN, RANK, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(N_IN)
    for x, zeros in ((A, B), (inner.lora_A.default.weight.detach(), inner.lora_B.default.weight.detach())):
        assert bool((zeros == 0).all()) and bool((x.abs() <= bound * (1 + 1e-6)).all())
        # the largest of 512 uniform numbers is below .97 of the bound once in 6e6 draws
        assert float(x.abs().max()) > 0.97 * bound
    assert inner.scaling == {"default": SCALE}


def test_on_the_nf4_layer_of_bitsandbytes_it_is_qlora():
    """Their packed layer, decoded by their CPU code, under peft's branch; ours from its own bytes. Float32."""
    bnb = pytest.importorskip("bitsandbytes")
    W, A, B = drawn(0, N_OUT, N_IN).float(), drawn(1, RANK, N_IN).float(), drawn(2, N_OUT, RANK).float()
    layer = bnb.nn.Linear4bit(N_IN, N_OUT, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": W})
    x = drawn(3, 5, N_IN).float()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        wanted = theirs(layer.to("cpu"), A, B)(x)
        found = FrozenLinear(base(), Branch(A, B, SCALE, None, False), None, torch.float32)(x)
    # sums of 128 products, of 4 in the branch: a few units of float32 in the size of what is summed
    size = x.abs() @ (W.abs() + SCALE * B.abs() @ A.abs()).T
    assert bool(((found - wanted).abs() <= 8 * 2.0**-24 * math.sqrt(N_IN) * size).all())
