"""Rows of `KERNELS`: W8A8 in integers and E4M3 and W4A4, for one token and for up to 4096."""

from functools import partial

import torch

from kernels.byte_product.packing import FORMATS, LIMITS, ByteWeights, pack
from kernels.byte_product.reference import byte_product_reference
from kernels.byte_product.triton import byte_product, plan
from kernels.codes import two_in_a_byte
from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH, GEMV_CHECK

# Of integers, the sum is exact. It is rounded to float32, as are the product of the scales and that of both: 2^-24
# each, of values up to eight times the root mean square.
EXACT = 3 * 2.0**-24 * 8
# Of E4M3 on Hopper, four additions in the matrix unit cut off what is below 2^-13 of the largest number they add, up to
# eight times the root mean square. (DeepSeek-V3, arXiv:2412.19437, section 3.3.2; not measured here.)
CUT = 4 * 2.0**-13 * 8


def inputs(
    size: Size, seed: int, device: str = "cpu", *, format: str
) -> tuple[torch.Tensor, torch.Tensor, ByteWeights]:
    """Uniform integers, or Gaussians in E4M3; scales such that outputs have a variance of about 1."""
    draw = torch.Generator(device).manual_seed(seed)
    x = _codes((size.rows, size.inputs), format, draw)
    weights = _codes((size.outputs, size.inputs), format, draw)
    spread = (LIMITS[format] ** 2 / 3 if format in LIMITS else 32.0**2) * size.inputs**0.5
    x_scale = 0.5 + torch.rand(size.rows, generator=draw, device=device)
    scale = (0.5 + torch.rand(size.outputs, generator=draw, device=device)) / spread
    return two_in_a_byte(x) if format == "int4" else x, x_scale, pack(weights, scale, format=format)


def _codes(shape: tuple[int, int], format: str, draw: torch.Generator) -> torch.Tensor:
    if format in LIMITS:
        limit = LIMITS[format]
        return torch.randint(-limit, limit, shape, generator=draw, device=draw.device, dtype=torch.int8)
    return (32 * torch.randn(shape, generator=draw, device=draw.device)).to(FORMATS[format])


def _per_channel(size: Size) -> Size:
    return size._replace(group=size.inputs)


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], compile: tuple[Size, ...], format: str) -> Kernel:
    return Kernel(
        name=name, reference=byte_product_reference, kernel=byte_product, plan=plan,
        inputs=partial(inputs, format=format), check=tuple(map(_per_channel, check)),
        bench=tuple(map(_per_channel, bench)), compile=tuple(map(_per_channel, compile)),
        tolerance=CUT if format == "e4m3" else EXACT,
    )  # fmt: skip


EVEN = tuple(size._replace(inputs=size.inputs + size.inputs % 2) for size in GEMV_CHECK)
# a tile of 128 rows takes too long under an interpreter unless it has few columns
MANY = (*GEMM_CHECK, Size(70, 130, 160))
PREFILL = (*GEMM_BENCH[-3:], *(Size(rows, 8192, 8192) for rows in (256, 1024, 4096)))
FEW_COMPILED = (Size(1, 28672, 512), Size(1, 4096, 4096))
MANY_COMPILED = (
    Size(16, 28672, 512), Size(32, 28672, 512), Size(64, 28672, 512), Size(64, 1024, 4096), Size(128, 28672, 512),
    Size(1024, 8192, 512),
)  # fmt: skip

BYTE_KERNELS = (
    _row("w8a8-gemv", GEMV_CHECK, GEMV_BENCH, FEW_COMPILED, "int8"),
    _row("w8a8-e4m3-gemv", GEMV_CHECK, GEMV_BENCH, FEW_COMPILED, "e4m3"),
    _row("w4a4-gemv", EVEN, GEMV_BENCH, FEW_COMPILED, "int4"),
    _row("w8a8-gemm", MANY, PREFILL, MANY_COMPILED, "int8"),
    _row("w8a8-e4m3-gemm", MANY, PREFILL, MANY_COMPILED, "e4m3"),
    _row("w4a4-gemm", MANY, PREFILL, MANY_COMPILED, "int4"),
)
