"""Rounding activations, 4,096 tokens of 768 channels in float32, against a clone of them and a linear layer's product.

One thread. The product, with weights (768, 768), is what every rounding is paid beside; a clone reads and writes every
value once. Ratios are taken within a round, whose times move together, and given as their median. Nothing is asserted
about time: `pytest tests/benchmarks/test_activation_speed.py --benchmark-only -s` prints it.
"""

import statistics
import time
from collections.abc import Iterator

import pytest
import torch

from suite.activations import quantize_activations
from suite.grids import Integer, PowerOfTwo, RealScale, Scaled, TwoLevel
from suite.grids.grid import Grid

ROUNDS = 15
GRIDS: dict[str, Grid] = {
    "INT4 per token": Integer(bits=4, group="row", convention="full-range", scale_bits=32),
    "INT4 per 32": Integer(bits=4, group=32, convention="full-range"),
    "INT8 static": Integer(bits=8, group="tensor", convention="full-range"),
    "INT4 per token, asymmetric": Integer(bits=4, group="row"),
    "MXFP4": Scaled(element="e2m1", group=32, scale=PowerOfTwo(), pad=True),
    "MXINT8": Scaled(element="int8", group=32, scale=PowerOfTwo(), pad=True),
    "NVFP4": Scaled(element="e2m1", group=16, scale=TwoLevel(), pad=True),
    "FP8 per token": Scaled(element="e4m3", group="row", scale=RealScale(bits=32)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(call) -> float:  # type: ignore[no-untyped-def]
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@pytest.mark.parametrize("name", GRIDS)
def test_rounding_activations(benchmark, name: str, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(4096, 768, generator=generator), torch.randn(768, 768, generator=generator)
    clones, products = [], []

    def take_turns() -> None:
        took = seconds(lambda: quantize_activations(x, GRIDS[name], 5.0))
        clones.append(took / seconds(x.clone))
        products.append(took / seconds(lambda: x @ W.T))

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    found = {"clones": round(statistics.median(clones), 2), "products": round(statistics.median(products), 3)}
    benchmark.extra_info |= found
    with capsys.disabled():
        print(f"\n{name}: {found['clones']} clones, {found['products']} products")
