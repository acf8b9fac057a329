"""The page of adapters: what branches trained on quantized weights cost over full-precision ones, what they hold."""

from collections.abc import Sequence
from math import isfinite

from reports.adapters import Adapted, Cell, Series, relative_error
from reports.adapters_drawing import draw_cells, draw_forgetting, draw_memory
from reports.adapters_forgetting import Forgetting, forgetting_verdict
from reports.adapters_memory import PARTS, Held, memory_verdict, size
from reports.adapters_verdicts import adapter_verdicts
from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.frontier import listed
from reports.page import heading, number
from reports.sections import Section, render_sections
from suite.store import MemoryRow, Record, RetentionRow

PAGE = "adapters.html"
LINK = "Adapters on quantized weights, and memory in training"
_HEADER = ("method", "recipe", "seed", "bits", "bpw", "updates", "tokens", "operations", "seconds",
           "last training loss", "perplexity", "control's perplexity", "before training", "as it was",
           "excess nats", "±", "nats over as it was", "±", "control's", "before", "entropy of codes", "rounding",
           "note")  # fmt: skip
_KEPT = ("method", "recipe", "seed", "bits", "bpw", "tokens", "perplexity", "as it was", "control's perplexity",
         "nats gained", "±", "nats forgotten", "±", "control gained", "±", "control forgot", "±",
         "forgotten over the control", "±")  # fmt: skip
_MEMORY = ("method", "recipe", "kind", "bits", "paged", *(f"{part}, bytes" for part in PARTS), "sum", "peak, bytes",
           "peak over measured %")  # fmt: skip


def draw_adapters(found: Sequence[Adapted], forgetting: Sequence[Forgetting], memory: Sequence[Held]) -> list[Section]:
    """A section for each model and evaluation text, then one for each model and micro-batch of memory."""
    groups = [*found, *(Adapted(study=study, series=(), missing=())
                        for study in {id(f.study): f.study for f in forgetting}.values()
                        if not any(adapted.study is study for adapted in found))]  # fmt: skip
    studies = [adapted.study for adapted in groups]
    sections = [_section(adapted, [f for f in forgetting if f.study is adapted.study], str(k),
                         heading(adapted.study, studies)) for k, adapted in enumerate(groups, 1)]  # fmt: skip
    return sections + [_memory_section(held, f"memory-{k}") for k, held in enumerate(memory, 1)]


def render_adapters(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)


def _section(adapted: Adapted, forgetting: Sequence[Forgetting], name: str, title: str) -> Section:
    note = f"Model hash {adapted.study.model_sha256[:16]}. The newest records of every cell."
    if adapted.missing:
        missing = [f"{r.method} {_text(r.bits)} of seed {r.seed}, {why}" for r, why in adapted.missing]
        note += " Without a result: " + "; ".join(missing) + "."
    verdicts = {"cells": tuple((title, sentence) for sentence in adapter_verdicts(adapted))}
    plots = [cells_plot(adapted)] if adapted.series else []
    for k, one in enumerate(forgetting, 1):
        plots.append(forgetting_plot(one, f"forgetting-{k}"))
        sentence = forgetting_verdict(one)
        verdicts[f"forgetting-{k}"] = ((title, sentence),) if sentence else ()
    named = f"Adapters on {title}" if adapted.series or adapted.missing else f"Trained cells of {title}"
    return Section(page="adapters", name=name, model=title, heading=named, note=note, plots=tuple(plots),
                   verdicts=verdicts)  # fmt: skip


def cells_plot(adapted: Adapted) -> Plot:
    """Excess over full-precision LoRA, start and end, and the entropy of codes."""
    caption = (
        "Markers are means over seeds, bars one standard error, of the tokens and between seeds together. Bits count "
        "everything that is stored, adapters that are not merged too, at 16 bits a number. Left, the loss on "
        "evaluation tokens over that of the control: full-precision LoRA, adapters of the same rank beside the "
        "unquantized weights, trained on the same tokens by the same schedule and loss. What is not above zero is "
        "hollow at the lower edge. In the middle, the loss over that of the model as it was, neither quantized nor "
        "trained: hollow where training began, as far as the store has that record, at the bits of the trained cell; "
        "filled where it ended, dashed where the controls did. Right, the first again by how far the entropy of all "
        "codes of the model, counted together, falls short of their width: a gray line leads from the codes of QLoRA "
        "to those of IR-QLoRA, which are calibrated for entropy block by block, and take an eighth of a bit more."
    )
    if left_out := [s.label for s in adapted.series if not isfinite(s.bpw)]:
        caption += f" Without bits per weight, and not drawn: {listed(left_out)}."
    words = [f"{s.label}: {_described(s)}." for s in adapted.series]
    rows = [_row(s, cell) for s in adapted.series for cell in s.cells]
    rows += [_missing_row(r, why) for r, why in adapted.missing]
    return Plot(key="cells", title="Loss over full-precision LoRA, start and end, entropy", caption=caption,
                description=" ".join(words), header=(*_HEADER, *ORIGIN), rows=tuple(rows), curves=(),
                figure=draw_cells(adapted))  # fmt: skip


def _described(s: Series) -> str:
    said = f"{s.excess:.3g} nats over its control at {s.bpw:.3g} bits, {s.mean(lambda c: c.nats):.3g} over the model"
    start, entropy = s.mean(lambda c: c.nats_start), s.mean(lambda c: c.entropy)
    said += f" as it was, {start:.3g} before training" if isfinite(start) else " as it was"
    return said + (f", codes of {entropy:.3g} bits" if isfinite(entropy) else "")


def _row(s: Series, cell: Cell) -> tuple[str, ...]:
    r, row = cell.record, cell.row
    return (
        s.label, r.recipe, str(r.seed), _text(r.bits), _text(r.bpw), str(row.updates), f"{row.tokens:,}",
        f"{row.operations:.3g}", _text(r.seconds, 4), _text(row.loss_nats), _text(r.ppl), _text(row.ppl_control),
        _text(None if cell.start is None else cell.start.ppl), _text(r.ppl_base), _text(row.excess_nats, 4),
        _text(row.excess_se, 2), _text(cell.nats, 4), _text(relative_error(r), 2), _text(cell.nats_control, 4),
        _text(cell.nats_start, 4), _text(cell.entropy), _text(row.rounding, 3), "", *_origin(r),
    )  # fmt: skip


def _missing_row(r: Record, why: str) -> tuple[str, ...]:
    return (r.method, r.recipe, str(r.seed), _text(r.bits), *[""] * (len(_HEADER) - 5), why, *_origin(r))


def _origin(r: Record) -> tuple[str, ...]:
    return f"cell {r.cell[:12]}", r.code, r.env, r.command


def forgetting_plot(forgetting: Forgetting, key: str) -> Plot:
    """What was gained on the evaluation text against what was forgotten of another."""
    caption = (
        f"Both against the unquantized model before training, on the same tokens: across, how much lower the loss on "
        f"the evaluation text is; upward, how much higher that on {forgetting.text}. Markers are means over seeds, "
        f"bars one standard error; crosses are the controls, the unquantized model trained equally, each at the other "
        f"end of its line: what lies between them is what quantization costs either text. Cells that quantize without "
        f"training, if there are any, have no control."
    )
    words = [f"{k.label}: {k.mean('gained_nats'):.3g} nats gained, {k.mean('forgotten_nats'):.3g} forgotten."
             for k in forgetting.drawn]  # fmt: skip
    rows = [_kept_row(r, row) for k in forgetting.kept for r, row in k.pairs]
    return Plot(key=key, title=f"Gained, and forgotten of {forgetting.text}", caption=caption,
                description=" ".join(words), header=(*_KEPT, *ORIGIN), rows=tuple(rows), curves=(),
                figure=draw_forgetting(forgetting))  # fmt: skip


def _kept_row(r: Record, row: RetentionRow) -> tuple[str, ...]:
    return (
        r.method, r.recipe, str(r.seed), _text(r.bits), _text(r.bpw), f"{row.tokens:,}", _text(row.ppl),
        _text(row.ppl_base), _text(row.ppl_control), _text(row.gained_nats, 4), _text(row.gained_se, 2),
        _text(row.forgotten_nats, 4), _text(row.forgotten_se, 2), _text(row.gained_control_nats, 4),
        _text(row.gained_control_se, 2), _text(row.forgotten_control_nats, 4), _text(row.forgotten_control_se, 2),
        _text(row.excess_nats, 4), _text(row.excess_se, 2), *_origin(r),
    )  # fmt: skip


def _memory_section(held: Held, name: str) -> Section:
    row = held.any
    note = f"Model hash {row.model_sha256[:16]}." if row.model_sha256 else "A model's shape alone."
    verdict = memory_verdict(held)
    return Section(page="adapters", name=name, model=held.title, heading=f"Memory in training, {held.title}", note=note,
                   plots=(memory_plot(held),),
                   verdicts={"memory": ((held.title, verdict),) if verdict else ()})  # fmt: skip


def memory_plot(held: Held) -> Plot:
    """What each training holds, by parts, and its peak."""
    caption = (
        "Bytes of one training with a micro-batch each. Bars are the parts: weights as they are held, adapters and "
        "whatever else is trained that the model has not, gradients, states of the optimizer, and what the backward "
        "pass needs. A vertical line is the peak measured in a process of its own, which the parts need not reach at "
        "the same time; a diamond is the peak that the model's sizes alone predict. Pale bars are predicted, not "
        "measured."
    )
    words = [f"{one.label}: {_held(one.drawn)}, {'measured' if one.measured else 'predicted'}."
             for one in held.trainings]  # fmt: skip
    rows = []
    for one in held.trainings:
        measured = None if one.measured is None else one.measured.peak
        rows += [_memory_row(row, measured) for row in one.rows]
    return Plot(key="memory", title="Memory in training", caption=caption, description=" ".join(words),
                header=(*_MEMORY, *ORIGIN), rows=tuple(rows), curves=(), figure=draw_memory(held))  # fmt: skip


def _held(row: MemoryRow) -> str:
    return f"{size(row.peak)} at the peak, {listed([f'{size(getattr(row, part))} of {part}' for part in PARTS])}"


def _memory_row(row: MemoryRow, measured: int | None) -> tuple[str, ...]:
    parts = [getattr(row, part) for part in PARTS]
    off = "" if measured is None or row.kind == "measured" else f"{100 * (row.peak / measured - 1):+.3g}"
    origin = f"model {row.model_sha256[:12]}" if row.model_sha256 else f"shape {row.model}"
    return (
        row.method, row.recipe, row.kind, _text(row.bits), "yes" if row.paged else "no", *(f"{n:,}" for n in parts),
        f"{sum(parts):,}", f"{row.peak:,}", off, origin, row.code, row.env, row.command,
    )  # fmt: skip


def _text(value: float | None, digits: int = 5) -> str:
    return "" if value is None or not isfinite(value) else number(float(value), digits)
