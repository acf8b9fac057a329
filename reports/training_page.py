"""The page of trained cells: what quantization still costs once the model was trained with it, and what moved."""

from collections.abc import Sequence
from math import isfinite

from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.frontier import listed
from reports.page import heading, number
from reports.sections import Section, render_sections
from reports.training import Cell, Excess, Trained, name_of
from reports.training_drawing import draw_trained, unmoved
from reports.training_verdicts import training_verdicts
from suite.store import Record

PAGE = "training.html"
LINK = "Trained with rounding: what is left over the control"
_HEADER = ("method", "loss is over that of", "recipe", "bits", "bpw", "updates", "tokens", "operations", "seconds",
           "last training loss", "perplexity", "reference's perplexity", "excess nats", "±", "excess %", "moved",
           "moved, control", "root %", "root %, control", "turning %", "disorder %", "window",
           "note")  # fmt: skip


def draw_training(found: Sequence[Trained]) -> list[Section]:
    """A section for each model and seed."""
    studies = list({id(trained.study): trained.study for trained in found}.values())
    return [_section(trained, str(k), heading(trained.study, studies)) for k, trained in enumerate(found, 1)]


def render_training(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)


def _section(trained: Trained, name: str, title: str) -> Section:
    label = f"{title}, seed {trained.seed}"
    note = f"Model hash {trained.study.model_sha256[:16]}, seed {trained.seed}. The newest records of every cell."
    if trained.missing:
        note += " Without a result: " + "; ".join(f"{name_of(r)}, {why}" for r, why in trained.missing) + "."
    verdicts = tuple((label, sentence) for sentence in training_verdicts(trained))
    plots = (training_plot(trained),) if trained.cells else ()
    return Section(page="training", name=name, model=label, heading=f"Trained cells of {label}", note=note, plots=plots,
                   verdicts={"cells": verdicts})  # fmt: skip


def training_plot(trained: Trained) -> Plot:
    """Excess over the control, distance of weights and turning codes against true bits."""
    windows = listed([str(w) for w in sorted({c.row.window for c in trained.cells if c.row.turning is not None})])
    caption = (
        "Left, the loss on evaluation tokens over that of a reference, bars of one standard error of the paired "
        "difference, clustered as in the records. A trained cell's reference is its control, the unquantized model "
        "trained equally longer: more training alone moves perplexity, and none of that is quantization's doing. "
        "GPTQ and RTN, stars and hexagons, have had no such training, and their reference is the model as it was. The "
        "two differ in the reference, so a trained cell beside one of these is what quantization costs either way, and "
        "not which of the two models is better: that is in their perplexities, in the table. What is not above zero "
        "is hollow at the lower edge. In the middle, how far the weights that are quantized went, before they are "
        "rounded, from those training began with; dashed the controls'. The gray band and the dotted line are what "
        "ParetoQ's authors have from 3 bits on and up to 2: relative changes, theirs of absolute values, so that "
        "drawn is the root of the squares that the store has. Right, the share of codes that changed back against "
        f"their last change within the last {windows or 'few'} updates. In the "
        "table disorder is the share of successive gradients of learned scales whose signs differ, in the same updates."
    )
    if left_out := unmoved(trained.cells):
        caption += f" Without a distance, trained from random weights or without weights on a grid: {listed(left_out)}."
    words = [f"{c.excess.label}: {_described(c)}." for c in trained.cells]
    words += [f"{e.label}, over the original: {e.nats:.3g} nats at {e.bpw:.3g} bits." for e in trained.untrained]
    rows = [*map(_trained_row, trained.cells), *map(_untrained_row, trained.untrained),
            *(_missing_row(record, why) for record, why in trained.missing)]  # fmt: skip
    return Plot(key="cells", title="Loss over the control, weights and codes that move", caption=caption,
                description=" ".join(words), header=(*_HEADER, *ORIGIN), rows=tuple(rows), curves=(),
                figure=draw_trained(trained))  # fmt: skip


def _described(cell: Cell) -> str:
    said = f"{cell.excess.nats:.3g} nats over its control at {cell.excess.bpw:.3g} bits"
    if isfinite(cell.distance):
        said += f", weights moved by {100 * cell.distance:.3g}%, its control's by {100 * cell.distance_control:.3g}%"
    return said + (f", {100 * cell.turning:.3g}% of codes turning" if isfinite(cell.turning) else "")


def _trained_row(cell: Cell) -> tuple[str, ...]:
    r, row = cell.record, cell.row
    note = "trained from random weights" if cell.scratch else ""
    return (
        *_named(r, "its control"), str(row.updates), f"{row.tokens:,}", f"{row.operations:.3g}", _text(r.seconds, 4),
        _text(row.loss_nats), _text(r.ppl), _text(row.ppl_control), *_excess(cell.excess),
        _text(row.moved, 4), _text(row.moved_control, 4), _percent(cell.distance), _percent(cell.distance_control),
        _percent(cell.turning), _percent(cell.disorder), str(row.window), note, *_origin(r),
    )  # fmt: skip


def _untrained_row(e: Excess) -> tuple[str, ...]:
    r = e.record
    return (*_named(r, "the original"), "", "", "", _text(r.seconds, 4), "", _text(r.ppl), _text(r.ppl_base),
            *_excess(e), *[""] * 8, *_origin(r))  # fmt: skip


def _missing_row(r: Record, why: str) -> tuple[str, ...]:
    return (*_named(r, ""), *[""] * (len(_HEADER) - 6), why, *_origin(r))


def _named(r: Record, reference: str) -> tuple[str, ...]:
    return r.method, reference, r.recipe, "" if r.bits is None else f"{r.bits:g}", _text(r.bpw)


def _excess(e: Excess) -> tuple[str, ...]:
    return _text(e.nats, 4), _text(e.error, 2), _text(e.percent, 4)


def _origin(r: Record) -> tuple[str, ...]:
    return f"cell {r.cell[:12]}", r.code, r.env, r.command


def _percent(share: float) -> str:
    return _text(100 * share, 4)


def _text(value: float | None, digits: int = 5) -> str:
    return "" if value is None or not isfinite(value) else number(value, digits)
