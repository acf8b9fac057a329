"""How a claim's evidence looks: a line for every quantity, with its interval, the seeds' values and the rule's margin.

Quantities have nothing in common but that, so every line has a scale of its own.
"""

import math
import textwrap

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports.claims import Quantity
from reports.drawing import COLORS, GREY, INK, STYLE

_INCHES, _LINE, _BESIDE = 8.2, 0.46, 0.35
_NAME, _SIDE = 46, 4.6  # characters of a line of a name; how far left of the scales names begin, in widths of scales
# how a comparison was answered: color, marker, word
_ANSWERS = {True: (COLORS[2], "o", "holds"), False: (COLORS[1], "X", "fails"), None: (GREY, "s", "open")}


def draw_evidence(quantities: tuple[Quantity, ...]) -> Figure:
    """A line for each of `quantities`, in their order; what cannot be drawn is said in its place."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_INCHES, _BESIDE + _LINE * len(quantities)))
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        ax.set(xlim=(-0.9, 1.75), ylim=(len(quantities) - 0.5, -0.5))
        ax.axis("off")
        for i, quantity in enumerate(quantities):
            _line(ax, i, quantity)
        return figure


def _line(ax: Axes, i: int, quantity: Quantity) -> None:
    ax.text(-0.02, i, textwrap.fill(quantity.name, _NAME), ha="right", va="center", fontsize=8, color=INK)
    ax.text(1.04, i, quantity.said, ha="left", va="center", fontsize=8, color=INK)
    ends = [x for x in (quantity.low, quantity.high, *quantity.values, *quantity.margins) if math.isfinite(x)]
    if not math.isfinite(quantity.mean) or not ends:
        return
    low, high = min(ends), max(ends)
    wide = (high - low) or abs(high) or 1.0

    def at(x: float) -> float:
        return min(1.0, max(0.0, 0.06 + 0.88 * ((x - low) / wide if high > low else 0.5)))

    ax.plot([0, 1], [i, i], color="#e6e6e6", linewidth=0.8, zorder=1)
    for margin in quantity.margins:
        ax.plot([at(margin)] * 2, [i - 0.33, i + 0.33], color=INK, linewidth=1.4, zorder=2)
    color, marker, _ = _ANSWERS[quantity.answer] if quantity.margins else (COLORS[0], "D", "")
    if math.isfinite(quantity.low) and math.isfinite(quantity.high):
        ax.plot([at(quantity.low), at(quantity.high)], [i, i], color=color, linewidth=2.2, zorder=3,
                solid_capstyle="butt")  # fmt: skip
    ax.plot([at(x) for x in quantity.values], [i] * len(quantity.values), "|", color=INK, markersize=5, zorder=4,
            markeredgewidth=0.7)  # fmt: skip
    ax.plot([at(quantity.mean)], [i], marker, color=color, markersize=6, zorder=5)
