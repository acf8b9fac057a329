"""`bitfrontier kernels`: which kernels there are, whether they are right, what they compile to, how fast they are."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kernels.kernel import Kernel

MEASURED = Path("reports/measured")  # where --bench writes, below the working directory
SEEDS = 10  # random inputs for each kernel and size on a GPU; the interpreter, a thousand times slower, takes one


@click.command()
@click.option("--check", is_flag=True, help="compare every kernel with its reference")
@click.option("--compile", "machine_code", is_flag=True, help="registers, shared memory and instructions, offline")
@click.option("--bench", is_flag=True, help="bandwidth against a copy and the peers in the same run; needs a GPU")
@click.option("--only", default=None, help="names of kernels, separated by commas")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="the file that --bench writes; by default in reports/measured, named by the device",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="how long --bench may take, checks included, but for a last peer that tunes itself; 440 by default",
)
@click.option("--keep", is_flag=True, help="with --compile: write the table that the tests compare with")
def kernels(
    check: bool,
    machine_code: bool,
    bench: bool,
    only: str | None,
    as_json: bool,
    out: Path | None,
    seconds: float | None,
    keep: bool,
) -> None:
    """The kernels: correctness against references, machine code, and speed against a copy and peers.

    Without a GPU, --check runs Triton's interpreter; its times mean nothing and are not shown.
    """
    started = time.monotonic()
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
        said["bench"] = _bench(chosen, said.get("check", ()), out, started, seconds)
    if not said:
        said["kernels"] = [_row(kernel) for kernel in chosen]
    if as_json:
        click.echo(json.dumps(said, indent=1))
    else:
        for title, rows in said.items():
            if rows:
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
    if device == "cuda":
        from kernels.session import check_all

        return [asdict(check) | {"passed": check.passed} for check in check_all(chosen, SEEDS, device, progress=_say)]
    from kernels.check import checked

    sizes = [(kernel, size) for kernel in chosen for size in kernel.check]
    found = []
    with _progress(len(sizes)) as step:
        for kernel, size in sizes:
            found += [asdict(check) | {"passed": check.passed} for check in checked(kernel, size, 0, device)]
            step(kernel.name)
    return found


def _compile(chosen: list["Kernel"], keep: bool) -> list[dict[str, Any]]:
    from kernels import machine_code

    rows = machine_code.table([kernel.name for kernel in chosen])
    if keep:
        machine_code.keep(rows)
    return rows


def _bench(
    chosen: list["Kernel"],
    checks: Sequence[dict[str, Any]],
    out: Path | None,
    started: float,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    import torch

    from kernels.check import Check
    from kernels.session import LIMIT_SECONDS, results_path, session
    from kernels.targets import TARGETS, verdict

    path = out or results_path(MEASURED, torch.cuda.get_device_name())
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Check(**{name: row[name] for name in Check.__dataclass_fields__}) for row in checks]
    command = shlex.join(["bitfrontier", *sys.argv[1:]])
    limit = LIMIT_SECONDS if seconds is None else seconds
    results = session(chosen, known, started=started, command=command, seconds=limit, progress=_say)
    path.write_text(results.to_json())
    _say(f"{path}: {len(results.timings)} timings, {len(results.absences)} absences; {results.sanitizer}")
    verdicts = [verdict(target, results) for target in TARGETS if target.kernel in {k.name for k in chosen}]
    return [
        {"kernel": v.target.kernel, "target": str(v.target), "where": v.target.where, "verdict": str(v),
         "shape": str(v.shape or ""), "reason": v.reason}
        for v in verdicts
    ]  # fmt: skip


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("kernels", total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


# What is printed of each row, under what heading; --json has everything.
_COLUMNS = {
    "kernels": {"kernel": "kernel", "deterministic": "deterministic", "check": "checked at", "bench": "timed at"},
    "check": {"kernel": "kernel", "size": "size", "dtype": "activations", "seed": "seed", "device": "device",
              "excess": "error / allowed", "repeats": "same bits twice", "passed": "passed"},
    "compile": {"kernel": "kernel", "size": "size", "dtype": "activations", "architecture": "chip",
                "registers": "registers", "shared_bytes": "shared", "local_accesses": "spills",
                "loop_instructions": "in the loop", "loop_wide_loads": "16-byte loads", "loop_matrix": "matrix",
                "slots_per_weight": "a weight"},
    "bench": {"kernel": "kernel", "target": "target", "where": "at", "verdict": "verdict", "shape": "shape",
              "reason": "reason"},
}  # fmt: skip


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = _COLUMNS[title]
    table = Table(*columns.values(), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]}, {len(value)} in all" if len(value) > 1 else value[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
