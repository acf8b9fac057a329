"""GPTQ at 1024, 2048 and 4096 square, 4 bits, groups of 128: seconds, and the ratio to the published implementation.

`BITFRONTIER_GPTQ` names a directory with `gptq.py` and `quant.py` of IST-DASLab/gptq (commit 2d65066 was measured),
which is run as it is with its CUDA calls made no-ops; the two take turns in one process. Nothing is asserted about
time: `pytest tests/benchmarks --benchmark-only` prints it.
"""

import importlib
import os
import statistics
import sys
import time
import types
from collections.abc import Iterator

import pytest
import torch

from suite.grids import Integer
from suite.rounding import Feedback

SIZES = (1024, 2048, 4096)
ROUNDS = 5


def problem(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (n, n) and inputs (2 n, n) with a power-law spectrum, from a seed."""
    generator = torch.Generator().manual_seed(n)
    W = torch.randn(n, n, generator=generator)
    X = torch.randn(2 * n, n, generator=generator) / torch.arange(1, n + 1).sqrt()
    return W, X[:, torch.randperm(n, generator=generator)]


def ours(W: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    rounded = Feedback().round(W, Integer(bits=4, group=128, scale_bits=32), H, torch.Generator())
    return rounded.grid.decode(rounded.codes)


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """Both sides get what the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    place = os.environ.get("BITFRONTIER_GPTQ")
    if not place:
        pytest.skip("BITFRONTIER_GPTQ does not name a directory with IST-DASLab/gptq")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name in ("gptq", "quant"):
        sys.modules.pop(name, None)
    return importlib.import_module("gptq")


def theirs(module: types.ModuleType, W: torch.Tensor, H: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of `fasterquant` alone, and what it leaves; its Gram matrix is handed to it."""
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = W.clone()
    state = module.GPTQ(layer)
    state.quantizer = sys.modules["quant"].Quantizer()
    state.quantizer.configure(4, perchannel=True, sym=False, mse=False)
    state.H, state.nsamples = 2 * H.float(), 1
    begun = time.perf_counter()
    state.fasterquant(blocksize=128, percdamp=0.01, groupsize=128)
    return time.perf_counter() - begun, layer.weight.data


@pytest.mark.parametrize("n", SIZES)
def test_gptq_seconds(benchmark, n: int) -> None:  # type: ignore[no-untyped-def]
    W, X = problem(n)
    H = X.double().T @ X.double() / len(X)
    assert torch.isfinite(benchmark.pedantic(ours, (W, H), rounds=3, warmup_rounds=1)).all()


@pytest.mark.parametrize("n", SIZES)
def test_gptq_against_the_release(benchmark, n: int, release: types.ModuleType, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    W, X = problem(n)
    H = X.double().T @ X.double() / len(X)
    mine, its, ratios = ours(W, H), torch.empty(0), []

    def take_turns() -> None:
        nonlocal its
        begun = time.perf_counter()
        ours(W, H)
        seconds = time.perf_counter() - begun
        its_seconds, its = theirs(release, W, H)
        ratios.append(seconds / its_seconds)

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    errors = [float(((E @ H) * E).sum()) for E in ((W - mine).double(), (W - its).double())]
    assert errors[0] <= 1.01 * errors[1]
    capsys.readouterr()  # the release prints
    benchmark.extra_info["ratio"] = sorted(round(ratio, 3) for ratio in ratios)
    benchmark.extra_info["median ratio"] = round(statistics.median(ratios), 3)
    with capsys.disabled():
        print(f"\nGPTQ {n} x {n}: ours / release {benchmark.extra_info['ratio']}, threads {torch.get_num_threads()}")
