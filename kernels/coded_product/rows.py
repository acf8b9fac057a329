"""Rows of `KERNELS`: products with coded BF16 and FP8 weights, and decoding alone."""

from functools import partial
from typing import NamedTuple

import torch

from kernels.coded_product.decoding import decode_patterns, plan_decode
from kernels.coded_product.packing import CodedWeights, pack
from kernels.coded_product.reference import coded_product_reference, decode_reference
from kernels.coded_product.triton import coded_product, plan
from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_CHECK, GEMV_CHECK


class Matrix(NamedTuple):
    """Weights (`outputs`, `inputs`) to be decoded."""

    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{self.outputs} x {self.inputs}"

    @property
    def operations(self) -> int:
        """Weights."""
        return self.outputs * self.inputs


def gaussian(outputs: int, inputs: int, draw: torch.Generator, weights: torch.dtype) -> torch.Tensor:
    """Weights with some zeros, of outputs that differ in scale; FP8 fill their range, as scaled tensors do."""
    W = torch.randn(outputs, inputs, generator=draw, device=draw.device)
    W *= 2.0 ** -torch.randint(4, (outputs, 1), generator=draw, device=draw.device)
    W *= torch.rand(outputs, inputs, generator=draw, device=draw.device) > 0.002
    # the largest of 2^28 numbers is about 6 standard deviations
    return (W * (64 if weights == torch.float8_e4m3fn else inputs**-0.5)).to(weights)


def inputs(
    size: Size, seed: int, device: str = "cpu", *, weights: torch.dtype, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, CodedWeights]:
    """Random activations and coded weights."""
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device)
    if weights == torch.float8_e4m3fn:
        x /= 64 * size.inputs**0.5  # what a tensor's scale does
    return x.to(dtype), pack(gaussian(size.outputs, size.inputs, draw, weights))


def matrix(size: Matrix, seed: int, device: str = "cpu", *, weights: torch.dtype) -> tuple[CodedWeights]:
    """Coded weights; one of a thousand has any pattern at all."""
    draw = torch.Generator(device).manual_seed(seed)
    W = gaussian(size.outputs, size.inputs, draw, weights)
    bits = 8 * W.itemsize
    drawn = torch.randint(2**bits, W.shape, generator=draw, device=device, dtype=torch.int32)
    any_pattern = drawn.to(torch.int16 if bits == 16 else torch.uint8).view(weights)
    return (pack(torch.where(torch.rand(W.shape, generator=draw, device=device) < 0.001, any_pattern, W)),)


def _product(name: str, weights: torch.dtype, check: tuple[Size, ...], rows: tuple[int, ...]) -> Kernel:
    return Kernel(
        name=name, reference=coded_product_reference, kernel=coded_product, plan=plan,
        inputs=partial(inputs, weights=weights), check=check,
        bench=tuple(Size(m, n, k) for m in rows for n, k in ((28672, 8192), (4096, 4096))), tolerance=1e-4,
    )  # fmt: skip


def _decoder(name: str, weights: torch.dtype) -> Kernel:
    return Kernel(
        name=name, reference=decode_reference, kernel=decode_patterns, plan=plan_decode,
        inputs=partial(matrix, weights=weights), check=(Matrix(1, 1), Matrix(40, 256), Matrix(131, 387)),
        bench=(Matrix(28672, 8192), Matrix(4096, 4096)), tolerance=0.0, compile=(Matrix(28672, 512),),
        operation="decode",
    )  # fmt: skip


CODED_KERNELS = (
    _product("bf16-coded-gemv", torch.bfloat16, GEMV_CHECK, (1,)),
    _product("bf16-coded-gemm", torch.bfloat16, GEMM_CHECK, (16,)),
    _product("fp8-coded-gemv", torch.float8_e4m3fn, GEMV_CHECK, (1,)),
    _product("fp8-coded-gemm", torch.float8_e4m3fn, GEMM_CHECK, (16,)),
    _decoder("bf16-decode", torch.bfloat16),
    _decoder("fp8-decode", torch.float8_e4m3fn),
)
