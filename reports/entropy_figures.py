"""The figures of the entropy page: each with a caption, a description in words, and its numbers with their origin."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from reports.drawing import label
from reports.entropy import (
    CODERS,
    FLOATS,
    PARTS,
    SOURCES,
    Entropy,
    Model,
    Shown,
    Total,
    Trace,
    coded_marks,
    equal_bits,
    gain,
    group_name,
    is_coded,
    swept,
    trace_of,
)
from reports.entropy_drawing import (
    coder_name,
    draw_coded,
    draw_distances,
    draw_efficiency,
    draw_gains,
    draw_gaps,
    draw_histograms,
    draw_parts,
    draw_sizes,
)
from reports.figures import Plot
from reports.frontier import LOW_BITS, Mark, Study, marks

ORIGIN = ("from", "code version", "environment", "command")  # the last columns of every table


def model_plots(found: Entropy) -> list[Plot]:
    """The figures of the entropy rows, all models side by side."""
    made = (sizes_plot(found), gains_plot(found), gaps_plot(found), efficiency_plot(found), parts_plot(found))
    return [plot for plot in made if plot]


def study_plots(found: Entropy, study: Study, shown: Sequence[Shown]) -> list[Plot]:
    """The figures of a study's records."""
    made = (coded_plot(study), distances_plot(found, study), histograms_plot(shown))
    return [plot for plot in made if plot]


def sizes_plot(found: Entropy) -> Plot | None:
    """The coders side by side, for each format and model; None without rows."""
    totals = found.standard
    if not totals:
        return None
    caption = (
        "What each coder leaves of each format, everything included: scales, tables and headers. The upright bar "
        "is the order-0 entropy of the codes (of byte planes, for FP32 and BF16), which a coder of single symbols "
        "cannot beat; gzip, lzma and zstd also find repetitions. Exponent coding is DFloat11's and ECF8's way."
    )
    words = [f"{m.label}: " + "; ".join(_coded_in_words(t) for t in totals if t.model == m) for m in _models(totals)]
    coders = _tried(totals)
    names = [coder_name(c) for c in coders]
    header = (*_FORMAT, "stored bpw", *(f"{name} bpw" for name in names), *(f"{name} %" for name in names))
    rows = [(*_format_of(t), f"{t.bpw('fixed'):.4f}", *(_text(t.bpw(c), ".4f") for c in coders),
             *(_text(100 * t.share(c), ".2f") for c in coders), *t.trace.text) for t in totals]  # fmt: skip
    return _plot("coders", "The coders side by side", caption, "Size coded, of size stored. " + " ".join(_end(words)),
                 header, rows, draw_sizes(_models(totals), totals))  # fmt: skip


def efficiency_plot(found: Entropy) -> Plot | None:
    """Order-0 entropy over what each coder takes for the codes alone; None without rows."""
    totals = found.standard
    coders = [c for c in _tried(totals) if c != "entropy"]
    if not totals or not coders:
        return None
    caption = (
        "How close each coder comes to the order-0 entropy of the codes, with scales and the like left out of both. "
        "Beyond 100% a coder has found more than single symbols tell. Exponent coding leaves sign and mantissa as they "
        "are, and Huffman codes spend whole bits on each symbol."
    )
    words = []
    for coder in coders:
        reached = [t for t in totals if np.isfinite(t.efficiency(coder))]
        ends = [f"{100 * x:.1f}% ({t.label}, {t.model.label})" for x, t in
                sorted(((t.efficiency(coder), t) for t in reached), key=lambda pair: pair[0])]  # fmt: skip
        if ends:
            words.append(f"{coder_name(coder)}: from {ends[0]} to {ends[-1]}")
    header = (*_FORMAT, "order-0 entropy, bits per weight", *(f"{coder_name(c)} efficiency %" for c in coders))
    rows = [(*_format_of(t), f"{(t.n_bits['entropy'] - t.beside_bits) / t.n_weights:.4f}",
             *(_text(100 * t.efficiency(c), ".2f") for c in coders), *t.trace.text) for t in totals]  # fmt: skip
    return _plot("efficiency", "Coding efficiency", caption, " ".join(_end(words)), header, rows,
                 draw_efficiency(_models(totals), totals))  # fmt: skip


def gains_plot(found: Entropy) -> Plot | None:
    """What coding gains over the groups of each format; None if no format was tried in several."""
    totals = swept(found.totals)
    if not totals:
        return None
    caption = (
        "Stored over ANS-coded bits, everything included, against the number of weights that share a scale. The larger "
        "the group, the further its largest weight is from the others, and the less evenly codes are used: gain and "
        "error rise together, so a gain is no merit by itself. Groups wider than a matrix are its rows."
    )
    words = []
    for model in _models(totals):
        for name in dict.fromkeys(t.label for t in totals):
            own = [t for t in totals if t.model == model and t.label == name]
            if own:
                words.append(f"{model.label}, {name}: from {gain(own[0]):.2f} in {group_name(own[0].group)} to "
                             f"{gain(own[-1]):.2f} in {group_name(own[-1].group)}")  # fmt: skip
    header = (*_FORMAT, "stored bpw", "ANS bpw", "gain", "nmse")
    rows = [(*_format_of(t), f"{t.bpw('fixed'):.4f}", f"{t.bpw('ans'):.4f}", f"{gain(t):.4f}", f"{t.nmse:.4g}",
             *t.trace.text) for t in totals]  # fmt: skip
    return _plot("gain", "What coding gains, by group", caption, " ".join(_end(words)), header, rows,
                 draw_gains(_models(totals), totals))  # fmt: skip


def gaps_plot(found: Entropy) -> Plot | None:
    """Bits above three rate-distortion functions, stored and coded; None without weights' shapes or errors."""

    def lossy(t: Total) -> bool:
        return t.nmse > 0 and t.format not in ("fp32", "bf16") and t.model in found.limits

    totals, every = [t for t in found.standard if lossy(t)], [t for t in found.totals if lossy(t)]
    if not totals:
        return None

    def gaps(t: Total) -> dict[str, tuple[float, float]]:
        return {s: (t.bpw("fixed") - R, t.bpw("ans") - R) for s, R in found.limits[t.model].rates(t.nmse).items()}

    caption = (
        "How many bits fewer the best code of any length would need for the same squared error, if the weights, each "
        "layer at unit variance, were independent samples of a Gaussian, a Laplacian, or the mixture of zero-mean "
        "Gaussians fitted to them. Real weights are none of these: an error below a line is a finding. The dotted line "
        "is what a uniform entropy-coded quantizer loses at high rates. A grid whose scales follow the layers' rows "
        "may beat what one mixture for all layers allows."
    )
    mixtures = [f"{m.label}: {_mixture(found, m)}" for m in _models(totals)]
    words = [f"{t.model.label}, {t.label}: "
             + ", ".join(f"{s} {a:.2f} stored, {b:.2f} coded" for s, (a, b) in gaps(t).items())
             for t in totals]  # fmt: skip
    header = (*_FORMAT, "stored bpw", "ANS bpw", "nmse", *(f"R(D), {s}" for s in SOURCES),
              "R(D), variances known", *(f"stored above {s}" for s in SOURCES),
              *(f"coded above {s}" for s in SOURCES))  # fmt: skip
    rows = []
    for t in every:
        rates, both = found.limits[t.model].rates(t.nmse), gaps(t)
        numbers = [*rates.values(), found.limits[t.model].known_variances(t.nmse),
                   *(both[s][0] for s in SOURCES), *(both[s][1] for s in SOURCES)]  # fmt: skip
        rows.append((*_format_of(t), f"{t.bpw('fixed'):.4f}", _text(t.bpw("ans"), ".4f"), f"{t.nmse:.4g}",
                     *(_text(x, ".4f") for x in numbers), *t.trace.text))  # fmt: skip
    return _plot("gap", "Distance to the rate-distortion functions", f"{caption} {' '.join(_end(mixtures))}",
                 "Bits per weight above R(D). " + " ".join(_end(words)), header, rows,
                 draw_gaps(_models(totals), totals, gaps))  # fmt: skip


def parts_plot(found: Entropy) -> Plot | None:
    """Entropies of exponent, mantissa and sign over the layers; None without rows."""
    rows_of = [s for s in found.sizes if s.coder in PARTS and s.format in FLOATS and s.n_weights]
    if not rows_of:
        return None
    model_of = {(m.name, m.sha256): m for m in found.models}
    parts = {(model_of[s.model, s.model_sha256], s.format, s.coder, s.layer): s.n_bits / s.n_weights for s in rows_of}
    models = [m for m in found.models if any(key[0] == m for key in parts)]
    layers = sorted({s.layer for s in rows_of}, key=_natural)
    caption = (
        "Where the bits of floating-point weights are, layer by layer in the order of their names. For comparison: a "
        "Gaussian's exponent in base two has 2.54 bits, a Laplacian's 2.83. FP8 is E4M3 with a scale per row; FP32's "
        "mantissa is taken in pieces of at most 8 bits. An entropy estimated from few weights comes out too small."
    )
    found_in: dict[tuple[Model, str, str], list[float]] = {}
    for (model, kind, part, _), entropy in parts.items():
        found_in.setdefault((model, kind, part), []).append(entropy)
    words = [f"{model.label}, {kind}: {part} {np.mean(entropies):.3g} bits on average"
             for (model, kind, part), entropies in found_in.items()]  # fmt: skip
    header = ("model", "layer", "format", "part", "width", "entropy", "weights")
    widths = {(kind, part): FLOATS[kind][j] for kind in FLOATS for j, part in enumerate(PARTS)}
    order = list(FLOATS), PARTS
    ordered = sorted(
        rows_of,
        key=lambda s: (
            models.index(model_of[s.model, s.model_sha256]),
            order[0].index(s.format),
            order[1].index(s.coder),
            _natural(s.layer),
        ),
    )
    rows = [(model_of[s.model, s.model_sha256].label, s.layer, s.format, s.coder, str(widths[s.format, s.coder]),
             f"{s.n_bits / s.n_weights:.4f}", str(s.n_weights), *trace_of(s).text) for s in ordered]  # fmt: skip
    return _plot("parts", "Exponents, mantissas and signs", caption, " ".join(_end(words)), header, rows,
                 draw_parts(models, layers, parts))  # fmt: skip


def histograms_plot(shown: Sequence[Shown]) -> Plot | None:
    """How often each level is used, a panel for each recipe and alphabet; None without histograms."""
    if not shown:
        return None
    caption = (
        "How often each level of a grid is used in all linear layers of the decoder blocks. Above each panel stand the "
        "order-0 entropy of the codes and the logarithm of the number of levels in use: the difference is what an "
        "entropy coder can save. Levels are in units of the scale, or bare codes where the grid's tables or zero "
        "points differ from group to group; floating point's, which crowd around zero, are drawn by their place in the "
        "order of levels. Of recipes run with several seeds, the first is shown; of "
        "recipes with several alphabets, numbered after a dot, the one of most codes, and the table has all."
    )
    of_record: dict[str, list[Shown]] = {}
    for s in shown:
        of_record.setdefault(s.record.cell, []).append(s)
    drawn = [max(alphabets, key=lambda s: s.histogram.counts.sum()) for alphabets in of_record.values()]
    words = [f"{s.label}: {s.entropy:.2f} of {s.width:.2f} bits, at most {100 * s.shares.max():.3g}% in one level, "
             f"{s.histogram.levels[s.shares.argmax()]:g}" for s in shown]  # fmt: skip
    header = ("method", "recipe", "bits", "seed", "alphabet", "levels", "entropy", "width", "largest share %",
              "count of each level")  # fmt: skip
    rows = [(s.record.method, s.record.recipe, _text(s.record.bits, "g"), str(s.record.seed), str(s.histogram.stream),
             str(len(s.histogram.levels)), f"{s.entropy:.4f}", f"{s.width:.4f}", f"{100 * s.shares.max():.2f}",
             ", ".join(f"{x:.6g}: {n}" for x, n in zip(s.histogram.levels, s.histogram.counts, strict=True)),
             *trace_of(s.record).text) for s in shown]  # fmt: skip
    return _plot("histograms", "How often each level is used", caption, " ".join(_end(words)), header, rows,
                 draw_histograms(drawn))  # fmt: skip


def coded_plot(study: Study) -> Plot | None:
    """KL against coded bits; None if no record has both."""
    coded, stored = coded_marks(study)
    if not any(c.drawn and s.drawn for c, s in zip(coded, stored, strict=True)):
        return None
    caption = (
        "Divergence from the unquantized model against the bits that the codes take when they are coded, by the "
        "recipe's own coder or else by ANS, everything included; a thin line leads to the bits as stored. Filled "
        "markers are on the front of coded bits. Coding changes no weight: a point keeps its KL."
    )
    over = [{id(m): f"{r:.4f}" for m, r in equal_bits(coded, rivals)} for rivals in (stored, coded)]
    header = ("method", "recipe", "bits", "seeds", "bpw", "coded bpw", "KL", "standard error", "on the stored front",
              "on the coded front", "entropy-coded", "KL over fixed widths at equal bits",
              "and over coded ones")  # fmt: skip
    rows = [(c.point.method, c.point.recipe, _text(c.point.bits, "g"), str(len(c.point.records)), f"{s.bpw:.4f}",
             f"{c.bpw:.4f}", f"{c.value:.6g}", f"{c.error:.6g}", _yes(s.front), _yes(c.front), _yes(is_coded(c.point)),
             *(ratio.get(id(c), "") for ratio in over), *_traces(c))
            for c, s in zip(coded, stored, strict=True)]  # fmt: skip
    front = sorted((c for c in coded if c.front), key=lambda c: c.bpw)
    words = [f"{c.point.method} {c.value:.3g} nats at {c.bpw:.3g} bits" for c in front]
    before = [f"{s.point.method} at {s.bpw:.3g}" for s in sorted(stored, key=lambda s: s.bpw) if s.front]
    description = f"Front of coded bits: {'; '.join(words)}. Front of stored bits: {'; '.join(before)}."
    return _plot("coded", "Divergence against coded bits", caption, description, header, rows,
                 draw_coded(coded, stored))  # fmt: skip


def distances_plot(found: Entropy, study: Study) -> Plot | None:
    """Stored bits above R(D) of the mixture fitted to the weights, for recipes of few bits; None without either."""
    limits = found.limits_of(study)
    errors = {id(p): nmse for p in study.points if 0 < (nmse := found.error_of(p)) < np.inf}
    if limits is None or not errors:
        return None
    rates = {key: limits.rates(nmse) for key, nmse in errors.items()}
    kept = [m for m in marks(study.points, "nmse") if id(m.point) in errors and m.drawn]
    above = [replace(m, value=m.bpw - rates[id(m.point)]["variance mixture"], error=0.0) for m in kept]
    below = [f"{label(m)} by {-m.value:.3f} bits" for m in above if m.value < 0]
    caption = (
        f"Recipes of up to {LOW_BITS:g} true bits: how many bits fewer the best code of any length would need for the "
        "same squared error, if the weights, each layer at unit variance, were independent samples of the mixture of "
        "zero-mean Gaussians fitted to them. Filled are methods that see no data; those that minimize the error of the "
        "outputs pay for it here. They are no such samples, so a point below the line is a finding; here: "
        f"{', '.join(below) or 'none'}."
    )
    header = ("method", "recipe", "bits", "seeds", "bpw", "nmse", *(f"R(D), {s}" for s in SOURCES),
              "R(D), variances known", *(f"bpw above {s}" for s in SOURCES))  # fmt: skip
    rows = []
    for m in above:
        p, nmse, R = m.point, errors[id(m.point)], rates[id(m.point)]
        numbers = [m.bpw, nmse, *R.values(), limits.known_variances(nmse), *(m.bpw - R[s] for s in SOURCES)]
        rows.append((p.method, p.recipe, _text(p.bits, "g"), str(len(p.records)), *(_text(x, ".4f") for x in numbers),
                     *_traces(m)))  # fmt: skip
    words = [f"{label(m)}: {m.value:.2f} bits above at {m.bpw:.2f}" for m in sorted(above, key=lambda m: m.value)]
    return _plot("distance", "Few bits: distance to the rate-distortion function", caption, " ".join(_end(words)),
                 header, rows, draw_distances(above))  # fmt: skip


_FORMAT = ("model", "format", "recipe", "bits", "group", "weights")


def _plot(key: str, title: str, caption: str, description: str, header: Sequence[str], rows: Sequence[tuple[str, ...]],
          figure: Figure) -> Plot:  # fmt: skip
    return Plot(key=key, title=title, caption=caption, description=description, header=(*header, *ORIGIN),
                rows=tuple(rows), curves=(), figure=figure)  # fmt: skip


def _format_of(t: Total) -> tuple[str, ...]:
    return t.model.label, t.format, t.recipe, f"{t.bits:g}", t.group, str(t.n_weights)


def _models(totals: Sequence[Total]) -> list[Model]:
    return list(dict.fromkeys(t.model for t in totals))


def _tried(totals: Sequence[Total]) -> list[str]:
    return [c for c in CODERS if any(c in t.n_bits for t in totals)]


def _text(value: float | None, form: str) -> str:
    return "" if value is None or not np.isfinite(value) else format(value, form)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _end(sentences: Sequence[str]) -> list[str]:
    return [f"{s}." for s in sentences]


def _coded_in_words(t: Total) -> str:
    coders = [c for c in CODERS if c in t.n_bits]
    shares = ", ".join(f"{coder_name(c)} {100 * t.share(c):.0f}%" for c in coders)
    return f"{t.label} {t.bpw('fixed'):.2f} bits, {shares}"


def _mixture(found: Entropy, model: Model) -> str:
    m = found.limits[model].mixture
    parts = [f"{100 * w:.3g}% of variance {v:.3g}" for w, v in zip(m.weights, m.variances, strict=True)]
    return f"a mixture of {', '.join(parts)}"


def _natural(layer: str) -> tuple[tuple[int, int | str], ...]:
    """Layer names in the order of the numbers in them."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in layer.split("."))


def _traces(m: Mark) -> tuple[str, ...]:
    """The origins of all of a point's records; what they share stands once."""
    traces: list[Trace] = [trace_of(r) for r in m.point.records]
    return tuple(" + ".join(dict.fromkeys(column)) for column in zip(*(t.text for t in traces), strict=True))
