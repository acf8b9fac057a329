"""Quantized activations times quantized weights on 8-bit matrix units, with one scale for each token and output.

Not the kernel of `kernels.product`, which decodes weights to half precision: here both factors are bytes already, and
Hopper's matrix units take them from shared memory as they are loaded (IGMMA, QGMMA; for up to 32 rows IMMA, from
registers). Integer sums are exact in int32, so the same however they are cut.

W4A4: no recent chip multiplies integers of 4 bits. A shift and a mask bring the low nibbles of four bytes to the top of
theirs, a mask alone the high ones, which reads 16 times the codes; the sums are 256 times as large, and exact.

E4M3 on Hopper: its matrix unit adds products with about 14 bits. So every 128 inputs go into sums of their own, which
are added in float32 (DeepSeek-V3, arXiv:2412.19437, section 3.3.2). For up to 32 rows Triton converts bytes to half
precision, which is exact, and adds in float32.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.byte_product import choices
from kernels.byte_product.packing import FORMATS, ByteWeights, validate
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, interpreted, multiprocessors

INTERPRETED = tl.constexpr(interpreted())
PROMOTED = tl.constexpr(128)  # inputs of a sum in the matrix unit, of E4M3 (DeepSeek-V3, as above)
OUTPUTS = (*ACTIVATIONS, torch.float32)


@triton.jit
def multiply(
    x,  # (M, x_bytes)
    x_scale,  # (M), or None: sums as they are
    codes,  # (N, w_bytes)
    scale,  # (N)
    out,  # (M, N)
    partial,  # (SPLITS, M, N), int32 or float32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    x_bytes,
    w_bytes,
    turns,
    NIBBLES: tl.constexpr,
    SUMS: tl.constexpr,
    WHOLE_M: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # first, so that tiles of the same weights run together
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    split = tl.program_id(2)
    share = tl.cdiv(turns, SPLITS)
    rows = ((m < M) | WHOLE_M)[:, None]
    columns = ((n < N) | WHOLE_N)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], SUMS)
    for t in tl.range(split * share, min(turns, (split + 1) * share), num_stages=STAGES):
        at = t * BLOCK_K + k
        tokens = tl.load(
            x + m[:, None] * x_bytes + at[None, :], mask=rows & ((at < x_bytes) | WHOLE_K)[None, :], other=0.0
        )
        weights = tl.load(
            codes + n[:, None] * w_bytes + at[None, :], mask=columns & ((at < w_bytes) | WHOLE_K)[None, :], other=0.0
        )
        if NIBBLES:
            total = tl.dot(nibbles(tokens, 0), tl.trans(nibbles(weights, 0)), total, out_dtype=SUMS)
            total = tl.dot(nibbles(tokens, 1), tl.trans(nibbles(weights, 1)), total, out_dtype=SUMS)
        elif SUMS == tl.int32:
            total = tl.dot(tokens, tl.trans(weights), total, out_dtype=SUMS)
        else:
            total = tl.dot(tokens, tl.trans(weights), total, out_dtype=SUMS, max_num_imprecise_acc=PROMOTED)
    if NIBBLES:
        total = total >> 8
    whole = (m < M)[:, None] & (n < N)[None, :]
    spot = m[:, None] * N + n[None, :]
    if SPLITS == 1:
        store(total, x_scale, scale, out + spot, m, n, M, N, whole)
    else:  # leave a partial sum; whoever finds that all the others have left theirs adds them, first to last
        size = M * N
        tl.store(partial + split * size + spot, total, mask=whole)
        tl.debug_barrier()  # every thread's sums are written before the ticket says so
        ticket = tickets + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            total = tl.load(partial + spot, mask=whole, other=0, cache_modifier=".cg")
            for other in tl.range(1, SPLITS):  # not unrolled: loads of all of them would fill the registers
                total += tl.load(partial + other * size + spot, mask=whole, other=0, cache_modifier=".cg")
            store(total, x_scale, scale, out + spot, m, n, M, N, whole)
            tl.store(ticket, 0)


@triton.jit
def store(total, x_scale, scale, at, m, n, M, N, whole):
    """Sums times the scales of their token and output."""
    if x_scale is None:
        tl.store(at, total, mask=whole)
    else:
        s = tl.load(x_scale + m, mask=m < M, other=0.0)[:, None] * tl.load(scale + n, mask=n < N, other=0.0)[None, :]
        tl.store(at, (total.to(tl.float32) * s).to(at.dtype.element_ty), mask=whole)


@triton.jit
def nibbles(packed, HIGH: tl.constexpr):
    """16 times the codes in the low or high nibbles of four bytes, in two operations or one."""
    if INTERPRETED:
        return packed & -16 if HIGH else (packed << 4) & -16
    asm: tl.constexpr = nibble_assembly(HIGH)
    return tl.inline_asm_elementwise(asm, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.constexpr_function
def nibble_assembly(high: int) -> str:
    """What `nibbles` does on a GPU."""
    if high:
        return "and.b32 $0, $1, 0xf0f0f0f0;"
    return "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xf0f0f0f0; }"


def plan(
    x: torch.Tensor, x_scale: torch.Tensor | None, weights: ByteWeights, dtype: torch.dtype = torch.float16
) -> Launch:
    """The launch of `byte_product`, or of `integer_sums` where `x_scale` is None."""
    validate(weights)
    _validate(x, x_scale, weights, dtype)
    rows, outputs = x.shape[0], weights.outputs
    out = torch.empty((rows, outputs), dtype=torch.int32 if x_scale is None else dtype, device=x.device)
    arguments = {
        "x": x, "x_scale": x_scale, "codes": weights.codes, "scale": weights.scale, "out": out, "M": rows, "N": outputs,
        "x_bytes": weights.row_bytes, "w_bytes": weights.codes.shape[1],
    }  # fmt: skip
    capability = torch.cuda.get_device_capability(x.device) if x.device.type == "cuda" else choices.HOPPER
    return _launch(arguments, weights.format, capability)


def _launch(arguments: Mapping[str, Any], format: str, capability: tuple[int, int]) -> Launch:
    rows, outputs, row_bytes, x = (arguments[name] for name in ("M", "N", "x_bytes", "x"))
    choice = choices.default(choices.Problem(rows, outputs, row_bytes, format, multiprocessors(x.device), capability))
    down, across = triton.cdiv(rows, choice.block_m), triton.cdiv(outputs, choice.block_n)
    sums, shared = torch.float32 if format == "e4m3" else torch.int32, choice.splits > 1
    parts = (choice.splits, rows, outputs)
    constants = {
        "NIBBLES": format == "int4", "SUMS": tl.float32 if format == "e4m3" else tl.int32,
        "WHOLE_M": rows % choice.block_m == 0, "WHOLE_N": outputs % choice.block_n == 0,
        "WHOLE_K": row_bytes % choice.block_k == 0, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_K": choice.block_k, "SPLITS": choice.splits, "STAGES": choice.stages,
    }  # fmt: skip
    tile = choice.block_n * choice.block_k
    return Launch(
        function=multiply,
        grid=(down, across, choice.splits),
        arguments={
            **arguments,
            "turns": triton.cdiv(row_bytes, choice.block_k),
            "partial": torch.empty(parts, dtype=sums, device=x.device) if shared else None,
            "tickets": torch.zeros(across * down, dtype=torch.int32, device=x.device) if shared else None,
        },
        constants=constants,
        output=arguments["out"],
        loop_bytes=tile,
        loop_weights=2 * tile if format == "int4" else tile,
        num_warps=choice.warps,
        elsewhere=partial(_launch, arguments, format),
    )


def byte_product(
    x: torch.Tensor, x_scale: torch.Tensor, weights: ByteWeights, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """Give codes x times `x_scale` (rows,), float32, and the transposed weights: (rows, outputs).

    x and its scales are what `kernels.norm_quantize` gives for the weights' format: (rows, inputs) of int8 or
    float8_e4m3fn, or (rows, inputs / 2) bytes with two integers of 4 bits each. Integer sums are exact in int32, those
    of E4M3 in float32 to the same bits in every run; then the sum and its product with the product of both scales are
    rounded to float32, and that to `dtype` (float16, bfloat16 or float32). Raises `ValueError` for what does not fit.
    """
    if x_scale is None:
        raise ValueError("x_scale is None, expected a tensor (integer_sums is without scales)")
    return plan(x, x_scale, weights, dtype).run()


def integer_sums(x: torch.Tensor, weights: ByteWeights) -> torch.Tensor:
    """The exact sums of integer codes, int32 (rows, outputs), before they are scaled. Raises `ValueError` for E4M3."""
    return plan(x, None, weights).run()


def _validate(x: torch.Tensor, x_scale: torch.Tensor | None, weights: ByteWeights, dtype: torch.dtype) -> None:
    """Raise `ValueError` for tensors that do not fit each other."""
    device = weights.codes.device
    require("x", x, shape=(None, weights.row_bytes), dtypes=(FORMATS[weights.format],), device=device)
    if not 0 < x.shape[0] * max(weights.row_bytes, weights.outputs) < 2**31:
        raise ValueError(
            f"x has {x.shape[0]} rows, expected 1 or more, and less than 2^31 bytes of x and values of the output"
        )
    if x_scale is not None:
        require("x_scale", x_scale, shape=(x.shape[0],), dtypes=(torch.float32,), device=device)
    elif weights.format == "e4m3":
        raise ValueError("weights are e4m3, expected integers: other sums are not exact")
    if dtype not in OUTPUTS:
        raise ValueError(f"output of {dtype}, expected one of {', '.join(map(str, OUTPUTS))}")
