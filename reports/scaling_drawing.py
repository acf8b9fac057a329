"""How the figure of scaling studies looks: loss against bytes, a panel for each level of tokens."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.drawing import COLORS, GREY, INK, STYLE, plain_number
from reports.entropy_drawing import WIDE_INCHES
from reports.scaling import FITTED, Family, predicted_curve

_LOOKS = {
    ("full-precision", 16): ("o", INK), ("paretoq", 4): ("s", COLORS[0]), ("paretoq", 3): ("D", COLORS[2]),
    ("paretoq", 2): ("^", COLORS[1]), ("paretoq", 1.58): ("v", COLORS[3]), ("paretoq", 1): ("P", COLORS[4]),
    ("bitnet", 1.58): ("X", COLORS[6]), ("full-precision-sub-norm", 16): ("p", GREY),
}  # fmt: skip
_DASHES = (0, (4, 2))


def name_of(method: str, bits: float) -> str:
    """A method at a width in a legend.

    >>> name_of("paretoq", 1.58), name_of("full-precision-sub-norm", 16)
    ('paretoq at 1.58 bits', 'full precision from scratch, SubLN')
    """
    full = {"full-precision": "full precision", "full-precision-sub-norm": "full precision from scratch, SubLN"}
    return full.get(method) or f"{method} at {bits:g} bit{'' if bits == 1 else 's'}"


def draw_scaling(family: Family) -> Figure:
    """Panels side by side on one scale of loss; colors and shapes are a method's at a width."""
    levels = family.levels
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES if len(levels) > 1 else WIDE_INCHES / 1.6, 5.2))
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
        for level, ax in zip(levels, grid, strict=True):
            _panel(ax, family, level)
        grid[0].set_ylabel("loss, nats per token")
        keys = list(dict.fromkeys(key for level in levels for key in family.curves(level)))
        handles = [Line2D([], [], marker=_look(key)[0], color=_look(key)[1], linestyle=":", label=name_of(*key))
                   for key in keys]  # fmt: skip
        handles.append(Line2D([], [], color=GREY, label="frontier"))
        if family.law is not None:
            handles.append(Line2D([], [], color=INK, linestyle=_DASHES, linewidth=0.9, label="the law"))
        figure.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False, fontsize=9)
        return figure


def _look(key: tuple[str, float]) -> tuple[str, str]:
    return _LOOKS.get(key, ("h", GREY))


def _panel(ax: Axes, family: Family, level: float) -> None:
    front = family.front(level)
    for key, rows in family.curves(level).items():
        shape, color = _look(key)
        ax.plot([r.model_bytes / 1e6 for r in rows], [r.loss_nats for r in rows], ":", color=color, linewidth=1,
                zorder=1.8)  # fmt: skip
        for row in rows:
            face = color if row in front else "none"
            ax.plot(row.model_bytes / 1e6, row.loss_nats, shape, color=color, markerfacecolor=face, markersize=6.5,
                    zorder=3)  # fmt: skip
        if family.law is not None and row.method in FITTED:
            n_bytes, losses = predicted_curve(family.law.fit.law, rows)
            ax.plot(n_bytes / 1e6, losses, color=color, linestyle=_DASHES, linewidth=0.9, zorder=2)
    steps = np.array([(r.model_bytes / 1e6, r.loss_nats) for r in front]).reshape(-1, 2)
    ax.plot(*steps.T, color=GREY, linewidth=1, drawstyle="steps-post", zorder=1.5)
    ax.set(xscale="log", xlabel="whole model, MB")
    ax.set_title(f"{level:g} tokens per parameter", loc="left", fontsize=10, color=INK)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain_number(x)))
