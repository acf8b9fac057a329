"""Rows of `KERNELS`: weight matrices rounded and packed, for every layout that a product reads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from kernels.float_product.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FloatFormat
from kernels.kernel import Kernel
from kernels.launch import Launch
from kernels.quantize_pack import cache, floats, integers, tables, ternary
from kernels.quantize_pack.reference import (
    floats_reference,
    integers_reference,
    table_reference,
    ternary_reference,
    tokens_reference,
)
from kernels.table_product.packing import NF4


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


How = Callable[[torch.Tensor, int | None], tuple[Any, ...]]  # what a plan takes beside W, for W and a group


def inputs(
    size: Matrix, seed: int, device: str = "cpu", *, how: How, dtype: torch.dtype = torch.float16
) -> tuple[Any, ...]:
    """Gaussian weights of variance 1 / inputs, a few of them ten times as large."""
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.outputs, size.inputs)
    rare = torch.rand(shape, generator=draw, device=device) < 1 / 256
    W = (torch.randn(shape, generator=draw, device=device) * torch.where(rare, 10, 1) * size.inputs**-0.5).to(dtype)
    return (W, *how(W, None if size.group >= size.inputs else size.group))


def excess(result: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], tolerance: float) -> float:
    """Zero if all bits agree, else infinity."""
    return 0.0 if all(torch.equal(_bits(x), _bits(y)) for x, y in zip(result, wanted, strict=True)) else float("inf")


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def _run(*arguments: Any, plan: Callable[..., Launch]) -> tuple[torch.Tensor, ...]:
    return plan(*arguments).run()


# one output, ragged ones, short last groups and tiles; groups in a tile, beyond it and across; a scale for an output
FEW = (Matrix(65, 320, 64), Matrix(7, 387, 128), Matrix(1, 200, 200))
CHECK = (*FEW, Matrix(9, 700, 256), Matrix(3, 300, 96), Matrix(64, 256, 128))
BENCH = (Matrix(28672, 8192), Matrix(8192, 28672), Matrix(14336, 4096), Matrix(8192, 8192, 8192))
COMPILE = (Matrix(256, 1024), Matrix(256, 1024, 1024))


def _row(
    name: str,
    plan: Callable[..., Launch],
    reference: Callable[..., Any],
    how: How,
    *,
    check: tuple[Matrix, ...] = FEW,
    group: int | None = None,
) -> Kernel:
    """With `group`, all sizes have it: 0 is one scale for an output, or for the matrix."""
    every = ((size if group is None else size._replace(group=group or size.inputs) for size in sizes)
             for sizes in (check, BENCH, COMPILE if group is None else COMPILE[:1]))  # fmt: skip
    checked, bench, compiled = map(tuple, every)
    return Kernel(
        name=name, reference=reference, kernel=partial(_run, plan=plan), plan=plan, inputs=partial(inputs, how=how),
        check=checked, bench=bench, compile=compiled, tolerance=0.0, excess=excess, operation="pack",
    )  # fmt: skip


def _integers(bits: int, convention: str, check: tuple[Matrix, ...] = FEW) -> Kernel:
    name = {"full-range": "", "asymmetric": "-zero"}.get(convention, f"-{convention}")
    return _row(f"pack-int{bits}{name}", integers.plan, integers_reference,
                lambda W, group: (bits, group, convention), check=check)  # fmt: skip


def _table(name: str, scales: torch.dtype) -> Kernel:
    def how(W: torch.Tensor, group: int | None) -> tuple[Any, ...]:
        return torch.tensor(NF4, device=W.device), group, scales

    return _row(name, tables.plan, table_reference, how, group=64)


def _floats(name: str, format: FloatFormat, scales: str, group: int, block: int = 1) -> Kernel:
    def how(W: torch.Tensor, group: int | None) -> tuple[Any, ...]:
        return format, scales, group if floats.SCALES[scales] is None else None, block

    return _row(f"pack-{name}", floats.plan, floats_reference, how, group=group)


def _ternary(name: str, per_byte: int) -> Kernel:
    def how(W: torch.Tensor, group: int | None) -> tuple[Any, ...]:
        return W.abs().mean(dtype=torch.float32).reshape(1), per_byte

    return _row(f"pack-ternary-{name}", ternary.plan, ternary_reference, how, group=0)


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
        # 2-bit values of 64 channels have 8 bytes of stack reserved that nothing uses
        compile=TOKENS_COMPILE[:2] if (what, bits) == ("values", 2) else TOKENS_COMPILE,
        tolerance=0.0, excess=excess, operation="pack",
    )  # fmt: skip


PACK_KERNELS = (
    *(_integers(bits, "full-range") for bits in (2, 3, 8)),
    *(_integers(bits, "asymmetric") for bits in (2, 3, 8)),
    _integers(4, "full-range", CHECK),
    _integers(4, "asymmetric", CHECK),
    _integers(4, "real-zero"),
    _table("pack-nf4", torch.float32),
    _table("pack-nf4-half", torch.float16),
    _floats("mxfp4", E2M1, "e8m0", 32),
    _floats("mxfp6-e2m3", E2M3, "e8m0", 32),
    _floats("mxfp6-e3m2", E3M2, "e8m0", 32),
    _floats("mxfp8", E4M3, "e8m0", 32),
    _floats("nvfp4", E2M1, "e4m3", 16),
    _floats("fp8", E4M3, "float32", 0),
    _floats("fp8-e5m2", E5M2, "float16", 0),
    _floats("fp8-block", E4M3, "float32", 128, block=128),
    _ternary("2bit", 4),
    _ternary("base3", 5),
    *(_tokens(what, bits) for what in ("keys", "values") for bits in (4, 2)),
)
