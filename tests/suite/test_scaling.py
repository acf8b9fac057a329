"""A family of models: sizes as transformers counts them, tokens as asked for, and a study that goes on where it was."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from suite import engine
from suite.commands.scaling import scaling as command
from suite.evaluation import clustered_se
from suite.learning.quantization_aware import control_of
from suite.models.checkpoint import REFERENCE, load_model
from suite.packed import HEADER
from suite.readback import PackedModel
from suite.reference.text import LENGTH
from suite.rows import VOLATILE, ScalingRow, TrainingRow
from suite.scaling import family as scaling_family
from suite.scaling.family import Budget, Shape, cells_of, checked_bits, family
from suite.scaling.study import Study, losses_of
from suite.store import Store
from suite.tokens import load_tokens

SMALL, LEVEL, BITS = (16, 32), 0.1, (1.58, 4)


@pytest.mark.parametrize("hidden", [16, 32, 64, 128, 256, 384, 512])
def test_parameters_are_those_that_transformers_counts(hidden):
    shape = Shape(hidden)
    plan = Budget(shape, 1.0).plan(seed=0)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**plan.shape, tie_word_embeddings=True))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    linear = (m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert shape.linear == sum(linear)
    assert hidden // plan.heads <= 32 and plan.heads == 2 * plan.cache_heads


def test_the_default_family_spans_what_was_asked_for():
    assert [round(Shape(h).parameters / 1e6, 2) for h in (64, 128, 256, 384)] == [0.33, 1.05, 3.67, 7.87]
    reference = load_model("reference")
    assert Shape(256).parameters == sum(p.numel() for p in reference.skeleton.parameters())


@pytest.mark.parametrize("level", [0.1, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("hidden", [16, 64, 128, 256, 384])
def test_tokens_are_the_level_times_the_parameters_within_one_update(hidden, level):
    budget = Budget(Shape(hidden), level)
    wanted = level * budget.shape.parameters
    base, tuned, scratch = budget.base, budget.tuned, budget.scratch
    # half an update, and half a row where the wanted rows were rounded
    for tokens, rows in ((base.tokens + tuned.tokens, base.rows), (scratch.tokens, scratch.rows)):
        assert abs(tokens - wanted) <= (rows + 1) / 2 * LENGTH
    assert abs(tuned.tokens - 0.1 * wanted) <= (tuned.rows + 2) / 2 * LENGTH
    for phase in (base, tuned, scratch):
        assert phase.rows in (1, 2, 4, 8, 16)
        assert phase.rows == 1 or phase.updates >= scaling_family.UPDATES
    assert {cell.tokens for cell in cells_of(budget, BITS)} == {base.tokens + tuned.tokens, scratch.tokens}


def test_cells_share_their_controls():
    cells = cells_of(Budget(Shape(64), 1.0), (1, 1.58, 2, 3, 4))
    assert [(c.method, c.bits) for c in cells] == [
        ("full-precision", 16), *(("paretoq", b) for b in (1, 1.58, 2, 3, 4)), ("full-precision-sub-norm", 16),
        ("bitnet", 1.58)]  # fmt: skip
    by_name = {c.name: c.recipe for c in cells}
    for bits in (1, 1.58, 2, 3, 4):
        assert control_of(by_name[f"paretoq-{bits:g}"]) == by_name["full-precision-16"]
    assert control_of(by_name["bitnet-1.58"]) == by_name["full-precision-sub-norm-16"]
    assert not any(c.recipe.unsupported for c in cells)
    assert [repr(c.bits) for c in cells_of(Budget(Shape(64), 1.0), (4.0, 1.0, 4))] == ["16", "1", "4"]  # as ids are
    assert [c.method for c in cells_of(Budget(Shape(64), 1.0), (2,))] == ["full-precision", "paretoq"]


def test_what_cannot_be_a_family_is_refused():
    for hidden in (0, 6, 96):
        with pytest.raises(ValueError, match=f"hidden {hidden}"):
            family((hidden,), (1.0,))
    for level in (0.0, -1.0, float("nan"), 1e-6):
        with pytest.raises(ValueError, match="level"):
            family((64,), (level,))
    for bits in ((), (5,), (1, 1.5)):
        with pytest.raises(ValueError, match="bits"):
            checked_bits(bits)
    order = [(b.shape.hidden, b.level) for b in family((128, 64, 64), (0.25, 0.1))]
    assert order == [(64, 0.1), (64, 0.25), (128, 0.1), (128, 0.25)]


def test_all_trainings_of_a_study_are_in_one_type():
    for autocast in (False, True):
        (budget,) = family((64,), (1.0,), autocast=autocast)
        schedules = [
            budget.plan(seed=0).schedule,
            *(c.recipe.adaptation.schedule for c in cells_of(budget, (1, 1.58, 4))),
        ]
        assert len(schedules) == 7 and {schedule.autocast for schedule in schedules} == {autocast}


def test_models_of_the_family_read_the_shipped_rows(tmp_path):
    own = load_model("reference")
    other = tmp_path / "own"
    config = LlamaConfig(**Budget(Shape(16), 1.0).plan(0).shape, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(other)
    for file in REFERENCE.glob("tokenizer*"):
        (other / file.name).write_bytes(file.read_bytes())
    rows = load_tokens(None, "evaluation", load_model(str(other)), LENGTH)
    assert np.array_equal(rows.rows, load_tokens(None, "evaluation", own, LENGTH).rows)  # without those dropped
    (other / "tokenizer.json").write_text((REFERENCE / "tokenizer.json").read_text() + "\n")  # another file
    assert len(load_tokens(None, "evaluation", load_model(str(other)), LENGTH).rows) != len(rows.rows)


def test_trained_models_kept_in_16_bits_are_evaluated_as_they_are_kept(tmp_path, inputs):
    base = tiny.save(tiny.model_of("llama").bfloat16(), tmp_path / "base")
    training = str(tiny.save_tokens(tmp_path / "training.npy", 24, tiny.CONTEXT, 3))
    small = Budget(Shape(16), LEVEL)
    for cell in cells_of(small, (4,)):
        schedule = replace(cell.recipe.adaptation.schedule, steps=3)
        recipe = replace(cell.recipe, adaptation=replace(cell.recipe.adaptation, schedule=schedule, rows=4))
        place = tmp_path / cell.name
        (record,) = engine.run(str(base), recipes=[recipe], training=training, store=tmp_path / "s.db", jobs=1,
                               save=place, **inputs)  # fmt: skip
        (again,) = engine.run(str(place), store=tmp_path / "s.db", jobs=1, evaluation=inputs["evaluation"])
        assert record.status == again.status == "ok", (record.reason, again.reason)
        assert record.ppl == again.ppl
        on_disk = sum(f.stat().st_size for f in place.iterdir() if f.is_file())
        assert record.model_bytes == again.model_bytes == on_disk
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
    full = json.loads((tmp_path / "full-precision-16" / HEADER).read_text())
    assert not full["layers"]
    first = sum(f.stat().st_size for f in (tmp_path / "full-precision-16").glob("*.safetensors"))
    assert 2 * weights < first < 2 * weights + 16384  # names and shapes of four files


class Killed(BaseException):
    """What ends a process; anything less ends a cell, which is then failed and tried again."""


def rows_of(store):
    with Store(store, create=False) as opened:
        rows, records = opened.rows(ScalingRow), opened.records()
    where = (*VOLATILE, "command", "model")  # a model's name is its directory
    return rows, {(type(r).__name__, r.cell, name): getattr(r, name) for r in (*rows, *records)
                  for name in r.__slots__ if name not in where}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small study that nothing disturbed, made by the command."""
    place = tmp_path_factory.mktemp("whole")
    done = CliRunner().invoke(command, [
        str(place / "out"), "--shapes", "16,32", "--levels", f"{LEVEL}", "--bits", "1.58,4", "--tier", "smoke",
        "--threads", "1", "--store", str(place / "s.db")], standalone_mode=False)  # fmt: skip
    assert done.exception is None, done.exception
    return place, done


@pytest.mark.slow
def test_the_command_trains_measures_and_says_what_came_out(whole):
    place, done = whole
    assert done.return_value == 0
    rows, _ = rows_of(place / "s.db")
    cells = [cell for budget in family(SMALL, (LEVEL,)) for cell in cells_of(budget, BITS)]
    assert {(r.hidden, r.method, r.bits, r.tokens) for r in rows} == {
        (c.budget.shape.hidden, c.method, c.bits, c.tokens) for c in cells}  # fmt: skip
    for row in rows:
        more = 16 * row.hidden if row.method in ("bitnet", "full-precision-sub-norm") else 0  # norms, of h and 3 h
        assert row.parameters == Shape(row.hidden).parameters + more
        assert 0 < row.loss_nats < np.log(2048) + 0.1 and row.loss_se > 0
        assert row.model_bytes > (row.parameters - row.linear) * 2 + row.linear * row.bits / 8
        assert f"{row.parameters:,}" in done.output
    by = {(r.hidden, r.method, r.bits): r for r in rows}
    for hidden in SMALL:
        assert by[hidden, "paretoq", 1.58].model_bytes < by[hidden, "paretoq", 4].model_bytes
        assert by[hidden, "paretoq", 4].model_bytes < by[hidden, "full-precision", 16].model_bytes


@pytest.mark.slow
def test_the_loss_of_a_row_is_that_of_the_packed_model(whole):
    place, _ = whole
    rows, _ = rows_of(place / "s.db")
    row = next(r for r in rows if (r.hidden, r.method) == (32, "bitnet"))
    packed = PackedModel.open(str(place / "out" / f"32-{LEVEL:g}" / "bitnet-1.58"))
    tokens = load_tokens(None, "evaluation", load_model("reference"), LENGTH).spread(1 << 13)
    nll = losses_of(packed, tokens)
    assert row.loss_nats == nll.mean() and row.loss_se == clustered_se(nll, tokens.clusters)
    with Store(place / "s.db", create=False) as opened:
        record = next(r for r in opened.records() if r.cell == row.cell)
        training = next(t for t in opened.rows(TrainingRow) if t.cell == row.cell)
    assert np.exp(row.loss_nats) == pytest.approx(record.ppl, rel=1e-12) and record.method == "bitnet"
    control = next(r for r in rows if (r.hidden, r.method) == (32, "full-precision-sub-norm"))
    assert row.loss_nats - control.loss_nats == pytest.approx(training.excess_nats, abs=1e-6)
    assert training.tokens == row.tokens


@pytest.mark.slow
def test_a_killed_study_ends_as_if_nothing_had_been(whole, tmp_path, monkeypatch):
    place, _ = whole
    _, expected = rows_of(place / "s.db")
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path / "cache"))  # or what was trained before would be found
    study = Study(out=tmp_path / "out", store=tmp_path / "s.db", threads=1, tier="smoke")
    budgets = family((16,), (LEVEL,))
    for when in (3, 40):  # in the first base, and in what follows it
        heard = []

        def kill(step, heard=heard, when=when):
            heard.append(step)
            if len(heard) == when:
                raise Killed

        with pytest.raises(Killed):
            study.run(budgets, BITS, on_step=kill)
    told, done = [], []
    study.run(budgets, BITS, on_step=told.append, on_done=done.append)
    assert told and len(done) == 5
    cells = {record.cell for record in done}
    found = rows_of(tmp_path / "s.db")[1]
    assert found.keys() == {key for key in expected if key[1] in cells}
    assert {key: (x, expected[key]) for key, x in found.items() if x != expected[key]} == {}
    study.run(budgets, BITS, on_step=lambda step: pytest.fail("nothing is left to train"))


def test_a_directory_of_another_plan_is_refused(tmp_path):
    budget = Budget(Shape(16), LEVEL)
    place = tmp_path / budget.name / "training"
    place.mkdir(parents=True)
    (place / "plan.json").write_text("{}\n")
    study = Study(out=tmp_path, store=tmp_path / "s.db")
    with pytest.raises(ValueError, match="another plan"):
        study.base(budget)
    (tmp_path / budget.name / "model").mkdir()
    with pytest.raises(ValueError, match="a model of another plan"):
        study.base(budget)
    (place / "plan.json").write_text(json.dumps(asdict(budget.plan(0)), indent=1) + "\n")
    assert study.base(budget) == tmp_path / budget.name / "model"  # it was finished


def test_the_dry_run_lists_every_training_and_writes_nothing(tmp_path):
    done = CliRunner().invoke(command, [str(tmp_path / "out"), "--dry-run", "--store", str(tmp_path / "s.db")],
                              standalone_mode=False)  # fmt: skip
    assert done.exception is None and not list(tmp_path.iterdir())
    assert "72 trainings" in done.output and "7,867,776" in done.output  # 4 shapes, 2 levels, 9 each
