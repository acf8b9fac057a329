"""How an experiment's figure looks: what is predicted as lines, what is measured as marks with their intervals."""

import textwrap

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator

from reports.drawing import COLORS, INK, STYLE, plain_number
from theory.experiment import Experiment, Point

_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES: tuple = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_INCHES = 6.6
_LEGEND_COLUMNS = 2
_MOST_LABELS = 18
_LABEL = 46  # characters of an axis label that fit the figure's height
_LONG = 34  # characters of a legend's entry, above which there is one to a line


def draw_experiment(experiment: Experiment, points: list[Point]) -> Figure:
    """Series in the order they come in; what is before a colon in their names gives them one color.

    Of very many series those of one color share a line of the legend.
    """
    series = list(dict.fromkeys((point.series, point.predicted) for point in points))
    names = list(dict.fromkeys(name.split(":")[0] for name, _ in series))
    columns = _LEGEND_COLUMNS if max(len(name) for name, _ in series) <= _LONG else 1
    with matplotlib.rc_context(STYLE):
        lines = len(names) if len(series) > _MOST_LABELS else len(series)
        figure = Figure(figsize=(_INCHES, 3.9 + 0.2 * -(-lines // columns)))
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        for name, predicted in series:
            own = [p for p in points if (p.series, p.predicted) == (name, predicted)]
            (_line if predicted else _marks)(ax, name, own, names.index(name.split(":")[0]))
        ax.set(xlabel=experiment.x, ylabel=textwrap.fill(experiment.y, _LABEL))
        for letter in experiment.log:
            ax.set(**{f"{letter}scale": "log"})
            _plain(ax.xaxis if letter == "x" else ax.yaxis, [p.x if letter == "x" else p.y for p in points])
        handles, labels = ax.get_legend_handles_labels()
        if len(labels) > _MOST_LABELS:
            named = {label.split(":")[0]: handle for handle, label in reversed([*zip(handles, labels, strict=True)])}
            labels, handles = [*reversed(named)], [*reversed(named.values())]
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
        return figure


def _line(ax: Axes, name: str, points: list[Point], k: int) -> None:
    points = sorted(points, key=lambda p: p.x)
    color = COLORS[k % len(COLORS)]
    if len(points) == 1:  # a level
        ax.axhline(points[0].y, color=INK, linewidth=1.1, linestyle=_DASHES[k % len(_DASHES)], label=name, zorder=1.5)
        return
    ax.plot([p.x for p in points], [p.y for p in points], color=color, linewidth=1.2,
            linestyle=_DASHES[k % len(_DASHES)], label=name, zorder=1.5)  # fmt: skip


def _marks(ax: Axes, name: str, points: list[Point], k: int) -> None:
    below = [p.y - (p.y if p.low is None else p.low) for p in points]
    above = [(p.y if p.high is None else p.high) - p.y for p in points]
    bars = [[max(0.0, x) for x in below], [max(0.0, x) for x in above]] if any((*below, *above)) else None
    shape = _SHAPES[(k + k // len(COLORS)) % len(_SHAPES)]
    ax.errorbar([p.x for p in points], [p.y for p in points], yerr=bars, color=COLORS[k % len(COLORS)], label=name,
                marker=shape, markersize=4.5, linestyle=":" if len(points) < 40 else "", linewidth=0.8,
                elinewidth=0.9, zorder=2.5)  # fmt: skip


def _plain(axis: Axis, values: list[float]) -> None:
    """Plain numbers on a logarithmic axis, as many as fit."""
    shown = [value for value in values if value > 0]
    decades = max(shown) / min(shown) if shown else 1.0
    if decades < 3:  # less than a decade has no powers of ten to mark
        axis.set_major_locator(AutoLocator())
    elif decades < 1e6:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 60 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    if decades < 1e6:
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
