"""How answers, steps and perplexity look beside each other as bits fall: three panels over the same bits."""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.coordinates_drawing import looks_of
from reports.drawing import COLORS, GREY, INK, STYLE
from reports.entropy_drawing import WIDE_INCHES
from reports.reasoning import Chain, Solver
from suite.reasoning.problems import CHANCE


def shown_steps(chain: Chain) -> list[int]:
    """The shortest, a middle and the longest of the numbers of steps."""
    steps = chain.steps
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]})


def draw_chain(chain: Chain) -> Figure:
    """Answers, single steps and perplexity against bits, lines from width to width of a method."""
    shapes = {name: shape for name, (shape, _) in looks_of(list(chain.series)).items()}
    colors = {k: COLORS[i] for i, k in enumerate(shown_steps(chain))}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 4.6))
        FigureCanvasAgg(figure)
        answers, steps, text = figure.subplots(1, 3, sharex=True)
        for k, color in colors.items():
            _lines(answers, chain, shapes, color, _field(k, "answer", 100.0), _field(k, "answer_se", 100.0))
            _lines(steps, chain, shapes, color, _field(k, "step", 100.0), _field(k, "step_se", 100.0))
        answers.axhline(100 * CHANCE, color=GREY, linewidth=1, linestyle=(0, (1, 1.5)))
        k = chain.steps[-1]
        _lines(text, chain, shapes, INK, _field(k, "ppl"), _field(k, "ppl_se"))
        text.set_yscale("log") if _spread(chain, k) > 3 else None
        titles = ("answers found alone, %", "steps given the true ones before, %", "perplexity of text")
        for ax, title in zip((answers, steps, text), titles, strict=True):
            ax.set_title(title, loc="left", fontsize=10, color=INK)
        figure.supxlabel("true bits per weight, everything stored counted", fontsize=10, color=INK)
        handles = [Line2D([], [], color=color, label=f"{k} steps" if k > 1 else "1 step")
                   for k, color in colors.items()]  # fmt: skip
        handles += [Line2D([], [], linestyle="none", marker=shape, color=INK, label=m) for m, shape in shapes.items()]
        handles += [Line2D([], [], color=INK, linestyle=(0, (5, 2)), label="unquantized"),
                    Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), label="guessing")]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9)
        return figure


Value = Callable[[Solver], float]


def _field(k: int, name: str, times: float = 1.0) -> Value:
    """A field of a solver's row of `k` steps; NaN where there is none."""

    def value(solver: Solver) -> float:
        found = getattr(solver.rows[k], name) if k in solver.rows else None
        return float("nan") if found is None else times * found

    return value


def _lines(ax: Axes, chain: Chain, shapes: dict[str, str], color: str, value: Value, error: Value) -> None:
    for name, shape in shapes.items():
        own = [solver for solver in chain.series[name] if np.isfinite(value(solver))]
        x, y, bars = ([f(solver) for solver in own] for f in (lambda s: s.bpw, value, error))
        ax.errorbar(x, y, np.nan_to_num(bars), color=color, marker=shape, markersize=6, linewidth=0.9, capsize=2)
    if chain.base is not None and np.isfinite(value(chain.base)):
        ax.axhline(value(chain.base), color=color, linewidth=1, linestyle=(0, (5, 2)))


def _spread(chain: Chain, k: int) -> float:
    values = [v for v in map(_field(k, "ppl"), chain.every) if np.isfinite(v)]
    return max(values) / min(values) if values else 1.0
