"""The kernels as tests: `pytest kernels` holds each against its reference, on a GPU or under Triton's interpreter."""

import pytest
import torch

from kernels.check import checked
from kernels.kernel import Kernel, Size
from kernels.table import KERNELS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [pytest.param(kernel, size, id=f"{kernel.name}-{size}") for kernel in KERNELS for size in kernel.check]


@pytest.mark.parametrize(("kernel", "size"), CASES)
def test_kernel(kernel: Kernel, size: Size) -> None:
    """Errors within bounds, outputs written everywhere, and the same bits twice, for every type of activations."""
    for seed in range(10 if DEVICE == "cuda" else 1):
        for check in checked(kernel, size, seed, DEVICE):
            assert check.passed, check
