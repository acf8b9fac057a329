"""A kernel with everything it is called with, as a value: run it here, or compile it for a chip that is not here.

A public function of this package plans a `Launch` and runs it. The plan needs no GPU, so the offline compiler
(`kernels.compiler`) sees exactly the constants, types and alignments that a GPU would; and a plan may be run again
and again, which is how a CUDA graph or a bench calls it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs

MULTIPROCESSORS = 132  # of an H100 or H200: what a plan reckons with where there is no GPU to ask


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter (`TRITON_INTERPRET=1` when they were imported), on any device."""
    return bool(knobs.runtime.interpret)


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors share the work on `device`."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One call of a Triton function.

    `arguments` are what changes from call to call (tensors, integers, floats; None for what a format lacks),
    `constants` what is compiled in. `output` is what the call fills, a tensor or several. `loop_bytes` are the bytes of
    packed weights (or of whatever else is streamed) that one program loads in one turn of its main loop, or at all
    where it has none, and `loop_weights` the values in them: the offline compiler holds the machine code against them.
    """

    function: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, torch.Tensor | int | float | None]
    constants: Mapping[str, Any]
    output: torch.Tensor | tuple[torch.Tensor, ...]
    loop_bytes: int
    loop_weights: int
    num_warps: int = 4
    num_stages: int = 3
    elsewhere: Callable[[tuple[int, int]], "Launch"] | None = None  # the plan for another compute capability
    max_registers: int | None = None  # of a thread; None leaves it to the assembler, which may spill to have fewer

    @property
    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The tensors of `output`."""
        return (self.output,) if isinstance(self.output, torch.Tensor) else self.output

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton is told beside arguments and constants."""
        told = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return told if self.max_registers is None else told | {"maxnreg": self.max_registers}

    def run(self) -> Any:
        """Run it and return `output`. Raises `ValueError` for tensors that are not on a GPU, unless interpreted."""
        device = self.outputs[0].device
        if not interpreted() and device.type != "cuda":
            raise ValueError(f"tensors are on {device}, kernels need them on cuda (or TRITON_INTERPRET=1, to test)")
        with torch.cuda.device_of(self.outputs[0]):
            self.function[self.grid](**self.arguments, **self.constants, **self.options)
        return self.output
