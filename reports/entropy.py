"""From the entropy rows of a store to what is drawn: sums over layers, gains, gaps to R(D), and verdicts in words.

A model's rows are added up over its linear layers; distortions are averaged over its weights, so that every layer is
as if scaled to unit mean square. All functions are pure.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np

from reports.frontier import LOW_BITS, Mark, Point, Study, listed, marks, pareto_front
from suite.store import CodedSize, Histogram, LayerRecord, Record, Store, WeightShape
from theory.blahut_arimoto import RateDistortion, rate_distortion
from theory.rate_distortion import reverse_waterfilling_rate
from theory.sources import GaussianMixture, Laplace
from theory.variance_mixture import fit_variances

CODERS = ("entropy", "huffman", "ans", "exponents", "zstd", "gzip", "lzma")
PARTS = ("exponent", "mantissa", "sign")
FLOATS = {"fp32": (8, 23, 1), "bf16": (8, 7, 1), "fp8": (4, 3, 1)}  # bits of the parts; E4M3
SOURCES = ("Gaussian", "Laplace", "variance mixture")
SHAPE_EDGES = np.linspace(-16, 16, 1025)
GAIN_CLAIM = (1.3, 1.5)  # claim N3: what coding 4-bit codes is said to gain
GAIN_BITS = 4
SCALAR_BITS = 4.5  # claim N5 speaks of 4 bits and below, which with scales is up to a little more
COMPONENTS = 5  # variances of a mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Where a number comes from: a cell, or a model by its hash; the code, the environment and the command."""

    source: str
    code: str
    env: str
    command: str

    @property
    def text(self) -> tuple[str, ...]:
        """As in the last columns of a table."""
        return self.source, self.code, self.env, self.command


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the entropy rows: the name that figures call it by, and its hash."""

    label: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All layers of a model in one format: bits under each coder, and the error, relative, averaged over weights."""

    model: Model
    format: str
    recipe: str
    bits: float
    group: str
    n_weights: int
    n_bits: Mapping[str, float]
    beside_bits: int
    nmse: float
    trace: Trace

    @property
    def label(self) -> str:
        """The format and, unless its name tells, its nominal width."""
        return self.format if f"{self.bits:g}" in self.format else f"{self.format} {self.bits:g}"

    def bpw(self, coder: str) -> float:
        """Bits per weight under a coder, everything included; NaN where it was not tried."""
        return self.n_bits.get(coder, np.nan) / self.n_weights

    def share(self, coder: str) -> float:
        """Coded over stored bits."""
        return self.n_bits.get(coder, np.nan) / self.n_bits["fixed"]

    def efficiency(self, coder: str) -> float:
        """Order-0 entropy of the codes over what a coder takes for them, scales and the like left out of both."""
        taken = self.n_bits.get(coder, np.nan) - self.beside_bits
        return (self.n_bits["entropy"] - self.beside_bits) / taken if taken > 0 else np.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """R(D) of a model's weights, each layer at unit mean square, taken for samples of one of three sources."""

    mixture: GaussianMixture
    curves: Mapping[str, RateDistortion]

    def rates(self, nmse: float) -> dict[str, float]:
        """Least bits per weight at a relative error, by source."""
        found = {name: float(curve.rate(nmse * curve.variance)) for name, curve in self.curves.items()}
        return {"Gaussian": max(-np.log2(nmse) / 2, 0.0), **found}

    def known_variances(self, nmse: float) -> float:
        """What the mixture would need if every weight's variance were known for free: a lower bound on it."""
        m = self.mixture
        return float(reverse_waterfilling_rate(m.variances, nmse * m.variance, m.weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One alphabet of one recipe: the histogram of its codes and the record that it was counted for."""

    record: Record
    histogram: Histogram
    alphabets: int

    @property
    def label(self) -> str:
        """The method and its nominal bits; the alphabet's number where there are several."""
        name = self.record.method if self.record.bits is None else f"{self.record.method} {self.record.bits:g}"
        return name if self.alphabets == 1 else f"{name} · {self.histogram.stream}"

    @property
    def shares(self) -> np.ndarray:
        """Shares of the levels, (n,)."""
        return self.histogram.counts / self.histogram.counts.sum()

    @property
    def entropy(self) -> float:
        """Order-0 entropy of the codes, bits."""
        p = self.shares[self.shares > 0]
        return float(-p @ np.log2(p)) + 0.0

    @property
    def width(self) -> float:
        """Bits of a code of fixed width for as many levels as occur."""
        return float(np.log2(len(self.histogram.levels)))


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Everything that the entropy page shows of a store.

    `errors` are those of records of few bits, by cell, code and environment: `nmse` as `Total` has it.
    """

    studies: tuple[tuple[Study, tuple[Shown, ...]], ...]
    sizes: tuple[CodedSize, ...]
    shapes: tuple[WeightShape, ...]
    errors: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The models of the entropy rows: initial weights first, then half-trained ones, then the others."""
        named: tuple[CodedSize | WeightShape, ...] = (*self.sizes, *self.shapes)
        keys = sorted({(s.model, s.model_sha256) for s in named}, key=_stage)
        short = [re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name for name, _ in keys]
        return tuple(Model(label=label if short.count(label) == 1 else f"{label} {sha256[:8]}", name=name,
                           sha256=sha256) for label, (name, sha256) in zip(short, keys, strict=True))  # fmt: skip

    @cached_property
    def totals(self) -> tuple[Total, ...]:
        """One for each model, format, recipe and origin, by model, then by stored bits."""
        found = []
        for model in self.models:
            of_model = [s for s in self.sizes if (s.model, s.model_sha256) == (model.name, model.sha256)]
            for _, same in groupby(sorted(of_model, key=_same_format), key=_same_format):
                total = _total(model, list(same))
                if {"fixed", "entropy"} <= total.n_bits.keys():
                    found.append(total)
        order = {m: i for i, m in enumerate(self.models)}
        return tuple(sorted(found, key=lambda t: (order[t.model], -t.bits, t.format, group_rank(t.group), t.recipe)))

    @cached_property
    def standard(self) -> tuple[Total, ...]:
        """For each model, format and width the recipe under which most coders were tried: a format as it is meant."""
        best: dict[tuple, Total] = {}
        for t in self.totals:
            key = (t.model, t.format, t.bits)
            if key not in best or len(t.n_bits) > len(best[key].n_bits):
                best[key] = t
        return tuple(best.values())

    @cached_property
    def limits(self) -> dict[Model, Limits]:
        """R(D) for every model whose weights were counted."""
        laplace, found = rate_distortion(Laplace()) if self.shapes else None, {}
        for model in self.models:
            counts = [s.counts for s in self.shapes if (s.model, s.model_sha256) == (model.name, model.sha256)]
            if counts and laplace is not None and np.sum(counts):
                mixture = fit_variances(SHAPE_EDGES, np.sum(counts, axis=0), COMPONENTS).mixture
                curves = {"Laplace": laplace, "variance mixture": rate_distortion(mixture)}
                found[model] = Limits(mixture=mixture, curves=curves)
        return found

    def error_of(self, point: Point) -> float:
        """The error of a point of few bits, averaged over seeds; NaN where layers were not recorded."""
        return float(np.mean([self.errors.get((r.cell, r.code, r.env), np.nan) for r in point.records]))

    def limits_of(self, study: Study) -> Limits | None:
        """R(D) for the model of a study, if its weights were counted."""
        by_model = {(m.name, m.sha256): limits for m, limits in self.limits.items()}
        return by_model.get((study.model, study.model_sha256))

    @property
    def anything(self) -> bool:
        """Whether there is anything for a page to say."""
        return bool(self.sizes or self.shapes or any(shown for _, shown in self.studies))


def read_entropy(store: Store, studies: Sequence[Study]) -> Entropy:
    """What a store holds about entropy, for its studies."""
    found, errors = [], {}
    for study in studies:
        shown = []
        for point in study.points:
            if point.mean("bpw") <= LOW_BITS:
                errors |= {(r.cell, r.code, r.env): _mean_error(store.layers(r)) for r in point.records}
            histograms = store.histograms(point.records[0])
            shown += [Shown(record=point.records[0], histogram=h, alphabets=len(histograms))
                      for h in histograms if h.counts.sum()]  # fmt: skip
        found.append((study, tuple(shown)))
    sizes, shapes = tuple(store.rows(CodedSize)), tuple(store.weight_shapes())
    return Entropy(studies=tuple(found), errors=errors, sizes=sizes, shapes=shapes)


def _mean_error(layers: Sequence[LayerRecord]) -> float:
    """The mean of `nmse` over weights: every layer as if scaled to unit mean square. NaN without layers."""
    weights = np.array([layer.n_out * layer.n_in for layer in layers])
    return float(weights @ [layer.nmse for layer in layers] / weights.sum()) if layers else np.nan


def _stage(key: tuple[str, str]) -> tuple[int, str, str]:
    last = re.split(r"[/\\+:@-]", key[0].lower().rstrip("/\\"))[-1]
    return {"initial": 0, "half": 1, "halfway": 1}.get(last, 2), *key


def _same_format(s: CodedSize) -> tuple:
    return s.format, s.bits, s.group, s.recipe, s.code, s.env, s.command


def _total(model: Model, rows: Sequence[CodedSize]) -> Total:
    """The sum of rows that differ in layer and coder; a coder that some layer lacks is left out."""
    by_coder: dict[str, list[CodedSize]] = {}
    for row in rows:
        by_coder.setdefault(row.coder, []).append(row)
    layers = max(len(found) for found in by_coder.values())
    full = {coder: found for coder, found in by_coder.items() if len(found) == layers}
    one = full.get("fixed") or next(iter(full.values()))
    weights = np.array([r.n_weights for r in one])
    first = rows[0]
    return Total(
        model=model, format=first.format, recipe=first.recipe, bits=first.bits, group=first.group,
        n_weights=int(weights.sum()), n_bits={coder: sum(r.n_bits for r in found) for coder, found in full.items()},
        beside_bits=sum(r.beside_bits for r in one), nmse=float(weights @ [r.nmse for r in one] / weights.sum()),
        trace=trace_of(first),
    )  # fmt: skip


def trace_of(row: CodedSize | Record) -> Trace:
    """A cell by the first 12 digits of its id, a model's row by those of the model's hash."""
    source = f"cell {row.cell[:12]}" if isinstance(row, Record) else f"model {row.model_sha256[:12]}"
    return Trace(source=source, code=row.code, env=row.env, command=row.command)


def group_rank(group: str) -> tuple[int, int]:
    """Order of groups: by size, then rows, then whole tensors, then what has none."""
    return (0, int(group)) if group.isdecimal() else ({"row": 1, "tensor": 2}.get(group, 3), 0)


def gain(t: Total) -> float:
    """Stored over coded bits, by ANS, everything included."""
    return t.n_bits["fixed"] / t.n_bits.get("ans", np.nan)


def swept(totals: Iterable[Total]) -> list[Total]:
    """Those of formats that were tried in more than one group, with ANS."""
    named = [t for t in totals if t.group and "ans" in t.n_bits]
    groups: dict[tuple, set[str]] = {}
    for t in named:
        groups.setdefault((t.model, t.format, t.bits), set()).add(t.group)
    return [t for t in named if len(groups[t.model, t.format, t.bits]) > 1]


def gain_verdict(totals: Sequence[Total]) -> str:
    """One sentence on claim N3 for one model: where coding 4-bit codes gains what is claimed."""
    low, high = GAIN_CLAIM
    found = [t for t in totals if t.bits == GAIN_BITS and np.isfinite(gain(t))]
    if not found:
        return f"claim N3 is open: no {GAIN_BITS}-bit format was coded in several groups."
    reached = [t for t in found if gain(t) >= low]
    least, most = min(found, key=gain), max(found, key=gain)
    span = f"from {gain(least):.2f} ({_with_group(least)}) to {gain(most):.2f} ({_with_group(most)})"
    text = f"coding {GAIN_BITS}-bit codes gains {span}"
    if not reached:
        return f"{text}; claim N3, a gain of {low:g} to {high:g}, is reached nowhere."
    first = min(reached, key=lambda t: (group_rank(t.group), -gain(t)))
    formats = sorted({t.format for t in found})
    without = [f for f in formats if f not in {t.format for t in reached}]
    text += f"; claim N3, a gain of {low:g} or more, holds in {len(reached)} of {len(found)} cases"
    text += f", first at {_with_group(first)}"
    return f"{text}{', never for ' + listed(without) if without else ''}."


def _with_group(t: Total) -> str:
    return f"{t.label} in {group_name(t.group)}"


def group_name(group: str) -> str:
    """How a group is called in words."""
    return {"row": "whole rows", "tensor": "whole tensors", "": "no groups"}.get(group, f"groups of {group}")


def is_coded(point: Point) -> bool:
    """Whether a recipe rounds to one step for the sake of a coder, or stores its codes coded."""
    return bool(re.search(r"\bSteps\(|\bcoding=(?!Fixed\b)", point.recipe))


def coded_marks(study: Study) -> tuple[list[Mark], list[Mark]]:
    """The points of KL against coded bits, and the same against stored bits, in the same order."""
    points = [p for p in study.points if np.isfinite(p.mean("bpw_coded")) and np.isfinite(p.mean("bpw"))]
    return marks(points, "kl", "kl_se", "bpw_coded"), marks(points, "kl", "kl_se")


def equal_bits(coded: Sequence[Mark], rivals: Sequence[Mark]) -> list[tuple[Mark, float]]:
    """Each entropy-coded scalar point of few bits, and its KL over that of fixed widths interpolated to its bits.

    Fixed widths are the front of the other recipes among `rivals`, at their stored or at their coded bits, on a line
    between neighbors in the logarithm of KL. A point outside the bits that the front spans is left out.
    """
    others = [m for m in rivals if not is_coded(m.point) and m.drawn and m.value > 0]
    front = [replace(m, front=bool(f)) for m, f in
             zip(others, pareto_front([m.bpw for m in others], [m.value for m in others]), strict=True)]  # fmt: skip
    steps = sorted((m.bpw, float(np.log(m.value))) for m in front if m.front)
    own = [m for m in coded if is_coded(m.point) and m.drawn and m.value > 0 and m.bpw <= SCALAR_BITS]
    if len(steps) < 2:
        return []
    bits, logs = np.array(steps).T
    return [(m, m.value / float(np.exp(np.interp(m.bpw, bits, logs)))) for m in own if bits[0] <= m.bpw <= bits[-1]]


def coding_verdict(study: Study) -> str:
    """One sentence on claim N5: entropy-coded scalar quantization against fixed widths at equal bits."""
    coded, stored = coded_marks(study)
    pairs = equal_bits(coded, stored)
    if not pairs:
        change = _front_change(coded, stored)
        return f"claim N5 is open, for no entropy-coded scalar quantizer of few bits can be compared; {change}."
    methods = listed(sorted({m.point.method for m, _ in pairs}))
    return (
        f"claim N5: at up to {SCALAR_BITS:g} coded bits, {methods} have a lower KL than the front of fixed widths at "
        f"equal bits {_won(pairs)}; where the codes of fixed widths are coded too, {_won(equal_bits(coded, coded))}; "
        f"{_front_change(coded, stored)}."
    )


def _won(pairs: Sequence[tuple[Mark, float]]) -> str:
    """In how many points the KL is lower, and by how much."""
    if not pairs:
        return "in none that could be compared"
    ratios = np.array([ratio for _, ratio in pairs])
    clear = sum((m.value + 2 * m.error) / m.value * ratio < 1 for m, ratio in pairs)
    text = f"in {int((ratios < 1).sum())} of {len(pairs)} points, by two standard errors in {clear}"
    return f"{text} (median ratio {np.median(ratios):.2f})"


def _front_change(coded: Sequence[Mark], stored: Sequence[Mark]) -> str:
    saved = [1 - c.bpw / s.bpw for c, s in zip(coded, stored, strict=True) if s.bpw > 0]
    if not saved:
        return "no record has both bit counts"
    changed = {(c.point.recipe, c.point.bits) for c in coded if c.front}
    before = {(s.point.recipe, s.point.bits) for s in stored if s.front}
    kept, new = len(changed & before), len(changed - before)
    text = f"coding saves {100 * np.median(saved):.0f}% of the bits in the median, and {kept} of the {len(before)}"
    return f"{text} points on the front stay on it, joined by {new or 'none'}"
