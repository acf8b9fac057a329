"""How the figures of the page of coordinates look: small multiples of lines over layers, doses, alphas and fractions.

Colors and shapes belong to what they stand for: coordinates and the methods whose they are keep theirs.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from reports.coordinates import (
    FIGURES,
    TENSORS,
    Curve,
    Doses,
    Measured,
    both,
    kind_of,
    optimum,
    place,
    shares,
)
from reports.drawing import COLORS, GREY, INK, STYLE, draw_front, draw_marks, label_front, plain_number
from reports.entropy_drawing import WIDE_INCHES
from reports.frontier import Mark

_LOOKS = {
    "none": ("o", INK), "rtn": ("o", INK), "smoothquant": ("s", COLORS[4]), "hadamard": ("^", COLORS[0]),
    "quarot": ("D", COLORS[0]), "orthogonal": ("v", GREY), "spinquant": ("P", COLORS[1]),
    "duquant": ("X", COLORS[2]), "expansion": ("<", COLORS[3]), "qronos": (">", COLORS[6]),
}  # fmt: skip
_LEFT = ("p", "h", "*", "d", "8")
_TITLES = {
    "kurtosis": "kurtosis (a Gaussian has 3)", "max_to_median": "max to median of channels",
    "incoherence": "incoherence μ", "dynamic_range": "dynamic range of rows",
}  # fmt: skip
_RANGES = (("inputs", COLORS[0]), ("weights", COLORS[1]), ("both", INK))
_CRITERIA = (("s", COLORS[0]), ("D", COLORS[1]), ("^", COLORS[2]), ("v", COLORS[3]), ("o", COLORS[4]))


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Shape and color of coordinates and methods; those without looks of their own get what is left, in order."""
    others = [name for name in names if name not in _LOOKS]
    left = {name: (_LEFT[k % len(_LEFT)], COLORS[(5 + k) % len(COLORS)]) for k, name in enumerate(others)}
    return {name: _LOOKS.get(name) or left[name] for name in names}


def draw_layers(found: Measured) -> Figure:
    """A row for inputs and one for weights, a column for each figure: lines over blocks, kind of layer after kind.

    Rings are around inputs with normal outliers, squares around those with massive ones.
    """
    looks = looks_of(found.coordinates)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 5.6))
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(TENSORS), len(FIGURES), squeeze=False)
        for tensor, row in zip(TENSORS, grid, strict=True):
            layers = found.layers(tensor)
            kinds = list(dict.fromkeys(kind_of(layer) for layer in layers))
            order = np.array(sorted(range(len(layers)), key=lambda k: kinds.index(kind_of(layers[k]))), dtype=int)
            at = np.arange(len(layers)) + np.array([kinds.index(kind_of(layers[k])) for k in order])  # with gaps
            for name, ax in zip(FIGURES, row, strict=True):
                for coordinates, (shape, color) in looks.items():
                    y = found.figures(coordinates, tensor, name)[order] + (3 if name == "kurtosis" else 0)
                    y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
                    for kind in kinds:
                        own = [k for k, layer in enumerate(order) if kind_of(layers[layer]) == kind]
                        ax.plot(at[own], y[own], marker=shape, markersize=3.6, linewidth=0.8, color=color)
                    if tensor == "inputs" and name == "max_to_median":
                        _ring(ax, found, coordinates, order, at, y)
                places = [at[[kind_of(layers[k]) == kind for k in order]] for kind in kinds]
                ax.set_xticks([p.mean() for p in places], [kind.removesuffix("_proj") for kind in kinds])
                ax.tick_params(axis="x", length=0)
                ax.grid(visible=False, axis="x")
                _log(ax, "y")
                ax.set_title(f"{tensor}: {_TITLES[name]}", loc="left", fontsize=9.5, color=INK)
        figure.supxlabel("layer, the blocks of each kind from left to right", fontsize=10, color=INK)
        handles = [Line2D([], [], marker=m, color=c, label=name) for name, (m, c) in looks.items()]
        handles += [Line2D([], [], linestyle="none", marker=m, color=INK, markerfacecolor="none", markersize=9,
                           label=f"{kind} outliers") for kind, m in (("normal", "o"), ("massive", "s"))]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=9, frameon=False, fontsize=9)
        return figure


def _ring(ax: Axes, found: Measured, coordinates: str, order: np.ndarray, at: np.ndarray, y: np.ndarray) -> None:
    for kind, marker in (("normal", "o"), ("massive", "s")):
        there = found.figures(coordinates, "inputs", kind)[order] > 0
        ax.plot(at[there], y[there], marker, color=INK, markerfacecolor="none", markersize=8, zorder=4)


def _log(ax: Axes, axis: str) -> None:
    """A logarithmic axis with plain numbers, as many as there is room for."""
    of = ax.yaxis if axis == "y" else ax.xaxis
    ax.set(**{f"{axis}scale": "log"})
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    if high / low < 12:
        of.set_major_locator(MaxNLocator(4))
    else:
        of.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,), numticks=8))
    of.set_minor_locator(NullLocator())
    of.set_major_formatter(FuncFormatter(lambda x, _: plain_number(x)))


def draw_doses(doses: Doses) -> Figure:
    """A row for each width, a column for each kind of outliers: KL against the dose, a line for each method."""
    looks = looks_of(list(dict.fromkeys(c.method for c in sorted(doses.curves, key=_in_order))))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 2.9 * len(doses.widths) + 0.8))
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(doses.widths), len(doses.kinds), sharex=True, sharey="row", squeeze=False)
        for width, row in zip(doses.widths, grid, strict=True):
            for kind, ax in zip(doses.kinds, row, strict=True):
                for curve in (c for c in doses.curves if c.width == width):
                    _dose_line(ax, curve, kind, looks[curve.method])
                ax.set_xscale("log", base=2)
                ax.set_title(f"{width}, {_KIND_TITLES[kind]}", loc="left", fontsize=10, color=INK)
            _log(row[0], "y")
        factors = sorted({d.factor for c in doses.curves for d in c.doses})
        grid[0, 0].set_xticks(factors, [str(f) for f in factors])
        grid[0, 0].xaxis.set_minor_locator(NullLocator())
        figure.supxlabel("size of the outliers, times what the channels were", fontsize=10, color=INK)
        figure.supylabel("KL from the unquantized model (nats)", fontsize=10, color=INK)
        handles = [Line2D([], [], marker=m, color=c, label=_METHOD_TITLES.get(name, name))
                   for name, (m, c) in looks.items()]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9)
        return figure


_KIND_TITLES = {"norm": "behind norms", "linear": "behind linear layers", "both": "both"}
_METHOD_TITLES = {"rtn": "rtn (plain rounding)"}


def _in_order(curve: Curve) -> tuple[int, str]:
    known = list(_LOOKS)
    return known.index(curve.method) if curve.method in known else len(known), curve.method


def _dose_line(ax: Axes, curve: Curve, kind: str, look: tuple[str, str]) -> None:
    found = [d for d in curve.of(kind) if d.kl > 0]
    x, y = [d.factor for d in found], np.array([d.kl for d in found])
    error = np.array([d.error for d in found])
    reach = [np.minimum(error, 0.999 * y), error]  # a logarithm has no zero to reach
    ax.errorbar(x, y, reach if len(x) else None, marker=look[0], color=look[1], markersize=5.5, linewidth=1,
                elinewidth=1, capsize=2.5)  # fmt: skip


def draw_smoothing(found: Measured) -> Figure:
    """A column for each kind of site: ranges above, the output error below, over alpha; a line for each block."""
    kinds = list(dict.fromkeys(kind_of(layer) for layer in found.sites))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 5.4))
        FigureCanvasAgg(figure)
        grid = figure.subplots(2, len(kinds), sharex=True, squeeze=False)
        for kind, (above, below) in zip(kinds, grid.T, strict=True):
            for rows in (rows for layer, rows in found.sites.items() if kind_of(layer) == kind):
                alphas = [r.alpha for r in rows]
                for name, color in _RANGES:
                    values = [both(r) if name == "both" else getattr(r, name) for r in rows]
                    above.plot(alphas, np.array(values, dtype=float), color=color, linewidth=0.9)
                below.plot(alphas, np.array([r.error for r in rows], dtype=float), color=COLORS[2], linewidth=0.9)
                for ax, value, color in ((above, both, INK), (below, lambda r: r.error, COLORS[2])):
                    if (best := optimum(rows, value)) is not None:
                        at = next(r for r in rows if r.alpha == best[0])
                        ax.plot(at.alpha, value(at), "o", color=color, markersize=5,
                                markerfacecolor=color if best[1] else "white")  # fmt: skip
            above.set_title(f"input of {kind}", loc="left", fontsize=10, color=INK)
            for ax in (above, below):
                _log(ax, "y")
        grid[0, 0].set_ylabel("largest over mean |x| of a row")
        grid[1, 0].set_ylabel("output error, relative")
        figure.supxlabel("SmoothQuant's alpha", fontsize=10, color=INK)
        names = {"inputs": "range of inputs", "weights": "range of weights", "both": "of both, root of squares' sum"}
        handles = [Line2D([], [], color=color, label=names[name]) for name, color in _RANGES]
        handles.append(Line2D([], [], color=COLORS[2], label="output error"))
        handles += [Line2D([], [], linestyle="none", marker="o", color=INK, label=label, markerfacecolor=face)
                    for label, face in (("least, inside", INK), ("least, at an end", "white"))]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return figure


def draw_salience(found: Measured, shown: Sequence[str]) -> Figure:
    """A row for each of the coordinates `shown`, a column for each kind of layer: captured share against fraction."""
    kinds = list(dict.fromkeys(kind_of(layer) for layer in sorted({r.layer for r in found.salience}, key=place)))
    criteria = list(dict.fromkeys(r.criterion for r in sorted(found.salience, key=lambda r: r.criterion)))
    looks = {c: _CRITERIA[k % len(_CRITERIA)] for k, c in enumerate(criteria)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 2.3 * len(shown) + 0.9))
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(shown), len(kinds), sharex=True, sharey=True, squeeze=False)
        for coordinates, row in zip(shown, grid, strict=True):
            for kind, ax in zip(kinds, row, strict=True):
                own = [r for r in found.salience if r.coordinates == coordinates and kind_of(r.layer) == kind]
                for criterion, (shape, color) in looks.items():
                    points = shares(r for r in own if r.criterion == criterion)
                    x, y = 100 * np.array(list(points)), 100 * np.array(list(points.values()))
                    ax.plot(x, y, marker=shape, color=color, markersize=4, linewidth=1)
                ax.set_xscale("log")
                ax.xaxis.set_minor_locator(NullLocator())
                ax.set_title(f"{kind}, {coordinates}", loc="left", fontsize=9, color=INK)
        ticks = (0.1, 1.0, 10.0)
        grid[0, 0].set_xticks(ticks, [f"{t:g}" for t in ticks])
        figure.supxlabel("weights or channels kept as they are (%)", fontsize=10, color=INK)
        figure.supylabel("output error captured (%)", fontsize=10, color=INK)
        handles = [Line2D([], [], marker=m, color=c, label=name) for name, (m, c) in looks.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return figure


def draw_caches(marks: Sequence[Mark]) -> Figure:
    """KL against the bytes of the cache, by which `marks` are placed, with the front of the two."""
    drawn = [m for m in marks if np.isfinite(m.bpw) and np.isfinite(m.value)]
    reached = [y for m in drawn for y in (m.value + m.error, max(m.value - m.error, m.value / 3)) if y > 0]
    low, high = (min(reached), max(reached)) if reached else (0.1, 1.0)
    room = max(high / low, 1.02) ** 0.08
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 5.0))
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        draw_marks(ax, drawn, "kl", low / room, "cache_bytes")
        draw_front(ax, drawn, low / room)
        ax.set(ylim=(low / room, high * room), xlabel="cache after one row of the evaluation (KiB)",
               ylabel="KL from the unquantized model (nats)")  # fmt: skip
        _log(ax, "y")
        low_kib, high_kib = (x / 2**10 for x in ax.get_xlim())
        ticks = [t for t in MaxNLocator(8).tick_values(low_kib, high_kib) if low_kib <= t <= high_kib]
        ax.set_xticks([2**10 * t for t in ticks], [f"{t:g}" for t in ticks])
        figure.legend(loc="outside right upper", ncols=1, frameon=False, fontsize=8.5)
        label_front(ax, drawn, low / room)
        return figure
