import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, FalconConfig, LlamaConfig, Qwen3Config

from suite.kv_cache.cache import QuantizedCache
from suite.methods import method_named
from suite.runtime import Runtime
from theory.roofline import (
    DECODERS,
    DEVICES,
    CacheFormat,
    Decoder,
    break_even_bits,
    ceiling,
    instruction_ceiling,
    moved_bits,
    stored_bits,
)

TINY = Decoder(name="tiny", blocks=3, width=64, heads=4, kv_heads=2, head=16, inner=96, vocabulary=101)
# as the models' repositories count them
PUBLISHED = {
    "Qwen3 0.6B": 596_049_920, "Llama 2 7B": 6_738_415_616, "Llama 3.1 8B": 8_030_261_248,
    "Llama 2 13B": 13_015_864_320, "Llama 3.1 70B": 70_553_706_496, "Falcon 180B": 179_522_565_120,
    "Llama 3.1 405B": 405_853_388_800,
}  # fmt: skip


def config(d):
    common = dict(
        hidden_size=d.width, num_hidden_layers=d.blocks, num_attention_heads=d.heads, vocab_size=d.vocabulary,
        tie_word_embeddings=d.tied,
    )  # fmt: skip
    if d.norm == "layer":
        return FalconConfig(**common, num_kv_heads=d.kv_heads, ffn_hidden_size=d.inner, bias=False, alibi=False,
                            new_decoder_architecture=True)  # fmt: skip
    kind = Qwen3Config if d.norm == "rms and heads" else LlamaConfig
    return kind(**common, num_key_value_heads=d.kv_heads, head_dim=d.head, intermediate_size=d.inner)


@pytest.mark.parametrize("d", DECODERS.values(), ids=DECODERS)
def test_parameters_are_as_many_as_transformers_makes_and_as_published(d):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(d))
    assert d.parameters == sum(p.numel() for p in model.parameters()) == PUBLISHED[d.name]
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    assert (d.linear, d.embedding) == (linear, model.get_input_embeddings().weight.numel())


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_what_the_runtime_counts(tied):
    model = AutoModelForCausalLM.from_config(config(replace(TINY, tied=tied))).to(torch.bfloat16)
    runtime = Runtime(model, DynamicCache)
    assert TINY.token_bytes(16) == runtime.token_bytes
    assert TINY.token_bytes(4, 4) == runtime.token_bytes / 4


def test_sizes_are_parameters_times_bits():
    for d in DECODERS.values():
        assert d.stored_bytes(16) == 2 * d.parameters
        assert d.stored_bytes(16) - d.token_bytes(16) == (0 if d.tied else 2 * d.embedding)
        assert d.stored_bytes(16) - d.stored_bytes(4) == 1.5 * d.linear


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 31, 40])
def test_a_cache_takes_the_bytes_that_the_quantized_cache_holds(bits, tokens):
    cache = QuantizedCache(config(TINY), method_named("kivi").recipe(bits=bits, window=8, group=8).cache)
    draw = torch.Generator().manual_seed(0)
    for layer in range(TINY.blocks):
        keys, values = (torch.randn(1, TINY.kv_heads, tokens, TINY.head, generator=draw) for _ in range(2))
        for at in range(tokens):
            cache.update(keys[:, :, at : at + 1], values[:, :, at : at + 1], layer)
    assert CacheFormat(bits=bits, window=8, group=8).n_bytes(TINY, tokens) == cache.n_bytes


def test_a_plain_cache_is_two_bytes_a_number():
    assert CacheFormat(bits=16).n_bytes(DECODERS["Llama 3.1 8B"], 1) == 128 << 10
    assert CacheFormat(bits=16).n_bytes(DECODERS["Llama 3.1 70B"], 1 << 17) == 80 * 2 * 8 * 128 * 2 << 17


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 5000))
def test_a_longer_text_holds_no_less_but_where_keys_leave_their_window(bits, tokens):
    d, held = DECODERS["Qwen3 0.6B"], CacheFormat(bits=bits)
    full, plain = tokens // 128 * 128, CacheFormat(bits=16).n_bytes(d, 1)
    assert 0 <= held.n_bytes(d, tokens) <= plain * tokens
    # every 128 tokens that are rounded take (bits + 1) / 16 of what they took, scale and zero point of 32 included
    later = held.n_bytes(d, full + 128 + 128) - held.n_bytes(d, full + 128)
    assert later == 128 * plain * (bits + 1) // 16


@given(st.floats(1e9, 1e13), st.floats(1e6, 1e12), st.floats(0, 1e12), st.integers(1, 512))
def test_a_ceiling_is_bandwidth_over_the_bytes_of_a_token(bandwidth, weights, cache, sequences):
    assert ceiling(bandwidth, weights) == bandwidth / weights
    assert ceiling(bandwidth, weights, cache) == pytest.approx(bandwidth / (weights + cache))
    many = ceiling(bandwidth, weights, cache, sequences)
    assert many == pytest.approx(bandwidth / (weights / sequences + cache))
    assert ceiling(bandwidth, weights, cache) <= many * (1 + 1e-12)


def test_an_8b_model_on_an_h200_by_hand():
    eight, H200 = DECODERS["Llama 3.1 8B"], next(d for d in DEVICES if d.name == "H200")
    # without the embedding 7.50e9 parameters, of which 6.98e9 in linear layers
    assert ceiling(H200.bandwidth, eight.token_bytes(16)) == pytest.approx(4.8e12 / (2 * 7.505e9), rel=1e-3)
    four = eight.token_bytes(stored_bits(4, 128, 16))
    assert ceiling(H200.bandwidth, four) == pytest.approx(4.8e12 / (6.98e9 * 4.125 / 8 + 1.051e9), rel=1e-3)


def test_where_both_roofs_meet_memory_and_instructions_take_as_long():
    bits = break_even_bits(30e12, 4.8e12, 2.5)
    assert instruction_ceiling(30e12, 2.5) == pytest.approx(4.8e12 * 8 / bits)


def test_dequantizing_apart_moves_more_than_sixteen_bits():
    assert min(moved_bits(b, fused=False) for b in (1e-9, 1.6, 4, 8)) > 2 * 16 > moved_bits(16, fused=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ceiling(0, 1), lambda: ceiling(1, -1), lambda: TINY.token_bytes(0), lambda: stored_bits(4, 0, 16),
        lambda: CacheFormat(bits=12), lambda: CacheFormat(bits=4, window=48, group=32),
        lambda: CacheFormat(bits=4, window=0), lambda: CacheFormat(bits=4).n_bytes(TINY, -1),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"-1|0|12|48"):
        wrong()


def test_it_loads_no_torch():
    code = "import theory.roofline, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
