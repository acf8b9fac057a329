"""The figures of a study: each with a caption, a description in words, and the numbers behind it as text."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.figure import Figure

from reports.drawing import QUALITY, Curve, draw, label, save, span
from reports.frontier import DATA_FREE, LOW_BITS, Mark, Study, feedback_floor, marks
from theory.rate_distortion import ecsq_distortion, gaussian_distortion

_FRONT = "Filled markers are on the Pareto front; hollow ones are beaten by a point that needs no more bits."
_GAP_RATES = np.linspace(0, 20, 2001)  # where a limit is inverted, by interpolation of its logarithm


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure with what belongs to it: `key` names its files, `description` tells in words what is to be seen.

    `rows` has the text of one table line per point, under `header`; `curves` the sampled reference lines.
    """

    key: str
    title: str
    caption: str
    description: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    curves: tuple[tuple[str, ...], ...]
    figure: Figure


def plots(study: Study) -> list[Plot]:
    """The figures that the study has numbers for."""
    made = (kl_plot(study), low_bits_plot(study), perplexity_plot(study), weight_error_plot(study),
            output_error_plot(study))  # fmt: skip
    return [plot for plot in made if plot]


def kl_plot(study: Study) -> Plot | None:
    """KL divergence from the unquantized model against true bits per weight; None if there is no finite one."""
    caption = (
        "What each bit costs: mean divergence per token between the unquantized and the quantized model. Bars are one "
        "standard error of the paired comparison. " + _FRONT
    )
    return _plot("kl", "Divergence from the unquantized model", caption, marks(study.points, "kl", "kl_se"))


def low_bits_plot(study: Study) -> Plot | None:
    """The same below `LOW_BITS`, with the bits that each point is named after; None if there is no finite one."""
    points = [p for p in study.points if p.mean("bpw") <= LOW_BITS]
    caption = (
        "The same for few bits. A thin line leads to the width that a method is called by, which is what its codes "
        "take, or what its paper claims: the rest are scales, masks, signs and codebooks, which on matrices as small "
        "as these are anything but free. "
    )
    found = marks(points, "kl", "kl_se")
    return _plot(
        "kl", "Few bits: what is claimed and what is stored", caption + _FRONT, found, beside="bits", key="low"
    )


def perplexity_plot(study: Study) -> Plot | None:
    """Perplexity against true bits per weight, the unquantized model's as a line; None if there is no finite one."""
    base, found = study.ppl_base, marks(study.points, "ppl", "ppl_se")
    caption = "Perplexity on the same tokens. Bars are one standard error of the paired difference to the unquantized "
    if base is None:
        return _plot("ppl", "Perplexity", f"{caption}model. {_FRONT}", found)
    line = Curve(f"unquantized, {base:.4g}", (0, (1, 1.5)), lambda rate: np.full_like(rate, base))
    caption += f"model, whose perplexity of {base:.4g} is the dotted line. {_FRONT}"
    return _plot("ppl", "Perplexity", caption, found, [line])


def weight_error_plot(study: Study) -> Plot | None:
    """`nmse` of the data-free methods against the Gaussian limit and the entropy-coded scalar quantizer's line."""
    points = [p for p in study.points if p.method in DATA_FREE]
    curves = (
        Curve("Gaussian limit 4⁻ᴿ", "-", gaussian_distortion),
        Curve("entropy-coded scalar", (0, (5, 2)), ecsq_distortion),
    )
    caption = (
        "Squared weight error of the methods that see no data. A thin line to the left ends at the bits the same codes "
        "would take at their empirical entropy. "
    )
    title = "Weight error and the Gaussian limit"
    return _plot("nmse", title, caption, marks(points, "nmse"), curves, beside="bpw_entropy")


def output_error_plot(study: Study) -> Plot | None:
    """`hnmse` against reverse water-filling of the layers' spectra; methods without error feedback are hollow."""
    curves = ()
    if study.spectra:
        curves = (Curve("water-filling limit", "-", lambda rate: feedback_floor(study, rate)),)
    caption = (
        "Error of the layers' outputs on calibration inputs. Methods with error feedback, which minimize it, are "
        "filled; the others are hollow. "
    )
    if study.spectra:
        caption += "The limit is reverse water-filling over the spectra of all layers together. "
    found = marks(study.points, "hnmse")
    return _plot("hnmse", "Output error and the water-filling limit", caption, found, curves)


def _plot(
    field: str,
    title: str,
    caption: str,
    found: list[Mark],
    curves: Sequence[Curve] = (),
    *,
    beside: str | None = None,
    key: str | None = None,
) -> Plot | None:
    """The figure of `field`, or None where nothing can be drawn; the first of `curves` is the limit.

    `beside` is as in `draw`, `key` another name for the figure's files.
    """
    drawn = [m for m in found if m.drawn]
    if not drawn:
        return None
    if field in QUALITY:
        caption += _beyond_weights(drawn)
    elif curves:
        caption += _crossings(drawn, curves[0])
    if any(len(m.point.records) > 1 for m in drawn):
        caption += " Where there are several seeds, the marker is their mean, a dash is one seed, and the bar includes "
        caption += "the spread between them."
    extra = ("on the front",) if field in QUALITY else ("bits above the limit",) if curves else ()
    header = ("method", "recipe", "bits", "seeds", "bpw", field, "standard error", "lowest seed", "highest seed")
    rates = np.linspace(*span(drawn), 100)
    return Plot(
        key=key or field,
        title=title,
        caption=caption,
        description=_describe(field, drawn, curves, len(found) - len(drawn)),
        header=(*header, *(c.name for c in curves), *extra, "note"),
        rows=tuple(_row(m, field, curves) for m in found),
        curves=tuple((c.name, repr(float(x)), repr(float(y)))
                     for c in curves for x, y in zip(rates, c.at(rates), strict=True)),
        figure=draw(field, drawn, curves, rates, beside),
    )  # fmt: skip


def _beyond_weights(drawn: list[Mark]) -> str:
    """A warning about the methods that quantize more than the bits of the figure count."""
    methods = sorted({m.point.method for m in drawn if re.search(r"\b(activations|cache)=", m.point.recipe)})
    if not methods:
        return ""
    return f" Activations or cache are quantized too by {', '.join(methods)}: it costs quality and saves no bits here."


def _row(m: Mark, field: str, curves: Sequence[Curve]) -> tuple[str, ...]:
    p, values = m.point, m.point.values(field)
    limits = [f"{float(c.at(np.array(m.bpw))):.4g}" if np.isfinite(m.bpw) else "" for c in curves]
    if field in QUALITY:
        limits.append("yes" if m.front else "no")
    elif curves:
        limits.append(_gap_bits(m, curves[0]))
    numbers = [f"{x:.6g}" for x in (m.bpw, m.value, m.error, values.min(), values.max())]
    return (p.method, p.recipe, "" if p.bits is None else f"{p.bits:g}", str(len(p.records)), *numbers, *limits, m.note)


def _gap_bits(m: Mark, limit: Curve) -> str:
    """How many bits fewer the limit needs for the same error; empty where there is no error to compare."""
    if not (m.drawn and m.value > 0):
        return ""
    falling = -np.log(np.maximum(limit.at(_GAP_RATES), 1e-300))
    return f"{m.bpw - np.interp(-np.log(m.value), falling, _GAP_RATES):.3f}"


def _crossings(drawn: list[Mark], limit: Curve) -> str:
    below = [m for m in drawn if m.value < float(limit.at(np.array(m.bpw)))]
    text = "Weights are no Gaussian samples, so the limit is a reference line and a point below it is a finding"
    if not below:
        return f"{text}; here there is none."
    return f"{text}; here: {', '.join(f'{label(m)} ({m.bpw:.2f} bits)' for m in below)}."


def _describe(field: str, drawn: list[Mark], curves: Sequence[Curve], left_out: int) -> str:
    """What a sighted reader sees first, for those who hear the page."""
    by_method: dict[str, list[Mark]] = {}
    for m in sorted(drawn, key=lambda m: (m.point.method, m.bpw)):
        by_method.setdefault(m.point.method, []).append(m)
    text = f"{len(drawn)} points of {len(by_method)} methods over true bits per weight. "
    text += " ".join(
        f"{method}: from {_at(found[0])} to {_at(found[-1])}." if len(found) > 1 else f"{method}: {_at(found[0])}."
        for method, found in by_method.items()
    )
    if field in QUALITY:
        front = sorted((m for m in drawn if m.front), key=lambda m: m.bpw)
        text += f" Pareto front: {'; '.join(f'{m.point.method} {_at(m)}' for m in front)}."
    ends = np.array([min(m.bpw for m in drawn), max(m.bpw for m in drawn)])
    for c in curves:
        low, high = c.at(ends)
        text += f" The line {c.name} goes from {low:.3g} at {ends[0]:.3g} bits to {high:.3g} at {ends[1]:.3g} bits."
    return text + (f" {left_out} points could not be drawn; the table says why." if left_out else "")


def _at(m: Mark) -> str:
    return f"{m.value:.3g} at {m.bpw:.3g} bits"


def svg(plot: Plot, name: str) -> str:
    """The figure as a standalone SVG, titled and described; `name` prefixes its identifiers: a page may hold many."""
    text = save(plot.figure, "svg", dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    text = re.sub(r"<!DOCTYPE.*?>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    label = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    words = f'<title id="{name}-title">{escape(plot.title)}</title>\n'
    words += f'<desc id="{name}-desc">{escape(plot.description)}</desc>\n'
    return re.sub(r"<svg ([^>]*)>\n", lambda m: f"<svg {label} {m[1]}>\n{words}", text, count=1)


def inline_svg(plot: Plot, name: str) -> str:
    """The same for inside an HTML page, where the namespace goes without saying and the page sets the size."""
    text = svg(plot, name)
    text = re.sub(r"<\?xml.*?\?>\s*", "", text)
    text = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', _only_in_root(text), text)
    return text.replace("xlink:href", "href")


def _only_in_root(text: str) -> Callable[[re.Match], str]:
    end = text.index(">", text.index("<svg"))
    return lambda match: "" if match.start() < end or "xmlns" in match[0] else match[0]


def pdf(plot: Plot) -> bytes:
    """The figure as a PDF with no date in it."""
    return save(plot.figure, "pdf", {"Title": plot.title, "Creator": None, "Producer": None, "CreationDate": None})


def png(plot: Plot, dpi: float = 200) -> bytes:
    """The figure as a bitmap of `dpi` pixels per inch, 6.6 inches wide."""
    return save(plot.figure, "png", {"Software": None}, dpi=dpi)


def csv_text(plot: Plot) -> str:
    """The numbers behind the figure: its points, then its reference lines, sampled where they are drawn."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(plot.header)
    writer.writerows(plot.rows)
    for name, x, y in plot.curves:
        line = [""] * len(plot.header)
        line[0], line[plot.header.index("bpw")], line[plot.header.index(plot.key)] = name, x, y
        writer.writerow(line)
    return buffer.getvalue()
