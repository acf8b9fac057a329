"""The subcommand `bitfrontier reasoning`: how well models solve problems of several steps as their bits fall."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from suite.commands.allocate import integers

if TYPE_CHECKING:
    from suite.store import ReasoningRow


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--problems", type=click.IntRange(2), default=500, show_default=True,
              help="Of each number of steps, or as many as there are.")  # fmt: skip
@click.option("--steps", default="1,2,3,4,5,6", show_default=True, callback=integers, help="Separated by commas.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Problems are drawn by it.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--evaluation", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option("--tokens", type=click.IntRange(0), default=1 << 16, show_default=True,
              help="Of text that perplexity is measured on, about; 0 for none.")  # fmt: skip
@click.option("--base", metavar="MODEL", help="The packed models' unquantized one, if it is not where it was.")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default="bitfrontier.db", show_default=True)
def reasoning(
    models: tuple[str, ...], problems: int, steps: tuple[int, ...], seed: int, threads: int, evaluation: str | None,
    tokens: int, base: str | None, store: Path,
) -> int:  # fmt: skip
    """Have each MODEL solve problems like ((3+4)*7)%10 with the steps written out, and count what is right.

    MODEL is a directory in Hugging Face format that `train-reference --reasoning` made, or another that knows such
    problems, or one that `run --save` wrote: then its unquantized model is asked the same. A model writes all by
    itself, and it is asked for each step with the true ones before. One answer in ten is right by guessing. The
    problems are none that training has shown.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rich.console import Console
    from rich.progress import track

    from suite.reasoning.record import Task, measure_reasoning
    from suite.store import Store, holds_store

    holds_store(store)  # refuses what is none before anything is measured
    command = shlex.join(["bitfrontier", *sys.argv[1:]])
    task = Task(problems=problems, steps=tuple(dict.fromkeys(steps)), seed=seed, threads=threads,
                evaluation=evaluation, text_tokens=tokens, command=command)  # fmt: skip
    found = measure_reasoning(list(models), task, base=base)
    console = Console(stderr=True)
    for rows in track(found, "models", console=console, transient=True, disable=not console.is_interactive):
        with Store(store) as opened:
            opened.put_rows(*rows)
        print_reasoning(rows)
    return 0


def print_reasoning(rows: "list[ReasoningRow]") -> None:
    """A table of one model: a line for each number of steps; ± is one standard error."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from suite.commands.tables import number

    first = rows[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("steps", "problems", "answer", "all steps", "if independent", "step", "its value", "nats",
                    "answer, to base"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        change = None if row.answer_base is None else row.answer - row.answer_base
        table.add_row(
            str(row.steps), str(row.problems), _share(row.answer, row.answer_se), _share(row.right, row.right_se),
            _share(row.independent, row.independent_se), _share(row.step, row.step_se),
            _share(row.value, row.value_se), number(row.nats, 3),
            "-" if change is None else _share(change, row.answer_change_se, sign="+"),
        )  # fmt: skip
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    what = "unquantized" if first.method is None else f"{first.method}, {number(first.bpw)} bits per weight"
    text = "" if first.ppl is None else f", perplexity {number(first.ppl)}"
    console.print(f"{first.model}: {what}{text}; shares in %, ± is one standard error", highlight=False, soft_wrap=True)
    console.print(table)
    for note in json.loads(first.fallbacks):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _share(value: float, error: float | None, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ± {100 * (error or 0.0):.1f}"
