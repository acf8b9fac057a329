"""GPU kernels in Triton beside plain references; knows tensors only.

An operation is a folder: `packing.py` lays its weights out, `reference.py` says in plain torch what it computes,
`triton.py` computes it fast, and rows of `KERNELS` tell the checks, the offline compiler and the bench how to call
it. Nothing here is imported before it is asked for, so that whoever packs bits does not wait for a compiler.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.kernel import Kernel
    from kernels.launch import Launch
    from kernels.table import KERNELS

__all__ = ["KERNELS", "Kernel", "Launch"]
_HOMES = {"KERNELS": "kernels.table", "Kernel": "kernels.kernel", "Launch": "kernels.launch"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
