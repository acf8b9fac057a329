"""What a record must name to be compared: the code's version and the environment's key."""

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "constriction")


@cache
def code_version(*further: str) -> str:
    """A hash of every source file that a record depends on: of `kernels`, `suite` and any `further` folders."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("kernels", "suite", *further) for path in root.glob(f"{folder}/**/*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def environment_key(threads: int, runtime: str = "") -> str:
    """Versions, threads per cell and CPU capability: what results are bit-for-bit reproducible under.

    `runtime` says by which product of packed weights, and where, a model was evaluated, if it was by any.
    """
    import torch

    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    machine = f"{platform.system().lower()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return "; ".join(
        [
            f"python {platform.python_version()}",
            *versions,
            machine,
            f"threads {threads}",
            *([f"product {runtime}"] if runtime else []),
        ]
    )
