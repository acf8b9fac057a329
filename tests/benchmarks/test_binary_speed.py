"""BiLLM, PB-LLM and residual binarization on 256 x 512, one thread.

The releases take 0.8 to 1.5 s of one thread's time for BiLLM and 0.2 s for PB-LLM on this size (Aaronhuang-778/BiLLM@
dc137eb, hahnyuan/PB-LLM@fe85da9, on a CPU, H included). Nothing is asserted about time:
`pytest tests/benchmarks/test_binary_speed.py --benchmark-only` prints it.
"""

import pytest
import torch

from suite.grids import ResidualBinary
from suite.methods import method_named
from suite.quantize import quantize_layer

CASES = {
    "billm": ("billm", {}),
    "billm, the release's way": ("billm", dict(errors="release", search="scores", signs="successive")),
    "pb-llm": ("pb-llm", {}),
    "residual-binary, 2": ("residual-binary", dict(bits=2)),
    "residual-binary, 4": ("residual-binary", dict(bits=4)),
    "ternary-refit": ("ternary-refit", {}),
}


def matrix() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2048, 512, generator=generator, dtype=torch.float64) / torch.arange(1, 513).sqrt()
    return torch.randn(256, 512, generator=generator), X.T @ X / 2048


@pytest.mark.parametrize("case", CASES)
def test_one_matrix(benchmark, case: str) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    (W, H), (name, options) = matrix(), CASES[case]
    target = method_named(name).recipe(**options).weights
    assert target is not None
    benchmark.pedantic(quantize_layer, (W, target, H, torch.Generator()), rounds=5, warmup_rounds=1)
    torch.set_num_threads(before)


@pytest.mark.parametrize("orders", [1, 2, 4, 8])
def test_nearest_sums_of_signs(benchmark, orders: int) -> None:  # type: ignore[no-untyped-def]
    W = matrix()[0]
    fitted = ResidualBinary(orders=orders, scales="greedy").fit(W)
    benchmark(fitted.nearest, W)
