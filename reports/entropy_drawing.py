"""How the figures of the entropy page look: small multiples of bars, rows of dots, lines over layers and groups.

Colors and shapes belong to what they stand for: coders, sources and stages keep theirs from figure to figure.
"""

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports.drawing import COLORS, GREY, INK, STYLE, draw_front, draw_marks, label_front, scale, span
from reports.entropy import CODERS, FLOATS, GAIN_CLAIM, PARTS, SOURCES, Model, Shown, Total, gain, group_rank
from reports.frontier import Mark
from theory.rate_distortion import ECSQ_GAP_BITS_HIGHRATE

WIDE_INCHES = 12.0
_PANELS, _MODELS = 6, 3  # panels of one row of small multiples
_CODERS = {
    "entropy": ("|", INK), "huffman": ("o", COLORS[0]), "ans": ("x", COLORS[1]), "exponents": ("D", COLORS[3]),
    "zstd": ("s", COLORS[2]), "gzip": ("^", COLORS[4]), "lzma": ("v", GREY),
}  # fmt: skip
_OFFSETS = dict.fromkeys(("zstd", "gzip", "lzma"), 0.22) | dict.fromkeys(("huffman", "ans", "exponents"), -0.12)
_SOURCES = dict(zip(SOURCES, zip(("o", "s", "D"), (COLORS[0], COLORS[1], COLORS[2]), strict=True), strict=True))
_LINES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LEAST_SPAN = 0.05  # bits; less would make noise look large
FULL = 100.0


def coder_name(coder: str) -> str:
    """As in a legend."""
    names = {"ans": "ANS", "huffman": "Huffman", "entropy": "order-0 entropy", "exponents": "exponent coding"}
    return names.get(coder, coder)


_FINEST = 1 / 500  # of the range: levels closer together than this are drawn at even distances


def draw_histograms(shown: Sequence[Shown]) -> Figure:
    """One small panel for each alphabet: shares of its levels, with entropy and width printed."""
    rows = -(-len(shown) // _PANELS)
    height = 0.25 + 1.55 * rows
    with matplotlib.rc_context(STYLE | {"figure.constrained_layout.use": False, "axes.grid": False, "font.size": 8.5}):
        figure = Figure(figsize=(WIDE_INCHES, height))
        FigureCanvasAgg(figure)
        for i, one in enumerate(shown):
            row, column = divmod(i, _PANELS)
            left = 0.045 + column * (0.95 / _PANELS)
            bottom = (height - 1.55 * row - 1.32) / height
            _histogram(figure.add_axes((left, bottom, 0.95 / _PANELS - 0.03, 0.98 / height)), one)
        figure.text(0.5, 0.04 / height, "level, in steps of the grid", ha="center", va="bottom", color=INK)
        figure.text(0.004, 0.5, "share of the codes (%)", rotation=90, va="center", color=INK)
        return figure


def _histogram(ax: Axes, one: Shown) -> None:
    x, y = one.histogram.levels, FULL * one.shares
    by_place = len(x) > 1 and np.diff(x).min() < _FINEST * (x[-1] - x[0])
    if by_place:  # floating point's levels are so close around zero that bars there would vanish
        x = np.arange(len(x)) - float(np.argmin(np.abs(x)))
    gap = np.full(len(x), np.nan)
    spacing = float(np.diff(x).min()) / (x[-1] - x[0]) if len(x) > 1 else 1.0
    points = 72 * WIDE_INCHES * (0.95 / _PANELS - 0.03) / 1.12 * spacing  # between the two closest levels
    width = min(points * (0.65 if points > 2.5 else 1.05), 5.0)  # many bars become an area
    ax.plot(np.column_stack([x, x, gap]).ravel(), np.column_stack([0 * y, y, gap]).ravel(), color=COLORS[0],
            linewidth=width, solid_capstyle="butt")  # fmt: skip
    room = 0.06 * (x[-1] - x[0]) or 0.5
    ax.set(xlim=(x[0] - room, x[-1] + room), ylim=(0, 1.08 * y.max()))
    ax.set_title(one.label, loc="left", fontsize=9, color=INK, pad=13)
    text = f"{one.entropy:.2f} of {one.width:.2f} bits{', by place' if by_place else ''}"
    ax.text(0, 1.03, text, transform=ax.transAxes, fontsize=8, color="#5c5c5c")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=bool((x == np.rint(x)).all())))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(length=2.5, labelsize=8)


def draw_sizes(models: Sequence[Model], totals: Sequence[Total]) -> Figure:
    """A row for each format, a panel for each model: share of the stored size under each coder, in percent."""
    return _rows(models, totals, lambda t, coder: FULL * t.share(coder), CODERS,
                 "coded size (% of the stored size, everything included)")  # fmt: skip


def draw_efficiency(models: Sequence[Model], totals: Sequence[Total]) -> Figure:
    """A row for each format, a panel for each model: entropy of the codes over what a coder takes, in percent."""
    return _rows(models, totals, lambda t, coder: FULL * t.efficiency(coder), CODERS[1:],
                 "order-0 entropy of the codes over what the coder takes for them (%)")  # fmt: skip


def _rows(models: Sequence[Model], totals: Sequence[Total], value: Callable[[Total, str], float],
          coders: Sequence[str], xlabel: str) -> Figure:  # fmt: skip
    tried = [c for c in coders if any(c in t.n_bits for t in totals)]
    labels = _labels(totals)

    def panel(ax: Axes, own: Mapping[str, Total]) -> None:
        ax.axvline(FULL, color=GREY, linewidth=1, zorder=1)
        for i, name in enumerate(labels):
            if name not in own:
                continue
            for coder in tried:
                shape, color = _CODERS[coder]
                if np.isfinite(x := value(own[name], coder)):
                    size = 13 if coder == "entropy" else 5.5
                    ax.plot(x, i + _OFFSETS.get(coder, 0.0), shape, color=color, markersize=size, zorder=3,
                            markerfacecolor="none" if coder == "huffman" else color)  # fmt: skip

    handles = [Line2D([], [], linestyle="none", marker=_CODERS[c][0], color=_CODERS[c][1], label=coder_name(c),
                      markersize=9 if c == "entropy" else 6,
                      markerfacecolor="none" if c == "huffman" else _CODERS[c][1]) for c in tried]  # fmt: skip
    return _dot_panels(models, totals, labels, panel, handles, xlabel)


def draw_gaps(models: Sequence[Model], totals: Sequence[Total],
              gaps: Callable[[Total], Mapping[str, tuple[float, float]]]) -> Figure:  # fmt: skip
    """A row for each format, a panel for each model: bits above R(D) of each source, stored and coded."""
    labels = _labels(totals)

    def panel(ax: Axes, own: Mapping[str, Total]) -> None:
        ax.axvline(0, color=GREY, linewidth=1, zorder=1)
        ax.axvline(ECSQ_GAP_BITS_HIGHRATE, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
        for i, name in enumerate(labels):
            if name not in own:
                continue
            for j, (source, (stored, coded)) in enumerate(gaps(own[name]).items()):
                shape, color = _SOURCES[source]
                y = i + 0.24 * (j - 1)
                ax.plot([coded, stored], [y, y], color=color, linewidth=0.9, zorder=2)
                ax.plot(stored, y, shape, color=color, markerfacecolor="white", markersize=5, zorder=3)
                ax.plot(coded, y, shape, color=color, markersize=5, zorder=3)

    handles = [Line2D([], [], linestyle="none", marker=m, color=c, label=f"above R(D), {s}", markersize=6)
               for s, (m, c) in _SOURCES.items()]  # fmt: skip
    handles += [
        Line2D([], [], linestyle="none", marker="o", color=GREY, markerfacecolor="white", label="stored"),
        Line2D([], [], linestyle="none", marker="o", color=GREY, label="coded by ANS"),
        Line2D([], [], linestyle=(0, (1, 1.5)), color=INK, label=f"{ECSQ_GAP_BITS_HIGHRATE:.4f} bits"),
    ]
    return _dot_panels(models, totals, labels, panel, handles, "bits per weight above the rate-distortion function")


def draw_distances(above: Sequence[Mark]) -> Figure:
    """Marks whose values are bits above a limit, which is a line at 0, over true bits."""
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-len({m.point.method for m in above}) // 4)
        figure = Figure(figsize=(6.6, 4.1 + 0.2 * legend_rows))
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        low, high = min(0.0, *(m.value for m in above)), max(m.value for m in above)
        ax.set(xlim=span(list(above)), ylim=(low - 0.1, high + 0.1),
               xlabel="true bits per weight, everything stored counted",
               ylabel="bits above R(D) of the fitted mixture")  # fmt: skip
        ax.axhline(0, color=GREY, linewidth=1, zorder=1)
        draw_marks(ax, list(above), "nmse", low - 0.1)
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
        return figure


def _labels(totals: Sequence[Total]) -> list[str]:
    """Row labels from the top: the widest formats first."""
    return list(dict.fromkeys(t.label for t in sorted(totals, key=lambda t: (-t.bits, t.format))))


def _dot_panels(models: Sequence[Model], totals: Sequence[Total], labels: Sequence[str],
                panel: Callable[[Axes, Mapping[str, Total]], None], handles: Sequence[Line2D],
                xlabel: str) -> Figure:  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(len(models), 0.34 * len(labels) + 0.6)
        for i, (ax, model) in enumerate(zip(grid, models, strict=True)):
            panel(ax, {t.label: t for t in totals if t.model == model})
            ax.set_title(model.label, loc="left", fontsize=10.5, color=INK)
            ax.set_yticks(range(len(labels)), labels if i % _MODELS == 0 else [""] * len(labels))
            ax.set_ylim(len(labels) - 0.5, -0.5)
            ax.tick_params(axis="y", length=0)
        _share_x(grid)
        figure.supxlabel(xlabel, fontsize=10, color=INK)
        figure.legend(handles=list(handles), loc="outside upper left", ncols=7, frameon=False, fontsize=9)
        return figure


def _grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A wide figure with a panel for each model, up to three in a row."""
    rows = -(-panels // _MODELS)
    figure = Figure(figsize=(WIDE_INCHES, rows * height + 0.9))
    FigureCanvasAgg(figure)
    columns = min(panels, _MODELS)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def _share_x(grid: Sequence[Axes]) -> None:
    low, high = min(ax.get_xlim()[0] for ax in grid), max(ax.get_xlim()[1] for ax in grid)
    for ax in grid:
        ax.set_xlim(low, high)


def draw_parts(models: Sequence[Model], layers: Sequence[str], parts: Mapping[tuple, float]) -> Figure:
    """A panel for each format and part: its entropy over the layers, a line for each model.

    `parts` has bits per weight by (model, format, part, layer). No panel spans less than a twentieth of a bit.
    """
    formats = [f for f in FLOATS if any(key[1] == f for key in parts)]
    blocks = [_block(layer) for layer in layers]
    starts = [i for i, block in enumerate(blocks) if block and (not i or blocks[i - 1] != block)]
    starts = starts[:: -(-len(starts) // 8) or 1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 1.75 * len(formats) + 1.0))
        FigureCanvasAgg(figure)
        for i, kind in enumerate(formats):
            for j, part in enumerate(PARTS):
                ax = figure.add_subplot(len(formats), len(PARTS), len(PARTS) * i + j + 1)
                width = FLOATS[kind][j]
                for m, model in enumerate(models):
                    y = [parts.get((model, kind, part, layer), np.nan) for layer in layers]
                    style = {"color": COLORS[m % len(COLORS)], "marker": _LINES[m % len(_LINES)]}
                    ax.plot(range(len(layers)), y, markersize=3.2, linewidth=0.8, **style)
                ax.set_title(f"{kind.upper()}, {part} of {width} bit{'s' * (width > 1)}", loc="left", fontsize=9.5)
                ax.set_xticks(starts, [blocks[s] for s in starts])
                low, high = ax.get_ylim()
                room = max(0.0, _LEAST_SPAN - (high - low)) / 2
                top = min(high + room, width + _LEAST_SPAN / 10)
                ax.set_ylim(min(low, top - max(high - low, _LEAST_SPAN)), top)
                ax.yaxis.set_major_locator(MaxNLocator(4))
                ax.ticklabel_format(axis="y", useOffset=False)
        figure.supxlabel("layer, numbered where a block begins" if starts else "layer", fontsize=10, color=INK)
        figure.supylabel("entropy (bits per weight)", fontsize=10, color=INK)
        handles = [Line2D([], [], color=COLORS[m % len(COLORS)], marker=_LINES[m % len(_LINES)], label=model.label)
                   for m, model in enumerate(models)]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=9)
        return figure


def _block(layer: str) -> str:
    return next((part for part in layer.split(".") if part.isdecimal()), "")


def draw_gains(models: Sequence[Model], totals: Sequence[Total]) -> Figure:
    """A row for each width, a column for each model: what coding gains over groups, and the claimed gains."""
    groups = sorted({t.group for t in totals}, key=group_rank)
    widths, formats = sorted({t.bits for t in totals}), list(dict.fromkeys(t.format for t in totals))
    looks = {f: (COLORS[k % len(COLORS)], _LINES[k % len(_LINES)]) for k, f in enumerate(formats)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 2.5 * len(widths) + 0.9))
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(widths), len(models), sharex=True, sharey="row", squeeze=False)
        for bits, row in zip(widths, grid, strict=True):
            for model, ax in zip(models, row, strict=True):
                for name, (color, shape) in looks.items():
                    own = sorted((t for t in totals if (t.model, t.bits, t.format) == (model, bits, name)),
                                 key=lambda t: group_rank(t.group))  # fmt: skip
                    at = [groups.index(t.group) for t in own]
                    ax.plot(at, [gain(t) for t in own], marker=shape, color=color, markersize=5.5, linewidth=1)
                for claimed in GAIN_CLAIM:
                    ax.axhline(claimed, color=INK, linewidth=1, linestyle=(0, (5, 2)), zorder=1)
                ax.set_title(f"{model.label}, {bits:g} bits", loc="left", fontsize=10.5, color=INK)
                ax.set_xticks(range(len(groups)), groups)
        figure.supxlabel("weights that share a scale", fontsize=10, color=INK)
        figure.supylabel("stored bits / coded bits", fontsize=10, color=INK)
        handles = [Line2D([], [], color=c, marker=m, label=name) for name, (c, m) in looks.items()]
        text = f"claimed of 4 bits: {' to '.join(f'{g:g}' for g in GAIN_CLAIM)}"
        handles.append(Line2D([], [], color=INK, linestyle=(0, (5, 2)), label=text))
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9)
        return figure


def draw_coded(coded: Sequence[Mark], stored: Sequence[Mark]) -> Figure:
    """KL against coded bits with its front; a thin line to each point from its stored bits, and their front dashed."""
    shown = [(c, s) for c, s in zip(coded, stored, strict=True) if c.drawn and s.drawn]
    marks, before = [c for c, _ in shown], [s for _, s in shown]
    values = [y for m in marks for y in (m.value + m.error, max(m.value - m.error, m.value / 3)) if y > 0]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    room = max(high / low, 1.02) ** 0.05
    ends = span([*marks, *before])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 6.2))
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        scale(ax, np.array(ends), low / room, high * room)
        ax.set(xlabel="bits per weight as coded, everything included", ylabel="KL from the unquantized model (nats)")
        for c, s in shown:
            y = max(c.value, low / room)
            ax.plot([c.bpw, s.bpw], [y, y], color="#b5b5b5", linewidth=0.8, marker="|", markersize=4, zorder=1)
        draw_marks(ax, marks, "kl", low / room, "bpw_coded")
        draw_front(ax, marks, low / room, "front, coded", INK, "-")
        draw_front(ax, before, low / room, "front, stored", GREY, (0, (4, 2)))
        figure.legend(loc="outside right upper", ncols=2, frameon=False, fontsize=8.5)
        label_front(ax, marks, low / room)
        return figure
