"""A row of `KERNELS`: what checks, compiler and bench must know of a kernel, and nothing else.

An operation's inputs are made for a size from a seed, so that the check, the bench and a colleague's machine all see
the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kernels.launch import Launch


class Size(NamedTuple):
    """A product `y = x W^T`: `rows` of activations, weights (`outputs`, `inputs`), one scale for `group` inputs."""

    rows: int
    outputs: int
    inputs: int
    group: int = 128

    def __str__(self) -> str:
        return f"{self.rows} x {self.outputs} x {self.inputs} / {self.group}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.rows * self.outputs * self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel, its plain reference, and where to try them.

    `inputs(size, seed, device)` gives the arguments of all three functions: `reference` returns float64 (or integers),
    `kernel` what a user gets, a tensor or a tuple of them alike, `plan` the launch behind it. A size is a named tuple
    that says its `operations` and prints itself; `check` sizes are small and ragged, `bench` sizes real, `compile`
    those at which the machine code is looked at (a product's follow from its bench). `tolerance` bounds
    |kernel - reference| in units of the root mean square of the reference, beside one rounding to the output's type;
    integers agree exactly. Where that is not what a result means (codes and their scales), `excess(result, reference,
    tolerance)` gives its largest error in units of what is allowed. Kernels of one `operation` and size are timed in
    turns; products need none named, and what has none is timed on its own.
    """

    name: str
    reference: Callable[..., Any]
    kernel: Callable[..., Any]
    plan: Callable[..., Launch]
    inputs: Callable[[Any, int, str], tuple[Any, ...]]
    check: tuple[Any, ...]
    bench: tuple[Any, ...]
    tolerance: float
    compile: tuple[Any, ...] = ()
    deterministic: bool = True
    excess: Callable[[Any, Any, float], float] | None = None
    operation: str = ""

    def bytes_moved(self, *inputs: Any) -> int:
        """Bytes that any implementation must read and write once: all inputs and the outputs."""
        return sum(_bytes(value) for value in (*inputs, *self.plan(*inputs).outputs))


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(_bytes(getattr(value, name)) for name in getattr(value, "__dataclass_fields__", ()))
