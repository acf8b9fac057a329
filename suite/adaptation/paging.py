"""Optimizer states in pages: only one parameter's are resident, while it takes its step.

QLoRA keeps the states of its optimizer in unified memory, out of which a GPU's driver evicts pages under pressure
(Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, arXiv:2305.14314, section 3). Here nothing waits for pressure. States of
parameters on a CPU lie in a file that is mapped into memory, and the process lets go of a parameter's pages after its
step; what the kernel has not written yet it may write and drop at any time. States of parameters on a GPU lie in pinned
memory of the CPU, are copied over for the step, and back: this is untested, for want of a GPU. Either way it is the
optimizer's own step, of one parameter after the other, so numbers are those of resident states bit for bit.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter's shape, beside the number of its steps
States = dict[str, torch.Tensor]


class Home(Protocol):
    """Where states are between steps."""

    def moments(self, parameter: nn.Parameter) -> States:
        """Zeros for each of `MOMENTS`, of the parameter's shape and type, which stay where they are."""

    def visit(self, parameter: nn.Parameter, moments: States) -> Any:
        """A context within which the moments can be used on the parameter's device: the value it gives."""

    def leave(self) -> None:
        """Let go of whatever is resident."""


class MappedFile:
    """A home in a file without a name, in `directory`, as large as all states together; it goes with the process.

    Raises `OSError` where the disk has no room.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], directory: Path):
        self._starts: dict[nn.Parameter, int] = {}
        size = 0
        for parameter in parameters:
            self._starts[parameter] = size
            size += self._length(parameter)
        with tempfile.TemporaryFile(dir=directory) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal later
            else:
                file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)

    @staticmethod
    def _length(parameter: nn.Parameter) -> int:
        """Bytes of a parameter's states in whole pages."""
        return -(-len(MOMENTS) * parameter.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE

    def moments(self, parameter: nn.Parameter) -> States:
        """Views of the file."""
        start, length = self._starts[parameter], parameter.nbytes
        return {name: torch.frombuffer(self._memory, dtype=parameter.dtype, count=parameter.numel(),
                                       offset=start + i * length).view(parameter.shape)
                for i, name in enumerate(MOMENTS)}  # fmt: skip

    @contextmanager
    def visit(self, parameter: nn.Parameter, moments: States) -> Iterator[States]:
        """The views themselves; their pages are let go of afterwards."""
        yield moments
        self._memory.madvise(mmap.MADV_DONTNEED, self._starts[parameter], self._length(parameter))

    def leave(self) -> None:
        """Let go of every page: saving a checkpoint has read them all."""
        self._memory.madvise(mmap.MADV_DONTNEED)


class PinnedMemory:
    """A home in memory of the CPU that a GPU reads directly, for parameters on that GPU."""

    def moments(self, parameter: nn.Parameter) -> States:
        """Tensors of the CPU."""
        return {name: torch.zeros(parameter.shape, dtype=parameter.dtype, pin_memory=True) for name in MOMENTS}

    @contextmanager
    def visit(self, parameter: nn.Parameter, moments: States) -> Iterator[States]:
        """Copies on the GPU, which are copied back afterwards."""
        near = {name: x.to(parameter.device) for name, x in moments.items()}
        yield near
        for name, x in near.items():
            moments[name].copy_(x)

    def leave(self) -> None:
        """Nothing stays on the GPU."""


class PagedStates:
    """Steps of an AdamW `optimizer` whose states have a home elsewhere; `directory` is where a file may lie.

    The optimizer's own `state_dict` is that of one with resident states, and either takes up the other's.
    """

    def __init__(self, optimizer: torch.optim.AdamW, directory: Path):
        self._optimizer = optimizer
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        on_cpu = all(parameter.device.type == "cpu" for parameter in self._parameters)
        self._home: Home = MappedFile(self._parameters, directory) if on_cpu else PinnedMemory()

    def leave(self) -> None:
        """Let go of whatever is resident."""
        self._home.leave()

    def step(self) -> None:
        """One step of the optimizer, each parameter by itself."""
        groups = self._optimizer.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._optimizer.param_groups = [{**group, "params": [parameter]}]
                        self._step_of(parameter)
        finally:
            self._optimizer.param_groups = groups
        self.leave()  # a page that is read brings some of its neighbors along

    def _step_of(self, parameter: nn.Parameter) -> None:
        states = self._optimizer.state
        if parameter not in states:
            states[parameter] = {"step": torch.tensor(0.0), **self._home.moments(parameter)}
        kept = states[parameter]
        with self._home.visit(parameter, {name: kept[name] for name in MOMENTS}) as near:
            states[parameter] = {**kept, **near}  # the number of steps is a tensor that both hold
            self._optimizer.step()
        states[parameter] = kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` of the optimizer gave, one parameter after the other."""
        self._optimizer.load_state_dict({**state, "state": {}})
        for i, parameter in enumerate(self._parameters):
            if i not in state["state"]:
                continue
            found, moments = state["state"][i], self._home.moments(parameter)
            for name, x in moments.items():
                x.copy_(found[name])
            self._optimizer.state[parameter] = {"step": found["step"].clone(), **moments}
        self.leave()
