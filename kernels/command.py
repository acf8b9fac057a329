"""`bitfrontier kernels`: which kernels there are, whether they are right, what they compile to, how fast they are."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kernels.kernel import Kernel

SEEDS = 10  # random inputs for each kernel and size on a GPU; the interpreter, a thousand times slower, takes one


@click.command()
@click.option("--check", is_flag=True, help="compare every kernel with its reference")
@click.option("--compile", "machine_code", is_flag=True, help="registers, shared memory and instructions, offline")
@click.option("--bench", is_flag=True, help="bandwidth against a copy and the peers in the same run; needs a GPU")
@click.option("--only", default=None, help="names of kernels, separated by commas")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="where --bench writes its results file")
@click.option("--keep", is_flag=True, help="with --compile: write the table that the tests compare with")
def kernels(
    check: bool, machine_code: bool, bench: bool, only: str | None, as_json: bool, out: Path | None, keep: bool
) -> None:
    """The kernels: correctness against references, machine code, and speed against a copy and peers.

    Without a GPU, --check runs Triton's interpreter; its times mean nothing and are not shown.
    """
    device = _device()
    if bench and device != "cuda":
        raise click.ClickException("--bench needs a CUDA device, found none; an interpreter's times are not speeds")
    if keep and (not machine_code or only):
        raise click.ClickException("--keep writes the whole table of --compile: give --compile and no --only")
    chosen = _chosen(only)
    said: dict[str, Any] = {}
    if check:
        said["check"] = _check(chosen, device)
    if machine_code:
        said["compile"] = _compile(chosen, keep)
    if bench:
        said["bench"] = _bench(chosen, out)
    if not said:
        said["kernels"] = [_row(kernel) for kernel in chosen]
    if as_json:
        click.echo(json.dumps(said, indent=1))
    else:
        for title, rows in said.items():
            _print(title, rows)
    failed = [row for row in said.get("check", ()) if not row["passed"]]
    if failed:
        raise click.exceptions.Exit(1)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is imported
    return "cpu"


def _chosen(only: str | None) -> list["Kernel"]:
    from kernels.table import KERNELS, kernel_named

    if only is None:
        return list(KERNELS)
    return [kernel_named(name.strip()) for name in only.split(",") if name.strip()]


def _row(kernel: "Kernel") -> dict[str, Any]:
    return {
        "kernel": kernel.name,
        "deterministic": kernel.deterministic,
        "check": [str(size) for size in kernel.check],
        "bench": [str(size) for size in kernel.bench],
    }


def _check(chosen: list["Kernel"], device: str) -> list[dict[str, Any]]:
    from kernels.check import checked

    sizes = [(kernel, size) for kernel in chosen for size in (kernel.check if device == "cpu" else _all(kernel))]
    found = []
    with _progress(len(sizes)) as step:
        for kernel, size in sizes:
            for seed in range(SEEDS if device == "cuda" else 1):
                found += [asdict(check) | {"passed": check.passed} for check in checked(kernel, size, seed, device)]
            step(kernel.name)
    return found


def _all(kernel: "Kernel") -> Iterator[Any]:
    """On a GPU, one size of the bench, too: what is timed is right."""
    yield from kernel.check
    yield min(kernel.bench, key=lambda size: size.outputs * size.inputs)


def _compile(chosen: list["Kernel"], keep: bool) -> list[dict[str, Any]]:
    from kernels import machine_code

    rows = machine_code.table([kernel.name for kernel in chosen])
    if keep:
        machine_code.keep(rows)
    return rows


def _bench(chosen: list["Kernel"], out: Path | None) -> Any:
    raise NotImplementedError


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("kernels", total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, *rows[0])  # noqa: B026
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
