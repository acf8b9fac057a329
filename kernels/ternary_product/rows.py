"""Rows of `KERNELS`: ternary weights in both packings, one token (gemv) and up to 64 (gemm)."""

from functools import partial

import torch

from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK
from kernels.ternary_product.packing import TernaryWeights, pack
from kernels.ternary_product.reference import ternary_product_reference
from kernels.ternary_product.tokens import quantize_tokens
from kernels.ternary_product.triton import plan, ternary_product

# The sum is exact. It is rounded to float32, as are the product of the scales and that of both: 2^-24 each, of values
# up to eight times the root mean square.
TOLERANCE = 3 * 2.0**-24 * 8


def inputs(
    size: Size, seed: int, device: str = "cpu", *, per_byte: int, per_output: bool = False
) -> tuple[torch.Tensor, torch.Tensor, TernaryWeights]:
    """Gaussian activations in 8 bits, and uniform trits with scales such that outputs have a variance of about 1."""
    draw = torch.Generator(device).manual_seed(seed)
    trits = torch.randint(-1, 2, (size.outputs, size.inputs), generator=draw, device=device, dtype=torch.int8)
    scales = size.outputs if per_output else 1
    scale = (0.5 + torch.rand(scales, generator=draw, device=device)) * (1.5 / size.inputs) ** 0.5
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device)
    return *quantize_tokens(x), pack(trits, scale, per_byte=per_byte)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], per_byte: int, per_output: bool) -> Kernel:
    return Kernel(
        name=name, reference=ternary_product_reference, kernel=ternary_product, plan=plan,
        inputs=partial(inputs, per_byte=per_byte, per_output=per_output), check=check, bench=bench, tolerance=TOLERANCE,
    )  # fmt: skip


TERNARY_KERNELS = (
    _row("ternary-2bit-gemv", GEMV_CHECK, GEMV_BENCH, per_byte=4, per_output=False),
    _row("ternary-base3-gemv", GEMV_CHECK, GEMV_BENCH, per_byte=5, per_output=False),
    _row("ternary-2bit-gemm", GEMM_CHECK, GEMM_BENCH, per_byte=4, per_output=True),
    _row("ternary-base3-gemm", GEMM_CHECK, GEMM_BENCH, per_byte=5, per_output=True),
)
