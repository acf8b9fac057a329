# ruff: noqa: RUF005 - Triton has no unpacking in tuples
"""The Hadamard transform of rows, read once and written once, on matrix units.

The Hadamard matrix of order n = A F B is H_A x H_F x H_B with A or none of its factors that are no powers of two, so a
row is F matrices (A, B), and its transform three steps: H_A^T from the left, H_B from the right, and H_F between the
matrices. The first two are products with +-1 on matrix units, the third is additions in registers (as the butterflies
of the fast algorithm are). The first product takes values as they are and sums in float32. The second would lose half
of the result's accuracy if it took these sums in 16 bits; it takes their upper half and, once more, what that leaves:
2^-16 of them is lost, and no exponent is out of range. Rows of up to 256 values need no product from the left: 64 rows
are a matrix. Of rows of A < 64, 64 / A are taken at a time, with that many H_A along the diagonal of the left factor.

What binds, reckoned for an H200 (4.3 TB/s, 790 TFLOP/s, 29.6e12 instructions of a lane a second), at two bytes read and
two written for a value: there is room for 735 operations of matrix units and 27 instructions. With B = 64 a value takes
5 instructions in rows of up to 256 values and 8 to 10 in others, 10 to 14 with its rounding to codes (which leaves room
for 20 and 17). The operations are 2 (A' + 2 B), A' the rows of the matrices, times what zeros fill them up: 128 in rows
of powers of two up to 256, 384 up to 16,384, 512 for 32,768; 439 for 28 times 64 to 512, 585 for 28,672, 410 to 640 for
12, 410 to 819 for 20 and 40. So memory binds, where loads overlap with work: two to four programs share a
multiprocessor and take row after row, the next ones under way in shared memory; of rows above 16,384 there is room for
one. Matrix units bind as much as memory does for 172 x 64 and 172 x 128 (714, with 172 filled up to 192), and more for
less than 64 columns beside 172 (1143 for 172 x 32) and where several factors are no powers of two, as of 36 and 108
times powers of two (853 for 9216, 1593 for 13824). B < 64 would need fewer operations, but more instructions, and
matrix units of Hopper are slow with fewer columns.

Triton 3.6 cannot compile rows above 16,384 for Blackwell; 3.9 can. Rows of 27,648 values have no split that fits.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.fast_hadamard import rounding
from kernels.hadamard import factors, kronecker
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch, interpreted, multiprocessors
from kernels.product.choices import HOPPER
from kernels.product.triton import triton_type

INTERPRETED = tl.constexpr(interpreted())
SHORT = tl.constexpr(tl.float32 if interpreted() else tl.bfloat16)  # the interpreter has no arithmetic in bfloat16
DENSE = 256  # rows of up to so many values are multiplied from the right alone
RESIDENT = {64: 4, 128: 3, 256: 2}  # programs of 4 warps that registers leave room for, by the values in a row's part


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
            top = largest(Y, F)
            if EXTRA > 0:
                top = tl.maximum(tl.max(top, 0), tl.max(largest(Z, F), 0))
                by = one_scale(top, scale + first, first < rows, LARGEST, NORM)
            else:
                by = scales(top, scale + first, rows - first, ROWS, BLOCK_ROWS, A, LARGEST, NORM)[:, None]
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
    """The nearest values in bfloat16, half to even; in float32 under the interpreter, which would cut off."""
    if INTERPRETED:
        bits = y.to(tl.int32, bitcast=True)
        short = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
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
def largest(Y, F: tl.constexpr):
    """The largest magnitudes of the rows of F matrices."""
    top = tl.max(tl.abs(Y[0]), 1)
    for f in tl.static_range(1, F):
        top = tl.maximum(top, tl.max(tl.abs(Y[f]), 1))
    return top


@triton.jit
def one_scale(top, scale, known, LARGEST: tl.constexpr, NORM: tl.constexpr):
    """Store the scale of a row of that largest magnitude; give the factor of its values."""
    s, by = rounding.scales(top, LARGEST, NORM)
    tl.store(scale, s, mask=known)
    return by


@triton.jit
def scales(
    top, scale, known, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, A: tl.constexpr, LARGEST: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Store the scales of ROWS rows, of A largest magnitudes each; give the factor of each magnitude's values."""
    r = tl.arange(0, BLOCK_ROWS)
    if A == 1:
        s, by = rounding.scales(top, LARGEST, NORM)
    else:
        same = (tl.arange(0, top.shape[0]) // A)[:, None] == r[None, :]
        most = tl.max(tl.where(same, top[:, None], 0.0), 0)
        most += tl.sum(tl.where(same, top[:, None] * 0.0, 0.0), 0)  # a maximum forgets NaN
        s, by = rounding.scales(most, LARGEST, NORM)
        by = tl.sum(tl.where(same, by[None, :], 0.0), 1)
    tl.store(scale + r, s, mask=(r < ROWS) & (r < known))
    return by


# what a format of codes is: how they are stored, the largest, how many share a byte, and the type of that byte
FORMATS = {
    "int8": (rounding.int8, 127.0, 1, torch.int8),
    "int4": (rounding.int4, 7.0, 2, torch.uint8),
    "e4m3": (rounding.e4m3, 448.0, 1, torch.float8_e4m3fn),
}


class Shape(NamedTuple):
    """A row of n = A F B values as F matrices (A, B): the orders of H_A, F, and the orders of H_B."""

    left: tuple[int, ...]
    fold: int
    right: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows that are taken at a time."""
        return max(1, 64 // prod(self.left))

    @property
    def block_a(self) -> int:
        """Rows of the matrices, or of their first part."""
        return 64 if prod(self.left) <= 64 else 128

    @property
    def extra(self) -> int:
        """Rows of their second part."""
        return 64 if prod(self.left) > 128 else 0

    @property
    def block_b(self) -> int:
        """Columns of the matrices, 16 or more as matrix units take them."""
        return max(16, triton.next_power_of_2(prod(self.right)))

    @property
    def values(self) -> int:
        """What is loaded at a time, with what is masked."""
        return (self.block_a + self.extra) * self.fold * self.block_b

    @property
    def resident(self) -> int:
        """Programs of a multiprocessor."""
        return max(1, RESIDENT[max(64, self.fold * self.block_b)] // (self.block_a // 64))

    def stages(self, capability: tuple[int, int]) -> int:
        """Rows that are under way or at work: three, or two where three leave no room for as many programs.

        Blackwell keeps sums in a memory of its own, those of two rows if they overlap: too small for the largest.
        """
        if capability >= (10, 0) and self.values > 16384:
            return 1
        return 3 if self.values <= 8192 else 2


@lru_cache(maxsize=256)
def shape_of(n: int) -> Shape:
    """How `transform` takes rows of n values. Raises `ValueError` where it cannot."""
    orders = factors(n)
    found = list(_shapes(n, orders))
    if not found:
        raise ValueError(
            f"rows of {n} values, with a Hadamard matrix of factors {orders}, do not become matrices of up to"
            f" 128 x 256 or 192 x 128"
        )
    return min(found, key=lambda shape: (_operations(shape), shape.fold))


def _shapes(n: int, orders: tuple[int, ...]) -> Iterator[Shape]:
    if n <= DENSE:
        parts = max(1, n // 64) if n & (n - 1) == 0 else 1
        yield Shape((), parts, orders[parts.bit_length() - 1 :])
        return
    for cut in range(1, len(orders)):
        for doublings in range(len(orders) - cut):
            shape = Shape(orders[:cut], 2**doublings, orders[cut + doublings :])
            wide = shape.fold * shape.block_b
            fits = prod(shape.left) <= 192 and wide <= (128 if shape.extra else 256)
            if fits and all(order == 2 for order in orders[cut : cut + doublings]):
                yield shape


def _operations(shape: Shape) -> float:
    """Multiplications of matrix units for each value, with zeros; fewer than 64 columns take as long as 64."""
    rows, columns = shape.block_a + shape.extra, max(64, shape.block_b)
    return (rows + 2 * shape.block_b) * rows * columns / (shape.rows * prod(shape.left) * prod(shape.right))


def plan(x: torch.Tensor, inverse: bool = False, format: str | None = None) -> Launch:
    """The launch of `fast_hadamard`, or of `hadamard_quantize` where a format is given."""
    require("x", x, shape=(None, None), dtypes=ACTIVATIONS)
    if not 0 < x.shape[0] < 2**31 or not x.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected 1 to 2^31 - 1 rows of 1 value or more")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if format == "int4" and x.shape[1] % 2:
        raise ValueError(f"rows of {x.shape[1]} values, expected an even number: a byte holds two of int4")
    capability = torch.cuda.get_device_capability(x.device) if x.device.type == "cuda" else HOPPER
    return _launch(x, inverse, format, capability)


def _launch(x: torch.Tensor, inverse: bool, format: str | None, capability: tuple[int, int]) -> Launch:
    rows, n = x.shape
    shape = shape_of(n)
    encode, largest, in_a_byte, kind = FORMATS[format] if format is not None else (rounding.plain, 0.0, 1, x.dtype)
    left, right = _matrices(shape, inverse, x.device)
    units = triton.cdiv(rows, shape.rows)
    programs = min(units, shape.resident * multiprocessors(x.device))
    out = x.new_empty((rows, n // in_a_byte), dtype=kind)
    scale = None if format is None else x.new_empty(rows, dtype=torch.float32)
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
            "DTYPE": triton_type(x.dtype), "STAGES": shape.stages(capability),
        },
        output=out if scale is None else (out, scale),
        loop_bytes=2 * n * shape.rows,
        loop_weights=n * shape.rows,
        num_warps=shape.block_a // 16,
        elsewhere=partial(_launch, x, inverse, format),
    )  # fmt: skip


def fast_hadamard(x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Give x H / sqrt(n) for the rows of x (rows, n), or x H^T / sqrt(n), in float16 or bfloat16 as x is.

    H is that of `kernels.hadamard`; sums are in float32, and at most 2^-16 of each first one is lost. A NaN or infinity
    makes its row NaN, and in rows of 257 to 4095 values those that share a matrix with it, up to 31 others. Raises
    `ValueError` for what is no such x, sizes without a Hadamard matrix, and those of more than 128 x 256 values or with
    factors that do not split into matrices.
    """
    return plan(x, inverse).run()


def hadamard_quantize(x: torch.Tensor, format: str, inverse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The transform of x (rows, n) rounded to `format` (int8, int4, e4m3): codes, and a scale in float32 for each row.

    Codes (rows, n) are int8 in [-127, 127] or float8_e4m3fn; int4 ones, in [-7, 7], are bytes (rows, n / 2), the first
    of two in the low nibble. The scale is max |y| / 127, 448 or 7; ties go to even (`kernels.fast_hadamard.rounding`).
    A row of zeros has the scale 0, one that `fast_hadamard` makes NaN a scale that is not finite. Raises `ValueError`
    as `fast_hadamard` does, and for an odd n of int4.
    """
    return plan(x, inverse, format).run()


@lru_cache(maxsize=64)
def _matrices(shape: Shape, inverse: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right factor, int8, filled up with zeros."""
    each = torch.eye(shape.rows, dtype=torch.int8)
    left, right = torch.kron(each, kronecker(shape.left)).T, kronecker(shape.right)
    if inverse:
        left, right = left.T, right.T
    return _filled(left, shape.block_a + shape.extra, device), _filled(right, shape.block_b, device)


def _filled(M: torch.Tensor, order: int, device: torch.device) -> torch.Tensor:
    more = order - len(M)
    return torch.nn.functional.pad(M, (0, more, 0, more)).contiguous().to(device)
