"""From a store's rows of scaling studies to what is drawn: families, their frontier, and the law through them.

Rows are of one family if they have the same evaluation and calibration tokens and the same seed. The law is fitted to
full-precision models and those that ParetoQ trained from them, which had equal tokens; what is trained from scratch is
held against it. N are the weights of linear layers, the ones that have the width. All functions are pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reports.frontier import pareto_front
from suite.store import ScalingRow, Store, TrainingRow
from theory.kumar_2024_precision import PARAMETERS, Fit, Law, Observations, fit, left_out_errors

FITTED = ("full-precision", "paretoq")
REPLICATES = 200  # of the bootstrap: ends of a 95% interval are the fifth from either side
_SEED = 0
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LawFound:
    """A law, and the relative errors of prediction for the sizes that it was fitted without, by their width."""

    fit: Fit
    left_out: dict[int, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that may be compared; `excess` are their losses over their controls', by (cell, code, env).

    Without a `law`, `lawless` says why.
    """

    rows: tuple[ScalingRow, ...]
    excess: dict[Key, TrainingRow]
    law: LawFound | None
    lawless: str

    @property
    def levels(self) -> tuple[float, ...]:
        """Tokens asked for per parameter."""
        return tuple(sorted({row.level for row in self.rows}))

    def at(self, level: float) -> list[ScalingRow]:
        """The models of a level."""
        return [row for row in self.rows if row.level == level]

    def front(self, level: float) -> list[ScalingRow]:
        """The running minimum of a level's losses over bytes: those that no smaller or equal model beats."""
        found = self.at(level)
        mask = pareto_front([row.model_bytes for row in found], [row.loss_nats for row in found])
        return sorted((row for row, there in zip(found, mask, strict=True) if there), key=lambda r: r.model_bytes)

    def curves(self, level: float) -> dict[tuple[str, float], list[ScalingRow]]:
        """The models of a level by method and width, each from small to large."""
        found: dict[tuple[str, float], list[ScalingRow]] = {}
        for row in sorted(self.at(level), key=lambda r: (r.method not in FITTED, r.method, -r.bits, r.hidden)):
            found.setdefault((row.method, row.bits), []).append(row)
        return found

    def predicted(self, row: ScalingRow) -> float | None:
        """What the law makes of a model, in nats; None without a law."""
        return None if self.law is None else float(self.law.fit.law.loss(row.linear, row.tokens, row.bits))


def read_scaling(store: Store) -> tuple[Family, ...]:
    """The families of a store, the newest row of every model."""
    newest: dict[tuple, ScalingRow] = {}
    for row in store.rows(ScalingRow):
        key = (row.data_sha256, row.seed, row.level, row.hidden, row.method, row.bits)
        if key not in newest or (row.started, row.code, row.env) > _recency(newest[key]):
            newest[key] = row
    trainings = {(t.cell, t.code, t.env): t for t in store.rows(TrainingRow)}
    found: dict[tuple[str, int], list[ScalingRow]] = {}
    for key in sorted(newest):
        found.setdefault((newest[key].data_sha256, newest[key].seed), []).append(newest[key])
    return tuple(family_of(rows, trainings) for rows in found.values())


def family_of(rows: Iterable[ScalingRow], trainings: dict[Key, TrainingRow]) -> Family:
    """A family of these rows, with its law where there are points enough."""
    rows = tuple(rows)
    excess = {key: trainings[key] for row in rows if (key := key_of(row)) in trainings}
    try:
        return Family(rows=rows, excess=excess, law=_law([r for r in rows if r.method in FITTED]), lawless="")
    except ValueError as error:
        return Family(rows=rows, excess=excess, law=None, lawless=str(error))


def key_of(row: ScalingRow) -> Key:
    """What a row's record, and how it was trained, is found by."""
    return row.cell, row.code, row.env


def _recency(row: ScalingRow) -> tuple[str, str, str]:
    return row.started, row.code, row.env


def _law(rows: list[ScalingRow]) -> LawFound:
    points = Observations(
        parameters=np.array([row.linear for row in rows], dtype=float),
        tokens=np.array([row.tokens for row in rows], dtype=float),
        bits=np.array([row.bits for row in rows], dtype=float),
        loss_nats=np.array([row.loss_nats for row in rows]),
    )
    hidden = np.array([row.hidden for row in rows])
    found = fit(points, np.random.default_rng(_SEED), REPLICATES)
    errors = left_out_errors(points, list(hidden)) if _enough_without_any(hidden) else np.array([])
    return LawFound(fit=found, left_out={int(h): errors[hidden == h] for h in np.unique(hidden)} if errors.size else {})


def _enough_without_any(hidden: np.ndarray) -> bool:
    """Whether as many points as a law needs are left without whichever size."""
    return min(int((hidden != h).sum()) for h in np.unique(hidden)) >= len(PARAMETERS)


def predicted_curve(law: Law, rows: list[ScalingRow], n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and predicted losses along the sizes of one method, width and level; between sizes all is a power law."""
    logs = np.log([[row.model_bytes, row.linear, row.tokens] for row in sorted(rows, key=lambda r: r.model_bytes)]).T
    at = np.linspace(logs[0, 0], logs[0, -1], n)
    linear, tokens = (np.exp(np.interp(at, logs[0], column)) for column in logs[1:])
    return np.exp(at), law.loss(linear, tokens, rows[0].bits)
