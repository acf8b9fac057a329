"""What k-means and VPTQ cost by the number of weights: four sizes, outputs growing, 256 inputs, one thread.

k-means compares every vector with every entry a bounded number of times. VPTQ's sweeps take out in^2 besides, and the
factor of H what it takes with GPTQ, in^3. So both are linear in the outputs; the slope between the largest sizes, in
powers of two, is printed and nothing is asserted: `pytest tests/benchmarks/test_codebook_speed.py --benchmark-only -s`.
"""

import math
import time

import pytest
import torch

from suite.grids import Codebooks
from suite.grids.k_means import k_means
from suite.methods import method_named

OUTPUTS = (256, 512, 1024, 2048)
INPUTS = 256


def problem(n_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """W (n_out, 256) and H of inputs whose variances fall as 1 / k."""
    generator = torch.Generator().manual_seed(n_out)
    W = torch.randn(n_out, INPUTS, generator=generator)
    X = torch.randn(4 * INPUTS, INPUTS, generator=generator, dtype=torch.float64) / torch.arange(1, INPUTS + 1).sqrt()
    return W, X.T @ X / len(X)


def by_k_means(n_out: int) -> None:
    """256 entries of 4 values, 25 iterations."""
    W, _ = problem(n_out)
    vectors = Codebooks(length=4, axis=0).bind(W).cut(W).reshape(-1, 4)
    k_means(vectors, 256, torch.Generator().manual_seed(0), iterations=25, tolerance=0)


def by_vptq(n_out: int) -> None:
    """The default at 2 bits."""
    W, H = problem(n_out)
    target = method_named("vptq").recipe(bits=2).weights
    assert target is not None
    target.rounding.round(W, target.grid, H, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("run", [by_k_means, by_vptq], ids=["k-means", "vptq"])
def test_cost_is_linear_in_weights(benchmark, run, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[int, float] = {}

    def all_sizes() -> None:
        for n_out in OUTPUTS:
            begun = time.process_time()
            run(n_out)
            spent = time.process_time() - begun
            seconds[n_out] = min(spent, seconds.get(n_out, math.inf))

    benchmark.pedantic(all_sizes, rounds=3, warmup_rounds=1)
    torch.set_num_threads(before)
    slope = math.log2(seconds[OUTPUTS[-1]] / seconds[OUTPUTS[0]]) / math.log2(OUTPUTS[-1] / OUTPUTS[0])
    benchmark.extra_info["seconds"] = {n * INPUTS: round(spent, 3) for n, spent in seconds.items()}
    benchmark.extra_info["slope"] = round(slope, 2)
    with capsys.disabled():
        print(f"\n{run.__name__}: {benchmark.extra_info['seconds']} seconds by weights, as weights^{slope:.2f}")
