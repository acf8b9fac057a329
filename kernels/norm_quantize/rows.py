"""Rows of `KERNELS`: tokens rounded to each format behind a norm, behind a norm of a sum, and as they are."""

from functools import partial
from typing import Any, NamedTuple

import torch

from kernels.kernel import Kernel
from kernels.norm_quantize.reference import norm_quantize_reference
from kernels.norm_quantize.triton import plan

# Codes are exact. Of a scale, the sum of squares is rounded at most 64 times in a thread and 9 times between threads,
# which its root halves; the mean, eps, the root and two quotients are five more roundings.
TOLERANCE = (73 / 2 + 5) * 2.0**-24


class Tokens(NamedTuple):
    """So many `rows` of `hidden` values."""

    rows: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.hidden}"

    @property
    def operations(self) -> int:
        """A square, its sum, the gain, a magnitude compared, a product and its rounding."""
        return 6 * self.rows * self.hidden


def inputs(
    size: Tokens,
    seed: int,
    device: str = "cpu",
    *,
    format: str,
    norm: bool = True,
    residual: bool = False,
    dtype: torch.dtype = torch.float16,
) -> tuple[Any, ...]:
    """Gaussian tokens of variance 1 with one channel in 64 ten times as large, and gains about 1."""
    draw = torch.Generator(device).manual_seed(seed)
    channels = torch.where(torch.arange(size.hidden, device=device) % 64 == 5, 10.0, 1.0)
    x = (torch.randn(size, generator=draw, device=device) * channels).to(dtype)
    gain = (0.5 + torch.rand(size.hidden, generator=draw, device=device)).to(dtype)
    other = torch.randn(size, generator=draw, device=device).to(dtype) if residual else None
    return (x, format, gain, other, 1e-6) if norm else (x, format, None, None, None)


def _run(*arguments: Any) -> tuple[torch.Tensor, ...]:
    return plan(*arguments).run()


# ragged and short, many to a program, and longer than a warp holds
CHECK = (Tokens(1, 64), Tokens(5, 130), Tokens(3, 1000), Tokens(40, 32), Tokens(2, 2560))
BENCH = (Tokens(4096, 8192), Tokens(4096, 4096), Tokens(4096, 16384), Tokens(16, 8192), Tokens(1, 4096))
COMPILE = tuple(Tokens(64, hidden) for hidden in (128, 1024, 4096, 5120, 16384, 32768))


def _row(name: str, **how: Any) -> Kernel:
    return Kernel(
        name=name, reference=norm_quantize_reference, kernel=_run, plan=plan, inputs=partial(inputs, **how),
        check=CHECK, bench=BENCH, compile=COMPILE, tolerance=TOLERANCE,
        operation="sum-norm" if how.get("residual") else "norm",
    )  # fmt: skip


NORM_KERNELS = (
    _row("norm-int8", format="int8"),
    _row("norm-int4", format="int4"),
    _row("norm-e4m3", format="e4m3"),
    _row("sum-norm-int8", format="int8", residual=True),
    _row("sum-norm-e4m3", format="e4m3", residual=True),
    _row("token-int8", format="int8", norm=False),
    _row("token-int4", format="int4", norm=False),
    _row("token-e4m3", format="e4m3", norm=False),
)
