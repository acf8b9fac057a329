"""One kernel for codes of eight weights: `out = x W^T` with W looked up in registers, in the places of a matrix unit.

A code covers eight consecutive inputs of one output. `kernels.product` puts words of neighboring rows into one register
and cannot be used: its pieces would be inputs eight apart. Here weights are the left factor, `out^T = W x^T`, whose
operand a thread holds for outputs n and n + 8 and for 2 + 2 inputs, twice. The inputs of a product may come in any
order that both factors share, so a thread takes the eight of a code for those: lane 4 (n mod 8) + (k mod 4) has output
n and code k. Codes are packed in that order, a 16-byte load brings a thread its own, and weights are never moved
between threads. Programs have two warps, because with four Hopper's compiler would take matrix instructions that read
weights from shared memory.

A format is a `DECODE(codes, signs, table, t, PLANE, DTYPE)`: the weights (BLOCK_N, BLOCK_K) of the program's outputs
and the t-th tile of inputs. One that adds two vectors is asked a second time, for `PLANE` 1, and gives
`first + ratio second` in two sums, or one where `ratio` is 1, so that the addition of weights rounds nothing. Splits of
the inputs are added up as in `kernels.product`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.launch import Launch, interpreted, multiprocessors
from kernels.product.triton import finish

INTERPRETED = tl.constexpr(interpreted())
WARPS = 2
PROGRAMS = 10  # that registers leave room for on a multiprocessor: 65536 for 64 threads of up to 102
TURNS = 4  # of a program's loop, or more


@triton.jit
def product(
    x,  # (M, K)
    codes,  # as DECODE reads them
    signs,  # what else DECODE reads
    table,  # where DECODE looks up
    scale,  # (columns,), or (1,) with scale_stride 0
    ratio,  # of the second vectors, None where it is 1
    factor,  # of what DECODE gives
    out,  # (M, N)
    partial,  # (SPLITS, M, columns), float32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    K,
    columns,
    tiles,
    scale_stride,
    DECODE: tl.constexpr,
    PLANES: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.cdiv(tiles, SPLITS)
    start = tl.program_id(2) * share
    first = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for t in tl.range(start, min(tiles, start + share), num_stages=STAGES):
        k = t * BLOCK_K + tl.arange(0, BLOCK_K)
        tokens = tl.load(x + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0)
        tokens = tokens.to(DTYPE).T
        first = tl.dot(DECODE(codes, signs, table, t, 0, DTYPE), tokens, first)
        if PLANES == 2:
            weights = DECODE(codes, signs, table, t, 1, DTYPE)
            if ratio is None:
                first = tl.dot(weights, tokens, first)
            else:
                second = tl.dot(weights, tokens, second)
    total = first if ratio is None else first + ratio * second
    total *= (factor * tl.load(scale + n * scale_stride, mask=n < N, other=0.0).to(tl.float32))[:, None]
    total = total.T
    whole = (m < M)[:, None] & (n < N)[None, :]
    if SPLITS == 1:
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=whole)
    else:
        finish(total, out, partial, tickets, m, n, M, N, columns, whole, SPLITS)


@triton.jit
def looked_up(table, at):
    """The int32 of `table` at each place `at` (uint32). In assembly: Triton would pass a load through shared memory."""
    if INTERPRETED:
        return tl.load(table + at.to(tl.int64))
    return tl.inline_asm_elementwise(
        "{ .reg .u64 spot; mad.wide.u32 spot, $1, 4, $2; ld.global.nc.b32 $0, [spot]; }",
        "=r,r,l", [at, table.to(tl.int64, bitcast=True)], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def four_looked_up(table, at):
    """The four int32 of `table` at each place 4 `at` (uint32), in one load of 16 bytes."""
    if INTERPRETED:
        spot = table + 4 * at.to(tl.int64)
        return tl.load(spot), tl.load(spot + 1), tl.load(spot + 2), tl.load(spot + 3)
    return tl.inline_asm_elementwise(
        "{ .reg .u64 spot; mad.wide.u32 spot, $4, 16, $5; ld.global.nc.v4.b32 {$0, $1, $2, $3}, [spot]; }",
        "=r,=r,=r,=r,r,l", [at, table.to(tl.int64, bitcast=True)],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def halves(words):
    """The low and the high 16 bits of `words`, int32, in a new last dimension: a register stays one."""
    bits = words.to(tl.uint32, bitcast=True)
    return tl.join((bits & 0xFFFF).to(tl.uint16), (bits >> 16).to(tl.uint16)).to(tl.int16, bitcast=True)


def plan(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    *,
    outputs: int,
    tile: tuple[int, int],
    decode: Any,
    planes: int,
    loop_bytes: int,
    table: torch.Tensor,
    dtype: tl.dtype,
    signs: torch.Tensor | None = None,
    factor: float = 1.0,
    ratio: float | None = None,
    rows_at_once: int = 32,
) -> Launch:
    """The launch that multiplies x (M, inputs) with packed weights.

    `tile` is (outputs, inputs) of what `decode` gives, `loop_bytes` its bytes of codes. `scale` (1,) serves the matrix,
    (outputs,) each output. `rows_at_once` bounds the tokens of a program: registers have no room for the sums of more.
    Raises `ValueError` for no tokens and for codes of 2 GiB.
    """
    rows, inputs = x.shape
    if rows == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one row")
    if codes.numel() >= 2**31:
        raise ValueError(f"{codes.numel()} bytes of codes, expected less than 2^31; split the matrix")
    block_n, block_k = tile
    block_m = max(8, min(rows_at_once, triton.next_power_of_2(rows)))  # matrix units take 8 columns
    across, down, tiles = triton.cdiv(outputs, block_n), triton.cdiv(rows, block_m), triton.cdiv(inputs, block_k)
    splits = splits_for(across * down, tiles, multiprocessors(x.device))
    columns, shared = across * block_n, splits > 1
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    return Launch(
        function=product,
        grid=(down, across, splits),
        arguments={
            "x": x, "codes": codes, "signs": signs, "table": table, "scale": scale, "ratio": ratio, "factor": factor,
            "out": out, "partial": x.new_empty((splits, rows, columns), dtype=torch.float32) if shared else None,
            "tickets": x.new_zeros(across * down, dtype=torch.int32) if shared else None,
            "M": rows, "N": outputs, "K": inputs, "columns": columns, "tiles": tiles,
            "scale_stride": int(scale.shape[0] > 1),
        },
        constants={
            "DECODE": decode, "PLANES": planes, "DTYPE": dtype, "BLOCK_M": block_m, "BLOCK_N": block_n,
            "BLOCK_K": block_k, "SPLITS": splits,
            "STAGES": 3 if block_m <= 16 else 2,  # registers have no room for more
        },
        output=out,
        loop_bytes=loop_bytes,
        loop_weights=block_n * block_k,
        num_warps=WARPS,
        max_registers=128 if ratio is not None and block_m <= 16 else None,  # eight programs of a multiprocessor
    )  # fmt: skip


def splits_for(tiles_out: int, tiles_in: int, multiprocessors: int, programs: int = PROGRAMS) -> int:
    """Programs that share the inputs of a tile of the output: enough for `programs` on each multiprocessor.

    Each has a few turns, and none has none.
    """
    splits = max(1, min(programs * multiprocessors // tiles_out, tiles_in // TURNS))
    return triton.cdiv(tiles_in, triton.cdiv(tiles_in, splits))
