from dataclasses import replace

import pytest
from click.testing import CliRunner
from pages import can_be_heard, parsed, refers_to_itself, stands_alone

import reports.theory
from reports.command import report
from reports.theory import read_theory
from reports.theory_page import draw_theory, render_theory
from suite.findings import PointRow
from suite.store import Store
from theory.experiment import Experiment

ORIGIN = {"model": "", "model_sha256": "", "effort": 1.0, "seconds": 1.0, "code": "c0de", "env": "cpu",
          "command": "bitfrontier theory", "started": "2026-01-01T00:00:00"}  # fmt: skip
LINES = Experiment(name="lines", title="Straight lines", source="Euclid, book 1", x="x, meters", y="y, <meters>",
                   measure=lambda setting: (), sentence=lambda points: f"{len(points)} points", log="xy",
                   interval="guesses")  # fmt: skip


def point(place, **changed):
    row = PointRow(experiment="lines", series=f"series {place % 2}", place=place, x=2.0**place, y=3.0 * 2.0**place,
                   low=None, high=None, predicted=place % 2 == 0, seed=0, **ORIGIN)  # fmt: skip
    return replace(row, **changed)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(reports.theory.read_theory, "__defaults__", ((LINES,),))
    with Store(tmp_path / "s.db") as store:
        store.put_rows(*(point(k, low=2.0**k, high=4 * 2.0**k) for k in range(6)))
    return tmp_path / "s.db"


def found_in(path):
    with Store(path, create=False) as store:
        return read_theory(store)


def test_the_last_run_of_most_effort_is_shown(path):
    with Store(path) as store:
        store.put_rows(point(0, effort=2.0, y=7.0, started="2025"), point(0, effort=2.0, y=8.0, started="2026", seed=1),
                       point(1, code="older", y=9.0, started="1999"), point(2, experiment="gone"))  # fmt: skip
    (measured,) = found_in(path)
    assert [p.y for p in measured.points] == [8.0]


def test_the_page_says_what_was_found_and_is_well_formed(path, tmp_path):
    theory = found_in(path)
    page = render_theory(draw_theory(theory), beside_report=False)
    tags = parsed(page)
    refers_to_itself(tags)
    stands_alone(page, tags)
    can_be_heard(tags, 1)
    assert all(text in page for text in ("6 points", "Euclid, book 1", "Bars are guesses."))
    assert page == render_theory(draw_theory(found_in(path)), beside_report=False)
    result = CliRunner().invoke(report, ["--store", str(path), "--out", str(tmp_path / "r"), "--figures"])
    assert result.exit_code == 0, result.exception
    assert {"theory-lines-points.svg", "theory-lines-points.csv"} <= {
        p.name for p in (tmp_path / "r/figures").iterdir()
    }


def test_intervals_and_predictions_are_drawn(path):
    (section,) = draw_theory(found_in(path))
    (ax,) = section.plots[0].figure.axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    (bars,) = ax.containers
    assert len(bars.lines[2][0].get_segments()) == 3  # of the measured series
    assert [line.get_label() for line in ax.get_lines() if line.get_label() == "series 0"] == ["series 0"]
