"""Number formats on 4096 x 4096 weights: million weights a second of scales and codes together, beside their peers.

The peer (torchao for MX and NVFP4, bitsandbytes for NF4: both packing their codes) takes turns with ours in one
process, on the same cores. Nothing is asserted about time: `pytest tests/benchmarks --benchmark-only` prints it.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import bitsandbytes.functional as bnb
import pytest
import torch

from suite.methods import method_named

pytest.importorskip("torchao", reason="the peer has an environment of its own: tox -e speed")

from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

SHAPE = (4096, 4096)
ROUNDS = 15
PEERS: dict[str, Callable[[torch.Tensor], object] | None] = {
    "mxfp4": lambda W: to_mx(W, torch.float4_e2m1fn_x2, 32),
    "mxfp6": lambda W: to_mx(W, DTYPE_FP6_E2M3, 32),
    "mxfp6-e3m2": lambda W: to_mx(W, DTYPE_FP6_E3M2, 32),
    "mxfp8": lambda W: to_mx(W, torch.float8_e4m3fn, 32),
    "mxfp8-e5m2": lambda W: to_mx(W, torch.float8_e5m2, 32),
    "mxint8": None,
    "nvfp4": lambda W: nvfp4_quantize(W, 16, W.abs().amax() / (448 * 6)),
    "nf4": lambda W: bnb.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=True),
    "nf2": None,
    "fp8": None,
    "fp6": None,
    "fp4": None,
    "ternary": None,
    "lloyd-max": None,
    "magnitude-24": None,
    "wanda-24": None,
    "exl2": None,  # whose scales are searched
}


@pytest.fixture
def threads() -> Iterator[int]:
    before, count = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PEERS)
def test_rounding_against_the_peer(benchmark, name: str, threads: int, capsys) -> None:  # type: ignore[no-untyped-def]
    W = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    target, peer = method_named(name).recipe(bits=4).weights, PEERS[name]
    assert target is not None
    H = torch.eye(SHAPE[1], dtype=torch.float64)  # what masks and orders go by
    ours: list[float] = []
    ratios: list[float] = []

    def take_turns() -> None:
        begun = time.perf_counter()
        target.grid.fit(W, H).nearest(W)
        ours.append(time.perf_counter() - begun)
        if peer is not None:
            begun = time.perf_counter()
            peer(W)
            ratios.append(ours[-1] / (time.perf_counter() - begun))

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=2)
    speed = sorted(W.numel() / seconds / 1e6 for seconds in ours[2:])
    benchmark.extra_info["million weights a second"] = round(statistics.median(speed))
    shown = f"{statistics.median(speed):.0f} ({speed[0]:.0f}-{speed[-1]:.0f}) million weights/s, threads {threads}"
    if ratios:
        found = sorted(ratios[2:])
        benchmark.extra_info["median ratio to the peer"] = round(statistics.median(found), 3)
        shown += f"; ours / peer {statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"
    with capsys.disabled():
        print(f"\n{name}: {shown}")
