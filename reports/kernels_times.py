"""The figure of a run on a GPU that shows times against rooflines, by rows.

The roofline of a call is what it must at least move, at the best bandwidth of the copies and reads of the same shape.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kernels.results import DENSE, Shape
from reports.drawing import COLORS, GREY, INK, STYLE, plain_number
from reports.entropy_drawing import WIDE_INCHES
from reports.figures import Plot
from reports.kernels import Row, ShapeTable

_CAPTION = (
    "Time of a call over the rows of activations that it multiplies, a panel for each kernel and its weights. Dotted: "
    "the roofline, what it must move over the best bandwidth of copies and reads; arithmetic, which decides with many "
    "rows, is not in it. Grey: the dense product in bfloat16, and thin lines are peers."
)
_PANELS = 4


@dataclass(frozen=True, slots=True)
class _Batches:
    """A kernel at weights (outputs, inputs): its rows of the tables by rows of activations, and others' by name."""

    kernel: str
    weights: str
    rows: Mapping[int, Row]
    beside: Mapping[str, Mapping[int, Row]]


def times_plot(tables: Sequence[ShapeTable], device: str) -> Plot | None:
    """Times over rows against their rooflines; None if no kernel was timed with several numbers of rows."""
    batches = list(_batches(tables))
    if not batches:
        return None
    with matplotlib.rc_context(STYLE):
        lines = -(-len(batches) // _PANELS)
        figure = Figure(figsize=(WIDE_INCHES, 2.2 * lines + 0.9))
        FigureCanvasAgg(figure)
        for k, one in enumerate(batches):
            _panel(figure.add_subplot(lines, _PANELS, k + 1), one)
        figure.supxlabel("rows of activations", fontsize=10, color=INK)
        figure.supylabel("microseconds", fontsize=10, color=INK)
        figure.legend(handles=_legend(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    words = [f"{one.kernel}, {one.weights}: " + ", ".join(
        f"{rows} rows {1e6 * row.timing.median_seconds:.3g} of {1e6 * (row.least_seconds or 0):.3g} at least"
        for rows, row in one.rows.items()) for one in batches]  # fmt: skip
    every = [(one, name, rows, row) for one in batches for name, found in ((one.kernel, one.rows), *one.beside.items())
             for rows, row in found.items()]  # fmt: skip
    return Plot(
        key="times", title="Time against the roofline, by rows", caption=_CAPTION,
        description=f"On {device}, microseconds. " + ". ".join(words) + ".",
        header=("panel", "name", "weights", "rows", "median (us)", "roofline (us)", "times the roofline"),
        rows=tuple((one.kernel, name, one.weights, str(rows), f"{1e6 * row.timing.median_seconds:.4g}",
                    *_least(row)) for one, name, rows, row in every),
        curves=(), figure=figure,
    )  # fmt: skip


def _least(row: Row) -> tuple[str, str]:
    if not row.least_seconds:
        return "–", "–"
    return f"{1e6 * row.least_seconds:.4g}", f"{row.timing.median_seconds / row.least_seconds:.4g}"


def _batches(tables: Iterable[ShapeTable]) -> Iterable[_Batches]:
    """Of every kernel, its first type of activations, at weights that it multiplied with several numbers of rows."""
    by_weights: dict[str, dict[str, dict[int, Row]]] = {}
    for table in tables:
        if isinstance(table.shape, Shape):
            rows, outputs, inputs = table.shape
            names = by_weights.setdefault(f"{outputs} x {inputs}", {})
            for row in table.rows:
                names.setdefault(row.timing.name, {}).setdefault(rows, row)
    for weights, names in by_weights.items():
        ordered = {name: dict(sorted(found.items())) for name, found in names.items()}
        beside = {name: found for name, found in ordered.items() if name == DENSE or _kind(found) == "peer"}
        for name, found in ordered.items():
            if _kind(found) == "kernel" and len(found) > 1:
                yield _Batches(name, weights, found, beside)


def _kind(found: Mapping[int, Row]) -> str:
    return next(iter(found.values())).timing.kind


def _panel(ax: Axes, one: _Batches) -> None:
    for name, found in one.beside.items():
        width = 1.4 if name == DENSE else 0.7
        ax.plot(list(found), [1e6 * row.timing.median_seconds for row in found.values()], color=GREY, linewidth=width,
                marker="." if name != DENSE else None, markersize=3)  # fmt: skip
    least = [(rows, 1e6 * row.least_seconds) for rows, row in one.rows.items() if row.least_seconds]
    ax.plot([rows for rows, _ in least], [t for _, t in least], color=INK, linestyle=(0, (1, 1.5)), linewidth=1.2)
    ax.plot(list(one.rows), [1e6 * row.timing.median_seconds for row in one.rows.values()], "o-", color=COLORS[0],
            markersize=4.5, linewidth=1.3)  # fmt: skip
    ax.set(xscale="log", yscale="log")
    ax.set_title(f"{one.kernel}, {one.weights}", loc="left", fontsize=9, color=INK)
    ax.set_xticks(list(one.rows), [str(rows) for rows in one.rows])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def _legend() -> list[Line2D]:
    return [
        Line2D([], [], color=COLORS[0], marker="o", markersize=4.5, label="kernel"),
        Line2D([], [], color=INK, linestyle=(0, (1, 1.5)), label="its roofline"),
        Line2D([], [], color=GREY, linewidth=1.4, label="dense, bfloat16"),
        Line2D([], [], color=GREY, linewidth=0.7, marker=".", markersize=3, label="peers"),
    ]
