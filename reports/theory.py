"""What the theory's experiments and the ledger of claims say, read from a store. Imports no torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from suite.findings import PointRow, VerdictRow
from suite.store import Store
from theory.claims.frame import Claim
from theory.claims.ledger import CLAIMS
from theory.experiment import Experiment, Point
from theory.experiments import EXPERIMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An experiment with the rows of its last run of the most effort, in the order that they were given."""

    experiment: Experiment
    rows: tuple[PointRow, ...]

    @property
    def points(self) -> list[Point]:
        """What was measured and predicted."""
        return [Point(series=row.series, x=row.x, y=row.y, low=row.low, high=row.high, predicted=row.predicted)
                for row in self.rows]  # fmt: skip

    @property
    def model(self) -> str:
        """The model that it looked at; empty where it draws its own matrices."""
        return self.rows[0].model


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim with the newest verdict on it of a model, and its evidence."""

    claim: Claim
    row: VerdictRow

    @property
    def evidence(self) -> dict[str, dict[str, Any]]:
        """Every quantity's values, mean and ends of its interval; those of the rule first."""
        found: dict[str, dict[str, Any]] = json.loads(self.row.evidence)
        ruling = [part.quantity for part in self.claim.rule]
        return {name: found[name] for name in dict.fromkeys([*ruling, *found]) if name in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Theory:
    """Everything that a store has of the theory, in the order of its own tuples."""

    measured: tuple[Measured, ...]
    judged: tuple[Judged, ...]

    @property
    def anything(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.measured or self.judged)


def read_theory(
    store: Store, experiments: Iterable[Experiment] = EXPERIMENTS, claims: Iterable[Claim] = CLAIMS
) -> Theory:
    """The last run of every experiment and the last verdict on every claim, for each model.

    Rows of experiments that there are no longer, and verdicts by another rule than today's, are left out.
    """
    points, verdicts = store.rows(PointRow), store.rows(VerdictRow)
    measured, judged = [], []
    for experiment in experiments:
        own = [row for row in points if row.experiment == experiment.name]
        for model in dict.fromkeys(row.model for row in own):
            runs: dict[tuple, list[PointRow]] = {}
            for row in own:
                if row.model == model:
                    runs.setdefault((row.effort, row.started, row.seed, row.code, row.env), []).append(row)
            rows = sorted(runs[max(runs)], key=lambda row: row.place)
            measured.append(Measured(experiment=experiment, rows=tuple(rows)))
    for claim in claims:
        known = [row for row in verdicts if row.claim == claim.id and row.rule == claim.rule_text]
        for model in dict.fromkeys(row.model for row in known):
            newest = max((row for row in known if row.model == model), key=lambda row: (row.effort, row.started))
            judged.append(Judged(claim=claim, row=newest))
    return Theory(measured=tuple(measured), judged=tuple(judged))
