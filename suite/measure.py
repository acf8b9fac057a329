"""Measuring a cell: one way through the model, block by block, to a record. Packed models go the same way read back."""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from suite.bench import Bench, PackedBench
from suite.blockwise import NOTHING_TRAINED, quantize_block
from suite.calibration import Calibration, gather_head, last_hidden
from suite.cells import Pick
from suite.evaluation import Ended, compare, summarize
from suite.export import ExportedDirectory
from suite.histograms import CodeCounts
from suite.kv_cache.codec import NO_TABLES
from suite.kv_cache.evaluation import one_shot_of
from suite.kv_cache.fisher import learn
from suite.learning.retention import retention_row
from suite.learning.trained import against_control, control_for, trained_for
from suite.models.checkpoint import Checkpoint
from suite.outside import quantize_embedding, quantize_head, weights_of
from suite.packed import Packing
from suite.quantized import Quantized
from suite.readback import Size
from suite.runtime.evaluation import Evaluated, run_on
from suite.store import Histogram, LayerRecord, Record, RetentionRow, TrainingRow
from suite.turning import turned_for


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished cell: its record, its layers', how often codes occur, how it was trained and what it forgot, if so."""

    record: Record
    layers: tuple[LayerRecord, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    training: TrainingRow | None = None
    retention: RetentionRow | None = None


@torch.no_grad()
def measure(bench: Bench, pick: Pick, blank: Record) -> Outcome:
    """Go through the model once: quantize a block, run the calibration and evaluation rows through it, drop it."""
    setting, recipe = bench.setting, pick.recipe
    trained = trained_for(bench, recipe, pick.method if pick.bits is None else f"{pick.method} at {pick.bits:g} bits")
    checkpoint = (
        turned_for(bench.checkpoint, recipe, bench.calibration, seed=bench.seed, threads=setting.threads)
        if trained is None else trained.checkpoint
    )  # fmt: skip
    outside = quantize_embedding(checkpoint, recipe, bench.seed)
    evaluated = checkpoint.holding(weights_of(outside)) if outside else checkpoint
    kept = Calibration.of(checkpoint, bench.calibration, setting.threads)
    base = last_hidden(bench.checkpoint, bench.evaluation, setting.threads)
    runs = Evaluated.of(setting.product, setting.device, evaluated, recipe)
    packing = Packing(checkpoint, setting.save and setting.place(setting.save, pick.method, blank.cell))
    exported = _exported(bench, checkpoint, pick.method, blank.cell)
    hidden = evaluated.embed(bench.evaluation.tensor())
    retained = None if bench.retention is None else evaluated.embed(bench.retention.tensor())
    calibrating = evaluated.embed(bench.calibration.tensor()) if "quantized" in recipe.streams else None
    original = checkpoint.embed(bench.calibration.tensor()) if "original" in recipe.streams else None
    layers: list[LayerRecord] = []
    counts = CodeCounts()
    fallbacks: list[str] = []
    held: list[float] = []
    bounds: dict[str, float] = {}
    tables = ((NO_TABLES,) * checkpoint.n_blocks if recipe.held_cache is None
              else learn(checkpoint, bench.calibration, recipe.held_cache, setting.threads))  # fmt: skip
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        done = quantize_block(checkpoint, i, block, recipe, kept.statistics(i), bench.seed, calibrating, original,
                              tables[i], NOTHING_TRAINED if trained is None else trained.beside)  # fmt: skip
        if original is not None and done.unquantized is not None:
            original = checkpoint.run(i, done.unquantized, original)
        if calibrating is not None:
            calibrating = checkpoint.run(i, block, calibrating)
        for found in done.layers.values():
            counts.add(found)
        layers += done.records
        bounds |= done.bounds
        fallbacks += _fallbacks(done.layers)
        packing.add_block(i, block, done)
        if exported:
            exported.write(i, block, done.maps)
        block = runs.through(i, block, done.layers)
        hidden = _run_counting(checkpoint, i, block, hidden, held, runs.device)
        retained = _run_beside(checkpoint, i, block, retained, runs.device)
    gram = kept.head_gram
    if recipe.inputs == "quantized" and calibrating is not None:
        gram = partial(gather_head, checkpoint, calibrating)
    head = quantize_head(checkpoint, recipe, gram, bench.seed)
    outside, evaluated = outside | head, evaluated.holding(weights_of(head)) if head else evaluated
    packing.add_rest(outside)
    header = packing.header(method=pick.method, recipe=blank.recipe, bits=pick.bits, seed=bench.seed,
                            model_sha256=bench.checkpoint.sha256,
                            calibration_sha256=bench.calibration.sha256)  # fmt: skip
    if exported:
        exported.finish(evaluated)
    compared = compare(Ended(evaluated, hidden), Ended(bench.checkpoint, torch.from_numpy(base)),
                       bench.evaluation.tensor())  # fmt: skip
    quality = asdict(summarize(compared, bench.evaluation))
    sizes = [(x.n_bits, x.entropy_bits, x.coded_bits, x.n_out * x.n_in) for x in layers]
    record = replace(blank, **quality, **_rates(sizes), **_errors(layers, bounds), **_held(held),
                     model_bytes=packing.n_bytes(header),
                     fallbacks=(*fallbacks, *_fallbacks(outside), *runs.fallbacks))  # fmt: skip
    packing.finish(header, record, tuple(layers))
    training = None if trained is None else against_control(bench, recipe, trained, compared, record)
    retention = None
    if retained is not None:
        control = None if trained is None else control_for(bench, recipe, record.method).checkpoint
        retention = retention_row(bench, record, compared, Ended(evaluated, retained), control)
    return Outcome(record, tuple(layers), tuple(counts.histograms()), training, retention)


@torch.no_grad()
def measure_packed(bench: PackedBench, blank: Record) -> Outcome:
    """Go through a packed model once: decode a block, run the evaluation rows through it, drop it."""
    packed, checkpoint, tokens = bench.packed, bench.checkpoint, bench.evaluation.tensor()
    base = None if bench.base is None else last_hidden(bench.base, bench.evaluation, bench.setting.threads)
    about = packed.provenance
    hidden = checkpoint.embed(tokens)
    retained = None if bench.retention is None else checkpoint.embed(bench.retention.tensor())
    runs = Evaluated.of(bench.setting.product, bench.setting.device, checkpoint, packed.recipe)
    sizes: list[Size] = []
    held: list[float] = []
    layers: list[LayerRecord] = []
    counts = CodeCounts()
    for i in range(checkpoint.n_blocks):
        block, quantized = packed.block(i)
        block = runs.through(i, block, quantized)
        hidden = _run_counting(checkpoint, i, block, hidden, held, runs.device)
        retained = _run_beside(checkpoint, i, block, retained, runs.device)
        for found in quantized.values():
            counts.add(found)
        sizes += packed.sizes(quantized)
        layers += [about.layers[name] for name in quantized] if about else []
    unquantized = None if bench.base is None or base is None else Ended(bench.base, torch.from_numpy(base))
    compared = compare(Ended(checkpoint, hidden), unquantized, tokens)
    record = replace(
        blank,
        **asdict(summarize(compared, bench.evaluation)),
        **_rates(sizes),
        **_held(held),
        model_bytes=packed.n_bytes,
        fallbacks=(*bench.fallbacks, *runs.fallbacks),
    )
    if about is not None:
        record = replace(record, nmse=about.nmse, hnmse=about.hnmse, bound=about.bound)
    retention = None if retained is None else retention_row(bench, record, compared, Ended(checkpoint, retained), None)
    return Outcome(record, tuple(layers), tuple(counts.histograms()), retention=retention)


def _run_beside(
    checkpoint: Checkpoint, i: int, block: nn.Module, hidden: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Rows of another text through a block, if there are any; what its cache holds of them is not counted."""
    return None if hidden is None else _run_counting(checkpoint, i, block, hidden, [], device)


def _run_counting(
    checkpoint: Checkpoint, i: int, block: nn.Module, hidden: torch.Tensor, held: list[float], device: torch.device
) -> torch.Tensor:
    """The evaluation rows through a block; the bytes that its cache holds after a row are added to `held`."""
    shot = one_shot_of(block)
    if shot is not None:
        shot.forget()
    hidden = run_on(device, checkpoint, i, block, hidden)
    if shot is not None:
        held.append(shot.n_bytes)
    return hidden


def _held(held: list[float]) -> dict[str, Any]:
    """Bytes of the cache over all blocks after one row of the evaluation, in the mean over rows, rounded up."""
    return {"cache_bytes": math.ceil(sum(held))} if held else {}


def _exported(bench: Bench, checkpoint: Checkpoint, method: str, cell: str) -> ExportedDirectory | None:
    root = bench.setting.export
    return None if root is None else ExportedDirectory(bench.setting.place(root, method, cell), checkpoint)


def _fallbacks(layers: dict[str, Quantized]) -> list[str]:
    return [f"{name}: {what}" for name, quantized in layers.items() for what in quantized.fallbacks]


def _rates(sizes: list[Size]) -> dict[str, Any]:
    """Bits per weight over quantized layers; nothing where none is quantized."""
    if not sizes:
        return {}
    n_bits, entropy_bits, coded_bits, weights = (sum(column) for column in zip(*sizes, strict=True))
    return {"bpw": n_bits / weights, "bpw_entropy": entropy_bits / weights, "bpw_coded": coded_bits / weights}


def _errors(layers: list[LayerRecord], bounds: dict[str, float]) -> dict[str, Any]:
    """Errors pooled over all quantized layers of the blocks by their energies; nothing where none is quantized.

    `bounds` are on layers' absolute errors; their sum is one on the pooled error if every layer has one.
    """
    if not layers:
        return {}
    squares, outputs = sum(x.weight_energy for x in layers), sum(x.output_energy for x in layers)
    return {
        "nmse": sum(x.nmse * x.weight_energy for x in layers) / squares if squares else 0.0,
        "hnmse": sum(x.hnmse * x.output_energy for x in layers) / outputs if outputs else 0.0,
        "bound": sum(bounds[x.layer] for x in layers) / outputs if outputs and len(bounds) == len(layers) else None,
    }
