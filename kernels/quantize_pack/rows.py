"""Rows of `KERNELS`: weight matrices rounded and packed, for every layout that a product reads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from kernels.kernel import Kernel
from kernels.launch import Launch
from kernels.quantize_pack import cache, integers
from kernels.quantize_pack.reference import integers_reference, tokens_reference


class Matrix(NamedTuple):
    """Weights (outputs, inputs), one scale for `group` inputs; for all of an output where there are not more."""

    outputs: int
    inputs: int
    group: int = 128

    def __str__(self) -> str:
        return f"{self.outputs} x {self.inputs} / {self.group}"

    @property
    def operations(self) -> int:
        """Two comparisons, a quotient, its rounding, two bounds, a shift and a sum."""
        return 8 * self.outputs * self.inputs


def inputs(
    size: Matrix, seed: int, device: str = "cpu", *, how: tuple[Any, ...], dtype: torch.dtype = torch.float16
) -> tuple[Any, ...]:
    """Gaussian weights of variance 1 / inputs, a few of them ten times as large."""
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.outputs, size.inputs)
    rare = torch.rand(shape, generator=draw, device=device) < 1 / 256
    W = torch.randn(shape, generator=draw, device=device) * torch.where(rare, 10, 1) * size.inputs**-0.5
    return (W.to(dtype), None if size.group >= size.inputs else size.group, *how)


def excess(result: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], tolerance: float) -> float:
    """Zero if all bits agree, else infinity."""
    return 0.0 if all(torch.equal(_bits(x), _bits(y)) for x, y in zip(result, wanted, strict=True)) else float("inf")


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def _run(*arguments: Any, plan: Callable[..., Launch]) -> tuple[torch.Tensor, ...]:
    return plan(*arguments).run()


def integer_plan(W: torch.Tensor, group: int | None, bits: int, convention: str) -> Launch:
    """`integers.plan` by position."""
    return integers.plan(W, bits=bits, group=group, convention=convention)


def integer_reference(W: torch.Tensor, group: int | None, bits: int, convention: str) -> tuple[torch.Tensor, ...]:
    """`integers_reference` by position."""
    return integers_reference(W, bits, group, convention)


# one output, ragged ones, short last groups and tiles; groups in a tile, beyond it and across; a scale for an output
FEW = (Matrix(65, 320, 64), Matrix(7, 387, 128), Matrix(1, 200, 200))
CHECK = (*FEW, Matrix(9, 700, 256), Matrix(3, 300, 96), Matrix(64, 256, 128))
BENCH = (Matrix(28672, 8192), Matrix(8192, 28672), Matrix(14336, 4096), Matrix(8192, 8192, 8192))
COMPILE = (Matrix(256, 1024), Matrix(256, 1024, 1024))


def _row(
    name: str, plan: Callable[..., Launch], reference: Callable[..., Any], *how: Any, check: tuple[Matrix, ...] = FEW
) -> Kernel:
    return Kernel(
        name=name, reference=reference, kernel=partial(_run, plan=plan), plan=plan, inputs=partial(inputs, how=how),
        check=check, bench=BENCH, compile=COMPILE, tolerance=0.0, excess=excess,
        operation="pack",
    )  # fmt: skip


class Tokens(NamedTuple):
    """Keys or values of `tokens` tokens, for `heads` heads of a batch of one, with scales of `group`."""

    heads: int
    tokens: int
    channels: int = 128
    group: int = 32

    def __str__(self) -> str:
        return f"{self.heads} x {self.tokens} x {self.channels} / {self.group}"

    @property
    def operations(self) -> int:
        """Two comparisons, a difference, a quotient, its rounding, two bounds, a shift and a sum."""
        return 9 * self.heads * self.tokens * self.channels


def tokens(size: Tokens, seed: int, device: str = "cpu", *, what: str, bits: int) -> tuple[Any, ...]:
    """Gaussian keys or values, one channel in 32 ten times as large."""
    draw = torch.Generator(device).manual_seed(seed)
    channels = torch.where(torch.arange(size.channels, device=device) % 32 == 5, 10.0, 1.0)
    x = torch.randn(1, size.heads, size.tokens, size.channels, generator=draw, device=device) * channels
    return x.half(), what, bits, size.group


# Llama 3.1 8B: a prompt, and a cache of which there are eight
TOKENS_BENCH = (Tokens(8, 32768), Tokens(64, 32768))
TOKENS_COMPILE = (Tokens(2, 256), Tokens(2, 256, 128, 64), Tokens(2, 256, 64))


def _tokens(what: str, bits: int) -> Kernel:
    ragged = (Tokens(2, 37), Tokens(1, 130, 64, 64), Tokens(1, 65, 128, 128 if what == "keys" else 16))
    return Kernel(
        name=f"pack-{what}-{bits}bit", reference=tokens_reference, kernel=partial(_run, plan=cache.plan),
        plan=cache.plan, inputs=partial(tokens, what=what, bits=bits), check=ragged, bench=TOKENS_BENCH,
        compile=TOKENS_COMPILE, tolerance=0.0, excess=excess, operation="pack",
    )  # fmt: skip


PACK_KERNELS = (
    *(_row(f"pack-int{bits}", integer_plan, integer_reference, bits, "full-range") for bits in (2, 3, 8)),
    *(_row(f"pack-int{bits}-zero", integer_plan, integer_reference, bits, "asymmetric") for bits in (2, 3, 8)),
    _row("pack-int4", integer_plan, integer_reference, 4, "full-range", check=CHECK),
    _row("pack-int4-zero", integer_plan, integer_reference, 4, "asymmetric", check=CHECK),
    _row("pack-int4-real-zero", integer_plan, integer_reference, 4, "real-zero"),
    *(_tokens(what, bits) for what in ("keys", "values") for bits in (4, 2)),
)
