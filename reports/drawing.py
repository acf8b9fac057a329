"""How figures look: one logarithmic chart of error against bits, readable without color.

Every marker has its method's shape and its family's color, and those that matter are filled: on figures of quality the
Pareto front, whose hollow rest is beaten by points that need no more bits; on figures of weight and output error the
methods that the limit is about. Written bytes depend on what is drawn only: no date, no random identifiers,
matplotlib's own fonts.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from reports.frontier import DATA_FREE, FAMILIES, FEEDBACK, Mark

INK, GREY = "#222222", "#767676"
# Okabe and Ito (2008), which the color-blind can tell apart, the three light ones darkened to show on white, and a dark
# red, a violet, an olive, a grey and a teal
COLORS = (
    "#0072b2", "#d55e00", "#00795a", "#b0578d", "#a36b00", "#222222", "#8b1a1a", "#5b3a99", "#5f6b00", "#767676",
    "#00838f", "#c2185b",
)  # fmt: skip
_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "pdf.fonttype": 42,  # outlines that editors can search
    "svg.fonttype": "none",
    "svg.hashsalt": "bitfrontier",
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}
_LEGEND_COLUMNS = 4
_BACKING = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # keeps lines off a label
QUALITY = ("kl", "ppl")  # what the front is drawn for
_LABELS = {
    "kl": "KL from the unquantized model (nats)",
    "ppl": "perplexity",
    "nmse": "weight error, ‖W − Q‖² / ‖W‖²",
    "hnmse": "output error, tr((W−Q) H (W−Q)ᵀ) / tr(W H Wᵀ)",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A reference line: its name in legend and table, its dash pattern, and distortion as a function of bits."""

    name: str
    dashes: str | tuple
    at: Callable[[np.ndarray], np.ndarray]


def span(drawn: list[Mark]) -> tuple[float, float]:
    """The range of bits to show: room on the left for the label of the first point."""
    low, high = min(m.bpw for m in drawn), max(m.bpw for m in drawn)
    margin = max(0.12 * (high - low), 0.5)
    return max(0.0, low - margin), high + margin / 2


def draw(
    field: str, drawn: list[Mark], curves: Sequence[Curve], rates: np.ndarray, beside: str | None = None
) -> Figure:
    """Marks with error bars, their front as a staircase, and reference lines at `rates`; the axes cover the marks.

    From every mark a thin line leads to its bits as the records' field `beside` has them.
    """
    bpw = np.array([m.bpw for m in drawn])
    reached = [y for m in drawn for y in (m.value + m.error, max(m.value - m.error, m.value / 3))]
    shown = [y for y in (*reached, *(y for c in curves for y in c.at(bpw))) if y > 0]
    low, high = (min(shown), max(shown)) if shown else (0.1, 1.0)
    room = max(high / low, 1.02) ** 0.08
    bottom = low / room
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-(len({m.point.method for m in drawn}) + len(curves) + 1) // _LEGEND_COLUMNS)
        figure = Figure(figsize=(6.6, 4.1 + 0.2 * legend_rows))
        FigureCanvasAgg(figure)  # measures the labels
        ax = figure.add_subplot()
        scale(ax, rates, bottom, high * room)
        ax.set(xlabel="true bits per weight, everything stored counted", ylabel=_LABELS[field])
        draw_marks(ax, drawn, field, bottom, beside=beside)
        if field in QUALITY:
            draw_front(ax, drawn, bottom)
        for c in curves:
            ax.plot(rates, c.at(rates), color=INK, linewidth=1.2, linestyle=c.dashes, label=c.name, zorder=1)
        figure.legend(loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8.5)
        if field in QUALITY:
            label_front(ax, drawn, bottom)
        return figure


def scale(ax: Axes, rates: np.ndarray, bottom: float, top: float) -> None:
    """The axes: bits from the first to the last of `rates`, and a logarithm with plain numbers."""
    ax.set(yscale="log", xlim=(rates[0], rates[-1]), ylim=(bottom, top))
    if top / bottom < 3:  # less than a decade has no powers of ten to mark
        ax.yaxis.set_major_locator(AutoLocator())
    else:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top / bottom < 60 else (1,), numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain_number(y)))


def plain_number(y: float) -> str:
    """A tick's label: plain decimals near 1, else a power of ten in superscript figures."""
    exponent = int(np.floor(np.log10(y) + 1e-9)) if y > 0 else 0
    if -3 <= exponent <= 5:
        return f"{y:g}"
    digits = f"{y / 10.0**exponent:.3g}"
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Shape and color of every method, the same in every report: families by color, their members by shape.

    Methods of no family come last, in alphabetical order, with what looks are left, over again if they are too many.
    """
    looks = {m: (_SHAPES[i], color) for family, color in zip(FAMILIES.values(), COLORS, strict=True)
             for i, m in enumerate(family)}  # fmt: skip
    left = (look for color in reversed(COLORS) for shape in _SHAPES if (look := (shape, color)) not in looks.values())
    return looks | dict(zip(sorted(set(methods) - set(looks)), cycle(list(left)), strict=False))


def draw_marks(
    ax: Axes, drawn: list[Mark], field: str, bottom: float, rate: str = "bpw", beside: str | None = None
) -> None:
    """Every point with its error bar and its seeds, which lie at their `rate`, and a legend entry for each method."""
    looks = _looks(m.point.method for m in drawn)
    for m in drawn:
        shape, color = looks[m.point.method]
        strong = _matters(m, field)
        y, alpha = max(m.value, bottom), 1.0 if strong else 0.55
        if m.error and m.value > 0:
            reach = [[min(m.error, m.value * 0.999)], [m.error]]  # a logarithm has no zero to reach
            ax.errorbar(m.bpw, y, reach, fmt="none", ecolor=color, elinewidth=1, capsize=2.5, alpha=alpha, zorder=2)
        if len(m.point.records) > 1:
            seeds = m.point.values(rate), m.point.values(field)
            ax.plot(*seeds, "_", color=color, markersize=7, alpha=alpha, zorder=2)
        if beside is not None and np.isfinite(other := m.point.mean(beside)):
            ax.plot([other, m.bpw], [y, y], "-", marker="|", markersize=5, color=color, linewidth=0.8, zorder=2)
        face = color if strong else "none"
        ax.plot(m.bpw, y, shape, color=color, markerfacecolor=face, markersize=6.5, alpha=alpha, zorder=3,
                clip_on=m.value > 0)  # fmt: skip
    for method in sorted({m.point.method for m in drawn}, key=list(looks).index):
        ax.plot([], [], looks[method][0], color=looks[method][1], markersize=6.5, label=method)


def _matters(m: Mark, field: str) -> bool:
    if field in QUALITY:
        return m.front
    return m.point.method in (DATA_FREE if field == "nmse" else FEEDBACK)


def draw_front(ax: Axes, drawn: list[Mark], bottom: float, name: str = "Pareto front", color: str = GREY,
               dashes: str | tuple = "-") -> None:  # fmt: skip
    """The front as a staircase: between two points, what the fewer bits reach is what can be had."""
    steps = np.array(sorted((m.bpw, max(m.value, bottom)) for m in drawn if m.front)).reshape(-1, 2)
    ax.plot(*steps.T, color=color, linewidth=1, linestyle=dashes, drawstyle="steps-post", zorder=1.5, label=name)


def label_front(ax: Axes, drawn: list[Mark], bottom: float) -> None:
    """Names below and left of the points on the front, where no other point can be; none over another."""
    texts = []
    for m in sorted((m for m in drawn if m.front), key=lambda m: m.bpw):
        at = (m.bpw, max(m.value, bottom))
        style = {"ha": "right", "va": "top", "fontsize": 8.5, "bbox": _BACKING}
        texts.append(ax.annotate(label(m), at, (-7, -4), textcoords="offset points", **style))
        texts[-1].set_in_layout(False)
    ax.figure.draw_without_rendering()
    taken: list[Bbox] = []
    for text in texts:
        box = text.get_window_extent()
        if box.x0 < ax.bbox.x0 or box.y0 < ax.bbox.y0 or any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def label(m: Mark) -> str:
    """The method and its nominal bits, as written beside a point."""
    return m.point.method if m.point.bits is None else f"{m.point.method} {m.point.bits:g}"


def save(figure: Figure, kind: str, metadata: dict, **options: float) -> bytes:
    """The bytes of a figure in one of matplotlib's formats."""
    buffer = io.BytesIO()
    # saving takes a figure's layout away and puts the default back where there was none
    with matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()
