"""The page of the ledger: verdicts, their evidence line by line, why, and the command that comes to them again."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from pages import can_be_heard, parsed, refers_to_itself, stands_alone

import reports.claims
from reports.claims import Quantity, read_claims
from reports.claims_drawing import draw_evidence
from reports.claims_page import draw_claims, render_claims
from reports.command import report
from suite.findings import VerdictRow
from suite.store import Store
from theory.claims.frame import Claim, above, below

LONG = Claim(id="X1", group="made up", kind="theorem", sentence="Lines are straight & long.", earned="conditional",
             measure=lambda setting: {}, why="Some are <short>.",
             rule=(above("length", 0.5), below("bend", 0.1)))  # fmt: skip
WAITING = replace(LONG, id="X2", sentence="Circles are round.", tier="nightly")
NAN, INFINITE = float("nan"), float("inf")


def verdict(**changed):
    evidence = {"width": {"values": [NAN] * 3, "mean": NAN, "low": NAN, "high": NAN},
                "length": {"values": [1.0, 1.1, 0.9], "mean": 1.0, "low": 0.7, "high": 1.3},
                "bend": {"values": [0.2, 0.2, 0.2], "mean": 0.2, "low": 0.2, "high": 0.2}}  # fmt: skip
    row = VerdictRow(claim="X1", kind="theorem", sentence=LONG.sentence, rule=LONG.rule_text, verdict="conditional",
                     condition="holds: length > 0.5; fails: bend < 0.1", evidence=json.dumps(evidence),
                     seeds="[0, 1, 2]", confidence=0.9992, tested=62, model="", model_sha256="", effort=1.0,
                     seconds=1.5, code="c0de", env="cpu", command="bitfrontier claims --run",
                     started="2026-01-01T00:00:00")  # fmt: skip
    return replace(row, **changed)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(reports.claims.read_claims, "__defaults__", ((LONG, WAITING),))
    with Store(tmp_path / "s.db") as store:
        store.put_rows(verdict())
    return tmp_path / "s.db"


def ledger_in(path):
    with Store(path, create=False) as store:
        return read_claims(store)


def quantity(**changed):
    found = Quantity(name="length", values=(1.0, 1.2), mean=1.1, low=0.9, high=1.3, rule=(above("length", 1.0),))
    return replace(found, **changed)


def test_the_page_has_verdicts_evidence_reasons_and_commands(path, tmp_path):
    ledger = ledger_in(path)
    page = render_claims(draw_claims(ledger), ledger=ledger, beside_report=False)
    tags = parsed(page)
    refers_to_itself(tags)
    stands_alone(page, tags)
    can_be_heard(tags, 1)
    for text in ("Lines are straight &amp; long.", "conditional", "Some are &lt;short&gt;.", "1 conditional",
                 "1 not run", "claims --run --only X1", "claims --run --only X2", "nightly tier",
                 "length &gt; 0.5", "not a number"):  # fmt: skip
        assert text in page, text
    assert page == render_claims(draw_claims(ledger_in(path)), ledger=ledger, beside_report=False)
    result = CliRunner().invoke(report, ["--store", str(path), "--out", str(tmp_path / "r"), "--figures"])
    assert result.exit_code == 0, result.exception
    assert {"claims-x1-evidence.svg", "claims-x1-evidence.csv"} <= {p.name for p in (tmp_path / "r/figures").iterdir()}


def test_verdicts_by_another_rule_are_not_shown_and_the_newest_is(path):
    with Store(path) as store:
        store.put_rows(verdict(rule="length > 0", code="newer", verdict="refuted", started="2027"),
                       verdict(code="newest", verdict="confirmed", started="2028"))  # fmt: skip
    (judged,) = ledger_in(path).judged
    assert judged.row.verdict == "confirmed" and not judged.why  # the paragraph is about another verdict


def test_a_verdict_of_another_model_and_seed_says_how_to_come_to_it(path):
    with Store(path) as store:
        store.put_rows(verdict(model="other/model", seeds="[4, 5, 6]", effort=2.0))
    ledger = ledger_in(path)
    assert ledger.judged[1].again == "bitfrontier claims --run --only X1 --seed 4 --effort 2 other/model"
    assert {section.stem for section in draw_claims(ledger)} == {"claims-x1-sources", "claims-x1-other-model"}


@pytest.mark.parametrize(("changed", "answer", "said"), [
    ({}, None, "1.1 (0.9 to 1.3); > 1 open"),
    ({"low": 1.05}, True, "1.1 (1.05 to 1.3); > 1 holds"),
    ({"low": 1.05, "rule": (above("length", 1.0), below("length", 1.2))}, None, "1.1 (1.05 to 1.3); > 1, < 1.2 open"),
    ({"high": 0.95}, False, "1.1 (0.9 to 0.95); > 1 fails"),
    ({"mean": NAN}, None, "no number"),
])  # fmt: skip
def test_a_quantity_says_what_the_rule_makes_of_it(changed, answer, said):
    found = quantity(**changed)
    assert (found.answer, found.said) == (answer, said)


@pytest.mark.parametrize("changed", [{}, {"low": -INFINITE, "high": INFINITE}, {"mean": NAN, "values": (NAN,)},
                                     {"values": (0.0,), "mean": 0.0, "low": 0.0, "high": 0.0, "rule": ()}])  # fmt: skip
def test_whatever_there_is_of_a_quantity_has_a_line(changed):
    figure = draw_evidence((quantity(**changed), quantity(name="another")))
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts][::2] == ["length", "another"]
