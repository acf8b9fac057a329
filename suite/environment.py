"""What a record must name to be compared: the code's version and the environment's key."""

import hashlib
import importlib.metadata
import importlib.util
import platform
from functools import cache
from pathlib import Path

BOUNDS = "bitfrontier.bounds"  # the entry points whose functions make records' `bound`
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "constriction")


@cache
def code_version(*further: str) -> str:
    """A hash of every source file that a record depends on: of `kernels`, `suite` and any `further` folders.

    Its `bound` depends on the files that entry points name, wherever they are: these too.
    """
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for entry in sorted(importlib.metadata.entry_points(group=BOUNDS), key=lambda entry: entry.name):
        digest.update(_source_of(entry).encode())
    for path in sorted(path for folder in ("kernels", "suite", *further) for path in root.glob(f"{folder}/**/*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _source_of(entry: importlib.metadata.EntryPoint) -> str:
    """The text of the file that an entry point names; it is not run."""
    found = importlib.util.find_spec(entry.module)
    if found is None or found.origin is None:
        raise ValueError(f"entry point {entry.name}: there is no module {entry.module}")
    return Path(found.origin).read_text()


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
