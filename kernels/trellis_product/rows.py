"""Rows of `KERNELS`: QTIP's three codes at 2 bits, one token (gemv) and up to 64 (gemm); wider ones of 1MAD."""

from functools import partial
from typing import Any

import torch

from kernels.kernel import Kernel, Size
from kernels.sizes import GEMM_BENCH, GEMM_CHECK, GEMV_BENCH
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


def _row(name: str, check: tuple[Size, ...], bench: tuple[Size, ...], **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=trellis_product_reference, kernel=trellis_product, plan=plan,
        inputs=partial(inputs, **how), check=check, bench=bench, tolerance=1e-4,
    )  # fmt: skip


# ragged like those of other formats, but fewer turns: a turn is 16,384 weights even of one output; the last is split
CHECK = (Size(1, 1, 64), Size(1, 40, 256), Size(1, 131, 387), Size(1, 64, 512))

TRELLIS_KERNELS = (
    _row("trellis-1mad-gemv", CHECK, GEMV_BENCH, code="1mad"),
    _row("trellis-3inst-gemv", CHECK, GEMV_BENCH, code="3inst"),
    _row("trellis-hyb-gemv", CHECK, GEMV_BENCH, code="hyb"),
    _row("trellis-1mad-gemm", GEMM_CHECK, GEMM_BENCH, code="1mad"),
    _row("trellis-1mad-gemv-3", CHECK[1:3], GEMV_BENCH[:1], code="1mad", bits=3),
    _row("trellis-1mad-gemv-4", CHECK[1:3], GEMV_BENCH[:1], code="1mad", bits=4),
)
