"""The subcommand `bitfrontier outliers`: a model's outliers in which coordinates, and what doses of them cost."""

import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from suite.commands.allocate import integers
from suite.models.doses import KINDS, MOST, Dose, split_dose

if TYPE_CHECKING:
    from suite.bench import Setting
    from suite.outliers.figures import Found, Origin
    from suite.store import OutlierRow, Record

_COORDINATES = "none,smoothquant,hadamard,orthogonal,quarot,spinquant,duquant"  # `suite.outliers.figures.COORDINATES`
_METHODS = "rtn,smoothquant,duquant,quarot,spinquant"
_BITS = 4  # of weights, at every dose


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (part.strip() for part in value.split(",")))))


@click.command()
@click.argument("model", default="reference")
@click.option("--coordinates", default=_COORDINATES, show_default=True, callback=_names,
              help="none, methods, whose transforms are meant, or bare ones: hadamard, orthogonal.")  # fmt: skip
@click.option("--transforms", multiple=True, metavar="TEXT", help="And transforms as in a recipe's text; repeatable.")
@click.option("--doses", is_flag=True, help="Turn MODEL's outlier dial up and quantize at every dose instead.")
@click.option("--factors", default="1,4,16,64,256", show_default=True, callback=integers,
              help=f"With --doses: powers of two to {MOST}.")  # fmt: skip
@click.option("--kinds", default=",".join(KINDS), show_default=True, callback=_names, help="With --doses.")
@click.option("--methods", default=_METHODS, show_default=True, callback=_names, help="With --doses.")
@click.option("--activation-bits", default="4,8", show_default=True, callback=integers, help="With --doses.")
@click.option("--calibration", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option(
    "--evaluation", metavar="TOKENS", help="With --doses: a .txt, .npy or .npz file; the reference text by default."
)
@click.option("--length", type=int, help="Tokens in a row; min(2048, the model's context) by default.")
@click.option("--tier", type=click.Choice(["smoke", "default", "full"]), default="default", show_default=True,
              help="How many tokens.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=Path("bitfrontier.db"),
              show_default=True)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="Processes; the number of cores by default.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each process.")
def outliers(
    model: str, coordinates: tuple[str, ...], transforms: tuple[str, ...], doses: bool, factors: tuple[int, ...],
    kinds: tuple[str, ...], methods: tuple[str, ...], activation_bits: tuple[int, ...], calibration: str | None,
    evaluation: str | None, length: int | None, tier: str, seed: int, store: Path, jobs: int | None, threads: int,
) -> int:  # fmt: skip
    """Measure the outliers of MODEL's inputs and weights, in its own coordinates and in those of methods.

    MODEL is a directory in Hugging Face format, a hub id, or `reference`; `MODEL+outliers:KIND:FACTOR` is the same with
    outliers injected, KIND norm, linear or both. With --doses every method is run at every dose of every kind, at 4
    bits for weights and each of --activation-bits for their inputs; what is in the store already is not run again.
    `bitfrontier report` draws both.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from suite.bench import Setting
    from suite.cells import TIERS

    command, jobs = shlex.join(["bitfrontier", *sys.argv[1:]]), jobs or os.cpu_count() or 1
    if doses:
        if split_dose(model)[1] is not None:
            raise ValueError(f"{model}: --doses turns the dial itself, expected {split_dose(model)[0]}")
        options = {"calibration": calibration, "evaluation": evaluation, "length": length, "tier": tier,
                   "store": store, "seed": seed, "jobs": jobs, "threads": threads, "command": command}  # fmt: skip
        found = run_doses(dosed(model, kinds, factors), methods, activation_bits, options)
        print_doses(found)
        return int(any(one.record.status == "failed" for dose in found.values() for one in dose))
    limits = TIERS[tier]  # type: ignore[index]
    setting = Setting(model=model, calibration=calibration, length=length, command=command, threads=threads,
                      calibration_tokens=limits.calibration_tokens, evaluation_tokens=1)  # fmt: skip
    print_outliers(measure(setting, (*coordinates, *transforms), seed, store, jobs))
    return 0


def measure(setting: "Setting", coordinates: tuple[str, ...], seed: int, store: Path, jobs: int) -> "list[OutlierRow]":
    """Measure in each of the coordinates, in `jobs` processes, and write all rows at the end."""
    from datetime import UTC, datetime

    from suite.bench import Bench, forget, open_bench
    from suite.calibration import Calibration
    from suite.commands import tables
    from suite.environment import code_version, environment_key
    from suite.outliers.figures import Origin, recipe_of
    from suite.processes import spread
    from suite.store import Store, holds_store

    for name in coordinates:
        recipe_of(name)  # refuses what is none
    holds_store(store)
    forget()
    bench = open_bench(setting, seed)
    if not isinstance(bench, Bench):
        raise ValueError(f"{setting.model} is a packed model: its inputs are no longer those of the unquantized one")
    Calibration.of(bench.checkpoint, bench.calibration, setting.threads)  # once, for all processes
    origin = Origin(model=bench.checkpoint.name, model_sha256=bench.checkpoint.sha256,
                    data_sha256=bench.calibration.sha256, code=code_version(), env=environment_key(setting.threads),
                    command=setting.command, started=datetime.now(UTC).isoformat(timespec="milliseconds"))  # fmt: skip
    found: list[Found] = []
    with tables.ProgressBar() as bar:
        bar.start(len(coordinates))
        task = partial(_in_coordinates, setting, seed, origin)
        for done, rows in enumerate(spread(task, coordinates, jobs, died=_died), 1):
            found.append(rows)
            bar.to_block(done)
    found.sort(key=lambda rows: coordinates.index(rows.asked))
    outliers = [row for rows in found for row in rows.outliers]
    with Store(store) as opened:
        opened.put_rows(*outliers, *(row for rows in found for row in (*rows.smoothing, *rows.salience)))
    return outliers


def _in_coordinates(setting: "Setting", seed: int, origin: "Origin", coordinates: str) -> "Found":
    import torch

    from suite.bench import Bench, open_bench
    from suite.outliers.figures import measure_outliers

    torch.set_num_threads(setting.threads)
    bench = open_bench(setting, seed)
    assert isinstance(bench, Bench)
    return measure_outliers(bench, coordinates, origin)


def _died(coordinates: str) -> "Found":
    raise ValueError(f"the process measuring in the coordinates {coordinates} died")


def print_outliers(rows: "list[OutlierRow]") -> None:
    """A line for each of the coordinates: medians over layers, of inputs and of weights, and channels in all."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from suite.commands.tables import number

    figures = {"kurtosis": "kurtosis", "max_to_median": "max/median", "incoherence": "mu", "dynamic_range": "range"}
    table = Table(box=box.SIMPLE_HEAD, title="inputs and weights, medians over layers; channels of all inputs")
    table.add_column("coordinates", no_wrap=True)
    for heading in (*(f"{title}\n{tensor}" for tensor in ("inputs", "weights") for title in figures.values()),
                    "normal\nchannels", "massive\nchannels"):  # fmt: skip
        table.add_column(heading, justify="right")
    for one in dict.fromkeys((row.coordinates, row.transforms) for row in rows):
        own = [row for row in rows if (row.coordinates, row.transforms) == one]
        cells = []
        for tensor in ("inputs", "weights"):
            for name in figures:
                values = [v for row in own if row.tensor == tensor and (v := getattr(row, name)) is not None]
                cells.append(number(median(values) if values else None, 3))
        table.add_row(one[0], *cells, *(str(sum(getattr(row, kind) or 0 for row in own)) for kind in
                                        ("normal", "massive")))  # fmt: skip
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table)


def dosed(model: str, kinds: tuple[str, ...], factors: tuple[int, ...]) -> list[str]:
    """The names of the model at every dose: at 1, where all kinds are one, by its own name. `ValueError` for no dose.

    >>> dosed("m", ("norm", "both"), (1, 64))
    ['m', 'm+outliers:norm:64', 'm+outliers']
    """
    doses = [Dose(kind, factor) for factor in sorted(set(factors)) for kind in kinds]
    for dose in doses:
        split_dose(f"{model}+outliers:{dose.kind}:{dose.factor}")  # refuses what is none
    return list(dict.fromkeys(model if dose.factor == 1 else dose.name(model) for dose in doses))


@dataclass(frozen=True, slots=True)
class Dosed:
    """The record of a dose, and the width of its inputs."""

    activation_bits: int
    record: "Record"

    @property
    def heading(self) -> str:
        """Of its column in a table."""
        return f"{self.record.method}, W{_BITS}A{self.activation_bits}"


def run_doses(
    names: list[str], methods: tuple[str, ...], activation_bits: tuple[int, ...], options: dict[str, Any]
) -> dict[str, list[Dosed]]:
    """Run the cells of every dose that the store has no finished record of; returns all, by the model's name.

    A method or a width that there is not is a `ValueError` before the first cell.
    """
    from suite import engine
    from suite.commands import tables

    found: dict[str, list[Dosed]] = {name: [] for name in names}
    with tables.ProgressBar() as bar:
        bar.start(len(names) * len(methods) * len(activation_bits))

        def on_plan(plan: engine.Plan) -> bool:
            for record in plan.done:
                bar.advance(record)
            return True

        for name in names:
            for bits in activation_bits:
                # the last named take longest: begun first, they leave no process idle at the end
                records = engine.run(name, methods=methods[::-1], bits=[_BITS], activation_bits=bits, **options,
                                     on_plan=on_plan, on_done=bar.advance)  # fmt: skip
                records.sort(key=lambda record: methods.index(record.method))
                found[name] += [Dosed(bits, record) for record in records]
    return found


def print_doses(found: dict[str, list[Dosed]]) -> None:
    """A line for each dose: every method's divergence at each width of the inputs, and seconds of all cells."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from suite.commands.tables import number

    headings = list(dict.fromkeys(one.heading for dose in found.values() for one in dose))
    table = Table(box=box.SIMPLE_HEAD, title="KL from the unquantized model (nats); cells' seconds")
    table.add_column("model", no_wrap=True)
    for heading in (*headings, "seconds"):
        table.add_column(heading, justify="right")
    for name, dose in found.items():
        by_heading = {one.heading: one.record for one in dose}
        cells = [_divergence(by_heading.get(heading)) for heading in headings]
        table.add_row(name, *cells, number(sum(one.record.seconds or 0.0 for one in dose), 3))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


def _divergence(record: "Record | None") -> str:
    from suite.commands.tables import number

    return "" if record is None else number(record.kl, 3) if record.status == "ok" else record.status
