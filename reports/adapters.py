"""What a store says of adapters: quantized models with low-rank branches, trained, against full-precision LoRA.

Cells of one recipe that differ in their seeds are one series. Everything is in nats per token of the evaluation text
over the model as it was, neither quantized nor trained: where training began, if the store has a record of that, where
it ended, and where the control did, the unquantized model with adapters trained equally.
"""

import ast
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, nan, sqrt

import numpy as np
from scipy.stats import t

from reports.frontier import Study
from suite.store import Record, Store, TrainingRow

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Cell:
    """A trained cell; `entropy` is that of all its codes together, in bits; `start` the record training began as."""

    record: Record
    row: TrainingRow
    entropy: float
    start: Record | None

    @property
    def nats(self) -> float:
        """Over the model as it was, after training; less than 0 where it has gained."""
        return _over(self.record.ppl, self.record.ppl_base)

    @property
    def nats_control(self) -> float:
        """The control's."""
        return _over(self.row.ppl_control, self.record.ppl_base)

    @property
    def nats_start(self) -> float:
        """Before training; NaN where the store has no such record."""
        return nan if self.start is None else _over(self.start.ppl, self.start.ppl_base)


@dataclass(frozen=True, slots=True)
class Series:
    """The cells of one recipe, one for each seed."""

    label: str
    cells: tuple[Cell, ...]

    @property
    def any(self) -> Record:
        """One of its records, for what all of them say."""
        return self.cells[0].record

    @property
    def method(self) -> str:
        """What it was made by."""
        return self.any.method

    @property
    def bits(self) -> float:
        """Nominal bits; NaN where it has none."""
        return _number(self.any.bits)

    @property
    def bpw(self) -> float:
        """True bits per weight, adapters that are kept counted; NaN where no weights are quantized."""
        return self.mean(lambda cell: _number(cell.record.bpw))

    @property
    def excess(self) -> float:
        """Nats over the control, in the mean over seeds."""
        return self.mean(lambda cell: _number(cell.row.excess_nats))

    @property
    def excess_error(self) -> float:
        """Its standard error: of the tokens, which all seeds share, and between seeds."""
        return self._error(lambda cell: _number(cell.row.excess_nats), lambda cell: _number(cell.row.excess_se))

    @property
    def nats_error(self) -> float:
        """The same of the nats over the model as it was."""
        return self._error(lambda cell: cell.nats, lambda cell: relative_error(cell.record))

    def mean(self, value: Callable[[Cell], float]) -> float:
        """Over seeds; NaN as soon as one is."""
        return float(np.mean([value(cell) for cell in self.cells]))

    def _error(self, value: Callable[[Cell], float], error: Callable[[Cell], float]) -> float:
        values = np.array([value(cell) for cell in self.cells])
        tokens = np.nan_to_num([error(cell) for cell in self.cells], posinf=0.0)
        between = values.var(ddof=1) / len(values) if len(values) > 1 and np.isfinite(values).all() else 0.0
        return sqrt(float(np.mean(tokens**2)) + float(between))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The series of a model and evaluation text, in the order of methods and bits; `missing` have no figures."""

    study: Study
    series: tuple[Series, ...]
    missing: tuple[tuple[Record, str], ...]

    def of(self, method: str, bits: float) -> list[Series]:
        """The series of a method at a width."""
        return [s for s in self.series if (s.method, s.bits) == (method, bits)]

    @property
    def methods(self) -> list[str]:
        """The methods that have series."""
        return list(dict.fromkeys(s.method for s in self.series))


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean over `n` seeds of differences between cells of the same seed, with the ends of its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sure(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0


def is_adapted(recipe: str) -> bool:
    """Whether a recipe's text is of one that trains adapters."""
    beside = "LowRank(" in recipe and "schedule=Schedule(" in recipe
    return beside or ("QuantizationAware(" in recipe and "adapters=Adapters(" in recipe)


def start_of(recipe: str) -> str | None:
    """The text of the recipe that is the model as training began with it; None where no recipe is that.

    A branch of zeros adds nothing: its start is the rounding alone. One that has rounds begins as these leave it.

    >>> start_of("Recipe(weights=Target(G()), adaptation=LowRank(rounds=5, elastic=True, schedule=Schedule(steps=3)))")
    'Recipe(weights=Target(G()), adaptation=LowRank(rounds=5))'
    """
    try:
        whole = ast.parse(recipe, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(whole, ast.Call):
        return None
    kept = []
    for field in whole.keywords:
        if field.arg == "adaptation":
            how = field.value
            if not (isinstance(how, ast.Call) and isinstance(how.func, ast.Name) and how.func.id == "LowRank"):
                return None
            how.keywords = [k for k in how.keywords if k.arg in ("adapters", "rounds", "weighted")]
            if not any(k.arg == "rounds" for k in how.keywords):
                continue
        kept.append(field)
    whole.keywords = kept
    return ast.unparse(whole)


def read_adapters(store: Store, found: Sequence[Study]) -> list[Adapted]:
    """The adapters of these studies' newest records, of every study that has any."""
    rows = {(row.cell, row.code, row.env): row for row in store.rows(TrainingRow)}
    groups = []
    for study in found:
        starts = {(_plain(r.recipe), r.seed): r for r in study.measured}
        series, missing = [], [(r, _why(r)) for r in study.unmeasured if is_adapted(r.recipe)]
        for point in study.points:
            if not is_adapted(point.recipe):
                continue
            start = start_of(point.recipe)
            cells = [Cell(r, rows[r.cell, r.code, r.env], entropy_of(store, r), starts.get((start, r.seed)))
                     for r in point.records if (r.cell, r.code, r.env) in rows]  # fmt: skip
            missing += [(r, "finished, with no row of its training") for r in point.records
                        if (r.cell, r.code, r.env) not in rows]  # fmt: skip
            if cells:
                series.append(Series("", tuple(sorted(cells, key=lambda c: c.record.seed))))
        if series or missing:
            groups.append(Adapted(study=study, series=_labeled(series), missing=tuple(missing)))
    return groups


def entropy_of(store: Store, record: Record) -> float:
    """Bits of a code of a record, all of its codes counted together; NaN where none are, or of several alphabets."""
    histograms = store.histograms(record)
    if len(histograms) != 1 or not histograms[0].counts.sum():
        return nan
    share = histograms[0].counts[histograms[0].counts > 0] / histograms[0].counts.sum()
    return float(-(share * np.log2(share)).sum())


def difference(one: Series, other: Series, value: Callable[[Cell], float]) -> Difference | None:
    """`one` less `other` by seeds that both have, with Student's interval; None where no seed is finite in both.

    A single seed has no interval: its ends are infinite.
    """
    by_seed = {cell.record.seed: value(cell) for cell in other.cells}
    found = np.array([value(cell) - by_seed[cell.record.seed] for cell in one.cells if cell.record.seed in by_seed])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    if len(found) == 1:
        return Difference(float(found[0]), -inf, inf, 1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * float(found.std(ddof=1)) / sqrt(len(found))
    return Difference(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half, len(found))


def relative_error(record: Record) -> float:
    """The standard error of nats over the model as it was: that of the perplexity over it."""
    return _number(record.ppl_se) / record.ppl if record.ppl else nan


def _plain(recipe: str) -> str:
    try:
        return ast.unparse(ast.parse(recipe, mode="eval"))
    except SyntaxError:
        return recipe


def _labeled(series: list[Series]) -> tuple[Series, ...]:
    """In order, by method and width, and the beginning of the first cell's hash where others have these too."""
    plain = [s.method if s.any.bits is None else f"{s.method} {s.any.bits:g}" for s in series]
    count = Counter(plain)
    named = [Series(name + (f" ({s.any.cell[:8]})" if count[name] > 1 else ""), s.cells)
             for name, s in zip(plain, series, strict=True)]  # fmt: skip
    return tuple(sorted(named, key=lambda s: (s.method, s.any.bits or 0.0, s.any.bpw or 0.0, s.any.recipe)))


def _over(ppl: float | None, base: float | None) -> float:
    return log(ppl / base) if ppl and base and isfinite(ppl) and isfinite(base) else nan


def _why(record: Record) -> str:
    return f"{record.status}: {record.reason or 'no reason recorded'}"


def _number(value: float | None) -> float:
    return nan if value is None or not isfinite(value) else value
