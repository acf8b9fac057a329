"""What the theory's experiments found, read from a store. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from suite.findings import PointRow
from suite.store import Store
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


def read_theory(store: Store, experiments: Iterable[Experiment] = EXPERIMENTS) -> list[Measured]:
    """The last run of every experiment, for each model; rows of experiments that there are no longer are left out."""
    points, measured = store.rows(PointRow), []
    for experiment in experiments:
        own = [row for row in points if row.experiment == experiment.name]
        for model in dict.fromkeys(row.model for row in own):
            runs: dict[tuple, list[PointRow]] = {}
            for row in own:
                if row.model == model:
                    runs.setdefault((row.effort, row.started, row.seed, row.code, row.env), []).append(row)
            rows = sorted(runs[max(runs)], key=lambda row: row.place)
            measured.append(Measured(experiment=experiment, rows=tuple(rows)))
    return measured
