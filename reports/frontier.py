"""From records to what is drawn: which belong together, their means over seeds, the Pareto front and the floors.

Records are comparable if they are of one model and were evaluated on the same tokens. A record carries one hash of
calibration and evaluation data together, which tells calibration seeds apart but not evaluations; two data hashes
share their evaluation if the unquantized model has the same perplexity on them. All functions are pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike

from suite.store import Record, Spectrum, Store
from theory.rate_distortion import reverse_waterfilling

# What belongs together in a legend, in its order.
FAMILIES = {
    "integers": ("rtn", "gptq", "gptq-stochastic", "hqq", "awq", "smoothquant"),
    "floating point": ("fp8", "fp8-e5m2", "fp6", "fp6-e2m3", "fp4"),
    "microscaling": ("mxfp4", "mxfp6", "mxfp6-e3m2", "mxfp8", "mxfp8-e5m2", "mxint8", "nvfp4"),
    "tables": ("lloyd-max", "k-means", "nf4", "nf2", "ternary", "ternary-refit", "binary"),
    "GGUF": ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q8_0"),
    "sparse, mixed": ("magnitude-24", "wanda-24", "sparsegpt-24", "exl2"),
    "entropy-coded": ("dfloat11", "ecf8", "entrollm", "ecsq", "cerwu", "watersic"),
    "below three bits": ("quip-sharp", "qtip", "aqlm", "vptq", "pb-llm", "billm", "residual-binary"),
    "coordinates": ("qronos", "quarot", "spinquant", "expansion", "duquant"),
    "trained": ("lsq", "paretoq", "bitnet", "bitnet-tuned", "bitdistiller", "zeroqat"),
    "adapters": ("low-rank", "low-rank-h", "low-rank-gptq", "qlora", "loftq", "qa-lora", "ir-qlora", "l4q"),
    "caches": ("kivi", "kvquant"),
}
# Whose `nmse` is what they minimize; the others trade it for `hnmse`.
DATA_FREE = (
    "hqq", "rtn", "magnitude-24", "dfloat11", "ecf8", "entrollm", "ecsq",
    "residual-binary", "low-rank",
    *FAMILIES["floating point"], *FAMILIES["microscaling"], *FAMILIES["tables"], *FAMILIES["GGUF"],
)  # fmt: skip
FEEDBACK = (
    "gptq", "gptq-stochastic", "qronos", "quarot", "spinquant", "expansion", "sparsegpt-24", "exl2", "cerwu",
    "watersic", "quip-sharp", "qtip", "aqlm", "vptq", "pb-llm", "billm", "low-rank-gptq",
)  # fmt: skip
LOW_BITS = 3.5  # true bits up to which the regime below three bits is drawn: what is kept beside codes comes on top
KL_LIMIT_NATS = 0.05  # what the verdict calls close to the unquantized model
MOST_BITS = 12  # beyond which a point is not drawn: only blocks that hardly fit a matrix's width take more
_SAME_PERPLEXITY = 1e-3  # relative; environments differ by rounding, other tokens or lengths by percents


@dataclass(frozen=True, slots=True)
class Point:
    """The finished records of one recipe at one width, which differ in their seeds only."""

    method: str
    recipe: str
    bits: float | None
    records: tuple[Record, ...]

    def values(self, field: str) -> np.ndarray:
        """The field of every record, (seeds,); what was not measured is NaN."""
        return np.array([np.nan if (x := getattr(r, field)) is None else x for r in self.records], dtype=float)

    def mean(self, field: str) -> float:
        """Mean over seeds; NaN or infinite as soon as one seed is."""
        with np.errstate(invalid="ignore"):  # inf - inf
            return float(self.values(field).mean())

    def error(self, field: str, se_field: str | None = None) -> float:
        """Standard error of the mean over seeds; a missing part counts 0.

        Its square is the mean of the squared `se_field`, since all seeds share the evaluation tokens, plus the
        variance between seeds divided by their number.
        """
        tokens = np.nan_to_num(self.values(se_field) if se_field else 0.0, posinf=0.0)
        values = self.values(field)
        between = values.var(ddof=1) / len(values) if len(values) > 1 and np.isfinite(values).all() else 0.0
        return float(np.sqrt(np.mean(tokens**2) + between))


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One model on one evaluation: everything that may be compared in one figure.

    `points` are the newest finished records, `unmeasured` the newest that were skipped or failed, `superseded` the
    records of other code versions or environments of a cell that has a newer one. `spectra` holds one tuple of
    layers per calibration.
    """

    model: str
    model_sha256: str
    ppl_base: float | None
    points: tuple[Point, ...]
    unmeasured: tuple[Record, ...]
    superseded: tuple[Record, ...]
    spectra: tuple[tuple[Spectrum, ...], ...]

    @property
    def measured(self) -> tuple[Record, ...]:
        """The records behind the points, in their order."""
        return tuple(record for point in self.points for record in point.records)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in a figure: `note` says why it is not drawn, or not where it belongs; `front`, if nothing beats it."""

    point: Point
    bpw: float
    value: float
    error: float
    front: bool
    note: str

    @property
    def drawn(self) -> bool:
        """Whether both coordinates are finite, and the bits within what figures show."""
        return bool(np.isfinite(self.bpw) and np.isfinite(self.value) and self.bpw <= MOST_BITS)


def studies(store: Store) -> list[Study]:
    """The comparable sets of records of a store, by model name and hash, then by perplexity of the evaluation."""
    found = []
    for _, of_model in groupby(store.records(), key=lambda r: (r.model, r.model_sha256)):
        for ppl_base, records in _by_evaluation(list(of_model)):
            found.append(_study(store, ppl_base, records))
    return found


def _by_evaluation(records: list[Record]) -> list[tuple[float | None, list[Record]]]:
    """One model's records by evaluation; data on which nothing was measured goes with the first."""
    known: dict[str, float] = {}
    for r in records:
        if r.ppl_base is not None and np.isfinite(r.ppl_base):
            known.setdefault(r.data_sha256, r.ppl_base)
    levels: list[float] = []
    for ppl in sorted(known.values()):
        if not levels or ppl > levels[-1] * (1 + _SAME_PERPLEXITY):
            levels.append(ppl)
    if not levels:
        return [(None, records)]
    level_of = {data: max(level for level in levels if level <= ppl) for data, ppl in known.items()}
    return [(level, [r for r in records if level_of.get(r.data_sha256, levels[0]) == level]) for level in levels]


def _study(store: Store, ppl_base: float | None, records: list[Record]) -> Study:
    current = newest(records)
    ok = sorted((r for r in current if r.status == "ok"), key=_recipe_of)
    one_per_data = {r.data_sha256: r for r in records}
    spectra = (tuple(store.spectra(r)) for r in one_per_data.values())
    return Study(
        model=records[0].model,
        model_sha256=records[0].model_sha256,
        ppl_base=ppl_base,
        points=tuple(Point(*key[:2], same[0].bits, same) for key, group in groupby(ok, _recipe_of)
                     for same in [tuple(group)]),
        unmeasured=tuple(r for r in current if r.status != "ok"),
        superseded=tuple(r for r in records if r not in current),
        spectra=tuple(layers for layers in spectra if layers),
    )  # fmt: skip


def _recipe_of(record: Record) -> tuple[str, str, float]:
    return record.method, record.recipe, -1.0 if record.bits is None else record.bits


def newest(records: Iterable[Record]) -> list[Record]:
    """One record per cell, in the order of `records`: the last started among the finished, else the last started."""
    best: dict[str, Record] = {}
    for r in records:
        if r.cell not in best or _recency(r) > _recency(best[r.cell]):
            best[r.cell] = r
    return [r for r in records if best[r.cell] is r]


def _recency(record: Record) -> tuple[bool, str, str, str]:
    return record.status == "ok", record.started, record.code, record.env


def pareto_front(cost: ArrayLike, loss: ArrayLike) -> np.ndarray:
    """Mask of the points that no other point beats: none is lower in one coordinate and not higher in the other.

    Equal points are both on the front; a point with a NaN or infinite coordinate never is.

    >>> pareto_front([2, 3, 3, 4], [9, 5, 6, 5]).tolist()
    [True, True, False, False]
    """
    x, y = np.asarray(cost, dtype=float), np.asarray(loss, dtype=float)
    front = np.zeros(len(x), dtype=bool)
    last = (np.nan, np.inf)
    for i in np.lexsort((y, x)):
        if np.isfinite(x[i]) and np.isfinite(y[i]) and (y[i] < last[1] or (x[i], y[i]) == last):
            front[i], last = True, (x[i], y[i])
    return front


def marks(points: Sequence[Point], field: str, se_field: str | None = None, rate: str = "bpw") -> list[Mark]:
    """The points of a figure of `field` against a rate, `bpw` or `bpw_coded`, with the Pareto front of both marked."""
    bpw, values = [p.mean(rate) for p in points], [p.mean(field) for p in points]
    front = pareto_front(bpw, values)
    return [Mark(p, x, y, p.error(field, se_field), bool(f), _note(p, x, y, field))
            for p, x, y, f in zip(points, bpw, values, front, strict=True)]  # fmt: skip


def _note(point: Point, bpw: float, value: float, field: str) -> str:
    if not np.isfinite(bpw):
        return "not drawn: no bit count"
    if any(getattr(r, field) is None for r in point.records):
        return "not drawn: not measured"
    if not np.isfinite(value):
        return "not drawn: not finite"
    if bpw > MOST_BITS:
        return f"not drawn: beyond {MOST_BITS} bits"
    return "" if value > 0 else "drawn at the lower edge of the logarithmic axis"


def feedback_floor(study: Study, rate: ArrayLike) -> np.ndarray | None:
    """Least `hnmse` at `rate` bits per weight if every layer were iid Gaussian of its variance; None without spectra.

    A row of a layer with input Gram matrix H and weight variance v has, in H's eigenbasis, components of variance
    v lambda_i. Reverse water-filling runs over the components of all layers at once, and its error is divided by
    the layers' energies tr(W H W^T), as `hnmse` is. Calibrations are averaged.
    """
    floors = [_floor(layers, rate) for layers in study.spectra]
    return np.mean(floors, axis=0) if floors else None


def _floor(layers: Sequence[Spectrum], rate: ArrayLike) -> np.ndarray:
    # an eigenvalue of a singular H comes out as a tiny negative number
    variances = np.concatenate([s.variance * np.maximum(s.eigenvalues, 0) for s in layers])
    copies = np.concatenate([np.full(len(s.eigenvalues), s.n_out) for s in layers])
    return reverse_waterfilling(variances, rate, copies) / sum(s.energy for s in layers)


def verdict(study: Study, limit_nats: float = KL_LIMIT_NATS) -> str:
    """One sentence: the fewest true bits per weight at which some method keeps `kl` below the limit, or that none."""
    drawn = [m for m in marks(study.points, "kl", "kl_se") if m.drawn]
    if not drawn:
        return f"no method has a finite KL yet, so nothing can be said about {limit_nats:g} nats."
    close = [m for m in drawn if m.value < limit_nats]
    if not close:
        m = min(drawn, key=lambda m: (m.value, m.bpw))
        return f"no method keeps KL below {limit_nats:g} nats; the closest is {_in_words(m)}."
    m = min(close, key=lambda m: (m.bpw, m.value))
    doubt = ", less than two standard errors below the limit" if m.value + 2 * m.error > limit_nats else ""
    return f"the fewest bits that keep KL below {limit_nats:g} nats: {_in_words(m)}{doubt}."


def _in_words(m: Mark) -> str:
    return f"{m.point.method} at {m.bpw:.2f} bits per weight, with KL {m.value:.2g} ± {m.error:.1g} nats"


def listed(words: Sequence[str]) -> str:
    """Words in a row.

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1] if words else "")))
