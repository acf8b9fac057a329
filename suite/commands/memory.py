"""`bitfrontier memory`: what trainings hold, measured and predicted."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from suite.memory.formula import Parts, Setting
    from suite.recipe import Recipe
    from suite.rows import MemoryRow

METHODS = "full,lora,lsq,paretoq,zeroqat,qlora,loftq,qa-lora,ir-qlora,l4q"
PARTS = ("weights", "adapters", "gradients", "states", "activations", "peak")
MIB, GIB = (2**20, "MiB"), (2**30, "GiB")


def _names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _width(_: click.Context, __: click.Parameter, value: str) -> float:
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number like 4 or 1.58") from error


@click.command()
@click.argument("model", default="reference")
@click.option("--methods", default=METHODS, show_default=True, callback=_names,
              help="Methods that train; full and lora train the unquantized model and adapters of it.")  # fmt: skip
@click.option("--bits", default="4", show_default=True, callback=_width)
@click.option("--rank", type=click.IntRange(1), help="Of adapters; the method's by default.")
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Of a micro-batch.")
@click.option("--length", type=click.IntRange(2), help="Tokens in a row; min(2048, the model's context) by default.")
@click.option("--paged", is_flag=True, help="Keep the states of optimizers in a file.")
@click.option("--shape", "shapes", default="", callback=_names,
              help="Predict for 7b, 13b, 65b or 70b, separated by commas, and measure nothing.")  # fmt: skip
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default="bitfrontier.db", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def memory(
    model: str, methods: list[str], bits: float, rank: int | None, shapes: list[str], store: Path, **options: Any
) -> int:
    """Measure what training MODEL by each method holds in memory, beside what a formula predicts from its sizes.

    Every training runs in a process of its own for two updates of one micro-batch, in float32, and peaks are of that
    process. With --shape nothing is measured: the figures of LLaMA models of that size are the formula's alone, in
    bfloat16 with float32 optimizer states, without and with gradient checkpointing.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from suite.commands.main import check_writable
    from suite.memory.ledger import recipe_for
    from suite.store import Store, holds_store

    check_writable(store)
    holds_store(store)  # refuses what is none before anything is measured
    recipes = {name: recipe_for(name, bits, rank) for name in methods}
    rows: list[MemoryRow] = []
    for row in _predictions(shapes, recipes, **options) if shapes else _measurements(model, recipes, **options):
        rows.append(row)
    with Store(store) as opened:
        opened.put_rows(*rows)
    print_rows(rows)
    return 0


def _predictions(
    shapes: list[str], recipes: "dict[str, Recipe]", *, rows: int, length: int | None, paged: bool, threads: int
) -> "Iterator[MemoryRow]":
    from suite.memory.formula import LLAMAS, Setting, memory_of
    from suite.memory.ledger import plan_of, with_rows

    for name in shapes:
        if name not in LLAMAS:
            raise ValueError(f"shape {name!r}: expected {', '.join(LLAMAS)}")
    for name in shapes:
        for method, recipe in recipes.items():
            plan = plan_of(recipe)
            for checkpointing in (False, True) if plan.backward else (False,):
                setting = Setting(rows=rows, length=length or 2048, width=2, checkpointing=checkpointing, paged=paged)
                yield _row(name, "", method, with_rows(recipe, rows), "predicted", setting,
                           memory_of(LLAMAS[name], plan, setting), threads)  # fmt: skip


def _measurements(
    model: str, recipes: "dict[str, Recipe]", *, rows: int, length: int | None, paged: bool, threads: int
) -> "Iterator[MemoryRow]":
    from suite.memory.formula import Setting, memory_of
    from suite.memory.ledger import Task, measured, plan_of, shape_of, with_rows
    from suite.models.checkpoint import load_model

    checkpoint = load_model(model)
    length = length or min(2048, checkpoint.context)
    if length > checkpoint.context:
        raise ValueError(f"length {length}: {checkpoint.name} takes rows of 2 to {checkpoint.context} tokens")
    setting = Setting(rows=rows, length=length, paged=paged)
    for method, plain in recipes.items():
        recipe = with_rows(plain, rows)
        task = Task(model=model, recipe=recipe, rows=rows, length=length, paged=paged, threads=threads)
        found = {"measured": measured(task)}
        try:
            found["predicted"] = memory_of(shape_of(checkpoint), plan_of(recipe), setting)
        except ValueError as error:
            click.echo(f"not predicted: {method}: {error}", err=True)
        for kind, parts in found.items():
            yield _row(checkpoint.name, checkpoint.sha256, method, recipe, kind, setting, parts, threads)


def _row(
    model: str, sha256: str, method: str, recipe: "Recipe", kind: Any, setting: "Setting", parts: "Parts",
    threads: int,
) -> "MemoryRow":  # fmt: skip
    from dataclasses import asdict
    from datetime import UTC, datetime

    from suite.environment import code_version, environment_key
    from suite.rows import MemoryRow

    grid = None if recipe.weights is None else recipe.weights.grid
    return MemoryRow(model=model, model_sha256=sha256, method=method, recipe=str(recipe),
                     bits=None if grid is None else grid.bits, kind=kind, rows=setting.rows, length=setting.length,
                     width=setting.width, checkpointing=setting.checkpointing, paged=setting.paged, **asdict(parts),
                     code=code_version(), env=environment_key(threads),
                     command=shlex.join(["bitfrontier", *sys.argv[1:]]),
                     started=datetime.now(UTC).isoformat(timespec="milliseconds"))  # fmt: skip


def print_rows(rows: "Sequence[MemoryRow]") -> None:
    """A table for each model, a line for what is measured and one for what is predicted."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from suite.commands import tables

    console = Console()
    console = console if console.is_terminal else Console(width=120)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        unit, name = GIB if max(row.peak for row in own) > 10 * 2**30 else MIB
        console.print(f"{model}: {own[0].rows} rows of {own[0].length} tokens, {name}; numbers of {own[0].width} bytes"
                      + (", optimizer states paged" if own[0].paged else ""), highlight=False)  # fmt: skip
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("method", "bits", "", *PARTS):
            table.add_column(column, justify="left" if column in ("method", "") else "right", no_wrap=True)
        for row in own:
            told = f"{row.kind}, checkpointing" if row.checkpointing else row.kind
            table.add_row(row.method, "-" if row.bits is None else f"{row.bits:g}", told,
                          *(tables.number(getattr(row, part) / unit, 4) for part in PARTS))  # fmt: skip
        console.print(table)
