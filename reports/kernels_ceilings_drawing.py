"""How the figures of ceilings look: a chart of rooflines above the models that read so much, and rows of dots."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.drawing import COLORS, GREY, INK, STYLE, plain_number
from reports.entropy_drawing import WIDE_INCHES
from reports.kernels_ceilings import CACHE_BITS, TOKENS, WIDTHS, Format
from suite.store import SpeedRow
from theory.roofline import Decoder, Device

_WIDTHS = {16: ("o", INK), 8: ("s", COLORS[0]), 4: ("D", COLORS[1]), 2: ("^", COLORS[2])}  # of weights and of caches
_GIGA = 1e9
_DOTTED = (0, (1, 1.5))


def draw_rooflines(
    devices: Sequence[Device], tokens: Mapping[str, Sequence[float]], measured: Sequence[SpeedRow]
) -> Figure:
    """Tokens per second over gigabytes per token: a line for each device, and what models read at each width below it.

    `tokens` has a model's bytes per token at the widths of `WIDTHS`; what was `measured` are crosses.
    """
    every = [x for reads in tokens.values() for x in reads]
    ends = np.array([min(every) / 1.5, max(every) * 1.5])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 6.4 + 0.26 * len(tokens)))
        FigureCanvasAgg(figure)
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(5.4, 0.26 * len(tokens) + 0.35))
        for device, color, place in zip(devices, cycle(COLORS), _apart(devices, ends[1]), strict=False):
            _roofline(top, device, ends, color, place)
        for row in measured:
            top.plot(row.token_bytes / _GIGA, row.decode, "x", color=INK, markersize=7, markeredgewidth=1.8, zorder=4)
        for i, reads in enumerate(tokens.values()):
            x = np.array(reads) / _GIGA
            below.plot(x, np.full(len(x), i), color=GREY, linewidth=0.8, zorder=1)
            for (width, _), at in zip(WIDTHS, x, strict=True):
                below.plot(at, i, _WIDTHS[width][0], color=_WIDTHS[width][1], markersize=6, zorder=3)
        top.set(xscale="log", yscale="log", xlim=ends / _GIGA, ylabel="tokens per second, at most")
        below.set(xlabel="gigabytes that a token reads, short texts", ylim=(len(tokens) - 0.5, -0.5))
        below.set_yticks(range(len(tokens)), list(tokens))
        below.tick_params(axis="y", length=0)
        for axis in (top.xaxis, top.yaxis):
            _plain(axis)
        figure.legend(handles=_rooflines_legend(bool(measured)), loc="outside upper left", ncols=7, frameon=False,
                      fontsize=9)  # fmt: skip
        return figure


def _roofline(ax: Axes, device: Device, ends: np.ndarray, color: str, place: float) -> None:
    """Solid as far as the device's memory holds what is read, dotted beyond; its name beside its end, at `place`."""
    inside = min(ends[1], device.memory or ends[1])
    for a, b, dashes in ((ends[0], inside, "-"), (inside, ends[1], _DOTTED)):
        x = np.array([a, b])
        ax.plot(x / _GIGA, device.bandwidth / x, color=color, linewidth=1.3, linestyle=dashes)
    ax.text(1.01 * ends[1] / _GIGA, place, f"{device.name}, {device.bandwidth / _GIGA:,.4g} GB/s", fontsize=8.5,
            color=color, fontweight="bold" if device.memory is None else "normal", va="center")  # fmt: skip


def _apart(devices: Sequence[Device], at: float, least: float = 1.5) -> list[float]:
    """Where lines' names go: beside their ends, each at least `least` times as high as the one below it."""
    places: dict[int, float] = {}
    lowest = 0.0
    for k in sorted(range(len(devices)), key=lambda k: devices[k].bandwidth):
        places[k] = lowest = max(devices[k].bandwidth / at, lowest * least)
    return [places[k] for k in range(len(devices))]


def _rooflines_legend(measured: bool) -> list[Line2D]:
    widths = [Line2D([], [], linestyle="none", marker=_WIDTHS[b][0], color=_WIDTHS[b][1], label=_stored(b, bits))
              for b, bits in WIDTHS]  # fmt: skip
    memory = Line2D([], [], color=GREY, linestyle=_DOTTED, label="more than the memory holds")
    crosses = Line2D([], [], linestyle="none", marker="x", color=INK, markeredgewidth=1.8, label="measured")
    return [*widths, memory, *([crosses] if measured else [])]


def _stored(width: int, bits: float) -> str:
    return f"{width} bits" if width == bits else f"{width} bits, with scales {bits:g}"


def draw_caches(decoders: Sequence[Decoder], weights: Mapping[tuple[str, int], float],
                caches: Mapping[tuple[str, int], Sequence[float]]) -> Figure:  # fmt: skip
    """A panel for each model: gigabytes of its cache over tokens, and of its weights as level lines, by width.

    `weights` and `caches` have bytes by name of the model and bits.
    """
    rows = -(-len(decoders) // 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 3.0 * rows + 0.6))
        FigureCanvasAgg(figure)
        first = None
        for k, d in enumerate(decoders):
            ax = figure.add_subplot(rows, 3, k + 1, sharex=first, sharey=first)
            first = first or ax
            for width, _ in WIDTHS:
                ax.axhline(weights[d.name, width] / _GIGA, color=_WIDTHS[width][1], linewidth=1, linestyle=_DOTTED)
            for width in CACHE_BITS:
                shape, color = _WIDTHS[width]
                ax.plot(TOKENS, np.array(caches[d.name, width]) / _GIGA, color=color, marker=shape, markersize=4,
                        linewidth=1.2)  # fmt: skip
            ax.set(xscale="log", yscale="log")
            ax.set_title(d.name, loc="left", fontsize=10, color=INK)
            ax.set_xticks(TOKENS[::2], [f"{n // 1024}K" for n in TOKENS[::2]])
            ax.xaxis.set_minor_locator(NullLocator())
            _plain(ax.yaxis)
        figure.supxlabel("tokens in the cache", fontsize=10, color=INK)
        figure.supylabel("gigabytes that a token reads", fontsize=10, color=INK)
        handles = [Line2D([], [], color=_WIDTHS[b][1], marker=_WIDTHS[b][0], markersize=5, label=f"cache, {b} bits")
                   for b in CACHE_BITS]  # fmt: skip
        handles += [Line2D([], [], color=_WIDTHS[b][1], linestyle=_DOTTED, label=f"weights, {b} bits")
                    for b, _ in WIDTHS]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9)
        return figure


_SIZES = (("o", GREY), ("s", COLORS[0]), ("^", COLORS[4]), ("D", COLORS[1]))


def draw_sizes(names: Sequence[str], shares: Mapping[str, Sequence[float]]) -> Figure:
    """A row for each model, and by what share it is smaller than in FP32; `shares` has them by what is counted."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 1.2 + 0.3 * len(names)))
        ax = figure.add_subplot()
        for (label, values), (shape, color) in zip(shares.items(), _SIZES, strict=True):
            ax.plot([100 * x for x in values], range(len(names)), shape, color=color, markersize=6, label=label)
        ax.set_yticks(range(len(names)), list(names))
        ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="smaller than in FP32 (%)")
        ax.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return figure


def draw_formats(found: Sequence[Format]) -> Figure:
    """A row for each format: how many times as fast as 16 bits bytes allow, fused and not, and instructions."""
    marks = (("fused", "o", COLORS[0], "bytes, fused"), ("unfused", "v", COLORS[1], "bytes, dequantized apart"),
             ("instructions", "|", INK, "instructions, H200"), ("measured", "x", COLORS[6], "measured"))  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 1.4 + 0.3 * len(found)))
        ax = figure.add_subplot()
        for i, one in enumerate(found):
            ax.plot([0, one.most], [i, i], color="#c9dbe8", linewidth=5, solid_capstyle="butt", zorder=1)
        for field, shape, color, label in marks:
            drawn = [(x, i) for i, one in enumerate(found) if (x := getattr(one, field)) is not None]
            if drawn:
                size = 13 if shape == "|" else 6
                ax.plot(*np.array(drawn).T, shape, color=color, markersize=size, markeredgewidth=1.8, label=label,
                        zorder=3)  # fmt: skip
        ax.axvline(1, color=GREY, linewidth=1, zorder=1)
        ax.set_yticks(range(len(found)), [f"{one.label}, {one.bits:g} bits" for one in found])
        ax.set(xlim=(0, None), ylim=(len(found) - 0.5, -0.5), xlabel="times as fast as 16 bits, at most")
        ax.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return figure


def _plain(axis) -> None:
    """Decades in plain numbers."""
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
