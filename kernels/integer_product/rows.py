"""Rows of `KERNELS`: integer weights of every width, with and without zero points, for one token and up to 64."""

from functools import partial
from typing import Any

import torch

from kernels.integer_product.packing import IntegerWeights, pack
from kernels.integer_product.reference import integer_product_reference
from kernels.integer_product.triton import integer_product, plan
from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK


def inputs(
    size: Size, seed: int, device: str = "cpu", *, bits: int, zero: bool = False, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, IntegerWeights]:
    """Random activations and weights; scales for a variance of about 1 / inputs, real zero points."""
    draw = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(2**bits, (size.outputs, size.inputs), generator=draw, device=device, dtype=torch.uint8)
    shape = (size.outputs, -(-size.inputs // size.group))
    spread = 2.0**-bits * 3 / size.inputs**0.5
    scale = (spread * (0.5 + torch.rand(shape, generator=draw, device=device))).half()
    zeros = ((2**bits - 1) * torch.rand(shape, generator=draw, device=device)).half() if zero else None
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    return x, pack(codes, scale, zeros, bits=bits, group=size.group)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=integer_product_reference, kernel=integer_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, tolerance=1e-4,
    )  # fmt: skip


CHANNEL = Size(1, 24, 320, 320)  # one scale for an output

INTEGER_KERNELS = (
    _row("w4a16-gemv", (*GEMV_CHECK, CHANNEL), GEMV_BENCH, bits=4),
    _row("w4a16-gemv-zero", (*GEMV_CHECK, CHANNEL), GEMV_BENCH[:2], bits=4, zero=True),
    _row("w8a16-gemv", (*GEMV_CHECK, CHANNEL), GEMV_BENCH, bits=8),
    _row("w8a16-gemv-zero", (GEMV_CHECK[2], CHANNEL), GEMV_BENCH[:1], bits=8, zero=True),
    _row("w3a16-gemv", (*GEMV_CHECK, CHANNEL), GEMV_BENCH, bits=3),
    _row("w3a16-gemv-zero", (GEMV_CHECK[2], CHANNEL), GEMV_BENCH[:1], bits=3, zero=True),
    _row("w2a16-gemv", (*GEMV_CHECK, CHANNEL), GEMV_BENCH, bits=2),
    _row("w2a16-gemv-zero", (GEMV_CHECK[2], CHANNEL), GEMV_BENCH[:1], bits=2, zero=True),
    _row("w4a16-gemm", GEMM_CHECK, GEMM_BENCH, bits=4),
    _row("w4a16-gemm-zero", GEMM_CHECK, GEMM_BENCH[3:4], bits=4, zero=True),
    _row("w8a16-gemm", GEMM_CHECK, GEMM_BENCH, bits=8),
)
