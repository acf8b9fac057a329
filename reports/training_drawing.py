"""How trained cells look over their bits: excess over the control, distance that weights went, codes that turn."""

from collections.abc import Callable, Sequence
from math import isfinite

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.drawing import COLORS, GREY, INK, STYLE, scale
from reports.entropy_drawing import WIDE_INCHES
from reports.training import UNTRAINED, Cell, Trained
from reports.training_verdicts import ADJUSTED, REBUILT

_LOOKS = {
    "lsq": ("o", COLORS[0]), "paretoq": ("s", COLORS[1]), "bitnet": ("D", COLORS[3]), "bitnet-tuned": ("d", COLORS[3]),
    "bitdistiller": ("^", COLORS[2]), "zeroqat": ("v", COLORS[4]),
}  # fmt: skip
_LEFT = (("P", COLORS[7]), ("X", COLORS[6]), ("<", COLORS[8]), (">", COLORS[10]))
_UNTRAINED = dict(zip(UNTRAINED, (("*", GREY), ("h", GREY)), strict=True))
Looks = dict[str, tuple[str, str]]  # shape and color by method
_DASHES, _DOTS = (0, (5, 2)), (0, (1, 1.5))
_BETWEEN = 2.5  # bits: the claim is about 3 and more, and 2 and fewer


def looks_of(methods: Sequence[str]) -> Looks:
    """Shape and color of methods; those without looks of their own get what is left, in order."""
    others = [method for method in methods if method not in _LOOKS]
    left = {method: _LEFT[k % len(_LEFT)] for k, method in enumerate(others)}
    return {method: _LOOKS.get(method) or left[method] for method in methods}


def draw_trained(trained: Trained) -> Figure:
    """Three panels over the same true bits per weight."""
    looks = looks_of(trained.methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 4.8))
        FigureCanvasAgg(figure)
        excess, distance, turns = figure.subplots(1, 3)
        ends = _ends(trained)
        _draw_excess(excess, trained, looks, ends)
        _draw_distance(distance, trained, looks, ends)
        _draw_turning(turns, trained, looks, ends)
        titles = ("loss over the reference, nats", "weights moved, ‖W′−W‖ / ‖W‖, %", "codes turning, %")
        for ax, title in zip((excess, distance, turns), titles, strict=True):
            ax.set_title(title, loc="left", fontsize=10, color=INK)
        figure.supxlabel("true bits per weight, everything stored counted", fontsize=10, color=INK)
        figure.legend(handles=_handles(trained, looks), loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return figure


def _ends(trained: Trained) -> tuple[float, float]:
    """The bits from where to where all panels go."""
    every = (*(cell.excess for cell in trained.cells), *trained.untrained)
    bpw = [e.bpw for e in every if isfinite(e.bpw)] or [_BETWEEN]
    margin = max(0.08 * (max(bpw) - min(bpw)), 0.25)
    return max(0.0, min(bpw) - margin), max(bpw) + margin


def _draw_excess(ax: Axes, trained: Trained, looks: Looks, ends: tuple[float, float]) -> None:
    """Bars of one standard error; what is not above zero is hollow at the lower edge, under the end of its bar."""
    drawn = [(c.excess, looks[c.record.method]) for c in trained.cells]
    drawn += [(e, _UNTRAINED[e.record.method]) for e in trained.untrained]
    drawn = [(e, look) for e, look in drawn if isfinite(e.bpw) and isfinite(e.nats)]
    errors = {id(e): e.error if isfinite(e.error) else 0.0 for e, _ in drawn}
    reached = [y for e, _ in drawn for y in (e.nats, e.nats + errors[id(e)]) if y > 0]
    bottom = _log_axis(ax, reached, ends)
    for e, (shape, color) in drawn:
        y, error = max(e.nats, bottom), errors[id(e)]
        top = max(e.nats + error, y)
        ax.plot([e.bpw, e.bpw], [max(e.nats - error, bottom), top], color=color, linewidth=1, zorder=2)
        face = color if e.nats > 0 else "none"
        ax.plot(e.bpw, y, shape, color=color, markerfacecolor=face, markersize=6.5, zorder=3, clip_on=e.nats > 0)


def _log_axis(ax: Axes, reached: Sequence[float], ends: tuple[float, float]) -> float:
    """A logarithmic axis that has room around what it reaches, positive numbers; returns its lower end."""
    low, high = (min(reached), max(reached)) if reached else (0.1, 1.0)
    room = max(high / low, 1.5) ** 0.1
    scale(ax, np.array(ends), low / room, high * room)
    return low / room


def _draw_distance(ax: Axes, trained: Trained, looks: Looks, ends: tuple[float, float]) -> None:
    """Logarithmic; a control's as a dashed line, of its method's color where it is of one method alone."""
    controls: dict[float, set[str]] = {}
    for c in trained.cells:
        if isfinite(c.distance_control) and c.distance_control > 0:
            controls.setdefault(100 * c.distance_control, set()).add(c.record.method)
    reached = [100 * c.distance for c in trained.cells if c.distance > 0]
    low, high = (100 * share for share in ADJUSTED)
    bottom = _log_axis(ax, [*reached, *controls, low, 100 * REBUILT], ends)
    for y, methods in sorted(controls.items()):
        color = looks[min(methods)][1] if len(methods) == 1 else GREY
        ax.axhline(y, color=color, linewidth=1, linestyle=_DASHES, zorder=1.5)
    if ends[1] > _BETWEEN:
        ax.fill_between([max(ends[0], _BETWEEN), ends[1]], low, high, color="#dedede", linewidth=0, zorder=0.5)
    if ends[0] < _BETWEEN:
        ax.plot([ends[0], min(ends[1], _BETWEEN)], [100 * REBUILT] * 2, color=INK, linewidth=1, linestyle=_DOTS)
    _lines(ax, trained, looks, lambda c: 100 * c.distance, bottom)


def _draw_turning(ax: Axes, trained: Trained, looks: Looks, ends: tuple[float, float]) -> None:
    _lines(ax, trained, looks, lambda c: 100 * c.turning, 0.0)
    top = max((100 * c.turning for c in trained.cells if isfinite(c.turning)), default=0.0)
    ax.set(xlim=ends, ylim=(0, 1.1 * top if top > 0 else 1.0))


def _lines(ax: Axes, trained: Trained, looks: Looks, value: Callable[[Cell], float], bottom: float) -> None:
    """Markers, joined within a method that has one cell of a width; what lies below is at the bottom, hollow."""
    for method, (shape, color) in looks.items():
        own = sorted((c for c in trained.cells if c.record.method == method and isfinite(c.excess.bpw)
                      and isfinite(value(c))), key=lambda c: c.excess.bpw)  # fmt: skip
        x, y = [c.excess.bpw for c in own], [max(value(c), bottom) for c in own]
        if len({c.record.bits for c in own}) == len(own):
            ax.plot(x, y, color=color, linewidth=0.9, zorder=2)
        for c, at, height in zip(own, x, y, strict=True):
            face = color if value(c) >= bottom else "none"
            ax.plot(at, height, shape, color=color, markerfacecolor=face, markersize=6.5, zorder=3, clip_on=False)


def _handles(trained: Trained, looks: Looks) -> list[Line2D]:
    there = {e.record.method for e in trained.untrained}
    shown = looks | {method: look for method, look in _UNTRAINED.items() if method in there}
    handles = [Line2D([], [], linestyle="none", marker=shape, color=color,
                      label=method if method in looks else f"{method}, over the original")
               for method, (shape, color) in shown.items()]  # fmt: skip
    if any(isfinite(c.distance_control) and c.distance_control > 0 for c in trained.cells):
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=_DASHES, label="a control"))
    handles.append(Line2D([], [], color="#dedede", linewidth=7, label="claimed from 3 bits on"))
    handles.append(Line2D([], [], color=INK, linewidth=1, linestyle=_DOTS, label="claimed up to 2 bits"))
    return handles


def unmoved(cells: Sequence[Cell]) -> list[str]:
    """The cells that have no place in the panel of distances."""
    return [c.excess.label for c in cells if not isfinite(c.distance)]
