"""The Hadamard transform of rows, read once and written once, on matrix units.

The Hadamard matrix of order n = A F B is H_A x H_F x H_B with A or none of its factors that are no powers of two, so a
row is F matrices (A, B), and its transform three steps: H_A^T from the left, H_B from the right, and H_F between the
matrices. The first two are products with +-1 on matrix units, the third is additions in registers (as the butterflies
of the fast algorithm are). The first product takes values as they are and sums in float32. The second would lose half
of the result's accuracy if it took these sums in 16 bits; it takes their upper half and, once more, what that leaves:
2^-16 of them is lost, and no exponent is out of range. Rows of up to 256 values need no product from the left: 64 rows
are a matrix. Of rows of A < 64, 64 / A are taken at a time, with that many H_A along the diagonal of the left factor.

How n is split, and what binds then, is in `kernels.fast_hadamard.shapes`. Triton 3.6 compiles rows above 16,384 to
nothing for Blackwell, without a word; 3.9 does as it should, those between were not tried.
"""

# Tuples grow while loops unroll, and Triton has no unpacking in them:
# mypy: disable-error-code="assignment,misc"
# ruff: noqa: RUF005

from functools import partial
from math import prod

import torch
import triton
import triton.language as tl

from kernels import rounding
from kernels.codes import LARGEST, SMALLEST
from kernels.fast_hadamard import encoding
from kernels.fast_hadamard.shapes import matrices, shape_of
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, interpreted, multiprocessors
from kernels.product.choices import HOPPER
from kernels.product.triton import triton_type

INTERPRETED = tl.constexpr(interpreted())
SHORT = tl.constexpr(tl.float32 if interpreted() else tl.bfloat16)  # the interpreter has no arithmetic in bfloat16
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
ENCODERS = {"int8": encoding.int8, "int4": encoding.int4, "e4m3": encoding.e4m3}


@triton.jit
def transform(
    x,  # (rows, n)
    left,  # (BLOCK_A + EXTRA, BLOCK_A + EXTRA), H_A^T for each of ROWS rows along the diagonal
    right,  # (BLOCK_B, BLOCK_B), H_B
    out,  # (rows, n), or codes
    scale,  # (rows,) of codes
    rows,
    turns,
    ROWS: tl.constexpr,
    A: tl.constexpr,
    F: tl.constexpr,
    B: tl.constexpr,
    BLOCK_A: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    NORM: tl.constexpr,
    ENCODE: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    DTYPE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """See the module's docstring. Matrices of more than 128 rows are two, of BLOCK_A and EXTRA rows."""
    a = tl.arange(0, BLOCK_A)
    b = tl.arange(0, BLOCK_B)
    c = BLOCK_A + tl.arange(0, EXTRA if EXTRA > 0 else 1)
    K: tl.constexpr = BLOCK_A + EXTRA
    R = tl.load(right + b[:, None] * BLOCK_B + b[None, :]).to(DTYPE if A == 1 else SHORT)
    L = ()
    if A > 1:
        L = (tl.load(left + a[:, None] * K + a[None, :]).to(DTYPE),)
    if EXTRA > 0:
        L = L + (
            tl.load(left + a[:, None] * K + c[None, :]).to(DTYPE),
            tl.load(left + c[:, None] * K + a[None, :]).to(DTYPE),
            tl.load(left + c[:, None] * K + c[None, :]).to(DTYPE),
        )
    for turn in tl.range(turns, num_stages=STAGES):
        first = (tl.program_id(0) + turn * tl.num_programs(0)) * ROWS
        start = first.to(tl.int64) * (A * F * B)
        known = tl.minimum(rows - first, ROWS) * A
        at = x + start + (a[:, None] * (F * B) + b[None, :])
        inside = (a < known)[:, None] & (b < B)[None, :]
        below = x + start + (c[:, None] * (F * B) + b[None, :])
        inside_below = (c < known)[:, None] & (b < B)[None, :]
        Y = ()
        Z = ()
        for f in tl.static_range(F):
            X = (tl.load(at + f * B, mask=inside, other=0.0).to(DTYPE),)
            if EXTRA > 0:
                X = X + (tl.load(below + f * B, mask=inside_below, other=0.0).to(DTYPE),)
                Z = Z + (product(L[2], L[3], X, R, A, EXTRA),)
            Y = Y + (product(L[0] if A > 1 else R, L[1] if EXTRA > 0 else R, X, R, A, EXTRA),)
        Y = folded(Y, F)
        Z = folded(Z, F if EXTRA > 0 else 0)
        by = NORM
        if LARGEST > 0:
            if EXTRA > 0:  # one row
                top = tl.maximum(tl.max(magnitudes(Y, F)), tl.max(magnitudes(Z, F)))
                s, by = rounding.scale_of(top, LARGEST, SMALLEST)
                tl.store(scale + first, s * NORM, mask=first < rows)
            else:
                top = tl.max(magnitudes(Y, F), 1)
                r = tl.arange(0, BLOCK_ROWS)
                s, by = scales(top, r, ROWS, A, LARGEST, SMALLEST)
                tl.store(scale + first + r, s * NORM, mask=(r < ROWS) & (r < rows - first))
                by = by[:, None]
        for f in tl.static_range(F):
            ENCODE(Y[f] * by, out, start + f * B, a < known, F * B, B)
            if EXTRA > 0:
                ENCODE(Z[f] * by, out, start + (BLOCK_A * F * B + f * B), c < known, F * B, B)


@triton.jit
def product(L, L_EXTRA, X, R, A: tl.constexpr, EXTRA: tl.constexpr):
    """L X R in float32, with the columns of L beyond X's first part in L_EXTRA; or X R."""
    if A == 1:
        Y = tl.dot(X[0], R)
    else:
        sums = tl.dot(L, X[0])
        if EXTRA > 0:
            sums = tl.dot(L_EXTRA, X[1], sums)
        upper = (sums.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)
        Y = tl.dot(upper.to(SHORT), R)
        Y = tl.dot(shortened(sums - upper), R, Y)
    return Y


@triton.jit
def shortened(y):
    """The nearest values in bfloat16, half to even; in float32 under the interpreter."""
    if INTERPRETED:
        short = rounding.in_bfloat16(y)
    else:
        short = y.to(tl.bfloat16)
    return short


@triton.jit
def folded(Y, F: tl.constexpr):
    """The F matrices times Sylvester's H_F, by additions."""
    if F <= 1:
        matrices = Y
    else:
        sums = ()
        differences = ()
        for f in tl.static_range(F // 2):
            sums = sums + (Y[f] + Y[f + F // 2],)
            differences = differences + (Y[f] - Y[f + F // 2],)
        matrices = folded(sums, F // 2) + folded(differences, F // 2)
    return matrices


@triton.jit
def magnitudes(Y, F: tl.constexpr):
    """The largest magnitude at each place of F matrices."""
    top = tl.abs(Y[0])
    for f in tl.static_range(1, F):
        top = tl.maximum(top, tl.abs(Y[f]))
    return top


@triton.jit
def scales(top, r, ROWS: tl.constexpr, A: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """Scales of the rows `r`, each of A largest magnitudes `top`, and the factor of each magnitude's values."""
    if A == 1:
        s, by = rounding.scale_of(top, LARGEST, SMALLEST)
    else:
        same = (tl.arange(0, top.shape[0]) // A)[:, None] == r[None, :]
        most = tl.max(tl.where(same, top[:, None], 0.0), 0)
        most += tl.sum(tl.where(same, top[:, None] * 0.0, 0.0), 0)  # a maximum forgets NaN
        s, by = rounding.scale_of(most, LARGEST, SMALLEST)
        by = tl.sum(tl.where(same, by[None, :], 0.0), 1)
    return s, by


def plan(x: torch.Tensor, inverse: bool = False, format: str | None = None) -> Launch:
    """The launch of `fast_hadamard`, or of `hadamard_quantize` where a format is given."""
    require("x", x, shape=(None, None), dtypes=ACTIVATIONS)
    if not 0 < x.shape[0] < 2**31 or not x.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected 1 to 2^31 - 1 rows of 1 value or more")
    if format is not None and format not in ENCODERS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(ENCODERS)}")
    if format == "int4" and x.shape[1] % 2:
        raise ValueError(f"rows of {x.shape[1]} values, expected an even number: a byte holds two of int4")
    capability = torch.cuda.get_device_capability(x.device) if x.device.type == "cuda" else HOPPER
    return _launch(x, inverse, format, capability)


def _launch(x: torch.Tensor, inverse: bool, format: str | None, capability: tuple[int, int]) -> Launch:
    rows, n = x.shape
    shape = shape_of(n)
    if TRITON < (3, 9) and shape.stages(capability) == 1:
        raise ValueError(f"rows of {n} values on Blackwell with Triton {triton.__version__}, expected 3.9 or later")
    left, right = matrices(shape, inverse, x.device)
    units = triton.cdiv(rows, shape.rows)
    programs = min(units, shape.resident * multiprocessors(x.device))
    if format is None:
        encode, largest = encoding.plain, 0.0
        result = out = torch.empty_like(x)
        scale = None
    else:
        encode, largest = ENCODERS[format], LARGEST[format]
        out = x.new_empty((rows, n // 2 if format == "int4" else n), dtype=torch.int8)
        result = out.view(torch.float8_e4m3fn) if format == "e4m3" else out
        scale = x.new_empty(rows, dtype=torch.float32)
    return Launch(
        function=transform,
        grid=(programs,),
        arguments={
            "x": x, "left": left, "right": right, "out": out, "scale": scale, "rows": rows,
            "turns": triton.cdiv(units, programs),
        },
        constants={
            "ROWS": shape.rows, "A": prod(shape.left), "F": shape.fold, "B": prod(shape.right),
            "BLOCK_A": shape.block_a, "EXTRA": shape.extra, "BLOCK_B": shape.block_b,
            "BLOCK_ROWS": triton.next_power_of_2(shape.rows), "NORM": n**-0.5, "ENCODE": encode, "LARGEST": largest,
            "SMALLEST": SMALLEST, "DTYPE": triton_type(x.dtype), "STAGES": shape.stages(capability),
        },
        output=result if scale is None else (result, scale),
        loop_bytes=2 * n * shape.rows,
        loop_weights=n * shape.rows,
        num_warps=shape.warps(capability),
        elsewhere=partial(_launch, x, inverse, format),
    )  # fmt: skip


def fast_hadamard(x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Give x H / sqrt(n) for the rows of x (rows, n), or x H^T / sqrt(n), in float16 or bfloat16 as x is.

    H is that of `kernels.hadamard`; sums are in float32, and at most 2^-16 of each first one is lost. A NaN or infinity
    makes its row NaN, and of 257 to 6272 values those that share a matrix with it, up to 7 others. Raises `ValueError`
    for what is no such x, sizes without a Hadamard matrix, and those of more than 128 x 256 values or with factors that
    do not split into matrices; all multiples of 12, 20, 28, 36, 40, 108 and 172 by powers of two up to 32,768 do. Rows
    above 16,384 need Triton 3.9 on Blackwell.
    """
    return plan(x, inverse).run()


def hadamard_quantize(x: torch.Tensor, format: str, inverse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The transform of x (rows, n) rounded to `format` (int8, int4, e4m3): codes, and a scale in float32 for each row.

    Codes are those of `kernels.codes`, as `kernels.byte_product` takes them: (rows, n) in int8 or float8_e4m3fn, or in
    bytes of two 4-bit integers (rows, n / 2). The scale is max |y| / 127, 7 or 448, and codes are y over it, rounded
    to nearest, ties to even. A row whose largest sum is below 2^-118 before it is divided by sqrt(n) has codes and
    scale 0; one that `fast_hadamard` makes NaN has the scale NaN, and codes that mean nothing. Raises `ValueError` as
    `fast_hadamard` does, and for an odd n of int4.
    """
    return plan(x, inverse, format).run()
