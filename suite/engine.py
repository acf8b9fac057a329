"""The engine: from a plan of cells to records in a store. The command line and pytest both run on it.

A run opens a *bench* for each seed: the checkpoint and its tokens. Statistics and the unquantized model's last hidden
states are computed once and kept on disk. A cell then goes through the model block by block and ends as a record.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from suite.blockwise import quantize_block
from suite.calibration import Calibration, last_hidden
from suite.cells import TIERS, Cell, Pick, TierName, picks
from suite.environment import code_version, environment_key
from suite.evaluation import compare, summarize
from suite.methods import METHODS, method_named
from suite.models.checkpoint import Checkpoint, load_model
from suite.packed import ExportedDirectory, PackedDirectory, block_bytes, rest_bytes
from suite.processes import peak_mib, reset_peak, return_freed_memory, spread
from suite.recipe import Recipe, parse
from suite.store import LayerRecord, Record, Store, holds_store
from suite.tokens import Tokens, load_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the cells of a run share; small enough to send to another process."""

    model: str
    calibration: str | None = None
    evaluation: str | None = None
    length: int | None = None
    calibration_tokens: int | None = None
    evaluation_tokens: int | None = None
    threads: int = 1
    command: str = "python"
    save: Path | None = None
    export: Path | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """A checkpoint with its tokens for one seed."""

    setting: Setting
    seed: int
    checkpoint: Checkpoint
    calibration: Tokens
    evaluation: Tokens

    def cell(self, pick: Pick) -> Cell:
        """The cell that a pick is on this bench."""
        return Cell(model_sha256=self.checkpoint.sha256, recipe=str(pick.recipe), bits=pick.bits, seed=self.seed,
                    calibration_sha256=self.calibration.sha256, evaluation_sha256=self.evaluation.sha256,
                    length=self.evaluation.rows.shape[1])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished cell: its record, and its layers' where there are any."""

    record: Record
    layers: tuple[LayerRecord, ...] = ()


_open_model = lru_cache(maxsize=1)(load_model)  # hashing a checkpoint reads all of it


@lru_cache(maxsize=2)
def open_bench(setting: Setting, seed: int) -> Bench:
    """Open the model and its tokens; `ValueError` in one line for anything that cannot be used."""
    checkpoint = _open_model(setting.model)
    length = setting.length or min(2048, checkpoint.context)
    if not 2 <= length <= checkpoint.context:
        raise ValueError(f"length {length}: {checkpoint.name} takes rows of 2 to {checkpoint.context} tokens")
    calibration = load_tokens(setting.calibration, "calibration", checkpoint, length)
    evaluation = load_tokens(setting.evaluation, "evaluation", checkpoint, length)
    return Bench(setting, seed, checkpoint, calibration.draw(setting.calibration_tokens, seed),
                 evaluation.spread(setting.evaluation_tokens))  # fmt: skip


def run_cell(setting: Setting, seed: int, pick: Pick) -> Outcome:
    """Run one cell; whatever goes wrong in it becomes a failed record."""
    torch.set_num_threads(setting.threads)
    return_freed_memory()
    bench = open_bench(setting, seed)
    blank = _blank(bench, pick)
    if pick.recipe.unsupported:
        return Outcome(replace(blank, status="skipped", reason=pick.recipe.unsupported))
    reset_peak()
    begun = time.monotonic()
    try:
        outcome = _measure(bench, pick, blank)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Outcome(replace(blank, status="failed", reason=reason))
    seconds = round(time.monotonic() - begun, 3)
    return replace(outcome, record=replace(outcome.record, seconds=seconds, peak_mib=peak_mib()))


def _blank(bench: Bench, pick: Pick) -> Record:
    cell = bench.cell(pick)
    return Record(
        cell=cell.id, code=code_version(), env=environment_key(bench.setting.threads), status="ok",
        model=bench.checkpoint.name, model_sha256=cell.model_sha256, data_sha256=cell.data_sha256, method=pick.method,
        recipe=cell.recipe, bits=pick.bits, seed=bench.seed, command=bench.setting.command,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip


@torch.no_grad()
def _measure(bench: Bench, pick: Pick, blank: Record) -> Outcome:
    """Go through the model once: quantize a block, run the calibration and evaluation rows through it, drop it."""
    checkpoint, setting, recipe = bench.checkpoint, bench.setting, pick.recipe
    kept = Calibration.of(checkpoint, bench.calibration, setting.threads)
    base = last_hidden(checkpoint, bench.evaluation, setting.threads)
    outputs = _outputs(bench, f"{pick.method}-{blank.cell[:12]}")
    hidden = checkpoint.embed(bench.evaluation.tensor())
    calibrating = checkpoint.embed(bench.calibration.tensor()) if recipe.inputs == "quantized" else None
    layers: list[LayerRecord] = []
    fallbacks: list[str] = []
    n_bytes = rest_bytes(checkpoint)
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        done = quantize_block(checkpoint, i, block, recipe, kept.statistics(i), bench.seed, calibrating)
        if calibrating is not None:
            calibrating = checkpoint.run(i, block, calibrating)
        hidden = checkpoint.run(i, block, hidden)
        layers += done.records
        n_bytes += block_bytes(checkpoint, i, done.layers)
        for layer, quantized in done.layers.items():
            name = checkpoint.architecture.full_name(i, layer)
            fallbacks += [f"{name}: {what}" for what in quantized.fallbacks]
        for output in outputs:
            output.write(i, block, done.layers)
    for output in outputs:
        output.finish()
    found = compare(checkpoint, torch.from_numpy(base), hidden, bench.evaluation.tensor())
    quality = asdict(summarize(found, bench.evaluation))
    record = replace(blank, **quality, **_sizes(layers), model_bytes=n_bytes, fallbacks=tuple(fallbacks))
    return Outcome(record, tuple(layers))


def _outputs(bench: Bench, name: str) -> list[PackedDirectory | ExportedDirectory]:
    found: list[PackedDirectory | ExportedDirectory] = []
    if bench.setting.save:
        found.append(PackedDirectory(bench.setting.save / name, bench.checkpoint))
    if bench.setting.export:
        found.append(ExportedDirectory(bench.setting.export / name, bench.checkpoint))
    return found


def _sizes(layers: list[LayerRecord]) -> dict[str, Any]:
    """Bits per weight over all quantized layers, and errors pooled over them; nothing where none is quantized."""
    if not layers:
        return {}
    weights = sum(layer.n_out * layer.n_in for layer in layers)
    squares, outputs = sum(x.weight_energy for x in layers), sum(x.output_energy for x in layers)
    return {
        "bpw": sum(x.n_bits for x in layers) / weights,
        "bpw_entropy": sum(x.entropy_bits for x in layers) / weights,
        "nmse": sum(x.nmse * x.weight_energy for x in layers) / squares if squares else 0.0,
        "hnmse": sum(x.hnmse * x.output_energy for x in layers) / outputs if outputs else 0.0,
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a run, seed by seed, and which of them have a finished record already."""

    setting: Setting
    todo: tuple[tuple[int, Pick], ...]
    done: tuple[Record, ...]


def plan(setting: Setting, chosen: Sequence[Pick], seeds: Sequence[int], store: Path | None) -> Plan:
    """Open every bench and look up what the store has; raises `ValueError` for bad input before anything is written."""
    torch.set_num_threads(setting.threads)
    existing = Store(store, create=False) if store is not None and holds_store(store) else None
    todo, done = [], []
    for seed in seeds:
        bench = open_bench(setting, seed)
        for pick in chosen:
            key = bench.cell(pick).id, code_version(), environment_key(setting.threads)
            record = existing.finished(*key) if existing else None
            if record is None or (setting.save or setting.export):
                todo.append((seed, pick))
            else:
                done.append(record)
    if existing:
        existing.close()
    return Plan(setting, tuple(todo), tuple(done))


def execute(
    plan: Plan, store: Path, jobs: int, on_done: Callable[[Record], None] = lambda record: None
) -> list[Record]:
    """Run the cells of a plan in `jobs` processes, writing each to the store as it ends; returns all their records."""
    records = list(plan.done)
    with Store(store) as opened:
        for seed in dict.fromkeys(seed for seed, _ in plan.todo):
            bench = open_bench(plan.setting, seed)
            _prepare(bench, opened)
            chosen = [pick for s, pick in plan.todo if s == seed]
            task = partial(run_cell, plan.setting, seed)
            for outcome in spread(task, chosen, jobs, died=partial(_died, bench)):
                opened.put(outcome.record, outcome.layers)
                records.append(outcome.record)
                on_done(outcome.record)
    return records


def _died(bench: Bench, pick: Pick) -> Outcome:
    return Outcome(replace(_blank(bench, pick), status="failed", reason="the process running this cell died"))


def _prepare(bench: Bench, store: Store) -> None:
    """What all cells of a bench share, computed before they start."""
    kept = Calibration.of(bench.checkpoint, bench.calibration, bench.setting.threads)
    last_hidden(bench.checkpoint, bench.evaluation, bench.setting.threads)
    any_cell = bench.cell(Pick(method="", bits=None, recipe=Recipe()))
    store.put_spectra(bench.checkpoint.sha256, any_cell.data_sha256, kept.spectra())


def run(
    model: str = "reference",
    *,
    methods: Sequence[str] | None = None,
    recipes: Sequence[Recipe | str] = (),
    bits: Sequence[float] | None = None,
    group: int | None = None,
    activation_bits: int | None = None,
    calibration: str | None = None,
    evaluation: str | None = None,
    length: int | None = None,
    tier: TierName = "default",
    store: Path | str = "bitfrontier.db",
    seed: int | None = None,
    jobs: int | None = None,
    threads: int = 1,
    command: str = "python",
    save: Path | None = None,
    export: Path | None = None,
    on_plan: Callable[[Plan], bool] = lambda plan: True,
    on_done: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Run every cell that has no finished record yet, and return the records of all.

    Without `methods` and `recipes`, all methods; without `bits` and `seed`, the tier's. `on_plan` sees the plan and
    may stop the run by returning False. Raises `ValueError` in one line for bad input, before anything is written.
    """
    limits = TIERS[tier]
    named = [method_named(name) for name in methods] if methods is not None else ([] if recipes else list(METHODS))
    parsed = [parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    chosen = picks(named, bits or limits.bits, parsed, group=group, activation_bits=activation_bits)
    setting = Setting(model=model, calibration=calibration, evaluation=evaluation, length=length, threads=threads,
                      calibration_tokens=limits.calibration_tokens, evaluation_tokens=limits.evaluation_tokens,
                      command=command, save=save, export=export)  # fmt: skip
    open_bench.cache_clear()  # files may have changed since an earlier run of this process
    _open_model.cache_clear()
    planned = plan(setting, chosen, limits.seeds if seed is None else (seed,), Path(store))
    if not on_plan(planned):
        return list(planned.done)
    return execute(planned, Path(store), jobs or os.cpu_count() or 1, on_done)
