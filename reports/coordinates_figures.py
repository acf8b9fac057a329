"""The figures of the page of coordinates: each with a caption, a description, and its numbers with their origin."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reports.coordinates import (
    FIGURES,
    Curve,
    Dosed,
    Doses,
    Measured,
    both,
    optimum,
    place,
    shares,
)
from reports.coordinates_drawing import draw_caches, draw_doses, draw_layers, draw_salience, draw_smoothing
from reports.entropy import trace_of
from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.frontier import Point, Study, listed, marks
from suite.store import OutlierRow, SalienceRow, SmoothingRow

_SALIENT = ("none", "quarot")  # in whose coordinates salience is drawn; the table has all


def measured_plots(found: Measured) -> list[Plot]:
    """The figures of a model's rows."""
    made = (layers_plot(found), smoothing_plot(found), salience_plot(found))
    return [plot for plot in made if plot]


def layers_plot(found: Measured) -> Plot | None:
    """The figures of inputs and weights over layers, in all coordinates; None without rows."""
    if not found.outliers:
        return None
    caption = (
        "How far from even inputs and weights are, layer by layer, as they are (none) and in the coordinates that a "
        "method's transforms bring them to. Kurtosis is of all values together; the dynamic range is a row's largest "
        "over its mean absolute value, averaged over tokens or output channels; the incoherence of inputs is that of "
        "the eigenvectors of their Gram matrix, that of weights is of the weights themselves, both as in QuIP. Figures "
        "of inputs are of up to 512 sampled tokens. Rings are around inputs of which some channel is at least 20 times "
        "the median in half of the tokens or more, squares around those of which some channel is not, yet reaches "
        "1,000 times the median in some token."
    )
    words = []
    for coordinates in found.coordinates:
        medians = [
            f"{name.replace('_', ' ')} {_middle(found.figures(coordinates, 'inputs', name))}" for name in FIGURES
        ]
        words.append(f"{coordinates}: medians over layers of the inputs' {listed(medians)}; "
                     f"{found.channels(coordinates, 'normal')} normal and {found.channels(coordinates, 'massive')} "
                     "massive outlier channels.")  # fmt: skip
    header = ("model", "coordinates", "tensor", "layer", "transforms", "channels", "excess kurtosis", "max to median",
              "incoherence", "dynamic range", "normal channels", "massive channels")  # fmt: skip
    order = {c: k for k, c in enumerate(found.coordinates)}
    rows = [
        (found.model.label, r.coordinates, r.tensor, r.layer, r.transforms, str(r.n_channels),
         *(_text(getattr(r, name)) for name in FIGURES), _count(r.normal), _count(r.massive), *_origin(r))
        for r in sorted(found.outliers, key=lambda r: (order[r.coordinates], r.tensor, place(r.layer)))
    ]  # fmt: skip
    return _plot("layers", "Outliers before and after", caption, " ".join(words), header, rows, draw_layers(found))


def smoothing_plot(found: Measured) -> Plot | None:
    """Ranges and error over SmoothQuant's alpha; None without rows."""
    if not found.smoothing:
        return None
    bits = "/".join(sorted({str(r.bits) for r in found.smoothing}))
    caption = (
        "What SmoothQuant's alpha trades: at 0 the weights' columns are made even, at 1 those of the inputs. Above, "
        "the dynamic range of either, and the root of the sum of their squares, since the errors of both add up in the "
        f"output; below, the output error that rounding both to {bits} bits makes, inputs per token and weights per "
        "output channel. A line for each block; dots are at the least values, filled where that is inside the interval."
    )
    words = []
    for layer, rows in found.sites.items():
        ranges, error = optimum(rows, both), optimum(rows, lambda r: r.error)
        if ranges and error:
            words.append(f"{layer}: the range of both is least at {ranges[0]:g}, the error at {error[0]:g}.")
    header = ("model", "layer", "alpha", "bits", "range of inputs", "range of weights", "of both", "output error")
    rows_ = [(found.model.label, r.layer, f"{r.alpha:g}", str(r.bits), _text(r.inputs), _text(r.weights),
              _text(both(r)), _text(r.error), *_origin(r)) for rows in found.sites.values() for r in rows]  # fmt: skip
    return _plot("alpha", "Dynamic range against alpha", caption, " ".join(words), header, rows_, draw_smoothing(found))


def salience_plot(found: Measured) -> Plot | None:
    """The share of the error that the first weights or channels capture; None without rows."""
    there = {r.coordinates for r in found.salience}
    shown = [c for c in _SALIENT if c in there] or sorted(there)
    if not shown:
        return None
    bits = "/".join(sorted({str(r.bits) for r in found.salience}))
    caption = (
        f"How much of the output error of rounding to {bits} bits, tr(E H Eᵀ), goes when a part of the weights, or of "
        "the input channels, is kept as it is, averaged over blocks. Salient is known before rounding, diag(H) w²; "
        "worst after it, diag(H) e², as OWQ takes channels; large inputs are AWQ's criterion, mean |x|. What is kept "
        "costs its bits and its places, which are not counted here."
    )
    words = []
    for coordinates in shown:
        for criterion in sorted({r.criterion for r in found.salience}):
            points = shares(r for r in found.salience if (r.coordinates, r.criterion) == (coordinates, criterion))
            ends = [f"{100 * share:.3g}% at {100 * fraction:g}%" for fraction, share in points.items()]
            if ends:
                words.append(f"{coordinates}, {criterion}: from {ends[0]} to {ends[-1]}.")
    header = ("model", "coordinates", "criterion", "layer", "bits", "fraction %", "kept %", "captured %")
    rows = [(found.model.label, r.coordinates, r.criterion, r.layer, str(r.bits), f"{100 * r.fraction:g}",
             f"{100 * r.protected:.4g}", _text(None if r.share is None else 100 * r.share), *_origin(r))
            for r in sorted(found.salience, key=lambda r: (r.coordinates, r.criterion, place(r.layer),
                                                            r.fraction))]  # fmt: skip
    return _plot("salience", "Salience captured", caption, " ".join(words), header, rows, draw_salience(found, shown))


def doses_plot(doses: Doses) -> Plot:
    """KL against the dose of outliers."""
    caption = (
        "What outliers cost: in one channel of 64 the inputs of linear layers are made larger by a power of two and "
        "what reads them smaller, so that the unquantized model's outputs stay what they were, bit for bit. Behind "
        "norms the gain does it; behind linear layers, rows of value and up projections. Bars are one standard error "
        "of the paired comparison with the unquantized model."
    )
    words = []
    for curve in doses.curves:
        for kind in doses.kinds:
            found = curve.of(kind)
            if found:
                words.append(f"{curve.width}, {kind}, {curve.method}: KL from {found[0].kl:.3g} at {found[0].factor} "
                             f"to {found[-1].kl:.3g} at {found[-1].factor}.")  # fmt: skip
    header = ("method", "width", "kind", "factor", "seeds", "KL", "standard error", "recipe")
    rows = [_dose_row(curve, d) for curve in doses.curves
            for d in sorted(curve.doses, key=lambda d: (d.kind, d.factor))]  # fmt: skip
    return _plot("doses", "Dose and response", caption, " ".join(words), header, rows, draw_doses(doses))


def _dose_row(curve: Curve, d: Dosed) -> tuple[str, ...]:
    return (curve.method, curve.width, d.kind or "none", str(d.factor), str(len(d.point.records)), f"{d.kl:.6g}",
            f"{d.error:.3g}", curve.recipe, *_traces(d.point))  # fmt: skip


def caches_plot(study: Study) -> Plot:
    """KL against the bytes of the key-value cache."""
    points = [p for p in study.points if np.isfinite(p.mean("cache_bytes"))]
    found = marks(points, "kl", "kl_se", "cache_bytes")
    caption = (
        "What the key-value cache costs: all bytes that it holds over all layers after one row of the evaluation, "
        "codes, scales, outliers and what stays exact, against the divergence. Methods that quantize weights or inputs "
        "too pay for both. Filled markers are on the front."
    )
    words = [f"{m.point.method} {m.point.recipe}: {m.value:.3g} nats at {m.bpw / 2**10:.4g} KiB." for m in found]
    header = ("method", "recipe", "bits", "seeds", "cache KiB", "KL", "standard error", "on the front")
    rows = [(m.point.method, m.point.recipe, "" if m.point.bits is None else f"{m.point.bits:g}",
             str(len(m.point.records)), f"{m.bpw / 2**10:.6g}", f"{m.value:.6g}", f"{m.error:.3g}",
             "yes" if m.front else "no", *_traces(m.point)) for m in found]  # fmt: skip
    return _plot("caches", "Divergence against cache size", caption, " ".join(words), header, rows, draw_caches(found))


def _plot(key: str, title: str, caption: str, description: str, header: Sequence[str], rows: Sequence[tuple[str, ...]],
          figure: Figure) -> Plot:  # fmt: skip
    return Plot(key=key, title=title, caption=caption, description=description, header=(*header, *ORIGIN),
                rows=tuple(rows), curves=(), figure=figure)  # fmt: skip


def _origin(row: OutlierRow | SmoothingRow | SalienceRow) -> tuple[str, ...]:
    return f"model {row.model_sha256[:12]}", row.code, row.env, row.command


def _traces(point: Point) -> tuple[str, ...]:
    """The origins of all of a point's records; what they share stands once."""
    columns = zip(*(trace_of(r).text for r in point.records), strict=True)
    return tuple(" + ".join(dict.fromkeys(column)) for column in columns)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _middle(values: np.ndarray) -> str:
    return f"{np.nanmedian(values):.3g}" if np.isfinite(values).any() else "not a number"
