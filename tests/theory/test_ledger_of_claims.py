import re
from pathlib import Path

import pytest

from theory.claims.frame import CONFIDENCE, LEDGER
from theory.claims.ledger import CLAIMS, EARNED
from theory.experiment import Setting
from theory.experiments import EXPERIMENTS

QUICK = [claim for claim in CLAIMS if claim.tier == "quick" and not claim.on_model and claim.id not in ("G3", "G5")]


def test_every_claim_is_there_once_and_every_verdict_is_of_one():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids) <= LEDGER and set(EARNED) <= set(ids)
    assert {f"O{k}" for k in range(1, 8)} | {f"G{k}" for k in range(1, 6)} | {f"E{k}" for k in range(1, 10)} | {
        f"M{k}" for k in range(1, 8)
    } == set(ids)
    assert pytest.approx(1 - 0.05 / LEDGER) == CONFIDENCE


def test_experiments_have_names_of_their_own_that_a_command_line_takes():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert all(e.title and e.source and e.x and e.y for e in EXPERIMENTS)


@pytest.mark.parametrize("claim", QUICK, ids=[claim.id for claim in QUICK])
def test_an_experiment_measures_what_its_rule_is_about_and_follows_its_seed(claim):
    first, again, other = (claim.measure(Setting(seed=seed)) for seed in (5, 5, 6))
    assert {part.quantity for part in claim.rule} <= set(first)
    assert first == again
    if claim.kind != "theorem":
        assert first != other


def test_every_file_of_an_experiment_is_in_the_tuple():
    folder = Path(__file__).parents[2] / "theory"
    declared = {path.stem for path in folder.rglob("*.py") if re.search(r"^EXPERIMENTS? = ", path.read_text(), re.M)}
    listed = (folder / "experiments.py").read_text()
    assert declared and all(re.search(rf"\b{name}\b", listed) for name in declared)
