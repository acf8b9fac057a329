"""Rows of `KERNELS`: two codebooks of 256 entries and one of 65,536, with one token and up to 64."""

from functools import partial
from typing import Any

import torch

from kernels.codebook_product.packing import LENGTH, CodebookWeights, pack
from kernels.codebook_product.reference import codebook_product_reference
from kernels.codebook_product.triton import codebook_product, plan
from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK


def inputs(
    size: Size, seed: int, device: str = "cpu", *, count: int, entries: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, CodebookWeights]:
    """Random activations, codes and Gaussian codebooks; a scale for each output, so `size.group` is not read."""
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.outputs, -(-size.inputs // LENGTH), count)
    codes = torch.randint(entries, shape, generator=draw, device=device, dtype=torch.int32)
    books = torch.randn(count, entries, LENGTH, generator=draw, device=device).half()
    spread = 0.5 + torch.rand(size.outputs, generator=draw, device=device)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    return x, pack(codes, books, (spread * size.inputs**-0.5).half(), inputs=size.inputs)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=codebook_product_reference, kernel=codebook_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, tolerance=1e-4,
    )  # fmt: skip


CODEBOOK_KERNELS = (
    _row("aqlm-2x8-gemv", GEMV_CHECK, GEMV_BENCH, count=2, entries=256),
    _row("aqlm-1x16-gemv", GEMV_CHECK[:3], GEMV_BENCH, count=1, entries=65536),
    _row("aqlm-2x8-gemm", GEMM_CHECK, GEMM_BENCH, count=2, entries=256),
    _row("aqlm-1x16-gemm", GEMM_CHECK, GEMM_BENCH, count=1, entries=65536),
)
