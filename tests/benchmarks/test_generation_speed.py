"""Decoding from packed weights beside the same model in bfloat16: 200 M random weights in the blocks, two threads.

Two shapes: 4 blocks of 2,048 channels, 5,632 in between, and one block of 4,096 and 11,008, as models of 7 billion
weights have 32 of. What `transformers` does around products takes longer beside the smaller ones. A vocabulary of
4,096, whose embedding and head of 8.4 or 16.8 M weights each stay in bfloat16 in every model: the head is read for
every token, the embedding is not. Formats are round-to-nearest integers of 4 bits in groups of 128, of 8 bits in groups
of 128, and of 8 bits a row. Models take turns in one process, 24 tokens behind a prompt of 32. *Overhead* is what
packed layers take beside the bare products that they call, on one token, as a share of these; the rest of a token is
`transformers`, the same for all. Nothing is asserted about time: `pytest tests/benchmarks/test_generation_speed.py
--benchmark-only -s` prints it.
"""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from suite.grids import Integer
from suite.quantize import generator_for, quantize_layer
from suite.recipe import Target
from suite.runtime import Chooser, Runtime, through_products
from suite.runtime.speed import overhead, race

ROUNDS, PROMPT, TOKENS = 7, 32, 24
CONFIGS = {
    name: LlamaConfig(hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=blocks,
                      num_attention_heads=hidden // 128, num_key_value_heads=hidden // 128, vocab_size=4096,
                      max_position_embeddings=1024, tie_word_embeddings=False)
    for name, hidden, mlp, blocks in (("2048 wide", 2048, 5632, 4), ("4096 wide", 4096, 11008, 1))
}  # fmt: skip
GRIDS = {
    "W4 g128": Integer(bits=4),
    "W8 g128": Integer(bits=8),
    "W8 row": Integer(bits=8, group="row", convention="full-range"),
}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def plain(config: LlamaConfig) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def packed(config: LlamaConfig, grid: Integer) -> Runtime:
    """Every block has weights of its own in memory, of the same values: those of the first block."""
    model, chooser = plain(config), Chooser(dtype=torch.bfloat16)
    first = model.model.layers[0]
    names = [name for name, m in first.named_modules() if isinstance(m, torch.nn.Linear)]
    found = {name: quantize_layer(first.get_submodule(name).weight.float(), Target(grid), None, generator_for(0, name))
             for name in names}  # fmt: skip
    for block in model.model.layers:
        through_products(block, found, chooser.prepare, torch.device("cpu"))
    return Runtime(model, lambda: DynamicCache(config=config), chooser)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_decoding_from_packed_weights(config, benchmark, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    runtimes = {name: packed(config, grid) for name, grid in GRIDS.items()}
    models = {**runtimes, "bfloat16": Runtime(plain(config), lambda: DynamicCache(config=config))}
    prompt = torch.arange(1, 1 + PROMPT)
    found = benchmark.pedantic(lambda: race(models, prompt, TOKENS, ROUNDS), rounds=1)
    assert found.speeds.keys() == models.keys() and found.decode_ratio.keys() >= runtimes.keys()
    lines = [f"read bandwidth {found.bandwidth / 1e9:.1f} GB/s, {torch.get_num_threads()} threads"]
    for name, speed in found.speeds.items():
        ceiling = speed.roofline(found.bandwidth)
        lines.append(
            f"{name}: decode {speed.decode} tokens/s, {found.decode_ratio[name]} of bfloat16, "
            f"{speed.decode.median / ceiling:.2f} of the roofline's {ceiling:.4g} ({speed.token_bytes / 1e6:.0f} MB); "
            f"prefill {speed.prefill}, {found.prefill_ratio[name]} of bfloat16"
        )
    for name, runtime in runtimes.items():
        cost = overhead(runtime)
        taken = {str(layer.by_rows) for layer in runtime.packed_layers.values()}
        lines.append(
            f"{name}: products {' / '.join(sorted(taken))}; {1e3 * cost.products:.2f} ms a token, "
            f"packed layers {1e3 * cost.layers:.2f} ms: overhead {100 * cost.share:.1f}%"
        )
    benchmark.extra_info |= {"decode_ratio": {k: v.median for k, v in found.decode_ratio.items()}}
    with capsys.disabled():
        print("\n" + "\n".join(lines))
