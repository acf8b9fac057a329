"""One kernel for every format: `out = x W^T` with W decoded from packed words between the loads and the matrix units.

Decoding one token at a time is bound by the bytes of the weights: 4.3 TB/s on an H200 leave 3.4 instruction slots for a
4-bit weight. So words travel in 16-byte asynchronous copies through a ring in shared memory, transposing loads bring
two neighboring inputs into one register, a logical operation or two turns both into half-precision numbers, and
matrix units (16 rows, of which one token uses one) multiply and add in float32. Scales apply after the sum over a
group, in float32. Few output tiles are shared out along the inputs: each program leaves its partial sum, and the last
one to finish adds them in a fixed order, so the result does not depend on who was last.

A format is two functions, compiled in: `DECODE(a, b, c, shift, table, PIECE, DTYPE)` gives piece `PIECE` (rows,
columns) of a tile from the words of its planes; `SIDE(scale, extra, group, at, columns, inside)` gives (scale in
float32 (columns), whatever `DECODE` gets as `shift`) of a group of inputs.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.inputs import require_multiple
from kernels.launch import Launch, interpreted, multiprocessors
from kernels.product import choices
from kernels.product.words import Layout

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def product(
    x,  # (M, K), rows x_stride apart
    words,  # (tiles, PLANES, ROWS, columns), int16
    scale,  # (groups, columns), as SIDE reads it
    extra,  # what else SIDE reads
    table,  # what else DECODE reads
    factor,  # of the whole result
    out,  # (M, N)
    partial,  # (SPLITS, M, columns), float32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    K,
    columns,
    tiles,
    x_stride,
    DECODE: tl.constexpr,
    SIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    PLANES: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE_K: tl.constexpr,
    WHOLE_N: tl.constexpr,
    ONE_GROUP: tl.constexpr,
):
    """See the module's docstring."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # first, so that tiles of the same weights run together
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, ROWS)
    split = tl.program_id(2)
    share = tl.cdiv(tiles, SPLITS)
    known = n < columns
    taken = (m < M)[:, None]
    final = tl.cdiv(tiles * (PIECES * ROWS), GROUP) - 1
    s, shift = SIDE(scale, extra, min(split * share * (PIECES * ROWS) // GROUP, final), n, columns, known)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for t in tl.range(split * share, min(tiles, (split + 1) * share), num_stages=STAGES):
        at = words + (t * (PLANES * ROWS) + r)[:, None] * columns + n[None, :]
        a = once(at, known, WHOLE_N)
        b = a
        c = a
        if PLANES > 1:
            b = once(at + ROWS * columns, known, WHOLE_N)
        if PLANES > 2:
            c = once(at + 2 * ROWS * columns, known, WHOLE_N)
        for run in tl.static_range(PIECES // RUN):
            s_ahead = s
            shift_ahead = shift
            if not ONE_GROUP:  # the next run's scale: here, its load has a run's time to arrive
                ahead = min((t * PIECES + (run + 1) * RUN) * ROWS // GROUP, final)
                s_ahead, shift_ahead = SIDE(scale, extra, ahead, n, columns, known)
            sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            plain = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # sums of the activations alone
            for i in tl.static_range(RUN):
                k = (t * PIECES + run * RUN + i) * ROWS + r
                inside = taken if WHOLE_K else taken & (k < K)[None, :]
                tokens = tl.load(x + m[:, None] * x_stride + k[None, :], mask=inside, other=0).to(DTYPE)
                sums = tl.dot(tokens, DECODE(a, b, c, shift, table, run * RUN + i, DTYPE), sums)
                if OFFSET:  # the compiler sees that all columns are equal and multiplies eight
                    plain = tl.dot(tokens, tl.full([ROWS, BLOCK_N], 1, DTYPE), plain)
            if OFFSET:
                sums += plain * shift[None, :]
            total += sums * s[None, :]
            s = s_ahead
            shift = shift_ahead
    total *= factor
    whole = (m < M)[:, None] & (n < N)[None, :]
    if SPLITS == 1:
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=whole)
    else:
        finish(total, out, partial, tickets, m, n, M, N, columns, whole, SPLITS)


@triton.jit
def once(at, known, WHOLE: tl.constexpr):
    """Words that nobody else will read."""
    if WHOLE:
        words = tl.load(at, eviction_policy="evict_first")
    else:
        words = tl.load(at, mask=known[None, :], other=0, eviction_policy="evict_first")
    return words


@triton.jit
def finish(total, out, partial, tickets, m, n, M, N, columns, whole, SPLITS: tl.constexpr):
    """Leave a partial sum; whoever finds that all the others have left theirs adds them, first to last."""
    spot = partial + m[:, None] * columns + n[None, :]
    size = M * columns
    tl.store(spot + tl.program_id(2) * size, total, mask=whole)
    tl.debug_barrier()  # every thread's sums are written before the ticket says so
    ticket = tickets + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        total = tl.load(spot, mask=whole, other=0.0, cache_modifier=".cg")
        for other in tl.static_range(1, SPLITS):
            total += tl.load(spot + other * size, mask=whole, other=0.0, cache_modifier=".cg")
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=whole)
        tl.store(ticket, 0)


@triton.jit
def shifted(words, BY: tl.constexpr):
    """Words shifted right by `BY`, two in one operation. The high `BY` bits of each are undefined: mask them."""
    if INTERPRETED:
        return words >> BY
    asm: tl.constexpr = shift_assembly(BY)
    return tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)


@triton.constexpr_function
def shift_assembly(by: int) -> str:
    """What `shifted` does on a GPU, to two words in a register."""
    return f"shr.b32 $0, $1, {by};"


@triton.jit
def raised(words, MASK: tl.constexpr, MAGIC: tl.constexpr):
    """(words & MASK) ^ MAGIC, two words in one operation.

    An instruction has room for one constant. The compiler would load the other anew before each use; it keeps one that
    it cannot compute, so the mask is said to depend on the grid's third index, which is below 2^16.
    """
    if INTERPRETED:
        return (words & MASK) ^ MAGIC
    asm: tl.constexpr = raise_assembly(MASK, MAGIC)
    return tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)


@triton.constexpr_function
def raise_assembly(mask: int, magic: int) -> str:
    """What `raised` does on a GPU, to two words in a register."""
    known = f"or.b32 mask, mask, {mask * 0x10001:#x}; lop3.b32 $0, $1, mask, {magic * 0x10001:#x}, 0x6a;"
    return f"{{ .reg .b32 mask; mov.u32 mask, %ctaid.z; shr.u32 mask, mask, 16; {known} }}"


@triton.jit
def as_half(bits, DTYPE: tl.constexpr):
    """Bit patterns of `DTYPE` as its values; those of bfloat16, which the interpreter lacks, become float32 there."""
    if DTYPE == tl.float32:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return bits.to(DTYPE, bitcast=True)


@triton.jit
def half_scale(scale, extra, group, n, columns, inside):
    """`SIDE` of a format with float16 scales and nothing else."""
    return tl.load(scale + group * columns + n, mask=inside, other=0.0).to(tl.float32), 0


def plan(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    *,
    outputs: int,
    layout: Layout,
    group: int,
    decode: Any,
    side: Any = half_scale,
    extra: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    factor: float = 1.0,
    offset: bool = False,
    dtype: torch.dtype | None = None,
) -> Launch:
    """The launch that multiplies x (M, inputs) with packed weights; `dtype` of the output is that of x unless given.

    With `offset`, what `side` gives beside the scale is float32 and added to every weight, before scaling.
    Raises `ValueError` where `group` and the layout's tile do not fit: groups must be multiples of `layout.rows`.
    """
    rows, inputs = x.shape
    require_multiple("group", group, layout.rows)
    tiles, columns = words.shape[0], words.shape[3]
    out = torch.empty((rows, outputs), dtype=x.dtype if dtype is None else dtype, device=x.device)
    for name, tensor in (("x", x), ("words", words), ("out", out)):
        if not 0 < tensor.numel() < 2**31:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected 1 to 2^31 - 1 numbers")
    arguments = {
        "x": x, "words": words, "scale": scale, "extra": extra, "table": table, "factor": factor, "out": out,
        "M": rows, "N": outputs, "K": inputs, "columns": columns, "tiles": tiles, "x_stride": x.stride(0),
    }  # fmt: skip
    constants = {
        "DECODE": decode, "SIDE": side, "DTYPE": triton_type(x.dtype), "PLANES": layout.planes,
        "PIECES": layout.pieces, "ROWS": layout.rows, "GROUP": group,
        "RUN": math.gcd(group // layout.rows, layout.pieces),  # pieces in a row that surely share a scale
        "OFFSET": offset, "WHOLE_K": inputs == tiles * layout.inputs, "ONE_GROUP": group >= tiles * layout.inputs,
    }  # fmt: skip
    return _launch(arguments, constants, choices.default(_problem(arguments, constants)))


def candidates(launch: Launch) -> tuple[Launch, ...]:
    """`launch` and others that fill the same output with other tiles, splits and rings: for a tuner on a GPU.

    Kernels that are not `product` have no alternatives here.
    """
    if launch.function is not product:
        return (launch,)
    fixed = launch.constants
    first = choices.Choice(fixed["BLOCK_M"], fixed["BLOCK_N"], fixed["SPLITS"], launch.num_warps, fixed["STAGES"])
    others = choices.alternatives(_problem(launch.arguments, fixed), first)
    return (launch, *(_launch(launch.arguments, fixed, choice) for choice in others))


def on(launch: Launch, capability: tuple[int, int]) -> Launch:
    """The launch that `plan` would give on a chip of that compute capability, for the offline compiler."""
    if launch.function is not product:
        return launch if launch.elsewhere is None else launch.elsewhere(capability)
    problem = _problem(launch.arguments, launch.constants)._replace(capability=capability)
    return _launch(launch.arguments, launch.constants, choices.default(problem))


def _problem(arguments: Mapping[str, Any], constants: Mapping[str, Any]) -> choices.Problem:
    device, rows = arguments["x"].device, constants["ROWS"]
    return choices.Problem(
        arguments["M"], arguments["columns"], arguments["tiles"], constants["PLANES"] * rows,
        constants["PIECES"] * rows, multiprocessors(device),
        torch.cuda.get_device_capability(device) if device.type == "cuda" else choices.HOPPER,
    )  # fmt: skip


def _launch(arguments: Mapping[str, Any], constants: Mapping[str, Any], choice: choices.Choice) -> Launch:
    x, out = arguments["x"], arguments["out"]
    across, down = triton.cdiv(arguments["N"], choice.block_n), triton.cdiv(arguments["M"], choice.block_m)
    shared = choice.splits > 1
    partial = (choice.splits, arguments["M"], arguments["columns"])
    rows = constants["ROWS"] * choice.block_n
    return Launch(
        function=product,
        grid=(down, across, choice.splits),
        arguments={
            **arguments,
            "partial": x.new_empty(partial, dtype=torch.float32) if shared else None,
            "tickets": x.new_zeros(across * down, dtype=torch.int32) if shared else None,
        },
        constants={
            **constants, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "SPLITS": choice.splits,
            "STAGES": choice.stages, "WHOLE_N": arguments["columns"] % choice.block_n == 0,
        },
        output=out,
        loop_bytes=2 * constants["PLANES"] * rows,
        loop_weights=constants["PIECES"] * rows,
        num_warps=choice.warps,
    )  # fmt: skip


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which weights meet activations of `dtype`."""
    if dtype == torch.bfloat16:
        return tl.float32 if interpreted() else tl.bfloat16
    return tl.float16
