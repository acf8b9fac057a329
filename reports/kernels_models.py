"""Whole models that generated from packed weights: the figure of the store's speeds, and the table behind it."""

import json
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.drawing import COLORS, INK, STYLE, plain_number
from reports.entropy_drawing import WIDE_INCHES
from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.kernels_ceilings import label, place
from reports.page import number
from suite.store import SpeedRow

SPEED = "bitfrontier speed PACKED"
_DECODE, _PREFILL = COLORS[0], COLORS[1]


def models_plot(rows: Sequence[SpeedRow]) -> Plot | None:
    """Tokens per second of packed models beside the unquantized one and the roofline; None if none was timed."""
    if not rows:
        return None
    caption = (
        "Tokens per second, medians over rounds in which a packed model and the unquantized one in bfloat16 took "
        "turns; bars from the first to the third quartile. The upright bar is the roofline: the bandwidth of reading "
        "memory, measured in between, over the bytes that a token reads, which models that fit a cache, or whose "
        "tokens cost little beside the code around their products, do not come near."
    )
    words = [f"{name(row)}: decode {number(row.decode, 3)} tokens per second of {number(row.roofline, 3)}"
             + (f", bfloat16 {number(row.base_decode, 3)}" if row.base_decode else "") for row in rows]  # fmt: skip
    return Plot(
        key="speeds", title="Models that generate from packed weights", caption=caption,
        description=". ".join(words) + ".", header=_HEADER, rows=tuple(_row(row) for row in rows), curves=(),
        figure=_draw(rows),
    )  # fmt: skip


_HEADER = (
    "model", "what multiplies", "device", "prompt + tokens", "decode", "quartiles", "bfloat16", "times bfloat16",
    "quartiles", "prefill", "bfloat16", "times bfloat16", "MB a token", "bfloat16, MB", "GB/s", "roofline",
    "of the roofline", "overhead of layers (%)", "rounds", "notes", *ORIGIN,
)  # fmt: skip


def name(row: SpeedRow) -> str:
    """The model, its method and width, the product if one was asked for, and the device."""
    bits = "" if row.bits is None else f" {row.bits:g}"
    asked = "" if row.product == "auto" else f", {row.product}"
    return f"{label(row)}, {row.method}{bits}{asked}, {place(row)}"


def _row(row: SpeedRow) -> tuple[str, ...]:
    bits = "" if row.bits is None else f" {row.bits:g}"
    taken = [f"{one['products']} ({one['layers']} layers)" for one in json.loads(row.products)["taken"]]
    return (
        f"{row.model}, {row.method}{bits}", f"{row.product}: {'; '.join(taken) or 'no layer is packed'}", place(row),
        f"{row.prompt} + {row.tokens}", number(row.decode), _between(row.decode_low, row.decode_high),
        number(row.base_decode), number(row.decode_ratio, 3), _between(row.decode_ratio_low, row.decode_ratio_high),
        number(row.prefill), number(row.base_prefill), number(row.prefill_ratio, 3), number(row.token_bytes / 1e6),
        _mega(row.base_token_bytes), number(row.bandwidth / 1e9, 3), number(row.roofline),
        number(row.decode / row.roofline, 2), "–" if row.overhead is None else number(100 * row.overhead, 3),
        str(row.rounds), "; ".join(json.loads(row.fallbacks)), row.recipe, row.code, row.env, row.command,
    )  # fmt: skip


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{number(low, 3)} to {number(high, 3)}"


def _mega(n_bytes: int | None) -> str:
    return "–" if n_bytes is None else number(n_bytes / 1e6)


def _draw(rows: Sequence[SpeedRow]) -> Figure:
    """A row for each run: decode and prefill, packed and not, and the roofline of decoding."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_INCHES, 1.5 + 0.42 * len(rows)))
        ax = figure.add_subplot()
        for i, row in enumerate(rows):
            for y, color, rate, ends, base in (
                (i - 0.14, _DECODE, row.decode, (row.decode_low, row.decode_high), row.base_decode),
                (i + 0.14, _PREFILL, row.prefill, (row.prefill_low, row.prefill_high), row.base_prefill),
            ):
                ax.plot(ends, [y, y], color=color, linewidth=1.4, zorder=2)
                ax.plot(rate, y, "o", color=color, markersize=6, zorder=3)
                if base is not None:
                    ax.plot(base, y, "o", color=color, markerfacecolor="white", markersize=6, zorder=2.5)
            ax.plot(row.roofline, i - 0.14, "|", color=INK, markersize=13, markeredgewidth=1.8, zorder=3)
        ax.set_yticks(range(len(rows)), [name(row) for row in rows])
        ax.set(xscale="log", xlabel="tokens per second", ylim=(len(rows) - 0.5, -0.5))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        ax.tick_params(axis="y", length=0)
        figure.legend(handles=_legend(), loc="outside upper left", ncols=5, frameon=False, fontsize=9)
        return figure


def _legend() -> list[Line2D]:
    def dot(color: str, face: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", color=color, markerfacecolor=face, label=label)

    return [
        dot(_DECODE, _DECODE, "decode, packed"), dot(_DECODE, "white", "decode, bfloat16"),
        dot(_PREFILL, _PREFILL, "prefill, packed"), dot(_PREFILL, "white", "prefill, bfloat16"),
        Line2D([], [], linestyle="none", marker="|", color=INK, markersize=11, markeredgewidth=1.8,
               label="roofline of decode, measured bandwidth"),
    ]  # fmt: skip
