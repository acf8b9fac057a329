"""How trained adapters look: what they cost over their control, where they began, what their codes say, what they hold.

A method keeps its shape and color in all figures; every marker is the mean over its seeds.
"""

from collections.abc import Sequence
from math import isfinite

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.adapters import Adapted, Series
from reports.adapters_forgetting import Forgetting, Kept
from reports.adapters_memory import PARTS, Held, Training
from reports.drawing import COLORS, GREY, INK, STYLE, scale
from reports.entropy_drawing import WIDE_INCHES

_LOOKS = {
    "qlora": ("o", COLORS[0]), "loftq": ("s", COLORS[1]), "qa-lora": ("D", COLORS[2]), "ir-qlora": ("^", COLORS[3]),
    "l4q": ("v", COLORS[4]), "lsq": ("P", COLORS[5]), "paretoq": ("X", COLORS[6]),
}  # fmt: skip
_LEFT = (("p", COLORS[7]), ("h", COLORS[8]), ("<", COLORS[10]), (">", COLORS[11]))
_PART_COLORS = dict(zip(PARTS, (COLORS[0], COLORS[1], COLORS[2], COLORS[3], "#bdbdbd"), strict=True))
_DASHES, _DOTS = (0, (5, 2)), (0, (1, 1.5))
Looks = dict[str, tuple[str, str]]


def looks_of(methods: Sequence[str]) -> Looks:
    """Shape and color of methods; those without looks of their own get what is left, in order."""
    others = [method for method in methods if method not in _LOOKS]
    left = {method: _LEFT[k % len(_LEFT)] for k, method in enumerate(others)}
    return {method: _LOOKS.get(method) or left[method] for method in methods}


def draw_cells(adapted: Adapted) -> Figure:
    """Three panels: the excess over the control, start and end, and the excess by what codes leave of their width."""
    looks = looks_of(adapted.methods)
    drawn = [s for s in adapted.series if isfinite(s.bpw)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 4.8))
        FigureCanvasAgg(figure)
        excess, course, entropy = figure.subplots(1, 3)
        ends = _ends([s.bpw for s in drawn])
        _draw_excess(excess, [(s.bpw, s) for s in drawn], looks, ends)
        _draw_course(course, drawn, looks, ends)
        coded = [(s.bits - s.mean(lambda c: c.entropy), s) for s in drawn]
        coded = [(x, s) for x, s in coded if isfinite(x)]
        _draw_excess(entropy, coded, looks, _ends([x for x, _ in coded]))
        _calibrated(entropy, coded)
        titles = ("loss over the control, nats", "loss over the model as it was, nats", "loss over the control, nats")
        for ax, title in zip((excess, course, entropy), titles, strict=True):
            ax.set_title(title, loc="left", fontsize=10, color=INK)
        for ax in (excess, course):
            ax.set_xlabel("true bits per weight", fontsize=10, color=INK)
        entropy.set_xlabel("width of codes less their entropy, bits", fontsize=10, color=INK)
        handles = _handles(looks)
        handles += [Line2D([], [], linestyle="none", marker="o", color=INK, markerfacecolor="none", label="before"),
                    Line2D([], [], color=GREY, linewidth=1, linestyle=_DASHES, label="full-precision LoRA"),
                    Line2D([], [], color=GREY, linewidth=1, label="NF and calibrated")]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=9, frameon=False, fontsize=9)
        return figure


def _handles(looks: Looks) -> list[Line2D]:
    return [Line2D([], [], linestyle="none", marker=shape, color=color, label=method)
            for method, (shape, color) in looks.items()]  # fmt: skip


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """From where to where an axis goes."""
    low, high = (min(values), max(values)) if values else (2.0, 4.0)
    margin = max(0.08 * (high - low), 0.1)
    return max(0.0, low - margin), high + margin


def _draw_excess(ax: Axes, at: Sequence[tuple[float, Series]], looks: Looks, ends: tuple[float, float]) -> None:
    """Logarithmic, bars of one standard error; what is not above zero is hollow at the lower edge."""
    at = [(x, s) for x, s in at if isfinite(s.excess)]
    error = {id(s): s.excess_error if isfinite(s.excess_error) else 0.0 for _, s in at}
    reached = [y for _, s in at for y in (s.excess, s.excess + error[id(s)]) if y > 0]
    low, high = (min(reached), max(reached)) if reached else (0.1, 1.0)
    room = max(high / low, 1.5) ** 0.1
    bottom = low / room
    scale(ax, np.array(ends), bottom, high * room)
    for x, s in at:
        shape, color = looks[s.method]
        y, top = max(s.excess, bottom), max(s.excess + error[id(s)], bottom)
        ax.plot([x, x], [max(s.excess - error[id(s)], bottom), top], color=color, linewidth=1, zorder=2)
        ax.plot(x, y, shape, color=color, markerfacecolor=color if s.excess > 0 else "none", markersize=6.5, zorder=3,
                clip_on=s.excess > 0)  # fmt: skip


def _draw_course(ax: Axes, drawn: Sequence[Series], looks: Looks, ends: tuple[float, float]) -> None:
    """From the hollow marker, where training began, to the filled one; the controls' ends dashed."""
    for y in sorted({round(s.mean(lambda c: c.nats_control), 9) for s in drawn}):  # means of equals differ by rounding
        if isfinite(y):
            ax.axhline(y, color=GREY, linewidth=1, linestyle=_DASHES, zorder=1)
    ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for s in drawn:
        (shape, color), start, end = looks[s.method], s.mean(lambda c: c.nats_start), s.mean(lambda c: c.nats)
        if not isfinite(end):
            continue
        if isfinite(start):
            ax.plot([s.bpw, s.bpw], [start, end], color=color, linewidth=0.9, linestyle=_DOTS, zorder=2)
            ax.plot(s.bpw, start, shape, color=color, markerfacecolor="white", markersize=6.5, zorder=3)
        bar = s.nats_error if isfinite(s.nats_error) else 0.0
        ax.errorbar(s.bpw, end, bar, color=color, marker=shape, markersize=6.5, linewidth=1, zorder=3)
    ax.set_xlim(ends)


def _calibrated(ax: Axes, coded: Sequence[tuple[float, Series]]) -> None:
    """A line from QLoRA's codes to those of IR-QLoRA, which are calibrated, at every width that has one of each."""
    for bits in sorted({s.bits for _, s in coded if isfinite(s.bits)}):
        pair = [[(x, s.excess) for x, s in coded if (s.method, s.bits) == (method, bits) and s.excess > 0]
                for method in ("qlora", "ir-qlora")]  # fmt: skip
        if all(len(found) == 1 for found in pair):
            ax.plot(*zip(*(found[0] for found in pair), strict=True), color=GREY, linewidth=1, zorder=1)


def draw_forgetting(forgetting: Forgetting) -> Figure:
    """Nats gained on one text and forgotten of the other; a thin line leads to the control, a cross."""
    looks = looks_of(sorted({k.method for k in forgetting.drawn}))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES * 0.6, 4.8))
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for k in forgetting.drawn:
            _kept(ax, k, looks[k.method])
        for line in (ax.axhline, ax.axvline):
            line(0, color=INK, linewidth=0.8, zorder=1)
        ax.set_xlabel("nats gained on the evaluation text", fontsize=10, color=INK)
        ax.set_title(f"nats forgotten of {forgetting.text}", loc="left", fontsize=10, color=INK)
        handles = _handles(looks)
        handles.append(Line2D([], [], linestyle="none", marker="x", color=GREY, label="control"))
        figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return figure


def _kept(ax: Axes, kept: Kept, look: tuple[str, str]) -> None:
    (shape, color), x, y = look, kept.mean("gained_nats"), kept.mean("forgotten_nats")
    control = kept.mean("gained_control_nats"), kept.mean("forgotten_control_nats")
    if all(map(isfinite, control)):
        ax.plot([control[0], x], [control[1], y], color=color, linewidth=0.8, zorder=2)
        ax.plot(*control, "x", color=GREY, markersize=7, zorder=3)
    ax.errorbar(x, y, kept.error("forgotten_nats"), kept.error("gained_nats"), color=color, marker=shape,
                markersize=6.5, linewidth=1, zorder=4)  # fmt: skip
    ax.annotate(kept.label, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8, color=INK)


def draw_memory(held: Held) -> Figure:
    """A bar of parts for each training; a line at the peak, a diamond at the predicted one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 1.5 + 0.34 * len(held.trainings)))
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for y, training in enumerate(held.trainings):
            _bar(ax, y, training, held.unit[1])
        ax.set(yticks=range(len(held.trainings)), yticklabels=[one.label for one in held.trainings])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(left=0)
        ax.set_xlabel(held.unit[0], fontsize=10, color=INK)
        figure.legend(handles=_memory_handles(held), loc="outside upper left", ncols=8, frameon=False, fontsize=9)
        return figure


def _bar(ax: Axes, y: int, training: Training, unit: int) -> None:
    """What is predicted alone is pale; paged states, which are not resident, are hatched."""
    row = training.drawn
    left = 0.0
    for part, color in _PART_COLORS.items():
        size = getattr(row, part) / unit
        away = part == "states" and row.paged
        ax.barh(y, size, left=left, height=0.62, color="white" if away else color, edgecolor=color,
                hatch="////" if away else None, linewidth=0.6, alpha=1.0 if training.measured else 0.45)  # fmt: skip
        left += size
    if training.measured is not None:
        ax.plot([training.measured.peak / unit] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=2, zorder=3)
    if training.predicted is not None:
        ax.plot(training.predicted.peak / unit, y, "D", color=INK, markerfacecolor="white", markersize=6, zorder=4,
                clip_on=False)  # fmt: skip


def _memory_handles(held: Held) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [Patch(color=color, label=part) for part, color in _PART_COLORS.items()]
    if any(one.drawn.paged for one in held.trainings):
        handles.append(Patch(facecolor="white", edgecolor=_PART_COLORS["states"], hatch="////", label="paged out"))
    if any(one.measured is not None for one in held.trainings):
        handles.append(Line2D([], [], color=INK, linewidth=2, label="peak, measured"))
    if any(one.predicted is not None for one in held.trainings):
        handles.append(Line2D([], [], linestyle="none", marker="D", color=INK, markerfacecolor="white",
                              label="peak, predicted"))  # fmt: skip
    return handles
