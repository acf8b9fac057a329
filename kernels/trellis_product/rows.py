"""Rows of `KERNELS`: QTIP's three codes at 2 bits, one token (gemv) and up to 64 (gemm); wider ones of 1MAD."""

from functools import partial
from typing import Any

import torch

from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMV_BENCH
from kernels.trellis_product.packing import SIDE, STEP_VALUES, TABLE_ENTRIES, TrellisWeights, pack
from kernels.trellis_product.reference import trellis_product_reference
from kernels.trellis_product.triton import plan, trellis_product


def inputs(
    size: Size, seed: int, device: str = "cpu", *, code: str, bits: int = 2, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, TrellisWeights]:
    """Random activations, rings of random bits, a scale by output; a table of normal pairs for HYB.

    Scales are such that a weight has a variance of about 1 / inputs. A trellis has no groups: `size.group` has no say.
    """
    draw = torch.Generator(device).manual_seed(seed)
    shape = (-(-size.outputs // SIDE), -(-size.inputs // SIDE), SIDE**2 // STEP_VALUES[code])
    codes = torch.randint(2 ** (bits * STEP_VALUES[code]), shape, generator=draw, device=device, dtype=torch.uint8)
    scale = (0.5 + torch.rand(size.outputs, generator=draw, device=device)) / size.inputs**0.5
    table = torch.randn(TABLE_ENTRIES, 2, generator=draw, device=device).half() if code == "hyb" else None
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    weights = pack(codes, scale.half(), table, code=code, bits=bits, outputs=size.outputs, inputs=size.inputs)
    return x, weights


def _row(
    name: str, check: tuple[Size, ...], bench: tuple[Size, ...], compiled: tuple[Size, ...] = (), **how: Any
) -> Kernel:
    return Kernel(
        name=name, reference=trellis_product_reference, kernel=trellis_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, compile=compiled, tolerance=1e-4,
    )  # fmt: skip


# Ragged and split like those of other formats, but with fewer turns: even of one output a turn decodes 16,384 weights.
GEMV_CHECK = (Size(1, 1, 64), Size(1, 40, 256), Size(1, 131, 387))
GEMM_CHECK = (Size(2, 24, 128), Size(17, 72, 200), Size(64, 33, 64))
WIDER_CHECK = (Size(1, 1, 64), Size(1, 40, 200))
SPLIT = (Size(1, 1024, 4096),)  # whose loop is that of all, and which adds partial sums

TRELLIS_KERNELS = (
    _row("trellis-1mad-gemv", GEMV_CHECK, GEMV_BENCH, code="1mad"),
    _row("trellis-3inst-gemv", GEMV_CHECK, GEMV_BENCH, SPLIT, code="3inst"),
    _row("trellis-hyb-gemv", GEMV_CHECK, GEMV_BENCH, SPLIT, code="hyb"),
    _row("trellis-1mad-gemm", GEMM_CHECK, GEMM_BENCH, (Size(16, 1024, 4096),), code="1mad"),
    _row("trellis-1mad-gemv-3", WIDER_CHECK, GEMV_BENCH[:1], SPLIT, code="1mad", bits=3),
    _row("trellis-1mad-gemv-4", WIDER_CHECK, GEMV_BENCH[:1], SPLIT, code="1mad", bits=4),
)
