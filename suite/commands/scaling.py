"""`bitfrontier scaling`: a family of models in several sizes, trained at several widths."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from suite.commands.allocate import integers

if TYPE_CHECKING:
    from rich.console import Console

    from suite.scaling.family import Budget
    from suite.store import Record, ScalingRow


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 0.1,0.25") from error


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--levels", default="0.1,0.25", show_default=True, callback=_numbers, help="Tokens for each parameter.")
@click.option("--shapes", default="64,128,256,384", show_default=True, callback=integers,
              help="Widths of the residual stream: 0.33, 1.05, 3.67 and 7.87 million parameters.")  # fmt: skip
@click.option("--bits", default="1,1.58,2,3,4", show_default=True, callback=_numbers,
              help="ParetoQ's widths; BitNet is trained where 1.58 is one.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--tier", type=click.Choice(["smoke", "default", "full"]), default="default", show_default=True,
              help="How many tokens models are evaluated on.")  # fmt: skip
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default="bitfrontier.db", show_default=True)
@click.option("--autocast", is_flag=True, help="Train with products in bfloat16: faster only where the processor has "
              "such products.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--dry-run", is_flag=True, help="List the trainings and estimate the time; write nothing.")
def scaling(
    out: Path, levels: tuple[float, ...], shapes: tuple[int, ...], bits: tuple[float, ...], autocast: bool,
    dry_run: bool, **options: Any,
) -> int:  # fmt: skip
    """Train a family of models into OUT: every shape, at every level, in full precision and at every width.

    The first nine tenths of a level's tokens train a full-precision model, which ParetoQ and its control, in full
    precision, go on from; BitNet and its control begin anew, on all of them. Killed, it goes on where it was. The
    law of what came out is on the page that `bitfrontier report` makes.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from suite.commands import tables
    from suite.commands.main import check_writable
    from suite.scaling.family import cells_of, checked_bits, family
    from suite.scaling.study import Study
    from suite.store import Store, holds_store

    budgets, bits = family(shapes, levels, autocast=autocast), checked_bits(bits)
    if dry_run:
        print_plan(budgets, bits, options["threads"])
        return 0
    check_writable(out, options["store"])
    holds_store(options["store"])  # refuses what is none before anything is trained
    study = Study(out=out, command=shlex.join(["bitfrontier", *sys.argv[1:]]), **options)
    with tables.ProgressBar() as bar:
        bar.start(sum(len(cells_of(budget, bits)) for budget in budgets))
        records = study.run(budgets, bits, on_step=bar.to_update, on_done=bar.advance)
    with Store(options["store"], create=False) as opened:
        cells = {(record.cell, record.code, record.env) for record in records}
        rows = [row for row in opened.rows(ScalingRow) if (row.cell, row.code, row.env) in cells]
    print_rows(rows, records)
    return int(any(record.status != "ok" for record in records))


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def print_plan(budgets: "Sequence[Budget]", bits: Sequence[float], threads: int) -> None:
    """A line for each training: parameters, tokens, updates, and the time that its operations take here."""
    import torch
    from rich import box
    from rich.table import Table

    from suite.commands import tables
    from suite.scaling.family import seconds_of, trainings

    torch.set_num_threads(threads)
    rate, total = tables.operations_per_second(), 0.0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("hidden", "parameters", "level", "method", "bits", "tokens", "updates", "of rows", "rate", "about"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method, width, budget, phase in trainings(budgets, bits):
        seconds = seconds_of(budget.shape, phase, rate, quantized=method in ("paretoq", "bitnet"))
        total += seconds
        table.add_row(str(budget.shape.hidden), f"{budget.shape.parameters:,}", f"{budget.level:g}", method,
                      f"{width:g}", f"{phase.tokens:,}", str(phase.updates), str(phase.rows), f"{phase.rate:.2g}",
                      f"{tables.number(seconds, 2)} s")  # fmt: skip
    console = _console()
    console.print(table)
    console.print(f"{table.row_count} trainings, about {tables.number(total / 3600, 2)} hours, from operations; what "
                  "is trained already and measuring are not counted", highlight=False)  # fmt: skip


def print_rows(rows: "Sequence[ScalingRow]", records: "Sequence[Record]") -> None:
    """A line for each model, then why others have none."""
    from rich import box
    from rich.table import Table

    from suite.commands import tables

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("parameters", "level", "method", "bits", "tokens", "MB", "loss, nats"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(f"{row.parameters:,}", f"{row.level:g}", row.method, f"{row.bits:g}", f"{row.tokens:,}",
                      tables.number(row.model_bytes / 1e6, 3),
                      f"{tables.number(row.loss_nats, 4)} ± {tables.number(row.loss_se, 2)}")  # fmt: skip
    console = _console()
    console.print(table)
    for record in records:
        if record.status != "ok":
            console.print(f"{record.status}: {record.model} {record.method} at {record.bits:g} bits: {record.reason}",
                          highlight=False)  # fmt: skip
