"""The page of scaling studies: loss against bytes over sizes and widths, the frontier, and a law in words."""

from itertools import groupby

import numpy as np

from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.frontier import listed
from reports.page import plus_minus
from reports.scaling import FITTED, Family, LawFound, key_of
from reports.scaling_drawing import draw_scaling, name_of
from reports.sections import Section, render_sections
from suite.store import ScalingRow
from theory.kumar_2024_precision import PARAMETERS

PAGE = "scaling.html"
LINK = "Sizes and widths: a family of models and a law of its losses"
_NAMES = {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β", "gamma": "γ"}


def draw_scaling_sections(families: tuple[Family, ...]) -> list[Section]:
    """A section for each family."""
    return [_section(family, k, len(families)) for k, family in enumerate(families, 1)]


def render_scaling(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)


def _section(family: Family, k: int, of: int) -> Section:
    sizes = sorted({row.hidden: row.parameters for row in family.rows if row.method in FITTED}.values())
    label = "the family" if of == 1 else f"family {k}"
    said = tuple((label, sentence) for sentence in (*frontier_sentences(family), *law_sentences(family)))
    note = f"{len(family.rows)} models"
    note += f" of {_count(sizes[0])} to {_count(sizes[-1])} parameters" if sizes else ""
    levels = listed([f"{level:g}" for level in family.levels])
    note += f", {levels} tokens for each. The newest row of every model, seed {family.rows[0].seed}."
    return Section(page="scaling", name="" if of == 1 else str(k), model="", heading=f"Sizes and widths, {label}",
                   note=note, plots=(scaling_plot(family),), verdicts={"scaling": said})  # fmt: skip


def frontier_sentences(family: Family) -> list[str]:
    """What lies on the frontier, level by level."""
    found = []
    for level in family.levels:
        front = family.front(level)
        words = [f"{_count(linear)} weights, {listed([name_of(r.method, r.bits) for r in own])}"
                 for linear, group in groupby(front, key=lambda r: r.linear) for own in [list(group)]]  # fmt: skip
        first, last = (f"{r.loss_nats:.3f} nats in {r.model_bytes / 1e6:.3g} MB" for r in (front[0], front[-1]))
        found.append(f"at {level:g} tokens per parameter the least loss over bytes, from {first} to {last}, is that "
                     f"of {'; '.join(words)}.")  # fmt: skip
    return found


def law_sentences(family: Family) -> list[str]:
    """The law with its intervals, what it was fitted on, how well it holds, and what the data cannot say."""
    if family.law is None:
        return [f"no law was fitted: {family.lawless}."]
    law, fit = family.law, family.law.fit
    values = [f"{_NAMES[name]} = {getattr(fit.law, name):.3g} ({low:.3g} to {high:.3g})"
              for name in PARAMETERS for low, high in [fit.interval(name)]]  # fmt: skip
    (n0, n1), (d0, d1), (p0, p1) = (fit.ranges[name] for name in ("parameters", "tokens", "bits"))
    sentences = [
        "loss = E + A N_eff^−α + B D^−β nats, N_eff = N (1 − exp(−P / γ)), with " + listed(values)
        + f", in brackets 95% intervals over resampled models; from {_count(n0)} to {_count(n1)} weights in linear "
        f"layers, {_count(d0)} to {_count(d1)} tokens and {p0:g} to {p1:g} bits. Beyond these it says nothing.",
        _how_well(law),
        "The intervals are about which of these models there are. They do not cover another form of the law, another "
        "text, recipe or seed, and the models that share a base are not independent, which makes them too narrow.",
    ]  # fmt: skip
    if off := _held_against(family):
        sentences.append(off)
    return sentences


def _how_well(law: LawFound) -> str:
    text = f"Residuals are {100 * law.fit.rms:.2g}% (root mean square)"
    if law.left_out:
        every = np.concatenate(list(law.left_out.values()))
        largest = law.left_out[max(law.left_out)]
        text += (f"; of a size that the fit did not see, losses are predicted to {100 * _rms(every):.2g}%, of the "
                 f"largest to {100 * _rms(largest):.2g}%, {100 * np.mean(largest):+.2g}% on average")  # fmt: skip
    text += (f". The condition of the fit is {law.fit.condition:.2g}: tokens go with parameters at every level, so "
             "that E, α and β are told apart by few levels and by curvature: none is known alone.")  # fmt: skip
    return text


def _held_against(family: Family) -> str:
    """How far models that were not fitted are from the law."""
    others: dict[str, list[float]] = {}
    for row in family.rows:
        predicted = family.predicted(row)
        if row.method not in FITTED and predicted is not None:
            others.setdefault(name_of(row.method, row.bits), []).append(row.loss_nats - predicted)
    words = [f"{name} {np.mean(off):+.3f} nats ({min(off):+.3f} to {max(off):+.3f})" for name, off in others.items()]
    return f"Trained from scratch, and not fitted, over the law: {listed(words)}." if words else ""


def scaling_plot(family: Family) -> Plot:
    """Loss against whole-model bytes, a panel for each level."""
    caption = (
        "Loss of every model on the same evaluation tokens against everything that it takes to store it. A line of "
        "dots joins the sizes of one method and width; dashes are the law. Filled are models on the frontier, the grey "
        "staircase, which is the running minimum: no convex hull, since nothing between two models can be had. The "
        f"standard error of a single loss, {_typical_error(family):.2g} nats, is of which text was evaluated, and "
        "moves all models together; those of differences to the controls are in the table."
    )
    words = [
        f"At {level:g} tokens per parameter: " + "; ".join(
            f"{name_of(*key)} from {rows[0].loss_nats:.3f} nats at {rows[0].model_bytes / 1e6:.3g} MB to "
            f"{rows[-1].loss_nats:.3f} at {rows[-1].model_bytes / 1e6:.3g}"
            for key, rows in family.curves(level).items()
        ) + "." for level in family.levels
    ]  # fmt: skip
    header = ("method", "bits", "level", "parameters", "linear", "tokens", "tokens per parameter", "bytes", "loss",
              "over the control", "law", "on the frontier", "updates", "rows", "rate")  # fmt: skip
    rows = [_row(family, row) for level in family.levels for found in family.curves(level).values() for row in found]
    return Plot(key="scaling", title="Loss against size", caption=caption, description=" ".join(words),
                header=(*header, *ORIGIN), rows=tuple(rows), curves=(), figure=draw_scaling(family))  # fmt: skip


def _row(family: Family, row: ScalingRow) -> tuple[str, ...]:
    training, predicted = family.excess.get(key_of(row)), family.predicted(row)
    full = row.method.startswith("full-precision")
    return (
        row.method, f"{row.bits:g}", f"{row.level:g}", f"{row.parameters:,}", f"{row.linear:,}", f"{row.tokens:,}",
        f"{row.tokens_per_parameter:.4g}", f"{row.model_bytes:,}", plus_minus(row.loss_nats, row.loss_se),
        "" if training is None or full else plus_minus(training.excess_nats, training.excess_se),
        "" if predicted is None else f"{predicted:.4f}", "yes" if row in family.front(row.level) else "no",
        str(row.updates), str(row.batch_rows), f"{row.rate:.3g}",
        f"cell {row.cell[:12]}", row.code, row.env, row.command,
    )  # fmt: skip


def _typical_error(family: Family) -> float:
    return float(np.median([row.loss_se for row in family.rows]))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _count(value: float) -> str:
    """A count in thousands or millions.

    >>> _count(196608), _count(7077888)
    ('197 thousand', '7.08 million')
    """
    return f"{value / 1e6:.3g} million" if value >= 999_500 else f"{value / 1e3:.3g} thousand"
