"""From experiments and claims to rows in a store; what is there already is not measured again.

A row is known by what it was measured of (an experiment or a claim, a model, the seed and the effort), by the sources
of `kernels`, `suite` and `theory`, and by the environment.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from suite.environment import code_version, environment_key
from suite.findings import PointRow, VerdictRow
from suite.models.checkpoint import load_model
from suite.store import Store
from theory.claims.frame import CONFIDENCE, LEDGER, Claim, decide, estimate
from theory.experiment import Experiment, Point, Setting


def points_of(experiment: Experiment, setting: Setting, command: str) -> list[PointRow]:
    """The points of an experiment, in the order it gave them: from the store, or measured now and put there."""
    origin = _origin(experiment.on_model, setting, command)
    with Store(setting.store) as opened:
        known = [row for row in opened.rows(PointRow) if row.experiment == experiment.name
                 and row.seed == setting.seed and _same(row, origin)]  # fmt: skip
    if known:
        return sorted(known, key=lambda row: row.place)
    found, seconds = _timed(lambda: experiment.measure(setting))
    rows = [PointRow(experiment=experiment.name, series=point.series, place=place, x=float(point.x), y=float(point.y),
                     low=point.low, high=point.high, predicted=point.predicted, seed=setting.seed, seconds=seconds,
                     **origin) for place, point in enumerate(found)]  # fmt: skip
    with Store(setting.store) as opened:
        opened.put_rows(*rows)
    return rows


def as_point(row: PointRow) -> Point:
    """The point that a row holds."""
    return Point(series=row.series, x=row.x, y=row.y, low=row.low, high=row.high, predicted=row.predicted)


def verdict_of(claim: Claim, setting: Setting, command: str) -> VerdictRow:
    """The verdict on a claim: from the store, or by all of its seeds from that of the setting on, and put there."""
    origin = _origin(claim.on_model, setting, command)
    seeds = range(setting.seed, setting.seed + claim.seeds)
    with Store(setting.store) as opened:
        known = [row for row in opened.rows(VerdictRow) if row.claim == claim.id and row.rule == claim.rule_text
                 and json.loads(row.seeds) == [*seeds] and _same(row, origin)]  # fmt: skip
    if known:
        return known[0]
    found, seconds = _timed(lambda: [claim.measure(replace(setting, seed=seed)) for seed in seeds])
    estimates = {name: estimate([one[name] for one in found]) for name in found[0]}
    decision = decide(claim, estimates)
    evidence = {name: {"values": e.values, "mean": e.mean, "low": e.low, "high": e.high}
                for name, e in estimates.items()}  # fmt: skip
    row = VerdictRow(claim=claim.id, kind=claim.kind, sentence=claim.sentence, rule=claim.rule_text,
                     verdict=decision.verdict, condition=decision.condition, evidence=json.dumps(evidence),
                     seeds=json.dumps([*seeds]), confidence=CONFIDENCE, tested=LEDGER, seconds=seconds,
                     **origin)  # fmt: skip
    with Store(setting.store) as opened:
        opened.put_rows(row)
    return row


def _origin(on_model: bool, setting: Setting, command: str) -> dict[str, Any]:
    return {"model": setting.model if on_model else "", "effort": setting.effort,
            "model_sha256": load_model(setting.model).sha256 if on_model else "", "code": code_version("theory"),
            "env": environment_key(torch.get_num_threads()), "command": command,
            "started": datetime.now(UTC).isoformat(timespec="milliseconds")}  # fmt: skip


def _same(row: PointRow | VerdictRow, origin: dict[str, Any]) -> bool:
    return all(getattr(row, name) == origin[name] for name in ("model_sha256", "effort", "code", "env"))


def _timed(measure: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    found: Sequence[Any] = measure()
    return found, time.perf_counter() - begun
