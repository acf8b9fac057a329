"""What the command line prints: tables, a progress bar with the time left, JSON and CSV."""

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from suite.adaptation.block_tuning import BlockTuning
from suite.bench import Bench, Setting, open_bench
from suite.engine import Plan
from suite.methods import Method
from suite.processes import Step
from suite.recipe import Recipe, canonical, parse, trains
from suite.store import Record, RetentionRow, Store, holds_store


class ProgressBar:
    """A progress bar on standard error; shows nothing where that is not a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self._task: TaskID | None = None
        self._trained: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, total: int) -> None:
        """Show the bar, for `total` pieces of work."""
        self._task = self._progress.add_task("starting", total=total)
        self._progress.start()

    def advance(self, record: Record) -> None:
        """One cell is done."""
        assert self._task is not None
        bits = "" if record.bits is None else f" at {record.bits:g} bits"
        self._progress.update(self._task, advance=1, description=f"{record.method}{bits}")

    def to_step(self, step: int, loss_nats: float) -> None:
        """A training step is done."""
        assert self._task is not None
        self._progress.update(self._task, completed=step, description=f"loss {loss_nats:.3f} nats")

    def to_update(self, step: Step) -> None:
        """A training among the pieces has made an update: it has a bar of its own until it ends."""
        if step.name not in self._trained:
            self._trained[step.name] = self._progress.add_task(step.name, total=step.steps)
        task = self._trained[step.name]
        self._progress.update(task, completed=step.done, description=f"{step.name}: loss {step.loss_nats:.3f} nats")
        if step.done == step.steps:
            self._progress.remove_task(self._trained.pop(step.name))

    def to_block(self, done: int) -> None:
        """So many blocks are done."""
        assert self._task is not None
        self._progress.update(self._task, completed=done, description="blocks")


def number(value: float | None, digits: int = 4) -> str:
    """A figure with so many significant digits; a dash for None.

    >>> number(0.00123456), number(None), number(12345.6), number(float("inf"))
    ('0.001235', '-', '12346', 'inf')
    """
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if abs(value) >= 1e-5 else f"{value:.{digits - 1}e}"


def _console() -> Console:
    """Standard output; 120 columns where it is not a terminal, so that a log has whole tables."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_records(records: Sequence[Record]) -> None:
    """Print the table of records that ran, then reasons for those that did not; ± is one standard error."""
    console = _console()
    order = sorted(records, key=lambda r: (r.model, r.method, r.bits or 0, r.seed))
    for model in dict.fromkeys(r.model for r in order):
        ran = [r for r in order if r.model == model and r.status == "ok"]
        if ran:
            bases = ", ".join(sorted({number(r.ppl_base) for r in ran}))
            console.print(f"{model}: unquantized perplexity {bases}; ± is one standard error", highlight=False)
            console.print(_table(ran))
    for record in order:
        if record.status != "ok":
            console.print(f"{record.status}: {record.method} at {record.bits:g} bits: {record.reason}", highlight=False)
        for what in record.fallbacks:
            console.print(f"fallback: {record.method} at {record.bits:g} bits: {what}", highlight=False)


def print_retention(setting: Setting, records: Sequence[Record], rows: Sequence[RetentionRow]) -> None:
    """Print what the cells of a run have gained on the text they are evaluated on, and forgotten of the other one."""
    sha256 = {tokens.sha256 for r in records if (tokens := open_bench(setting, r.seed).retention)}
    found = {(row.cell, row.code, row.env): row for row in rows if row.text_sha256 in sha256}
    order = sorted(records, key=lambda r: (r.model, r.method, r.bits or 0, r.seed))
    told = [(r, row) for r in order if r.status == "ok" and (row := found.get((r.cell, r.code, r.env)))]
    if not told:
        return
    bases = ", ".join(sorted({number(row.ppl_base) for _, row in told}))
    console, table = _console(), Table(box=box.SIMPLE_HEAD, pad_edge=False)
    console.print(f"{setting.retention}: unquantized perplexity {bases}; nats gained on the evaluation text and "
                  "forgotten of this one, against the unquantized model before training", highlight=False)  # fmt: skip
    headings = ("method", "bits", "perplexity", "gained", "forgotten", "control gained", "control forgotten", "over it")
    for name in headings:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for r, row in told:
        table.add_row(
            r.method, number(r.bits, 1) if r.bits is None else f"{r.bits:g}", number(row.ppl),
            _change(row.gained_nats, row.gained_se), _change(row.forgotten_nats, row.forgotten_se),
            _change(row.gained_control_nats, row.gained_control_se),
            _change(row.forgotten_control_nats, row.forgotten_control_se), _change(row.excess_nats, row.excess_se),
        )  # fmt: skip
    console.print(table)


def _change(nats: float | None, error: float | None) -> str:
    """A difference of losses to the place that its error leaves of it, three at most."""
    return "-" if nats is None else f"{nats:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def print_places(setting: Setting, records: Sequence[Record]) -> None:
    """Print where each model was written."""
    console = _console()
    for kind, root in (("packed", setting.save), ("dequantized", setting.export)):
        for r in records:
            if root is not None and r.status == "ok":
                seed = "" if setting.alone else f", seed {r.seed}"
                console.print(f"{kind}: {r.method} at {r.bits:g} bits{seed}: {setting.place(root, r.method, r.cell)}",
                              highlight=False, markup=False, soft_wrap=True)  # fmt: skip


def _table(ran: Sequence[Record]) -> Table:
    """One line for each record; of the columns that not every record has a figure for, those that some do."""
    inputs = [_input_bits(r) for r in ran]
    optional = {
        "seed": [str(r.seed) for r in ran] if len({r.seed for r in ran}) > 1 else [],
        "inputs": [number(bits, 1) for bits in inputs] if any(inputs) else [],
        "true bits": [number(r.bpw) for r in ran] if any(r.bpw is not None for r in ran) else [],
        "coded": [number(r.bpw_coded) for r in ran] if any(r.bpw_coded is not None for r in ran) else [],
        "MiB": [number(_in(r.model_bytes, 2**20), 3) for r in ran],
        "cache, KiB": [number(_in(r.cache_bytes, 2**10)) for r in ran] if any(r.cache_bytes for r in ran) else [],
    }
    columns = {
        "method": [r.method for r in ran],
        "bits": [number(r.bits, 1) if r.bits is None else f"{r.bits:g}" for r in ran],
        **{name: cells for name, cells in optional.items() if cells},
        "perplexity": [_with_error(r.ppl, r.ppl_se, 4) for r in ran],
        "KL, nats": [_with_error(r.kl, r.kl_se, 3) for r in ran],
        "top-1": ["-" if r.top1 is None else f"{100 * r.top1:.1f}%" for r in ran],
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _input_bits(record: Record) -> float | None:
    """The width of the linear layers' inputs, where they are quantized."""
    try:
        activations = parse(record.recipe).activations
    except ValueError:  # the recipe of another version
        return None
    return None if activations is None else activations.grid.bits


def _in(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    """A figure, and its standard error where it has one."""
    return number(value, digits) + ("" if error is None else f" ± {number(error, 2)}")


def to_json(records: Sequence[Record]) -> str:
    """All fields of all records; infinite and undefined figures as null, which JSON can say."""

    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps([{key: clean(value) for key, value in asdict(record).items()} for record in records], indent=1)


def to_csv(records: Sequence[Record]) -> str:
    """All fields of all records; fallbacks joined by semicolons."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Record)], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({**asdict(record), "fallbacks": "; ".join(record.fallbacks)})
    return out.getvalue()


def method_row(method: Method) -> dict[str, Any]:
    """A method as `bitfrontier methods` shows it: the five choices are those of its recipe at its widest."""
    recipe = method.recipe(bits=method.bits[-1])
    target = recipe.weights
    return {
        "name": method.name, "paper": method.paper, "arxiv": method.arxiv, "targets": list(method.targets),
        "transforms": [canonical(transform) for transform in recipe.transforms],
        "grid": target and canonical(target.grid), "rounding": target and canonical(target.rounding),
        "cache": recipe.cache and canonical(recipe.cache),
        "adaptation": recipe.adaptation and canonical(recipe.adaptation),
        "coding": canonical(recipe.coding), "inputs": recipe.inputs, "bits": list(method.bits), "needs": method.needs,
        "recipe": str(method.recipe(bits=4 if 4 in method.bits else method.bits[0])),
    }  # fmt: skip


def print_methods(methods: Sequence[Method]) -> None:
    """Print the methods, then a recipe of each, ready for `--recipe`."""
    console, table = _console(), Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "targets", "bits", "needs", "arXiv", "paper"):
        table.add_column(name, no_wrap=name != "paper")
    for method in methods:
        bits = f"{method.bits[0]}-{method.bits[-1]}" if len(method.bits) > 1 else str(method.bits[0])
        targets = ", ".join(method.targets)
        table.add_row(method.name, targets, bits, method.needs, method.arxiv or "-", method.paper)
    console.print(table)
    for method in methods:
        console.print(f"{method.name}: {method_row(method)['recipe']}", highlight=False, markup=False, soft_wrap=True)


def print_plan(plan: Plan, store: Path, jobs: int) -> None:
    """Print the cells that would run, each with an estimate of its seconds and where the estimate comes from."""
    console = _console()
    known = _known_seconds(store)
    rate, total = None, 0.0
    for seed, pick in plan.todo:
        seconds, source = known.get((plan.setting.model, str(pick.recipe))), "a record in the store"
        if seconds is None:
            rate = rate or operations_per_second()
            seconds, source = _operations(plan, seed, pick.recipe) / rate, "operations"
        total += seconds
        console.print(f"{pick.method} at {pick.bits} bits, seed {seed}: about {number(seconds, 2)} s, from {source}; "
                      f"{pick.recipe}", highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    console.print(f"{len(plan.todo)} cells to run, {len(plan.done)} done; about {number(total / jobs, 2)} s "
                  f"in {jobs} processes, statistics and start-up not counted", highlight=False)  # fmt: skip


def _known_seconds(store: Path) -> dict[tuple[str, str], float]:
    if not holds_store(store):
        return {}
    with Store(store, create=False) as opened:
        return {(r.model, r.recipe): r.seconds for r in opened.records() if r.seconds is not None}


def operations_per_second() -> float:
    """What one process does here and now, from a matrix product of the size of a block's."""
    a = torch.randn(2048, 512)
    b = torch.randn(512, 512)
    a @ b
    begun = time.perf_counter()
    for _ in range(10):
        a @ b
    return 10 * 2 * a.numel() * b.shape[1] / (time.perf_counter() - begun)


def _operations(plan: Plan, seed: int, recipe: Recipe) -> float:
    """Multiply-adds of a cell's forward passes, times two, and as much again for what is not a matrix product.

    Calibrating on quantized inputs runs the calibration rows through every block about four times, and every epoch of
    tuning a block once forth and, for two forward passes' worth, back.
    """
    bench = open_bench(plan.setting, seed)
    parameters = sum(t.numel() for t in bench.checkpoint.skeleton.parameters())
    passes = 4 if recipe.inputs == "quantized" else 0
    if isinstance(recipe.adaptation, BlockTuning):
        sites = len(bench.checkpoint.architecture.sites) if recipe.adaptation.weight_rate else 1
        passes += 3 * recipe.adaptation.epochs * sites
    calibrating = passes * bench.calibration.rows.size if isinstance(bench, Bench) else 0
    retained = 0 if bench.retention is None else bench.retention.rows.size
    tokens = bench.evaluation.rows.size + retained + calibrating
    if trains(recipe) and isinstance(bench, Bench):
        how: Any = recipe.adaptation
        updates = how.schedule.steps * how.schedule.accumulate
        # forth and, for two forward passes' worth, back; and its control
        tokens += 2 * 3 * updates * how.rows * bench.evaluation.rows.shape[1]
    return 2 * 2.0 * parameters * tokens
