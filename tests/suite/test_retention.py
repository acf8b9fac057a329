"""What is forgotten: the figures of a row are those of models measured on their own, and nothing else changes by it."""

import json
import math
import shutil
import sqlite3
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from suite import engine
from suite.commands.main import bitfrontier
from suite.evaluation import clustered_se
from suite.learning.quantization_aware import control_of
from suite.learning.retention import Losses, row_of
from suite.recipe import parse
from suite.rows import TrainingRow
from suite.store import VOLATILE, Record, RetentionRow, Store

SCHEDULE = "schedule=Schedule(steps=20, rate=0.002, warmup=0.0), rows=4"
W3 = "weights=Target(Integer(bits=3, group='row', convention='full-range'))"
LSQ = f"Recipe({W3}, adaptation=QuantizationAware({SCHEDULE}, start='lsq'))"
LORA = f"Recipe({W3}, adaptation=LowRank(adapters=Adapters(rank=2), {SCHEDULE}))"
CACHE = "cache=CacheTarget(keys=CacheGrid(grid=Integer(bits=2, group='row')), values=CacheGrid(grid=Integer(bits=2)))"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Rows to train on, and of another text, shorter than those of the evaluation."""
    path = tmp_path_factory.mktemp("texts")
    training = tiny.save_tokens(path / "training.npy", 24, tiny.CONTEXT, 3)
    return {"training": str(training), "retention": str(tiny.save_tokens(path / "other.npy", 10, 40, 4))}


@pytest.fixture
def run(llama, inputs, texts, tmp_path):
    """`suite.run` on the small model, into a store of the test's own: records, and rows of what is forgotten."""

    def go(*recipes, model=llama, store="s.db", **options):
        given = {"jobs": 1, "training": texts["training"], **inputs, **options}
        records = engine.run(str(model), recipes=recipes, store=tmp_path / store, **given)
        with Store(tmp_path / store, create=False) as opened:
            return records, opened.rows(RetentionRow)

    return go


def stable(record):
    return asdict(replace(record, **{name: None for name in VOLATILE if name != "started"}, started=""))


@pytest.mark.parametrize("recipe", [LSQ, LORA], ids=["lsq", "adapters"])
def test_gain_and_loss_are_those_of_the_models_measured_on_each_text(recipe, run, texts, tmp_path):
    control = str(control_of(parse(recipe)))
    ((record, plain), rows) = run(recipe, control, retention=texts["retention"])
    row, of_control = sorted(rows, key=lambda row: row.cell != record.cell)
    ((there, plain_there), _) = run(recipe, control, store="there.db", evaluation=texts["retention"])
    assert (row.text, row.tokens) == (texts["retention"], 10 * 39)
    # the same sums over the same tokens; perplexities are rounded in the last place, their logarithms in the next to it
    near = {"rel_tol": 1e-12, "abs_tol": 1e-12}
    assert math.isclose(row.ppl, there.ppl, **near) and math.isclose(row.ppl_base, there.ppl_base, **near)
    assert math.isclose(row.forgotten_nats, math.log(there.ppl / there.ppl_base), **near)
    assert math.isclose(row.forgotten_se, there.ppl_se / there.ppl, **near)
    assert math.isclose(row.gained_nats, math.log(record.ppl_base / record.ppl), **near)
    assert math.isclose(row.gained_se, record.ppl_se / record.ppl, **near)
    assert math.isclose(row.ppl_control, plain_there.ppl, **near)
    assert math.isclose(row.forgotten_control_nats, math.log(plain_there.ppl / there.ppl_base), **near)
    assert math.isclose(row.gained_control_nats, math.log(record.ppl_base / plain.ppl), **near)
    assert math.isclose(row.excess_nats, row.forgotten_nats - row.forgotten_control_nats, **near)
    with Store(tmp_path / "there.db", create=False) as store:
        training = next(x for x in store.rows(TrainingRow) if x.cell == there.cell)
    assert math.isclose(row.excess_nats, training.excess_nats, **near)
    assert math.isclose(row.excess_se, training.excess_se, **near)
    # a control is its own: it forgot as much, and nothing over itself
    assert (of_control.excess_nats, of_control.excess_se) == (0, 0)
    assert of_control.forgotten_nats == of_control.forgotten_control_nats == row.forgotten_control_nats
    assert of_control.gained_nats == of_control.gained_control_nats == row.gained_control_nats


def test_a_record_is_the_same_with_and_without_a_text_to_forget(run, texts):
    recipes = [LSQ, f"Recipe({W3}, {CACHE})"]
    (with_text, rows), (without, none) = (
        run(*recipes, retention=texts["retention"]),
        run(*recipes, store="without.db"),
    )
    assert [stable(record) for record in with_text] == [stable(record) for record in without]
    assert {row.cell for row in rows} == {record.cell for record in with_text} and none == []


def test_what_was_not_trained_has_no_control(run, texts):
    ((record,), (row,)) = run(f"Recipe({W3})", retention=texts["retention"])
    assert math.isclose(row.forgotten_nats, math.log(row.ppl / row.ppl_base), rel_tol=1e-12) and row.forgotten_se > 0
    assert math.isclose(row.gained_nats, math.log(record.ppl_base / record.ppl), rel_tol=1e-12)
    missing = {f.name for f in fields(row) if getattr(row, f.name) is None}
    assert missing == {f.name for f in fields(row) if "control" in f.name or "excess" in f.name}


def test_the_unquantized_model_gains_and_forgets_nothing(run, texts):
    (_, (row,)) = run("Recipe()", retention=texts["retention"])
    assert (row.gained_nats, row.gained_se, row.forgotten_nats, row.forgotten_se) == (0, 0, 0, 0)
    assert row.ppl == row.ppl_base


def test_a_finished_cell_is_measured_again_for_another_text_alone(run, texts, tmp_path):
    other = str(tiny.save_tokens(tmp_path / "another.npy", 9, 40, 5))
    recipe = f"Recipe({W3})"
    times = [run(recipe, **({} if text is None else {"retention": text}))[0][0].started
             for text in (None, texts["retention"], texts["retention"], other, texts["retention"], None)]  # fmt: skip
    assert times[0] < times[1] == times[2] < times[3] == times[4] == times[5]
    _, rows = run(recipe)
    assert {row.text for row in rows} == {texts["retention"], other}
    assert len({row.cell for row in rows}) == 1


def test_a_packed_model_is_measured_on_the_other_text_as_it_was(run, texts, llama, inputs, tmp_path):
    model = shutil.copytree(llama, tmp_path / "model")
    (_, (row,)) = run(LSQ, model=model, retention=texts["retention"], save=tmp_path / "packed")
    options = {"jobs": 1, "evaluation": inputs["evaluation"], "retention": texts["retention"]}
    engine.run(str(tmp_path / "packed"), store=tmp_path / "p.db", **options)
    model.rename(tmp_path / "gone")
    engine.run(str(tmp_path / "packed"), store=tmp_path / "alone.db", **options)
    found = []
    for name in ("p.db", "alone.db"):
        with Store(tmp_path / name, create=False) as store:
            found += store.rows(RetentionRow)
    kept = ("text_sha256", "ppl", "ppl_base", "gained_nats", "gained_se", "forgotten_nats", "forgotten_se")
    assert [getattr(found[0], name) for name in kept] == [getattr(row, name) for name in kept]
    assert found[0].ppl_control is None is found[0].excess_nats
    assert found[1].ppl == row.ppl and found[1].ppl_base is None is found[1].forgotten_nats is found[1].gained_nats


def test_the_text_of_the_evaluation_is_no_other_text(run, inputs, tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.npy: is what the model is evaluated on, expected another text"):
        run("Recipe()", retention=inputs["evaluation"])
    with pytest.raises(ValueError, match=r"nothing\.npy: cannot be read"):
        run("Recipe()", retention="nothing.npy")
    assert not (tmp_path / "s.db").exists()


def test_reference_is_the_reference_text(run, monkeypatch, texts, tmp_path):
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path / "cache"))  # another text under the same name
    monkeypatch.setattr("suite.tokens.read_files", lambda part: {f"{part}.py": f"the {part} part of a text. " * 20})
    (_, (row,)) = run("Recipe()", retention="reference")
    assert row.text == "reference" and row.tokens == len("the evaluation part of a text. " * 20) // 64 * 63


# The row


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_row_says_the_differences_of_its_losses(rows, length, seed, has_base, has_control):
    rng = np.random.default_rng(seed)

    def losses():
        base, control = rng.gamma(2.0, size=(2, rows, length))
        clusters = rng.integers(0, 2, rows)
        clusters[:2] = 0, 1
        cell = rng.gamma(2.0, size=(rows, length))
        return Losses(cell, base if has_base else None, control if has_control else None, clusters)

    gained, kept = losses(), losses()
    empty = {f.name: None for f in fields(Record)} | {"cell": "c", "code": "d", "env": "e"}
    row = row_of(Record(**empty), "text", "hash", gained, kept)
    assert (row.cell, row.code, row.env, row.tokens) == ("c", "d", "e", rows * length)
    expected = {
        "gained": has_base and (gained.base - gained.cell, gained.clusters),
        "gained_control": has_base and has_control and (gained.base - gained.control, gained.clusters),
        "forgotten": has_base and (kept.cell - kept.base, kept.clusters),
        "forgotten_control": has_base and has_control and (kept.control - kept.base, kept.clusters),
        "excess": has_control and (kept.cell - kept.control, kept.clusters),
    }
    for name, found in expected.items():
        if not found:
            assert getattr(row, f"{name}_nats") is None is getattr(row, f"{name}_se")
            continue
        assert math.isclose(getattr(row, f"{name}_nats"), found[0].mean(), abs_tol=1e-15)
        assert math.isclose(getattr(row, f"{name}_se"), clustered_se(*found), abs_tol=1e-15)
    if has_base and has_control:  # forgetting is the control's and what is over it
        assert math.isclose(row.forgotten_nats, row.forgotten_control_nats + row.excess_nats, abs_tol=1e-12)


def row(**changes):
    values = {f.name: 1 / (3 + i) for i, f in enumerate(fields(RetentionRow))}
    return RetentionRow(**values | {name: f"some {name}" for name in ("cell", "code", "env", "text", "text_sha256")}
                        | {"tokens": 2**40} | changes)  # fmt: skip


def test_rows_are_read_back_with_their_record_and_go_when_it_fails(tmp_path):
    values = {f.name: 1.5 for f in fields(Record)} | {"cell": "some cell", "code": "some code", "env": "some env"}
    record = Record(**values | {"status": "ok", "fallbacks": ()})
    undefined = row(text_sha256="another", excess_se=float("nan"), ppl_control=None)
    with Store(tmp_path / "s.db") as store:
        store.put(record, retention=row(ppl=2.0))
        store.put(record, retention=undefined)
        store.put(record, retention=row())
        store.put(record)
        assert store.rows(RetentionRow) == [replace(undefined, excess_se=None), row()]
        with pytest.raises(sqlite3.Error):
            store.put(replace(record, ppl=9.0), retention=row(ppl=object()))
        assert store.records() == [record] and len(store.rows(RetentionRow)) == 2  # both or none
        store.put(replace(record, cell="other", status="failed"))
        assert len(store.rows(RetentionRow)) == 2
        store.put(replace(record, status="failed"))
        assert store.rows(RetentionRow) == []


# The command


def test_the_command_prints_what_was_gained_and_forgotten(llama, inputs, texts, tmp_path):
    asked = ["run", str(llama), "--recipe", LSQ, "--recipe", f"Recipe({W3})", "--jobs", "1", "--store",
             str(tmp_path / "s.db")]  # fmt: skip
    for name, value in {**inputs, **texts}.items():
        asked += [f"--{name}", value]
    found = CliRunner().invoke(bitfrontier, asked, catch_exceptions=False)
    assert found.exit_code == 0
    with Store(tmp_path / "s.db", create=False) as store:
        records = {record.cell: record for record in store.records()}
        rows = store.rows(RetentionRow)
    assert "nats gained on the evaluation text and forgotten of this one" in " ".join(found.output.split())
    table = found.output.split("control gained")[1]
    for row in rows:
        line = next(line for line in table.split("\n") if f"{row.gained_nats:+.3f} ± {row.gained_se:.3f}" in line)
        assert line.split()[0] == records[row.cell].method and f"{row.forgotten_nats:+.3f}" in line
        assert ("-" in line.split()) == (row.ppl_control is None)
    assert json.loads(CliRunner().invoke(bitfrontier, ["show", "--json", "--store", str(tmp_path / "s.db")]).output)
    plain = CliRunner().invoke(bitfrontier, asked[: -2 * len(texts)], catch_exceptions=False)
    assert "forgotten" not in plain.output
