"""Run every kernel with forbidden memory right before and right after each tensor: one stray access ends the process.

Run as a program (a fault cannot be caught): it prints the name of a kernel before it runs it, and "done" at the end.
Asked for "stray", it reads one value too far instead, and should not survive.
"""

import ctypes
import dataclasses
import mmap
import os
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

os.environ["TRITON_INTERPRET"] = "1"

PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEPT: list[mmap.mmap] = []


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy of `tensor` between two pages that may not be touched, up against the last or the first."""
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or size == 0:
        return tensor
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + room):
        assert _LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0, ctypes.get_errno()
    _KEPT.append(memory)
    offset = PAGE + (room - size if at_end else 0)
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
    return copy.copy_(tensor)


def guarded_inputs(value: Any, at_end: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return guarded(value, at_end)
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: guarded_inputs(part, at_end) for name, part in parts.items()})
    return value


class Guarding(TorchDispatchMode):
    """Guards what a kernel allocates for itself: its output and its partial sums."""

    ALLOCATIONS = frozenset({"empty", "new_empty", "zeros", "new_zeros", "full", "new_full", "empty_like"})

    def __init__(self, at_end: bool):
        super().__init__()
        self.at_end = at_end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return guarded(found, self.at_end) if func.overloadpacket.__name__ in self.ALLOCATIONS else found


def stray() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def last(x, out, n):
        tl.store(out, tl.load(x + n))

    last[(1,)](guarded(torch.ones(10), True), torch.empty(1), 10)


def main(names: list[str]) -> None:
    from kernels.table import KERNELS

    if names == ["stray"]:
        stray()

    for kernel in KERNELS:
        if names and kernel.name not in names:
            continue
        for nth, size in enumerate(kernel.check):
            for at_end in (True, False)[: 1 if nth else 2]:  # before its beginning, memory is as far at every size
                print(kernel.name, size, "end" if at_end else "start", flush=True)
                inputs = [guarded_inputs(value, at_end) for value in kernel.inputs(size, 1, "cpu")]
                with Guarding(at_end):
                    kernel.kernel(*inputs)
                _KEPT.clear()
    print("done")


if __name__ == "__main__":
    main(sys.argv[1:])
