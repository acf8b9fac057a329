import re
from pathlib import Path

import pytest

from theory.claims.frame import CONFIDENCE, LEDGER
from theory.claims.ledger import CLAIMS, EARNED
from theory.claims.why import WHY
from theory.experiment import Setting
from theory.experiments import EXPERIMENTS

QUICK = [claim for claim in CLAIMS if not claim.on_model and claim.tier == "quick" and claim.id not in ("G3", "G5")]


def test_every_claim_is_there_once_and_every_verdict_is_of_one():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids) <= LEDGER and set(EARNED) <= set(ids)
    whole = {"B": 7, "Q": 11, "O": 7, "G": 5, "E": 9, "N": 8, "L": 8, "M": 7}
    assert set(ids) == {f"{group}{k}" for group, last in whole.items() for k in range(1, last + 1)}
    assert pytest.approx(1 - 0.05 / LEDGER) == CONFIDENCE


def test_what_is_not_simply_true_has_a_paragraph_on_why():
    mixed = {id_ for id_, verdict in EARNED.items() if verdict in ("refuted", "conditional")}
    assert mixed <= set(WHY) <= set(EARNED) and all(len(text) > 150 and text.endswith(".") for text in WHY.values())


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
    if claim.kind != "theorem" and claim.id not in ("B5", "B7"):  # these count what no seed changes
        assert first != other


def test_every_file_of_an_experiment_is_in_the_tuple():
    folder = Path(__file__).parents[2] / "theory"
    declared = {path.stem for path in folder.rglob("*.py") if re.search(r"^EXPERIMENTS? = ", path.read_text(), re.M)}
    listed = (folder / "experiments.py").read_text()
    assert declared and all(re.search(rf"\b{name}\b", listed) for name in declared)
