"""AQLM 2x8 (vectors of 8) at 256 to 2048 square: seconds, how they grow with the weights, and the release beside it.

`BITFRONTIER_AQLM` names a checkout of Vahe1994/AQLM (e79a896 was measured), which is run as it is; the two take turns
in one process, at 256 and 512 square. Nothing is asserted about time: `pytest tests/benchmarks --benchmark-only` prints
it.
"""

import argparse
import contextlib
import io
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from suite.grids import Codebooks
from suite.quantize import quantize_matrix, relative_errors
from suite.recipe import Recipe, Target
from suite.rounding import Additive

SIZES = (256, 512, 1024, 2048)
SPLIT = {"codebooks": 2, "code_bits": 8, "length": 8, "entry_bits": 16, "beam": 1}


def problem(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (n, n) and the Gram matrix of 2 n inputs with a power-law spectrum, from a seed."""
    generator = torch.Generator().manual_seed(n)
    W = torch.randn(n, n, generator=generator)
    X = torch.randn(2 * n, n, generator=generator) / torch.arange(1, n + 1).sqrt()
    X = X[:, torch.randperm(n, generator=generator)].double()
    return W, X.T @ X / len(X)


def ours(W: torch.Tensor, H: torch.Tensor, **options: Any) -> torch.Tensor:
    return quantize_matrix(W, method="aqlm", bits=2, H=H, **(SPLIT | options)).dequantize()


def released(W: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    from aq_engine import AQEngine

    layer = torch.nn.Linear(*W.T.shape, bias=False)
    layer.weight.data = W.clone()
    engine = AQEngine(layer)
    engine.XTX = H.clone()
    torch.manual_seed(0)
    random.seed(0)
    how = argparse.Namespace(
        devices=[torch.device("cpu")], out_group_size=1, in_group_size=8, num_codebooks=2, nbits_per_codebook=8,
        codebook_value_nbits=16, codebook_value_num_groups=1, scale_nbits=0, init_max_iter=100,
        init_max_points_per_centroid=None, lr=1e-4, max_epochs=1000, steps_per_epoch=100, relative_mse_tolerance=0.01,
        print_frequency=10**9, beam_size=1,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return engine.quantize(args=how, verbose=False)().detach()


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """Both sides get what the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    place = os.environ.get("BITFRONTIER_AQLM")
    if not place:
        pytest.skip("BITFRONTIER_AQLM does not name a checkout of Vahe1994/AQLM")
    monkeypatch.syspath_prepend(place)
    for name in [name for name in sys.modules if name == "aq_engine" or name.split(".")[0] == "src"]:
        sys.modules.pop(name)


def seconds(work, *arguments) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


@pytest.mark.parametrize("n", SIZES)
def test_seconds(benchmark, n):
    W, H = problem(n)
    ours(*problem(64))  # compiles, or reads what is compiled
    Q = benchmark.pedantic(ours, (W, H), rounds=1 if n > 1024 else 3)
    benchmark.extra_info["hnmse"] = relative_errors(W, Q, H)[1]


def test_seconds_grow_with_the_weights(benchmark):
    """The exponent of seconds over weights, fitted over four sizes of as many rounds each: 1 is linear.

    Rows are added, not inputs, which a Gram matrix has the square of, and vectors to a codebook are as many for each.
    """
    _, H = problem(512)
    how = Recipe(weights=Target(Codebooks(stages=2, iterations=10, scale="row"),
                                Additive(update="least-squares", steps=20, tolerance=0.0, rounds=4)))  # fmt: skip
    weights = {n: torch.randn(n, 512, generator=torch.Generator().manual_seed(n)) for n in (512, 1024, 2048, 4096)}
    quantize_matrix(weights[512][:64], recipe=how, H=H)
    times = {n: statistics.median(seconds(lambda W=W: quantize_matrix(W, recipe=how, H=H))[0] for _ in range(3))
             for n, W in weights.items()}  # fmt: skip
    x, y = ([math.log(value) for value in values] for values in (times, times.values()))
    benchmark.extra_info["seconds"] = times
    benchmark.extra_info["exponent"] = statistics.linear_regression(x, y).slope
    print(benchmark.extra_info)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.filterwarnings("ignore")  # the release's own
@pytest.mark.parametrize("n", SIZES[:2])
def test_seconds_beside_the_release(benchmark, release, n):
    W, H = problem(n)
    ours(*problem(64))
    turns = [(seconds(ours, W, H), seconds(released, W, H)) for _ in range(2)]
    for name, side in (("ours", 0), ("release", 1)):
        benchmark.extra_info[f"{name}_seconds"] = [turn[side][0] for turn in turns]
        benchmark.extra_info[f"{name}_hnmse"] = relative_errors(W, turns[0][side][1], H)[1]
    print(benchmark.extra_info)
    benchmark.pedantic(lambda: None, rounds=1)
