"""How the figure of the page of kernels looks: the share of a copy's bandwidth that every kernel reaches."""

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reports.drawing import COLORS, GREY, INK, STYLE
from reports.figures import Plot
from reports.kernels import Row, ShapeTable

_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
_CAPTION = (
    "Bytes that a call must at least read and write in a second, over those of a copy in the same run. Medians of "
    "replays, bars from the first to the third quartile."
)


def shares_plot(tables: list[ShapeTable], device: str) -> Plot | None:
    """A line for every kernel and type of activations, a mark for every shape; None if nothing has a share."""
    marks = [(_name(row), table.shape, row) for table in tables for row in table.rows
             if row.share is not None and row.timing.kind != "yardstick"]  # fmt: skip
    if not marks:
        return None
    names = list(dict.fromkeys(name for name, _, _ in marks))
    shapes = list(dict.fromkeys(shape for _, shape, _ in marks))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.6 + 0.24 * len(names)))
        ax = figure.add_subplot()
        for name, shape, row in marks:
            k, y = shapes.index(shape), -names.index(name)
            color = COLORS[k % len(COLORS)]
            t, share = row.timing, row.share or 0.0
            ends = [share * t.median_seconds / seconds for seconds in (t.upper_seconds, t.lower_seconds)]
            ax.plot(ends, [y, y], color=color, linewidth=1.2, zorder=2)
            ax.plot(share, y, _SHAPES[k % len(_SHAPES)], color=color, markersize=5.5, zorder=3)
        for k, shape in enumerate(shapes):
            ax.plot([], [], _SHAPES[k % len(_SHAPES)], color=COLORS[k % len(COLORS)], markersize=5.5, label=str(shape))
        ax.axvline(1, color=GREY, linewidth=1, zorder=1)
        ax.set_yticks([-k for k in range(len(names))], names, color=INK)
        ax.set(xlabel="share of a copy's bandwidth", xlim=(0, None), ylim=(0.6 - len(names), 0.6))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    best = max(marks, key=lambda mark: mark[2].share or 0.0)
    return Plot(
        key="shares", title="Share of a copy's bandwidth", caption=_CAPTION,
        description=f"On {device}, {len(names)} kernels and peers at {len(shapes)} shapes. The largest share is "
                    f"{best[2].share:.2f}, of {best[0]} at {best[1]}.",
        header=("name", "activations", "shape", "share", "median (us)", "first quartile (us)", "third quartile (us)"),
        rows=tuple(_numbers(row) for _, _, row in marks), curves=(), figure=figure,
    )  # fmt: skip


def _name(row: Row) -> str:
    return f"{row.timing.name}, {row.timing.dtype}" if row.timing.dtype else row.timing.name


def _numbers(row: Row) -> tuple[str, ...]:
    t = row.timing
    seconds = (t.median_seconds, t.lower_seconds, t.upper_seconds)
    return (t.name, t.dtype, str(t.shape), f"{row.share:.4g}", *(f"{1e6 * s:.4g}" for s in seconds))
