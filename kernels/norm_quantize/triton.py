"""RMSNorm and the rounding of its result in one pass: activations are read once and their codes written once.

A token's codes are those of u = h gain, whatever its norm is: the norm divides the token's largest magnitude, too, and
so drops out of u / max |u|. Hence the sum of squares and the largest magnitude are found together, in one pass over
registers, the norm goes into the scale alone, and codes are exact: they depend on no order of summation.

RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467. Everything is in float32. Implementations that round the norm's
result to 16 bits before they quantize (as two kernels must) differ from this by that rounding.

A program has one token, or several short ones, in registers: 32 values a thread up to 16,384. On an H200, 3 bytes a
value (2 in, 1 out) take the time of 21 instruction slots at 4.3 TB/s, and 1.2 times a clone of the activations that of
33; the whole program, fixed costs and all, takes 13 without a norm and 19 to 25 with it. Loads under way come from many
small programs on a multiprocessor, not from a ring.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels import rounding
from kernels.codes import LARGEST, SMALLEST
from kernels.inputs import ACTIVATIONS, require
from kernels.launch import Launch

LONGEST = 32768  # values of a token: 64 in a thread of 16 warps
WARP = 1024  # values of a warp, 32 in a thread; short tokens share it


@triton.jit
def quantize(
    x,  # (rows, n)
    residual,  # (rows, n), added first, or None
    gain,  # (n), or None
    codes,  # (rows, n) bytes, or half as many
    scale,  # (rows,)
    summed,  # (rows, n), x + residual, or None
    rows,
    n,
    count,  # n, as a number in float32
    eps,  # None: no norm
    FORMAT: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """See the module's docstring."""
    first = tl.program_id(0) * ROWS
    start = first.to(tl.int64) * n
    r = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    within = (k < n) | WHOLE
    inside = (r < rows - first)[:, None] & within[None, :]
    at = r[:, None] * n + k[None, :]
    h = tl.load(x + start + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if residual is not None:
        other = tl.load(residual + start + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        rounded = rounding.to_type(h + other, x.dtype.element_ty)
        tl.store(summed + start + at, rounded, mask=inside)
        h = rounded.to(tl.float32)
    if gain is not None:
        g = tl.load(gain + tl.zeros_like(r)[:, None] + k[None, :], mask=inside, other=0.0)
    if eps is not None:  # before u is made: registers hold one of them
        squares = tl.sum(h * h, 1)
    u = h
    if gain is not None:
        u = rounding.times(h, g.to(tl.float32))
    # as integers, magnitudes are in the order of their values, infinity is above them, and NaN above that
    top = tl.max(u.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
    finite = top < float("inf")
    if eps is not None:
        finite = finite & (squares < float("inf"))
    s, by = rounding.scale_of(tl.where(finite, top, float("nan")), LARGEST, SMALLEST)
    if eps is not None:
        mean = tl.div_rn(tl.where(finite, squares, 0.0), tl.full([ROWS], 1.0, tl.float32) * count)
        s = tl.div_rn(s, tl.sqrt_rn(mean + eps))
    tl.store(scale + first + r, s, mask=r < rows - first)
    v = rounding.times(tl.where(finite[:, None], u, 0.0), by[:, None])
    if FORMAT == "e4m3":
        tl.store(codes + start + at, rounding.e4m3(v), mask=inside)
    elif FORMAT == "int8":
        tl.store(codes + start + at, rounding.nearest_integer(v).to(tl.int8), mask=inside)
    else:
        half = tl.arange(0, BLOCK // 2)
        there = (r < rows - first)[:, None] & ((half < n // 2) | WHOLE)[None, :]
        spot = r[:, None] * (n // 2) + half[None, :]
        tl.store(codes + start // 2 + spot, rounding.two_in_a_byte(v), mask=there)


def plan(
    x: torch.Tensor,
    format: str,
    gain: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float | None = 1e-6,
) -> Launch:
    """The launch of `norm_quantize`; of `token_quantize` where `eps` is None."""
    rows, n = _sizes(x, format, gain, residual, eps)
    block = max(16, triton.next_power_of_2(n))
    per = max(1, WARP // block)
    codes = torch.empty((rows, n // 2 if format == "int4" else n), dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    summed = None if residual is None else torch.empty_like(x)
    arguments: dict[str, Any] = {
        "x": x, "residual": residual, "gain": gain, "codes": codes, "scale": scale, "summed": summed, "rows": rows,
        "n": n, "count": float(n), "eps": eps,
    }  # fmt: skip
    constants = {
        "FORMAT": format, "LARGEST": LARGEST[format], "SMALLEST": SMALLEST, "ROWS": per, "BLOCK": block,
        "WHOLE": block == n,
    }  # fmt: skip
    result = codes.view(torch.float8_e4m3fn) if format == "e4m3" else codes
    return Launch(
        function=quantize, grid=(triton.cdiv(rows, per),), arguments=arguments, constants=constants,
        output=(result, scale) if summed is None else (result, scale, summed),
        loop_bytes=per * block * x.element_size() * (1 if residual is None else 2), loop_weights=per * block,
        num_warps=min(16, max(1, block // WARP)),
    )  # fmt: skip


def norm_quantize(
    x: torch.Tensor,
    format: str,
    gain: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, ...]:
    """RMSNorm of h = x + residual (rows, n), times `gain` (n,), rounded to `format`: codes, and a scale for each row.

    x and residual are float16 or bfloat16, gain that or float32. Formats are "int8" (-127 to 127), "int4" (-7 to 7 in
    two's complement, two in a byte, the first in the low nibble: (rows, n / 2)) and "e4m3" (`torch.float8_e4m3fn`);
    codes times scales, float32 (rows,), are near h gain / sqrt(mean h^2 + eps). The largest magnitude of a row has the
    largest code; the others are products in float32 with 127, 7 or 448 over that magnitude, rounded to nearest, halves
    to even. With residual the third result is h, in the type of x: codes are those of the rounded sum.

    A row whose largest |h gain| is below 2^-118 has codes and scale 0; one with NaN or infinity, or whose sum of
    squares is beyond float32, codes 0 and the scale NaN. Raises `ValueError` for what does not fit.
    """
    if eps is None:
        raise ValueError("eps is None, expected a number (token_quantize is without the norm)")
    return plan(x, format, gain, residual, eps).run()


def token_quantize(x: torch.Tensor, format: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x (rows, n) to `format` without a norm: codes and scales as `norm_quantize` gives them, for gain 1."""
    return plan(x, format, eps=None).run()


def _sizes(
    x: torch.Tensor, format: str, gain: torch.Tensor | None, residual: torch.Tensor | None, eps: float | None
) -> tuple[int, int]:
    """Rows and values of each, of tensors that fit each other."""
    require("x", x, shape=(None, None), dtypes=ACTIVATIONS)
    rows, n = x.shape
    if format not in LARGEST:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(LARGEST)}")
    if rows == 0 or not 0 < n <= LONGEST:
        raise ValueError(f"x has shape {(rows, n)}, expected rows of 1 to {LONGEST} values")
    if format == "int4" and n % 2:
        raise ValueError(f"x has rows of {n} values, expected an even number to pack two in a byte")
    if gain is not None:
        require("gain", gain, shape=(n,), dtypes=(x.dtype, torch.float32), device=x.device)
    if residual is not None:
        require("residual", residual, shape=(rows, n), dtypes=(x.dtype,), device=x.device)
    if eps is not None and not 0 < eps < float("inf"):
        raise ValueError(f"eps is {eps}, expected a positive number")
    return rows, n
