"""What a store says of trained cells: each against its control, beside methods without training.

A trained cell's reference is the unquantized model trained equally; that of a method without training is the model as
it was, which has had no more training either. Both are differences on the same evaluation tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan, sqrt

from reports.adapters import is_adapted
from reports.frontier import Study
from suite.store import Record, Store, TrainingRow

UNTRAINED = ("gptq", "rtn")
_TRAINED = "QuantizationAware("  # in the text of every recipe that is trained as a whole


@dataclass(frozen=True, slots=True)
class Excess:
    """A record's loss over that of its reference on the same tokens, in nats, with its standard error."""

    record: Record
    label: str
    nats: float
    error: float

    @property
    def bpw(self) -> float:
        """True bits per weight; NaN where no weights are quantized."""
        return _number(self.record.bpw)

    @property
    def percent(self) -> float:
        """The same of the reference's perplexity."""
        return 100 * (exp(self.nats) - 1) if self.nats < 100 else float("inf")


@dataclass(frozen=True, slots=True)
class Cell:
    """A trained cell, `excess` being over its control."""

    excess: Excess
    row: TrainingRow

    @property
    def record(self) -> Record:
        """What was measured."""
        return self.excess.record

    @property
    def bits(self) -> float:
        """Nominal bits; NaN where it has none."""
        return _number(self.record.bits)

    @property
    def scratch(self) -> bool:
        """Whether it began with random weights, whose distance from the model's says nothing."""
        return "scratch=True" in self.record.recipe

    @property
    def distance(self) -> float:
        """|W' - W| / |W|: the root of the row's share; NaN from scratch."""
        return nan if self.scratch else sqrt(_number(self.row.moved))

    @property
    def distance_control(self) -> float:
        """The control's."""
        return nan if self.scratch else sqrt(_number(self.row.moved_control))

    @property
    def turning(self) -> float:
        """The share of codes that turned within the window; NaN where nothing has codes."""
        return _number(self.row.turning)

    @property
    def disorder(self) -> float:
        """The share of successive gradients of scales whose signs differ; NaN where no scales are learned."""
        return _number(self.row.disorder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The trained cells of a model and seed, in the order of methods and bits; `untrained` are over the original.

    `missing` are the cells without figures, and why.
    """

    study: Study
    seed: int
    cells: tuple[Cell, ...]
    untrained: tuple[Excess, ...]
    missing: tuple[tuple[Record, str], ...]

    @property
    def methods(self) -> list[str]:
        """The trained methods."""
        return list(dict.fromkeys(cell.record.method for cell in self.cells))


def read_training(store: Store, found: Sequence[Study]) -> list[Trained]:
    """The trained cells of these studies' newest records, by model and seed; adapters have a page of their own."""
    rows = {(row.cell, row.code, row.env): row for row in store.rows(TrainingRow)}
    groups = []
    for study in found:
        trained = [r for r in study.measured if (r.cell, r.code, r.env) in rows and not is_adapted(r.recipe)]
        missing = [(r, _why(r)) for r in (*study.measured, *study.unmeasured)
                   if _TRAINED in r.recipe and not is_adapted(r.recipe) and r not in trained]  # fmt: skip
        for seed in sorted({r.seed for r in (*trained, *(r for r, _ in missing))}):
            groups.append(_group(study, seed, [r for r in trained if r.seed == seed], missing, rows))
    return groups


def _group(study: Study, seed: int, trained: list[Record], missing: list[tuple[Record, str]],
           rows: dict[tuple[str, str, str], TrainingRow]) -> Trained:  # fmt: skip
    trained = sorted(trained, key=_order)
    untrained = sorted((r for r in study.measured if r.method in UNTRAINED and r.seed == seed
                        and _TRAINED not in r.recipe and r.ppl and r.ppl_base), key=_order)  # fmt: skip
    labels = _labels([*trained, *untrained])
    cells = []
    for record in trained:
        row = rows[record.cell, record.code, record.env]
        excess = Excess(record, labels[record.cell], _number(row.excess_nats), _number(row.excess_se))
        cells.append(Cell(excess, row))
    return Trained(study=study, seed=seed, cells=tuple(cells), missing=tuple(m for m in missing if m[0].seed == seed),
                   untrained=tuple(_over_original(r, labels[r.cell]) for r in untrained))  # fmt: skip


def _over_original(record: Record, label: str) -> Excess:
    """In nats from perplexities, whose standard error is that of the difference in nats times the perplexity."""
    assert record.ppl is not None and record.ppl_base is not None
    return Excess(record, label, log(record.ppl / record.ppl_base), _number(record.ppl_se) / record.ppl)


def _order(record: Record) -> tuple[str, float, float, str, str]:
    return record.method, record.bits or 0.0, record.bpw or 0.0, record.recipe, record.cell


def _labels(records: Sequence[Record]) -> dict[str, str]:
    """A name for each cell: method and width, and the beginning of the cell's hash where others have these too."""
    plain = {r.cell: name_of(r) for r in records}
    count = Counter(plain.values())
    return {r.cell: plain[r.cell] + (f" ({r.cell[:8]})" if count[plain[r.cell]] > 1 else "") for r in records}


def name_of(record: Record) -> str:
    """The method, and its nominal bits where it has any."""
    return record.method if record.bits is None else f"{record.method} {record.bits:g}"


def _why(record: Record) -> str:
    if record.status == "ok":
        return "finished, with no row of its training"
    return f"{record.status}: {record.reason or 'no reason recorded'}"


def _number(value: float | None) -> float:
    return nan if value is None or not isfinite(value) else value
