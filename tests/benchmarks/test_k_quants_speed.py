"""GGUF's formats on 1024 x 4096 weights: million weights a second of scales and codes together, on one core and all.

Q4_0 and Q8_0 take turns with `gguf.quants.quantize` in one process, which runs on one core and packs its bytes too; so
do ours in that comparison. Nothing is asserted about time: `pytest tests/benchmarks --benchmark-only` prints it.
"""

import os
import statistics
import time
from collections.abc import Iterator

import gguf
import pytest
import torch

from suite.grids import Gguf
from suite.grids.gguf_blocks import FORMATS

SHAPE = (1024, 4096)
ROUNDS = 21


@pytest.fixture
def W() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=sorted({1, os.cpu_count() or 1}))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rounded(W: torch.Tensor, grid: Gguf, H: torch.Tensor | None = None) -> torch.Tensor:
    return grid.fit(W, H).nearest(W)


def written(W: torch.Tensor, grid: Gguf) -> bytes:
    fitted = grid.fit(W)
    return fitted.to_bytes(fitted.nearest(W))


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_a_second(benchmark, kind: str, importance: bool, threads: int, W: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    grid = Gguf(type=kind, importance=importance)  # type: ignore[arg-type]
    if grid.unsupported:
        pytest.skip(grid.unsupported)
    H = torch.eye(SHAPE[1]) if importance else None
    codes = benchmark.pedantic(rounded, (W, grid, H), rounds=3, warmup_rounds=1)
    assert codes.shape == SHAPE
    benchmark.extra_info["million weights a second"] = round(W.numel() / benchmark.stats.stats.min / 1e6, 1)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_plain_blocks_against_gguf(benchmark, kind: str, threads: int, W: torch.Tensor, capsys) -> None:  # type: ignore[no-untyped-def]
    grid, its_type = Gguf(type=kind), gguf.GGMLQuantizationType[kind.upper()]  # type: ignore[arg-type]
    data = W.numpy()
    assert written(W, grid) == gguf.quants.quantize(data, its_type).tobytes()
    ratios: dict[str, list[float]] = {"codes": [], "bytes": []}

    def take_turns() -> None:
        seconds = []
        for what in (lambda: rounded(W, grid), lambda: written(W, grid), lambda: gguf.quants.quantize(data, its_type)):
            begun = time.perf_counter()
            what()
            seconds.append(time.perf_counter() - begun)
        ratios["codes"].append(seconds[0] / seconds[2])
        ratios["bytes"].append(seconds[1] / seconds[2])

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    for what, found in ratios.items():
        benchmark.extra_info[f"median ratio, {what}"] = round(statistics.median(found), 3)
    with capsys.disabled():
        medians = {what: round(statistics.median(found), 3) for what, found in ratios.items()}
        print(f"\n{kind} {SHAPE[0]} x {SHAPE[1]}: ours / gguf {medians}, threads {threads}")
