"""Rows of `KERNELS`: NF4 in blocks of 64 with one or two levels of scales, and tables that are anything."""

from functools import partial
from typing import Any

import torch

from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK
from kernels.table_product.packing import NF4, SECOND_BLOCK, SecondScale, TableWeights, pack
from kernels.table_product.reference import table_product_reference
from kernels.table_product.triton import plan, table_product

BLOCK = 64  # of NF4 in QLoRA (arXiv:2305.14314, section 3)


def inputs(
    size: Size,
    seed: int,
    device: str = "cpu",
    *,
    nf4: bool = True,
    double: bool = False,
    scales: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, TableWeights]:
    """Gaussian activations, uniform codes, NF4's table or a Gaussian one; weights of variance about 1 / inputs."""
    draw = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(16, (size.outputs, size.inputs), generator=draw, device=device, dtype=torch.uint8)
    table = torch.tensor(NF4, device=device) if nf4 else torch.randn(16, generator=draw, device=device)
    shape = (size.outputs, -(-size.inputs // size.group))
    spread = size.inputs**-0.5
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    if not double:
        scale = spread * (1 + torch.rand(shape, generator=draw, device=device))
        return x, pack(codes, scale.to(scales), table, group=size.group)
    blocks = -(-shape[0] * shape[1] // SECOND_BLOCK)
    second = SecondScale(
        values=torch.linspace(-1, 1, 256, device=device),
        scale=spread * (0.5 + torch.rand(blocks, generator=draw, device=device)) / 2,
        offset=torch.tensor(2 * spread, device=device),
    )
    scale = torch.randint(256, shape, generator=draw, device=device, dtype=torch.uint8)
    return x, pack(codes, scale, table, group=size.group, second=second)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=table_product_reference, kernel=table_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, tolerance=1e-4,
    )  # fmt: skip


_GEMV, _GEMM = (tuple(size._replace(group=BLOCK) for size in sizes) for sizes in (GEMV_BENCH, GEMM_BENCH))

TABLE_KERNELS = (
    _row("nf4a16-gemv", GEMV_CHECK, _GEMV),
    _row("nf4a16-gemv-double", GEMV_CHECK, _GEMV, double=True),
    _row("table4a16-gemv", GEMV_CHECK, GEMV_BENCH, nf4=False, scales=torch.float16),
    _row("nf4a16-gemm", GEMM_CHECK, _GEMM, double=True),
)
