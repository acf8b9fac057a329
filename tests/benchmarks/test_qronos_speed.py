"""Qronos against GPTQ with the same order and scales, on inputs that differ: what correcting them costs.

Beside GPTQ's factorization and sweep that is a product (out, in) x (in, in), two triangular solves and a power
iteration, all in float64. One thread; the two take turns, and ratios are given as their median. Nothing is asserted
about time: `pytest tests/benchmarks/test_qronos_speed.py --benchmark-only -s` prints it.
"""

import statistics
import time

import pytest
import torch

from suite.grids import Integer
from suite.rounding import Feedback, Qronos

ROUNDS = 5


@pytest.mark.parametrize("n", [768, 2048])
def test_qronos_against_gptq(benchmark, n: int, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(n)
    W = torch.randn(n, n, generator=generator)
    X = torch.randn(2 * n, n, generator=generator) / torch.arange(1, n + 1).sqrt()
    Xq = X + 0.05 * X.std(0) * torch.randn(2 * n, n, generator=generator)
    H, G = Xq.double().T @ Xq.double() / len(X), X.double().T @ Xq.double() / len(X)
    grid, ratios, gptq = Integer(bits=4, group="row"), [], Feedback(order="decreasing", groups="static")

    def take_turns() -> None:
        begun = time.perf_counter()
        Qronos().round(W, grid, H, generator, G)
        between = time.perf_counter()
        gptq.round(W, grid, H, generator)
        ratios.append((between - begun) / (time.perf_counter() - between))

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    torch.set_num_threads(before)
    benchmark.extra_info["ratio"] = round(statistics.median(ratios), 2)
    with capsys.disabled():
        print(f"\nQronos {n} x {n}: {benchmark.extra_info['ratio']} times GPTQ")
