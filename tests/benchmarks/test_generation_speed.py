"""Decoding from packed weights beside the same model in bfloat16: 206 M random weights in the blocks, two threads.

4 blocks of 2,048 channels, 5,632 in between, and a vocabulary of 4,096, whose embedding and head of 8.4 M weights each
stay in bfloat16 in every model: the head is read for every token, the embedding is not. Formats are round-to-nearest
integers of 4 bits in groups of 128, of 8 bits in groups of 128, and of 8 bits a row. Models take turns in one process,
24 tokens behind a prompt of 32. *Overhead* is what packed layers take beside the bare products that they call, on one
token, as a share of these; the rest of a token is `transformers`, the same for all. Nothing is asserted about time:
`pytest tests/benchmarks/test_generation_speed.py --benchmark-only -s` prints it.
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
CONFIG = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=16,
    vocab_size=4096, max_position_embeddings=1024, tie_word_embeddings=False,
)  # fmt: skip
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


def plain() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(CONFIG).to(torch.bfloat16).eval().requires_grad_(False)


def packed(grid: Integer) -> Runtime:
    """Every block has weights of its own in memory, of the same values: those of the first block."""
    model, chooser = plain(), Chooser(dtype=torch.bfloat16)
    first = model.model.layers[0]
    names = [name for name, m in first.named_modules() if isinstance(m, torch.nn.Linear)]
    found = {name: quantize_layer(first.get_submodule(name).weight.float(), Target(grid), None, generator_for(0, name))
             for name in names}  # fmt: skip
    for block in model.model.layers:
        through_products(block, found, chooser.prepare, torch.device("cpu"))
    return Runtime(model, lambda: DynamicCache(config=CONFIG), chooser)


def test_decoding_from_packed_weights(benchmark, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    runtimes = {name: packed(grid) for name, grid in GRIDS.items()}
    models = {**runtimes, "bfloat16": Runtime(plain(), lambda: DynamicCache(config=CONFIG))}
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
