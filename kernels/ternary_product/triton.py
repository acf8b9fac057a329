"""Ternary weights times int8 activations on integer matrix units: sums are exact, and so the same however they are cut.

Not the kernel of `kernels.product`, which multiplies in half precision: matrix units take bytes, too, twice as many in
an instruction, and four weights then decode at once in a register.

Four to a byte: a shift brings a field of each byte to its top and a mask leaves it, which reads 64 t in two's
complement. Five to a byte (see `packing`): bytes spread over the 16-bit halves of two registers times 3^i carry
the number of the first i digits, F_i, in their high bytes; one permutation collects four of them, and F_i - 3 F_(i-1)
is the digit d = t + 1 of all four, without a borrow because it never is negative. The one too many comes off at
the end: sum x t = sum x d - sum x, for which each program adds up the activations that it reads, four an instruction.

More than 32 tokens are several programs, neighbors in the grid so that they share weights in the cache: with 64 in a
program Triton 3.9 takes to other matrix units, which on Blackwell have no integers.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, interpreted, multiprocessors
from kernels.ternary_product.packing import ROWS, TernaryWeights, validate

INTERPRETED = tl.constexpr(interpreted())
STAGES = 4  # turns of the ring: two or three of them, 8 KB of weights each, are under way
PROGRAMS = 4  # on a multiprocessor, 128 registers a thread: 64 to 96 KB under way where 4.3 TB/s x 1 us need 33
TURNS = 4  # of a program's loop, or more: fewer do not fill its ring
OUTPUTS = (*ACTIVATIONS, torch.float32)


@triton.jit
def ternary(
    x,  # (M, K), int8
    x_scale,  # (M)
    words,  # (tiles, N, ROWS), bytes
    scale,  # (N), or one for all
    out,  # (M, N)
    partial,  # (SPLITS, M, N), int32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    K,
    tiles,
    PER_BYTE: tl.constexpr,
    PER_OUTPUT: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, ROWS)
    split = tl.program_id(2)
    share = tl.cdiv(tiles, SPLITS)
    known = ((n < N) | WHOLE_N)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    sums = tl.zeros([BLOCK_M, ROWS], tl.int32)
    for t in tl.range(split * share, min(tiles, (split + 1) * share), num_stages=STAGES):
        at = words + (t * N + n)[:, None] * ROWS + r[None, :]
        packed = tl.load(at, mask=known, other=0, eviction_policy="evict_first")
        for i in tl.static_range(PER_BYTE):
            k = (t * PER_BYTE + i) * ROWS + r
            inside = (m < M)[:, None] & ((k < K) | WHOLE_K)[None, :]
            tokens = tl.load(x + m[:, None] * K + k[None, :], mask=inside, other=0)
            if PER_BYTE == 4:
                weights = field(packed, 6 - 2 * i)
            else:
                weights = digit(packed, i)
                sums += sum_of_four(tokens)
            total = tl.dot(tokens, tl.trans(weights), total, out_dtype=tl.int32)
    if PER_BYTE == 5:
        total -= tl.sum(sums, 1)[:, None]
    whole = (m < M)[:, None] & (n < N)[None, :]
    spot = m[:, None] * N + n[None, :]
    unit: tl.constexpr = 1 / 64 if PER_BYTE == 4 else 1.0
    s = tl.load(x_scale + m, mask=m < M, other=0.0)[:, None] * unit
    if PER_OUTPUT:
        s = s * tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    else:
        s = s * tl.load(scale)
    if SPLITS == 1:
        tl.store(out + spot, (total.to(tl.float32) * s).to(out.dtype.element_ty), mask=whole)
    else:  # leave a partial sum; whoever finds that all the others have left theirs adds them
        tl.store(partial + split * M * N + spot, total, mask=whole)
        tl.debug_barrier()  # every thread's sums are written before the ticket says so
        ticket = tickets + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            total = tl.load(partial + spot, mask=whole, other=0, cache_modifier=".cg")
            for other in tl.static_range(1, SPLITS):
                total += tl.load(partial + other * M * N + spot, mask=whole, other=0, cache_modifier=".cg")
            tl.store(out + spot, (total.to(tl.float32) * s).to(out.dtype.element_ty), mask=whole)
            tl.store(ticket, 0)


@triton.jit
def field(packed, LEFT: tl.constexpr):
    """64 t of the field that `LEFT` bits bring to the top of its byte, four bytes in two operations."""
    if INTERPRETED:
        return (packed << LEFT) & -64
    asm: tl.constexpr = field_assembly(LEFT)
    return tl.inline_asm_elementwise(asm, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def digit(packed, AT: tl.constexpr):
    """Digit `AT` (0 to 4, first to last) of each byte, 0 to 2, four bytes in four operations."""
    if INTERPRETED:
        u = packed.to(tl.int32) & 0xFF
        return (((u * 3 ** (AT + 1)) >> 8) - 3 * ((u * 3**AT) >> 8)).to(tl.int8)
    asm: tl.constexpr = digit_assembly(AT)
    return tl.inline_asm_elementwise(asm, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def sum_of_four(tokens):
    """Tokens as int32 tensors of the same sum: each four are added up in the first of them, the others are zero."""
    if INTERPRETED:
        return tokens.to(tl.int32)
    asm: tl.constexpr = SUM_ASSEMBLY
    return tl.inline_asm_elementwise(asm, "=r,=r,=r,=r,r", [tokens], dtype=tl.int32, is_pure=True, pack=4)


SUM_ASSEMBLY = tl.constexpr("dp4a.s32.s32 $0, $4, 0x01010101, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;")


@triton.constexpr_function
def field_assembly(left: int) -> str:
    """What `field` does on a GPU."""
    return f"{{ .reg .b32 t; shl.b32 t, $1, {left}; and.b32 $0, t, 0xc0c0c0c0; }}"


@triton.constexpr_function
def digit_assembly(at: int) -> str:
    """What `digit` does on a GPU. The compiler computes what several digits share once."""
    bytes_apart = "and.b32 even, $1, 0x00ff00ff; prmt.b32 odd, $1, 0, 0x4341;"
    first = "mul.lo.u32 a, even, {power}; mul.lo.u32 b, odd, {power}; prmt.b32 {name}, a, b, 0x7351;"
    found = first.format(power=3 ** (at + 1), name="f")
    less = "mov.b32 $0, f;" if at == 0 else first.format(power=3**at, name="g") + " mad.lo.u32 $0, g, -3, f;"
    return f"{{ .reg .b32 even, odd, a, b, f, g; {bytes_apart} {found} {less} }}"


def plan(x: torch.Tensor, x_scale: torch.Tensor, weights: TernaryWeights, dtype: torch.dtype = torch.float16) -> Launch:
    """The launch of `ternary_product`."""
    validate(weights)
    rows, outputs, inputs = _sizes(x, x_scale, weights, dtype)
    tiles, device = weights.words.shape[0], x.device
    block_m = 16 if rows <= 16 else 32
    crowded = block_m == 32 and weights.per_byte == 5  # too many registers for 128 outputs: the compiler may spill
    block_n = 64 if outputs <= 64 or crowded else 128
    down, across = triton.cdiv(rows, block_m), triton.cdiv(outputs, block_n)
    splits = splits_for(across * down, tiles, multiprocessors(device))
    out = torch.empty((rows, outputs), dtype=dtype, device=device)
    shared = splits > 1
    arguments: dict[str, Any] = {
        "x": x, "x_scale": x_scale, "words": weights.words, "scale": weights.scale, "out": out,
        "partial": x.new_empty((splits, rows, outputs), dtype=torch.int32) if shared else None,
        "tickets": x.new_zeros(across * down, dtype=torch.int32) if shared else None,
        "M": rows, "N": outputs, "K": inputs, "tiles": tiles,
    }  # fmt: skip
    constants = {
        "PER_BYTE": weights.per_byte, "PER_OUTPUT": weights.scale.numel() > 1, "ROWS": ROWS,
        "WHOLE_N": outputs % block_n == 0, "WHOLE_K": inputs == tiles * weights.per_byte * ROWS,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "SPLITS": splits, "STAGES": STAGES,
    }  # fmt: skip
    return Launch(
        function=ternary, grid=(down, across, splits), arguments=arguments, constants=constants, output=out,
        loop_bytes=ROWS * block_n, loop_weights=ROWS * block_n * weights.per_byte,
    )  # fmt: skip


def splits_for(tiles_out: int, tiles: int, multiprocessors: int) -> int:
    """Programs that share the inputs of a tile of the output: until the machine is full once, none of them idle.

    Small matrices keep short loops rather than leave multiprocessors without a program.
    """
    splits = min(PROGRAMS * multiprocessors // tiles_out, tiles // TURNS)
    if splits * tiles_out < multiprocessors:
        splits = min(triton.cdiv(multiprocessors, tiles_out), tiles // 2)
    return triton.cdiv(tiles, triton.cdiv(tiles, max(1, splits)))


def _sizes(x: torch.Tensor, x_scale: torch.Tensor, weights: TernaryWeights, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows, outputs and inputs of a product whose tensors fit each other."""
    device = weights.words.device
    require("x", x, shape=(None, weights.inputs), dtypes=(torch.int8,), device=device)
    rows, outputs, inputs = x.shape[0], weights.outputs, weights.inputs
    require("x_scale", x_scale, shape=(rows,), dtypes=(torch.float32,), device=device)
    if dtype not in OUTPUTS:
        raise ValueError(f"output of {dtype}, expected one of {', '.join(map(str, OUTPUTS))}")
    if not 0 < rows * max(inputs, outputs) < 2**31:
        raise ValueError(f"x has {rows} rows, expected 1 or more, and less than 2^31 values of x and of the output")
    return rows, outputs, inputs


def ternary_product(
    x: torch.Tensor, x_scale: torch.Tensor, weights: TernaryWeights, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """Give x (rows, inputs), int8, times `x_scale` (rows,), float32, and the transposed weights: (rows, outputs).

    `quantize_tokens` makes x and its scales. Sums are exact in int32; what is rounded, in float32 and then to `dtype`
    (float16, bfloat16 or float32), are the sum and the product with the two scales. Ternary weights for 16-bit
    activations, in groups too, are those of `kernels.integer_product` with 2 bits and codes t + 2. Raises `ValueError`
    for what does not fit.
    """
    return plan(x, x_scale, weights, dtype).run()
