"""The table of what every kernel compiles to, kept in `compiled.csv` so that a regression shows in a diff.

Run as a module it prints the table as JSON. It is always a process of its own, without `TRITON_INTERPRET`: an
interpreted function has no machine code, and a process has decided which it is when it imports its first kernel.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.kernel import Kernel, Size

KEPT = Path(__file__).with_name("compiled.csv")

# The outputs of a large matrix, which need no splitting of the inputs, and a small one that does. Few enough weights
# to be packed in a moment: the loop does not depend on how often it turns.
SHAPES = ((28672, 512), (1024, 4096))


def table(names: list[str] | None = None, jobs: int | None = None, brief: bool = False) -> list[dict[str, Any]]:
    """Compile the kernels of `names` (all by default) in a process of its own: one row for each launch.

    A brief table has the first row of every Triton function with its first size and type of activations, on every
    architecture.
    """
    how = [str(jobs or os.cpu_count() or 1), "brief" if brief else "whole"]
    command = [sys.executable, "-m", "kernels.machine_code", *how, *(names or [])]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(said.stdout)


def kept() -> list[dict[str, str]]:
    """The rows of `compiled.csv`, as text."""
    with KEPT.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(rows: list[dict[str, Any]], path: Path = KEPT) -> None:
    """Write `rows` to `path`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _compiled(name: str, brief: bool) -> list[dict[str, Any]]:
    """A kernel at every shape, for every type of activations and architecture; what compiles alike is listed once."""
    import triton

    from kernels.check import variants
    from kernels.compiler import ARCHITECTURES, compiled, fingerprint
    from kernels.product.triton import on
    from kernels.table import kernel_named

    kernel, seen, found = kernel_named(name), set(), []
    for dtype, inputs in list(variants(kernel))[: 1 if brief else None]:
        for size in (kernel.compile or _product_sizes(kernel, dtype))[: 1 if brief else None]:
            launch = kernel.plan(*inputs(size, 0, "cpu"))
            mark = fingerprint(launch)
            if mark in seen:
                continue
            seen.add(mark)
            key = {"kernel": name, "size": str(size), "dtype": dtype, "triton": triton.__version__}
            for code in (compiled(on(launch, divmod(chip, 10)), chip) for chip in ARCHITECTURES):
                found.append(key | asdict(code) | {"slots_per_weight": round(code.slots_per_weight, 3)})
    return found


def _product_sizes(kernel: "Kernel", dtype: str) -> tuple["Size", ...]:
    """Every number of rows in the bench, at both shapes; how partial sums are added does not depend on `dtype`."""
    shapes = SHAPES if dtype != "bfloat16" else SHAPES[:1]
    rows = sorted({size.rows for size in kernel.bench}, reverse=True)
    return tuple(kernel.bench[0]._replace(rows=m, outputs=n, inputs=k) for m in rows for n, k in shapes)


def _representatives(kernels: "Sequence[Kernel]") -> "list[Kernel]":
    """The first row of each planning function: what shares one shares a Triton function, but for what it decodes."""
    found: dict[object, Kernel] = {}
    for kernel in kernels:
        found.setdefault(getattr(kernel.plan, "func", kernel.plan), kernel)
    return list(found.values())


def _main(jobs: int, brief: bool, names: list[str]) -> None:
    from kernels.table import KERNELS

    names = names or [kernel.name for kernel in (_representatives(KERNELS) if brief else KERNELS)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = [row for rows in pool.map(partial(_compiled, brief=brief), names) for row in rows]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2] == "brief", sys.argv[3:])
