"""Kernels held against their references: on a GPU, or under Triton's interpreter where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch

from kernels.inputs import ACTIVATIONS
from kernels.kernel import Kernel, Size
from kernels.launch import interpreted


@dataclass(frozen=True, slots=True)
class Check:
    """How far a kernel was from its reference: `excess` is the largest error in units of what is allowed."""

    kernel: str
    size: str
    dtype: str
    seed: int
    device: str
    excess: float
    repeats: bool  # the second run gave the same bits, as the row of a deterministic kernel promises

    @property
    def passed(self) -> bool:
        """Whether errors are within bounds and the second run gave the first one's bits."""
        return self.excess <= 1 and self.repeats


def variants(kernel: Kernel) -> Iterator[tuple[str, Callable[[Size, int, str], tuple[Any, ...]]]]:
    """The kernel's inputs by the type of its activations: float16 and bfloat16 where the row can make both."""
    if "dtype" not in signature(kernel.inputs).parameters:
        yield "", kernel.inputs
        return
    for dtype in ACTIVATIONS:
        yield str(dtype).removeprefix("torch."), partial(kernel.inputs, dtype=dtype)  # type: ignore[call-arg]


def checked(kernel: Kernel, size: Size, seed: int, device: str) -> list[Check]:
    """Run `kernel` twice on inputs made from `seed` and compare, for every type of activations.

    Memory that it allocates is filled with NaN first, so that what it forgets to write is seen.
    """
    found = []
    for dtype, inputs in variants(kernel):
        arguments = inputs(size, seed, device)
        with _poisoned():
            first, second = kernel.kernel(*arguments), kernel.kernel(*arguments)
        repeats = not kernel.deterministic or all(map(_same_bits, outputs(first), outputs(second)))
        excess = excess_of_kernel(kernel, first, kernel.reference(*arguments))
        found.append(Check(kernel.name, str(size), dtype, seed, device, excess, repeats))
    return found


def excess_of_kernel(kernel: Kernel, result: Any, reference: Any) -> float:
    """Largest error in units of what the row allows, over all outputs."""
    if kernel.excess is not None:
        return kernel.excess(result, reference, kernel.tolerance)
    pairs = zip(outputs(result), outputs(reference), strict=True)
    return max(excess_of(one, wanted, kernel.tolerance) for one, wanted in pairs)


def excess_of(result: torch.Tensor, reference: torch.Tensor, tolerance: float) -> float:
    """Largest error in units of `tolerance` rms(reference) + one rounding of the result's type; infinite for NaN.

    Integers are within bounds, 0, exactly if they are equal, else infinitely far off.
    """
    if not result.is_floating_point():
        return 0.0 if torch.equal(result, reference.to(result.dtype)) else float("inf")
    wanted = reference.double()
    allowed = tolerance * wanted.square().mean().sqrt() + _roundoff(result.dtype) * wanted.abs()
    error = (result.double() - wanted).abs()
    ratio = torch.where(error > 0, error / allowed, error).max().item() if error.numel() else 0.0
    return ratio if ratio == ratio else float("inf")


def outputs(value: Any) -> tuple[torch.Tensor, ...]:
    """What a kernel or its reference returns, one tensor or several, as several."""
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _roundoff(dtype: torch.dtype) -> float:
    # to nearest; but the interpreter rounds to bfloat16 by cutting off, a whole unit in the last place
    return torch.finfo(dtype).eps / (1 if dtype == torch.bfloat16 and interpreted() else 2)


@contextmanager
def _poisoned() -> Iterator[None]:
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
