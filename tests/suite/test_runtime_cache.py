"""Decoding through caches that our kernel attends to, under the interpreter, beside `suite.kv_cache`."""

from dataclasses import replace

import pytest
import tiny
import torch

from kernels.cache_attention.reference import dequantize
from kernels.launch import interpreted
from suite import run
from suite.grids import Integer
from suite.kv_cache.cache import QuantizedCache
from suite.kv_cache.target import CacheGrid, CacheTarget
from suite.models.checkpoint import load_model
from suite.readback import PackedModel
from suite.recipe import Recipe
from suite.runtime import Chooser, generate, packed_runtime, plain_runtime
from suite.runtime.packed_cache import PackedCache, PackedLayer, unfit

U = 2.0**-11  # the unit roundoff of float16
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
needs_interpreter = pytest.mark.skipif(
    not interpreted(), reason="Triton was imported before TRITON_INTERPRET was set, or there is a GPU"
)


def kivi(bits, window=32):
    grid = Integer(bits=bits, group=32, convention="real-zero")
    return CacheTarget(keys=CacheGrid(grid=grid, along="tokens"), values=CacheGrid(grid=grid), window=window)


@pytest.mark.parametrize("bits", [2, 4])
def test_both_caches_hold_the_same(bits):
    """Grown twice, of 300 tokens: what is rounded agrees to the roundings of least value, scale and result."""
    config = tiny.model_of("llama", **SHAPE).config
    config._attn_implementation = "bitfrontier"
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 1, 300, 64, generator=draw).half().float() for _ in range(2))
    ours, theirs = PackedLayer(kivi(bits)), QuantizedCache(config, kivi(bits)).layers[0]
    ours.update(keys[:, :, :32], values[:, :, :32])
    for t in range(32, 300):
        ours.update(keys[:, :, t : t + 1], values[:, :, t : t + 1])
    seen = theirs.update(keys, values)
    assert ours.held is not None and ours.held.capacity == 512 and ours.get_seq_length() == 300
    for found, wanted, exact in zip(dequantize(ours.held), seen, (keys, values), strict=True):
        found = found[:, :, :300].float()
        assert torch.equal(found[:, :, -12:], exact[:, :, -12:])  # the last window's
        apart = (found[:, :, :256] - wanted.rounded[:, :, :256]).abs()
        # a least value and a result are rounded, and a scale, up to 2^bits times; all below 8
        allowed, step = 8 * 4 * U, 9 / (2**bits - 1)  # of 32 normal numbers the range is below 9
        assert float(apart.max()) <= step + allowed
        # a code is the next one where a value lies that close to the middle of a step, of 2 at least
        assert float((apart > allowed).float().mean()) < 2 * allowed * (2**bits - 1) / 2
        assert not torch.equal(found[:, :, :256], exact[:, :, :256])


@needs_interpreter
@pytest.mark.parametrize("bits", [2, 4])
def test_tokens_through_the_kernel_are_about_those_through_the_packed_cache(bits, tmp_path):
    path = tiny.save(tiny.model_of("llama", **SHAPE), tmp_path / "model")
    tokens = [str(tiny.save_tokens(tmp_path / f"{name}.npy", 6, tiny.CONTEXT, seed)) for seed, name in enumerate("ab")]
    recipe = Recipe(cache=kivi(bits))
    run(str(path), recipes=[str(recipe)], save=tmp_path / "packed", calibration=tokens[0], evaluation=tokens[1],
        store=tmp_path / "s.db", jobs=1)  # fmt: skip
    packed, prompt, n = PackedModel.open(str(tmp_path / "packed")), torch.arange(3, 39), 4
    wanted = generate(packed_runtime(packed, None), prompt, n, keep=True)
    chooser = Chooser("kernel", exact=True, dtype=torch.float32)
    runtime = packed_runtime(packed, chooser)
    assert isinstance(runtime.new_cache(), PackedCache)
    found = generate(runtime, prompt, n, forced=wanted.tokens, keep=True)
    exact = generate(plain_runtime(load_model(str(path)), torch.float32), prompt, n, forced=wanted.tokens, keep=True)
    # rounded a step early, and now and then to the next code: far less than what rounding does at all
    assert rms(found.logits - wanted.logits) < rms(wanted.logits - exact.logits) / 2 and found.cache_bytes > 0


def rms(x):
    return float(x.square().mean().sqrt())


def test_a_cache_that_no_kernel_attends_to_says_why():
    config = tiny.model_of("llama", **SHAPE).config
    target = kivi(4)
    for other, head_dim, reason in (
        (kivi(3), 64, "both of 2 or 4 bits"), (target, 12, "heads have 12 channels"),
        (replace(target, sinks=4), 64, "no sinks"), (replace(target, rotary="before"), 64, "after the rotary"),
        (replace(target, keys=target.values), 64, "keys in groups of tokens"),
    ):  # fmt: skip
        assert reason in str(unfit(other, head_dim))
    with pytest.raises(ValueError, match="no kernel attends to this cache: keys and values are"):
        PackedCache(config, kivi(8))


def test_tokens_that_do_not_fit_at_once_are_refused():
    layer, x = PackedLayer(kivi(4)), torch.zeros(1, 1, 40, 64)
    with pytest.raises(ValueError, match="40 tokens behind 0: a packed cache takes 32 at a time there"):
        layer.update(x, x)
    layer.update(x[:, :, :20], x[:, :, :20])
    with pytest.raises(ValueError, match="2 tokens behind 20: a packed cache takes 1"):
        layer.update(x[:, :, :2], x[:, :, :2])
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.n_bytes == 0
