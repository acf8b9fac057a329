import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import theory.command
import theory.experiments
from suite.findings import PointRow, VerdictRow
from suite.store import Store
from theory.claims import ledger
from theory.claims.frame import Claim, above
from theory.experiment import Experiment, Point, Setting
from theory.running import as_point, points_of, verdict_of

POINTS = [Point(series="b", x=2.0, y=4.0, low=3.5, high=4.5), Point(series="a", x=1.0, y=1.0, predicted=True)]
calls: list[Setting] = []


def measured(setting):
    calls.append(setting)
    return [replace(point, y=point.y + setting.seed) for point in POINTS]


SQUARES = Experiment(name="squares", title="Squares", source="made up", x="n", y="n²", measure=measured,
                     sentence=lambda points: f"{len(points)} points up to {max(p.y for p in points):g}")  # fmt: skip
CLAIM = Claim(id="X1", group="made up", kind="theorem", sentence="Squares are positive.", rule=(above("square", 0.0),),
              measure=lambda setting: {"square": 1.0 + setting.seed / 1024, "seed": setting.seed / 1024})  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    calls.clear()
    monkeypatch.setattr(theory.experiments, "EXPERIMENTS", (SQUARES,))
    monkeypatch.setattr(ledger, "CLAIMS", (CLAIM, replace(CLAIM, id="X2", rule=(above("seed", 9.0),), tier="full")))


def test_points_are_measured_once_for_a_seed_and_kept_in_their_order(tmp_path):
    store = tmp_path / "s.db"
    for seed in (0, 3, 0):
        rows = points_of(SQUARES, Setting(seed=seed, store=store), "bitfrontier theory")
        assert [as_point(row) for row in rows] == [replace(p, y=p.y + seed) for p in POINTS]
    assert [setting.seed for setting in calls] == [0, 3]
    with Store(store) as opened:
        kept = opened.rows(PointRow)
    assert len(kept) == 4 and {type(row.predicted) for row in kept} == {bool}
    assert {(row.model, row.model_sha256) for row in kept} == {("", "")}
    assert points_of(SQUARES, Setting(effort=2.0, store=store), "") and len(calls) == 3


def test_points_of_other_sources_are_not_taken(tmp_path, monkeypatch):
    import theory.running

    points_of(SQUARES, Setting(store=tmp_path / "s.db"), "")
    monkeypatch.setattr(theory.running, "code_version", lambda *folders: "other sources")
    points_of(SQUARES, Setting(store=tmp_path / "s.db"), "")
    assert len(calls) == 2


def test_an_experiment_on_a_model_names_it(tmp_path):
    rows = points_of(replace(SQUARES, on_model=True), Setting(store=tmp_path / "s.db"), "")
    assert {row.model for row in rows} == {"reference"} and len(rows[0].model_sha256) == 64


def test_a_verdict_keeps_its_numbers_and_is_not_measured_again(tmp_path):
    store = tmp_path / "s.db"
    row = verdict_of(CLAIM, Setting(seed=1, store=store), "bitfrontier claims --run")
    assert (row.verdict, json.loads(row.seeds), row.rule) == ("confirmed", [1, 2, 3], "square > 0")
    evidence = json.loads(row.evidence)
    assert evidence["square"]["mean"] == 1 + 2 / 1024
    assert evidence["seed"]["values"] == [1 / 1024, 2 / 1024, 3 / 1024]
    assert verdict_of(replace(CLAIM, measure=measured), Setting(seed=1, store=store), "") == row and not calls
    changed = verdict_of(replace(CLAIM, rule=(above("square", 1e3),)), Setting(seed=1, store=store), "")
    assert changed.verdict == "refuted"  # another rule is another verdict


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_the_command_says_what_experiments_found(tmp_path):
    listed = run(theory.command.theory, "--list")
    assert listed.output == "squares: Squares (made up)\n" and not calls
    result = run(theory.command.theory, "squares", "--store", tmp_path / "s.db", "--seed", 5)
    assert result.exit_code == 0 and result.stdout.endswith("s): 2 points up to 9\n")
    unknown = run(theory.command.theory, "circles", "--store", tmp_path / "no.db")
    assert str(unknown.exception) == "experiment 'circles' is not known; there are squares"
    assert not (tmp_path / "no.db").exists()


def test_experiments_that_take_longer_are_of_other_tiers_or_named(tmp_path, monkeypatch):
    slow = replace(SQUARES, name="slow", tier="full")
    monkeypatch.setattr(theory.experiments, "EXPERIMENTS", (SQUARES, slow))
    ran = []
    for asked in ((), ("slow",), ("--tier", "nightly")):
        said = run(theory.command.theory, *asked, "--store", tmp_path / "s.db").output
        ran.append([line.split()[0] for line in said.splitlines()])
    assert ran == [["squares"], ["slow"], ["squares", "slow"]]


def test_the_ledger_lists_what_was_not_run_and_runs_what_is_asked(tmp_path):
    store = tmp_path / "s.db"
    before = json.loads(run(theory.command.claims, "--json", "--store", store).stdout)
    assert [(c["id"], c["verdict"]) for c in before] == [("X1", "not-run"), ("X2", "not-run")] and not store.exists()
    after = json.loads(run(theory.command.claims, "--json", "--run", "--store", store).stdout)
    assert [c["verdict"] for c in after] == ["confirmed", "not-run"]  # X2 takes minutes
    assert set(after[0]) >= {"id", "kind", "claim", "rule", "verdict", "evidence", "seconds"}
    one = json.loads(run(theory.command.claims, "--json", "--run", "--only", "X2", "--store", store).stdout)
    assert [(c["id"], c["verdict"]) for c in one] == [("X2", "refuted")]
    for tier in ("full", "nightly"):
        both = json.loads(run(theory.command.claims, "--json", "--run", "--tier", tier, "--store", store).stdout)
        assert [c["verdict"] for c in both] == ["confirmed", "refuted"]
    with Store(store) as opened:
        assert [row.claim for row in opened.rows(VerdictRow)] == ["X1", "X2"]
    printed = run(theory.command.claims, "--store", store).stdout
    assert "confirmed" in printed and "refuted" in printed and "Squares are positive." in printed


def test_spectra_of_a_model_come_as_lines_of_json():
    arguments = (
        "reference",
        "--blocks",
        "3",
        "--no-layers",
        "--starts",
        2,
        "--steps",
        2,
        "--extremes",
        "none",
        "--json",
    )
    result = run(theory.command.spectra, *arguments)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("model.layers.3", kind) for kind in ("inputs", "gauss-newton", "hessian")
    ]
    assert len({row["n"] for row in rows}) == 1 and rows[0]["trace_se"] == 0.0
    assert all(row["smallest"] < row["largest"] for row in rows) and rows[1]["trace"] > 0


@pytest.mark.parametrize("blocks", ["9", "a", "0,", ""])
def test_blocks_that_are_none_are_refused(blocks):
    result = run(theory.command.spectra, "reference", "--blocks", blocks)
    assert str(result.exception).startswith(f"blocks {blocks!r}: expected numbers from 0 to ")
