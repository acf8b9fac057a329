"""The command line. Bad input ends with one line on standard error, exit status 2, and nothing written."""

import json
import os
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from suite.commands.adapter import adapter
from suite.commands.allocate import allocate
from suite.commands.entropy import entropy
from suite.commands.memory import memory
from suite.commands.outliers import outliers
from suite.commands.scaling import scaling
from suite.commands.speed import speed
from suite.commands.tokens import tokens
from suite.reasoning.command import reasoning
from suite.rows import RetentionRow

if TYPE_CHECKING:
    from suite.engine import Plan
    from suite.store import Record

STORE = "bitfrontier.db"


def main() -> None:
    """Entry point of `bitfrontier`."""
    try:
        status = bitfrontier.main(standalone_mode=False, prog_name="bitfrontier")
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        status = _refuse(error.format_message())
    except click.Abort:
        status = 130
    except (ValueError, OSError) as error:
        status = _refuse(str(error))
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    print(f"bitfrontier: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Extensible(click.Group):
    """A group that other packages add subcommands to through the entry points `bitfrontier.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_contributed()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        own = super().get_command(ctx, name)
        contributed = _contributed()
        return own or (contributed[name].load() if name in contributed else None)


def _contributed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group="bitfrontier.commands")}


@click.group(cls=_Extensible, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bitfrontier")
def bitfrontier() -> None:
    """How few bits can a language model's numbers be stored in, and what does each bit cost?"""


bitfrontier.add_command(adapter)
bitfrontier.add_command(allocate)
bitfrontier.add_command(entropy)
bitfrontier.add_command(memory)
bitfrontier.add_command(outliers)
bitfrontier.add_command(scaling)
bitfrontier.add_command(reasoning)
bitfrontier.add_command(speed)
bitfrontier.add_command(tokens)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [_number(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1.58,2,3") from error


def _number(text: str) -> float:
    return int(text) if text.strip().isdigit() else float(text)


@bitfrontier.command()
@click.argument("model", default="reference")
@click.option("--methods", callback=_names, help="Names, separated by commas; all that need no training by default.")
@click.option("--recipe", "recipes", multiple=True, help="A recipe as `bitfrontier methods` prints it; repeatable.")
@click.option("--bits", callback=_numbers, help="Widths, separated by commas; the tier's by default.")
@click.option("--group", type=int, help="Weights that share a scale; -1 is a whole row. The method's by default.")
@click.option("--activation-bits", type=click.IntRange(1, 8), help="Quantize the linear layers' inputs per token too.")
@click.option("--cache-bits", type=click.IntRange(1, 8), help="Quantize the keys and values of the cache too.")
@click.option(
    "--coding",
    type=click.Choice(["fixed", "huffman", "ans"]),
    help="How codes are stored; the method's way by default.",
)
@click.option("--calibration", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option("--evaluation", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option("--training", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option("--retention", metavar="TOKENS", help="A text to say what is forgotten of; such a file or `reference`.")
@click.option("--length", type=int, help="Tokens in a row; min(2048, the model's context) by default.")
@click.option("--tier", type=click.Choice(["smoke", "default", "full"]), default="default", show_default=True)
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=STORE, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--product", help="Evaluate from packed weights by this product of `bitfrontier speed`.")
@click.option("--seed", type=click.IntRange(0), help="0 by default; the full tier runs 0, 1 and 2.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; the number of cores by default.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each process.")
@click.option("--paged", is_flag=True, help="Keep the states of optimizers in a file: less memory, the same numbers.")
@click.option("--dry-run", is_flag=True, help="List the cells and estimate the time; write nothing.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the packed model into DIR, several into directories below it; `run DIR` reads one back.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the dequantized model into DIR, or several below it, for `transformers` to load.",
)
@click.option("--base", metavar="MODEL", help="A packed MODEL's unquantized one, if it is not where it was.")
@click.option("--adapter", metavar="DIR", help="Side branches for a packed MODEL, from `bitfrontier adapter`.")
def run(dry_run: bool, **options: Any) -> int:
    """Run every cell of MODEL that has no finished record yet; print the table.

    MODEL is a directory in Hugging Face format, a hub id, or `reference`, any of them with `+outliers[:KIND][:FACTOR]`
    behind it for injected outliers, KIND norm, linear or both, FACTOR a power of two to 256; or a directory that --save
    wrote: then it is read back and measured as it is, and --methods, --recipe, --bits, --group,
    --activation-bits, --cache-bits, --coding, --save and --export do not apply.
    """
    check_writable(options["store"], options["save"], options["export"])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from suite import engine
    from suite.commands import tables
    from suite.store import Store

    recipes = options.pop("recipes")
    command = shlex.join(["bitfrontier", *sys.argv[1:]])
    plans: list[Plan] = []
    with tables.ProgressBar() as bar:

        def on_plan(plan: "Plan") -> bool:
            plans.append(plan)
            if dry_run:
                tables.print_plan(plan, options["store"], options["jobs"] or os.cpu_count() or 1)
            elif plan.todo:
                bar.start(len(plan.todo))
            return not dry_run

        records = engine.run(**options, recipes=recipes, command=command, on_plan=on_plan, on_done=bar.advance,
                             on_step=bar.to_update)  # fmt: skip
    if not dry_run:
        tables.print_records(records)
        if options["retention"]:
            with Store(options["store"], create=False) as opened:
                tables.print_retention(plans[0].setting, records, opened.rows(RetentionRow))
        tables.print_places(plans[0].setting, records)
    return int(any(record.status == "failed" for record in records))


def check_writable(*paths: Path | None) -> None:
    """Refuse, before any work, an output whose nearest existing directory cannot be written to."""
    for path in filter(None, paths):
        place = path.absolute()
        while not place.exists():
            place = place.parent
        if place.is_file() and place != path.absolute():
            raise ValueError(f"cannot write {path}: {place} is a file")
        if not os.access(place, os.W_OK):
            raise ValueError(f"cannot write {path}: no permission to write to {place}")
        if path.suffix == ".db" and not path.absolute().parent.is_dir():
            raise ValueError(f"cannot write {path}: no such directory {path.parent}")


@bitfrontier.command()
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
def methods(as_json: bool) -> None:
    """List every method: paper, targets, choices, bits, what it needs."""
    from suite.commands import tables
    from suite.methods import METHODS

    if as_json:
        click.echo(json.dumps([tables.method_row(method) for method in METHODS], indent=1))
    else:
        tables.print_methods(METHODS)


@bitfrontier.command()
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=STORE, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="All fields, as a JSON list.")
@click.option("--csv", "as_csv", is_flag=True, help="All fields, as CSV.")
def show(store: Path, as_json: bool, as_csv: bool) -> None:
    """Show the records of a store."""
    from suite.commands import tables
    from suite.store import Store

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    with Store(store, create=False) as opened:
        records: list[Record] = opened.records()
    if as_json:
        click.echo(tables.to_json(records))
    elif as_csv:
        click.echo(tables.to_csv(records), nl=False)
    else:
        tables.print_records(records)


@bitfrontier.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--steps", type=click.IntRange(1), help="Updates of 4,096 tokens; the shipped model's by default.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="At its peak; the shipped model's by default.")
@click.option("--from", "start", metavar="MODEL", help="Start from these weights, `reference` or others of its shape.")
@click.option("--reasoning", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
              help="The share of rows that are problems of several steps, for `bitfrontier reasoning`.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def train_reference(out: Path, steps: int | None, rate: float | None, threads: int, **options: Any) -> None:
    """Train the reference checkpoint into the directory OUT; taken up again where it was killed.

    With --reasoning it is a variant, which learns to solve problems beside the text.
    """
    check_writable(out)
    from dataclasses import replace

    import torch

    from suite.commands import tables
    from suite.reference.training import Plan, train_reference

    torch.set_num_threads(threads)
    plan = Plan(**options)
    schedule = replace(plan.schedule, steps=steps or plan.schedule.steps, rate=rate or plan.schedule.rate)
    plan = replace(plan, schedule=schedule)
    with tables.ProgressBar() as bar:
        bar.start(plan.schedule.steps)
        card = train_reference(out, plan, bar.to_step)
    click.echo(f"validation perplexity {card['validation_perplexity']:.3f}; written to {out}")
