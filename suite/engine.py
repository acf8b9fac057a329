"""The engine: from a plan of cells to records in a store. The command line and pytest both run on it.

A run opens a *bench* for each seed: the checkpoint and its tokens. Statistics and the unquantized model's last hidden
states are computed once and kept on disk. A cell then goes through the model block by block and ends as a record.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from suite.bench import Bench, PackedBench, Setting, forget, open_bench, open_packed
from suite.calibration import Calibration, last_hidden
from suite.cells import TIERS, Pick, TierName, picks
from suite.coding import Ans, Coding, Fixed, Huffman
from suite.environment import code_version
from suite.measure import Outcome, measure, measure_packed
from suite.methods import METHODS, method_named
from suite.models.checkpoint import Checkpoint
from suite.outside import UnsupportedError
from suite.packed import check_places, holds_packed
from suite.processes import Told, peak_mib, reset_peak, spread, steady_memory
from suite.recipe import Recipe, parse
from suite.rows import RetentionRow
from suite.runtime.evaluation import check_runtime
from suite.store import Record, Store, holds_store


def run_cell(setting: Setting, seed: int, pick: Pick) -> Outcome:
    """Run one cell; whatever goes wrong in it becomes a failed record."""
    torch.set_num_threads(setting.threads)
    steady_memory()
    bench = open_bench(setting, seed)
    blank = _blank(bench, pick)
    if pick.recipe.unsupported:
        return Outcome(replace(blank, status="skipped", reason=pick.recipe.unsupported))
    reset_peak()
    begun = time.monotonic()
    try:
        outcome = measure(bench, pick, blank) if isinstance(bench, Bench) else measure_packed(bench, blank)
    except UnsupportedError as error:
        return Outcome(replace(blank, status="skipped", reason=str(error)))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Outcome(replace(blank, status="failed", reason=reason))
    seconds = round(time.monotonic() - begun, 3)
    return replace(outcome, record=replace(outcome.record, seconds=seconds, peak_mib=peak_mib()))


def _blank(bench: Bench | PackedBench, pick: Pick) -> Record:
    cell = bench.cell(pick)
    return Record(
        cell=cell.id, code=code_version(), env=bench.setting.env, status="ok",
        model=bench.checkpoint.name, model_sha256=cell.model_sha256, data_sha256=cell.data_sha256, method=pick.method,
        recipe=cell.recipe, bits=pick.bits, seed=bench.seed, command=bench.setting.command,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a run, seed by seed, and which of them have a finished record already."""

    setting: Setting
    todo: tuple[tuple[int, Pick], ...]
    done: tuple[Record, ...]


def plan(setting: Setting, chosen: Sequence[Pick], seeds: Sequence[int], store: Path | None) -> Plan:
    """Open every bench and look up what the store has; raises `ValueError` for bad input before anything is written.

    Cells whose models are to be written, packed models, which are read to be checked, and cells of which it is not yet
    known what they have forgotten of the text that is asked for, are measured again.
    """
    torch.set_num_threads(setting.threads)
    existing = Store(store, create=False) if store is not None and holds_store(store) else None
    retained = {(x.cell, x.code, x.env, x.text_sha256) for x in existing.rows(RetentionRow)} if existing else set()
    todo, done = [], []
    for seed in seeds:
        bench = open_bench(setting, seed)
        for pick in chosen:
            key = bench.cell(pick).id, code_version(), setting.env
            record = existing.finished(*key) if existing else None
            if record is None or setting.save or setting.export or isinstance(bench, PackedBench) or (
                record.status == "ok" and bench.retention is not None and (*key, bench.retention.sha256) not in retained
            ):  # fmt: skip
                todo.append((seed, pick))
            else:
                done.append(record)
    if existing:
        existing.close()
    return Plan(setting, tuple(todo), tuple(done))


def execute(
    plan: Plan,
    store: Path,
    jobs: int,
    on_done: Callable[[Record], None] = lambda record: None,
    on_step: Told = lambda step: None,
) -> list[Record]:
    """Run the cells of a plan in `jobs` processes, writing each to the store as it ends; returns all their records.

    `on_step` hears of every update of what is trained.
    """
    records = list(plan.done)
    with Store(store) as opened:
        for seed in dict.fromkeys(seed for seed, _ in plan.todo):
            bench = open_bench(plan.setting, seed)
            _prepare(bench, opened)
            chosen = [pick for s, pick in plan.todo if s == seed]
            task = partial(run_cell, plan.setting, seed)
            for outcome in spread(task, chosen, jobs, died=partial(_died, bench), told=on_step):
                opened.put(outcome.record, outcome.layers, outcome.histograms, outcome.training,
                           outcome.retention)  # fmt: skip
                records.append(outcome.record)
                on_done(outcome.record)
    return records


def _died(bench: Bench | PackedBench, pick: Pick) -> Outcome:
    return Outcome(replace(_blank(bench, pick), status="failed", reason="the process running this cell died"))


def _prepare(bench: Bench | PackedBench, store: Store) -> None:
    """What all cells of a bench share, computed before they start."""
    if isinstance(bench, PackedBench):
        if bench.base is not None:
            _keep_hidden(bench.base, bench)
        return
    kept = Calibration.of(bench.checkpoint, bench.calibration, bench.setting.threads)
    _keep_hidden(bench.checkpoint, bench)
    any_cell = bench.cell(Pick(method="", bits=None, recipe=Recipe()))
    store.put_spectra(bench.checkpoint.sha256, any_cell.data_sha256, kept.spectra())


def _keep_hidden(checkpoint: Checkpoint, bench: Bench | PackedBench) -> None:
    for tokens in filter(None, (bench.evaluation, bench.retention)):
        last_hidden(checkpoint, tokens, bench.setting.threads)


def run(
    model: str = "reference",
    *,
    methods: Sequence[str] | None = None,
    recipes: Sequence[Recipe | str] = (),
    bits: Sequence[float] | None = None,
    group: int | None = None,
    activation_bits: int | None = None,
    cache_bits: int | None = None,
    coding: str | None = None,
    calibration: str | None = None,
    evaluation: str | None = None,
    training: str | None = None,
    retention: str | None = None,
    length: int | None = None,
    tier: TierName = "default",
    store: Path | str = "bitfrontier.db",
    seed: int | None = None,
    jobs: int | None = None,
    threads: int = 1,
    command: str = "python",
    save: Path | None = None,
    export: Path | None = None,
    base: str | None = None,
    adapter: str | None = None,
    product: str | None = None,
    device: str = "cpu",
    paged: bool = False,
    on_plan: Callable[[Plan], bool] = lambda plan: True,
    on_done: Callable[[Record], None] = lambda record: None,
    on_step: Told = lambda step: None,
) -> list[Record]:
    """Run every cell that has no finished record yet, and return the records of all.

    `coding`, "fixed", "huffman" or "ans", is how the codes of every cell are stored, whatever its recipe says. Without
    `methods` and `recipes`, all methods that need no training; without `bits` and `seed`, the tier's. A packed
    directory as `model` is one cell, measured as it is, or with the side branches in the directory `adapter` in place
    of its own. With a `product` of `suite.runtime`, or on the `device` "cuda", models are evaluated from packed
    weights, which rounds what that product rounds; otherwise bit for bit as dequantized. `paged` trainings keep
    optimizer states in a file: less memory, the same numbers. `on_plan` sees the plan and may stop the run by returning
    False. Raises `ValueError` in one line for bad input, before anything is written.

    With the tokens of another text as `retention`, or "reference", it is told too what cells have forgotten of that.
    """
    limits = TIERS[tier]
    setting = Setting(model=model, calibration=calibration, evaluation=evaluation, training=training,
                      retention=retention, length=length, threads=threads,
                      calibration_tokens=limits.calibration_tokens, evaluation_tokens=limits.evaluation_tokens,
                      command=command, save=save, export=export, base=base, adapter=adapter, device=device, paged=paged,
                      product=product or (None if device == "cpu" else "kernel"))  # fmt: skip
    check_runtime(setting.product, device)
    forget()  # files may have changed since an earlier run of this process
    if holds_packed(Path(model)):
        _refuse_quantizing(model, methods=methods, recipe=recipes, bits=bits, group=group,
                           activation_bits=activation_bits, cache_bits=cache_bits, coding=coding, save=save,
                           export=export)  # fmt: skip
        seeds: tuple[int, ...] = (open_packed(model).header.seed if seed is None else seed,)
        bench = open_bench(setting, seeds[0])
        assert isinstance(bench, PackedBench)
        chosen = [bench.pick]
    else:
        untrained = [method for method in METHODS if method.needs != "training"]
        named = [method_named(name) for name in methods] if methods is not None else ([] if recipes else untrained)
        parsed = [parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
        strict = methods is not None and bits is not None  # otherwise each method at what it takes of the widths
        chosen = picks(named, bits or limits.bits, parsed, group=group, activation_bits=activation_bits,
                       cache_bits=cache_bits, strict=strict,
                       coding=None if coding is None else _coding(coding))  # fmt: skip
        seeds = limits.seeds if seed is None else (seed,)
        setting = replace(setting, alone=len(chosen) * len(seeds) == 1)
        check_places(save, export, model)
    planned = plan(setting, chosen, seeds, Path(store))
    if not on_plan(planned):
        return list(planned.done)
    return execute(planned, Path(store), jobs or os.cpu_count() or 1, on_done, on_step)


def _coding(name: str) -> Coding:
    known: dict[str, Coding] = {"fixed": Fixed(), "huffman": Huffman(), "ans": Ans()}
    if name not in known:
        raise ValueError(f"coding {name!r}: expected {', '.join(known)}")
    return known[name]


def _refuse_quantizing(model: str, **options: object) -> None:
    """Raise `ValueError` for the first option that asks for quantization, which a packed model has behind it."""
    for name, value in options.items():
        if value is not None and value != ():
            shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            raise ValueError(f"{name.replace('_', '-')} {shown}: {model} is a packed model, which is measured as it is")
