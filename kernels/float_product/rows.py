"""Rows of `KERNELS`: floating-point weights with the scales that their standards give them."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from kernels.float_product.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FloatFormat
from kernels.float_product.packing import FloatWeights, pack
from kernels.float_product.reference import float_product_reference, values
from kernels.float_product.triton import float_product, plan
from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK


def inputs(
    size: Size,
    seed: int,
    device: str = "cpu",
    *,
    format: FloatFormat,
    scales: torch.dtype = torch.float32,
    block: int = 1,
    dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, FloatWeights]:
    """Random activations and weights, every number of the format alike; scales make a variance of about 1 / inputs.

    Groups as long as the inputs or longer mean one scale for an output.
    """
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.outputs, size.inputs)
    codes = torch.randint(format.top + 1, shape, generator=draw, device=device, dtype=torch.uint8)
    codes += torch.randint(2, shape, generator=draw, device=device, dtype=torch.uint8) << (format.bits - 1)
    group = min(size.group, size.inputs)
    coarse = torch.rand(-(-size.outputs // block), -(-size.inputs // group), generator=draw, device=device) + 0.5
    rms = float(values(torch.arange(format.top + 1), format).square().mean().sqrt())
    spread = 1.0 / (rms * size.inputs**0.5)
    fine = {
        torch.float32: lambda: spread * coarse,
        torch.float8_e4m3fn: lambda: coarse * 256,  # of 448, and E4M3 scales are smaller by the factor
        torch.float8_e8m0fnu: lambda: spread * coarse * 4 ** (coarse - 1),  # three powers of two
    }[scales]()
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    factor = spread / 256 if scales == torch.float8_e4m3fn else 1.0
    shared = group if scales == torch.float32 and group < size.inputs else None
    return x, pack(codes, fine.to(scales), format=format, group=shared, block=block, factor=factor)


def _grouped(sizes: Iterable[Size], group: int) -> tuple[Size, ...]:
    return tuple(size._replace(group=group or size.inputs) for size in sizes)


def _row(name: str, check: Iterable[Size], bench: Iterable[Size], group: int, **how: Any) -> Kernel:
    bench = tuple(bench)
    # small matrices are packed in a moment, and compile to the same code; the longer one's inputs are shared out
    most = max(size.rows for size in bench)
    first = 1 if most == 1 else 32  # up to 16 rows are padded to 16, as one is
    compiled = (Size(first, 1024, 512), Size(most, 1024, 4096))[: len(bench)]
    return Kernel(
        name=name, reference=float_product_reference, kernel=float_product, plan=plan, inputs=partial(inputs, **how),
        check=_grouped(check, group), bench=_grouped(bench, group), compile=_grouped(compiled, group), tolerance=1e-4,
    )  # fmt: skip


MX, NV = {"scales": torch.float8_e8m0fnu}, {"scales": torch.float8_e4m3fn}
CHANNEL = 0  # all inputs are a group
FEW = GEMV_CHECK[:3]

FLOAT_KERNELS = (
    _row("mxfp4-gemv", GEMV_CHECK, GEMV_BENCH, 32, format=E2M1, **MX),
    _row("nvfp4-gemv", GEMV_CHECK, GEMV_BENCH, 16, format=E2M1, **NV),
    _row("mxfp6-e2m3-gemv", FEW, GEMV_BENCH[:1], 32, format=E2M3, **MX),
    _row("mxfp6-e3m2-gemv", FEW, GEMV_BENCH[:1], 32, format=E3M2, **MX),
    _row("mxfp8-gemv", FEW, GEMV_BENCH[:1], 32, format=E4M3, **MX),
    _row("fp8-gemv", GEMV_CHECK, GEMV_BENCH, CHANNEL, format=E4M3),
    _row("fp8-e5m2-gemv", FEW, GEMV_BENCH[:1], CHANNEL, format=E5M2),
    _row("fp8-block-gemv", FEW, GEMV_BENCH[:1], 128, format=E4M3, block=128),
    _row("mxfp4-gemm", GEMM_CHECK, GEMM_BENCH, 32, format=E2M1, **MX),
    _row("nvfp4-gemm", GEMM_CHECK, GEMM_BENCH, 16, format=E2M1, **NV),
    _row("fp8-gemm", GEMM_CHECK, GEMM_BENCH, CHANNEL, format=E4M3),
)
