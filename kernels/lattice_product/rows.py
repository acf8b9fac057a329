"""Rows of `KERNELS`: E8P with one token and up to 64, and its sums of two points."""

from functools import partial
from typing import Any

import torch

from kernels.kernel import Kernel, Size
from kernels.lattice_product.packing import LENGTH, LatticeWeights, pack
from kernels.lattice_product.reference import lattice_product_reference
from kernels.lattice_product.triton import lattice_product, plan
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK


def inputs(
    size: Size, seed: int, device: str = "cpu", *, bits: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, LatticeWeights]:
    """Random activations and codes, random tables of the values that the real ones have; `size.group` is not read."""
    draw = torch.Generator(device).manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw, device=device)

    codes = integers(256, size.outputs, -(-size.inputs // LENGTH), bits).to(torch.uint8)
    patterns = integers(3, 256, LENGTH) + 0.5
    points = integers(9, 256, LENGTH) / 2 - 2 if bits == 3 else None
    scale = torch.full((1,), size.inputs**-0.5, device=device).half()
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    return x, pack(codes, patterns, scale, inputs=size.inputs, points=points, residual=3.45)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=lattice_product_reference, kernel=lattice_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, tolerance=1e-4,
    )  # fmt: skip


LATTICE_KERNELS = (
    _row("e8p-2-gemv", GEMV_CHECK, GEMV_BENCH, bits=2),
    _row("e8p-3-gemv", GEMV_CHECK[:3], GEMV_BENCH, bits=3),
    _row("e8p-4-gemv", GEMV_CHECK[:3], GEMV_BENCH, bits=4),
    _row("e8p-2-gemm", GEMM_CHECK, GEMM_BENCH, bits=2),
)
