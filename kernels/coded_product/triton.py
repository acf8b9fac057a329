"""Products with coded weights: words become halves by shifts and masks, escapes follow as a sparse product.

A weight in its window is 2^(base - bias) 2^code 1.f. Sign and fraction f go where bfloat16 or float16 has them, the
code into the lowest three bits of an exponent whose others are constant: 2^(code - 7) 1.f, exact in both, and matrix
units multiply it. The window's power of two applies to an output's sum, in float32. An escape reads 2^-7 there, so what
it added is subtracted, and its own value times its activation is added; 1 in 80 weights, and each program of an output
takes its share of them, whatever their inputs.

The loop is that of `kernels.product.triton`, but a tile has 11 planes of words (FP8: 7) where that one has three, and
16 rows of them, for the ring to fit. Reckoned: at 0.71 times the bytes of bfloat16, 0.9 times its speed leaves 15
instruction slots a weight and all of the bandwidth 9.7. The loop takes 3.4 with activations in bfloat16, 4.4 in
float16, whose fractions have another place; with 4 warps to 64 outputs and not 2, which would take 3.1, because slots
are not what is short. An escape takes 22 more with one token, 0.3 a weight, and 134 with 16 tokens, 1.6 a weight.
"""

import torch
import triton
import triton.language as tl

from kernels.coded_product.packing import PIECES, ROWS, TILE, CodedWeights, validate
from kernels.coded_product.pieces import exponent_words, halves
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, multiprocessors
from kernels.product import choices
from kernels.product import triton as shared

BLOCK_N, WARPS, STAGES = 64, 4, 3
RESIDENT = {16: 3, 32: 2}  # programs of a multiprocessor, by rows: two turns in each ring are 61 or 77 KiB


@triton.jit
def coded(
    x,  # (M, K), rows x_stride apart
    words,  # (tiles, WORDS + 3, ROWS, columns), int16
    base,  # (columns), uint8
    start,  # (columns + 1), int32
    place,  # (escapes), int16
    value,  # (escapes), int16 or uint8
    out,  # (M, N)
    partial,  # (SPLITS, M, columns), float32
    tickets,  # one for each tile of the output, zero before and after
    M,
    N,
    K,
    columns,
    tiles,
    x_stride,
    DTYPE: tl.constexpr,
    WORDS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE_K: tl.constexpr,
    WHOLE_N: tl.constexpr,
):
    """See the module's docstring."""
    EACH: tl.constexpr = PIECES // WORDS
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, ROWS)
    share = tl.cdiv(tiles, SPLITS)
    known = n < columns
    taken = (m < M)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for t in tl.range(tl.program_id(2) * share, min(tiles, (tl.program_id(2) + 1) * share), num_stages=STAGES):
        at = words + (t * ((WORDS + 3) * ROWS) + r)[:, None] * columns + n[None, :]
        a, b, c = exponent_words(at + WORDS * ROWS * columns, ROWS * columns, known, WHOLE_N)
        for word in tl.static_range(WORDS):
            fractions = shared.once(at + word * ROWS * columns, known, WHOLE_N)
            for order in tl.static_range(EACH):
                k = (t * PIECES + word * EACH + order) * ROWS + r
                inside = taken if WHOLE_K else taken & (k < K)[None, :]
                tokens = tl.load(x + m[:, None] * x_stride + k[None, :], mask=inside, other=0).to(DTYPE)
                total = tl.dot(tokens, halves(fractions, a, b, c, word * EACH + order, EACH, DTYPE), total)
    low = tl.load(base + n, mask=known, other=0).to(tl.int32)
    total *= power(tl.where(low > 0, low + (134 - BIAS), 0))[None, :]
    plain, exact = escapes(
        x, start, place, value, n, m, M, x_stride, tl.program_id(2), known, BLOCK_M, BLOCK_X, BLOCK_N, SPLITS
    )
    # as if the escapes had been zeros in the words; 2^(base - bias) is what their zeros read
    total -= power(tl.where(low > 0, low + (127 - BIAS), 0))[None, :] * plain
    total += exact
    whole = taken & (n < N)[None, :]
    if SPLITS == 1:
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=whole)
    else:
        shared.finish(total, out, partial, tickets, m, n, M, N, columns, whole, SPLITS)


@triton.jit
def power(field):
    """2^(field - 127), float32; 0 for 0."""
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def escapes(
    x, start, place, value, n, m, M, x_stride, split, known, BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Activations at this split's escapes of each output, summed, and summed times their weights: (BLOCK_M, BLOCK_N).

    Only the first `BLOCK_X` rows are computed, the others, which nobody stores, repeat them.
    """
    LANES: tl.constexpr = max(1, 16 // BLOCK_X)  # escapes of an output at a time
    lane = tl.arange(0, LANES)[None, :]
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_X)[:, None, None]
    first = tl.load(start + n, mask=known, other=0)
    last = tl.load(start + n + 1, mask=known, other=0)
    part = tl.cdiv(last - first, SPLITS)
    first += split * part
    last = tl.minimum(last, first + part)
    plain = tl.zeros([BLOCK_X, BLOCK_N, LANES], tl.float32)
    exact = tl.zeros([BLOCK_X, BLOCK_N, LANES], tl.float32)
    k, weight = entries(place, value, first[:, None] + lane, last[:, None])
    for ahead in tl.range(0, tl.max(last - first, 0), LANES, num_stages=1):
        i = first[:, None] + ahead + lane
        k_next, weight_next = entries(place, value, i + LANES, last[:, None])  # these have a turn's time to arrive
        there = (i < last[:, None])[None] & (rows < M)
        tokens = tl.load(x + rows * x_stride + k[None], mask=there, other=0).to(tl.float32)
        plain += tokens
        exact += tokens * weight[None]
        k = k_next
        weight = weight_next
    return repeated(tl.sum(plain, 2), BLOCK_M, BLOCK_X, BLOCK_N), repeated(tl.sum(exact, 2), BLOCK_M, BLOCK_X, BLOCK_N)


@triton.jit
def entries(place, value, i, last):
    """Inputs and weights of the escapes numbered `i`, zeros from `last` on."""
    k = tl.load(place + i, mask=i < last, other=0).to(tl.int32) & 0xFFFF
    return k, number(tl.load(value + i, mask=i < last, other=0))


@triton.jit
def repeated(sums, BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sums (BLOCK_X, BLOCK_N) again and again, (BLOCK_M, BLOCK_N)."""
    several = tl.broadcast_to(sums[None], (BLOCK_M // BLOCK_X, BLOCK_X, BLOCK_N))
    return tl.reshape(several, (BLOCK_M, BLOCK_N))


@triton.jit
def number(pattern):
    """Patterns of bfloat16 (int16) or E4M3 (uint8) as float32."""
    bits = pattern.to(tl.int32)
    if pattern.dtype == tl.int16:
        result = (bits << 16).to(tl.float32, bitcast=True)
    else:
        size = bits & 0x7F
        field = tl.where(size == 0x7F, 0x7FC00000, size << 20) | ((bits & 0x80) << 24)
        # the exponents' biases differ by 120, and subnormal numbers come out as what they are
        result = field.to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
    return result


def plan(x: torch.Tensor, weights: CodedWeights) -> Launch:
    """The launch of `coded_product`."""
    validate(weights)
    require("x", x, shape=(None, weights.inputs), dtypes=ACTIVATIONS, device=weights.words.device)
    tiles, planes, _, padded = weights.words.shape
    M, N = x.shape[0], weights.outputs
    for name, size in (("x", x.numel()), ("words", weights.words.numel()), ("out", M * N)):
        if not 0 < size < 2**31:
            raise ValueError(f"{name} has {size} numbers, expected 1 to 2^31 - 1")
    block_m = 16 if M <= 16 else 32
    across, down = triton.cdiv(N, BLOCK_N), triton.cdiv(M, block_m)
    splits = choices.splits_for(across * down, tiles, multiprocessors(x.device), RESIDENT[block_m])
    out, several = torch.empty((M, N), dtype=x.dtype, device=x.device), splits > 1
    return Launch(
        function=coded,
        grid=(down, across, splits),
        arguments={
            "x": x, "words": weights.words, "base": weights.base, "start": weights.start, "place": weights.place,
            "value": weights.value, "out": out,
            "partial": x.new_empty((splits, M, padded), dtype=torch.float32) if several else None,
            "tickets": x.new_zeros(across * down, dtype=torch.int32) if several else None,
            "M": M, "N": N, "K": weights.inputs, "columns": padded, "tiles": tiles, "x_stride": x.stride(0),
        },
        constants={
            "DTYPE": shared.triton_type(x.dtype), "WORDS": planes - 3, "BIAS": weights.format.bias, "ROWS": ROWS,
            "PIECES": PIECES, "BLOCK_M": block_m, "BLOCK_X": min(block_m, triton.next_power_of_2(M)),
            "BLOCK_N": BLOCK_N, "SPLITS": splits, "STAGES": STAGES, "WHOLE_K": weights.inputs == tiles * TILE,
            "WHOLE_N": padded % BLOCK_N == 0,
        },
        output=out,
        loop_bytes=2 * planes * ROWS * BLOCK_N,
        loop_weights=TILE * BLOCK_N,
        num_warps=WARPS,
        num_stages=STAGES,
    )  # fmt: skip


def coded_product(x: torch.Tensor, weights: CodedWeights) -> torch.Tensor:
    """Multiply x (rows, inputs), float16 or bfloat16, with transposed weights: (rows, outputs) in the type of x.

    Weights are exact in activations of either type, sums in float32, the same bits in every run. An infinite
    activation gives NaN where it meets an escape. Raises `ValueError` for what does not fit.
    """
    return plan(x, weights).run()
