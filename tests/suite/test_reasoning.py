import itertools
import json
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from suite import run
from suite.adaptation.training import Schedule
from suite.commands.main import bitfrontier
from suite.commands.tables import number
from suite.models.checkpoint import REFERENCE, load_model
from suite.reasoning.letters import Letters
from suite.reasoning.measure import forced, marks, solved, text_nats, written
from suite.reasoning.mixing import Mixture
from suite.reasoning.problems import (
    ALPHABET,
    ASKED,
    CHANCE,
    COPIED,
    FOUND,
    LONGEST,
    OPERATIONS,
    STEP,
    Problem,
    characters,
    draw,
    draw_distinct,
    training_row,
)
from suite.reasoning.record import Task, measure_reasoning
from suite.reasoning.scores import Change, Marks, Mean, Scores
from suite.reference import training
from suite.reference.text import LENGTH
from suite.rows import ReasoningRow
from suite.runtime.model import Runtime, plain_runtime
from suite.store import Store
from suite.tokens import load_tokens

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 2048, "max_position_embeddings": LENGTH, "bos_token_id": 0,
         "tie_word_embeddings": True}  # fmt: skip
chains = st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=9).map(tuple)
problems = st.builds(Problem, st.integers(0, 9), chains)


@pytest.fixture(scope="module")
def letters():
    return Letters.of(load_model("reference").tokenizer().backend_tokenizer, "reference")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The directory of a small model with the shipped tokenizer."""
    path = tiny.save(tiny.model_of("llama", **SHAPE), tmp_path_factory.mktemp("small"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(REFERENCE / file, path / file)
    return path


def drawn(steps, count, seed=0):
    return draw_distinct(np.random.default_rng(seed), steps, count)


# Problems


@given(problems)
def test_what_is_written_is_what_python_finds(problem):
    asked = problem.asked.removesuffix(":")
    assert eval(asked) == problem.answer  # all brackets are there: Python's % comes last, and is never negative
    steps = problem.written.split(";")
    assert steps.pop() == ""
    assert len(steps) == len(problem.steps)
    value = problem.first
    for step, (operation, operand) in zip(steps, problem.steps, strict=True):
        left, _, right = step.partition("=")
        assert left == f"{value}{operation}{operand}"
        value = int(right)
        assert value == eval(left) % 10
    assert value == problem.answer == problem.values[-1]


@given(problems)
def test_problems_of_as_many_steps_are_as_long(problem):
    k = len(problem.steps)
    assert len(f"\n{problem.asked}{problem.written}") == characters(k)
    assert len(problem.written) == STEP * k
    assert set(problem.asked + problem.written) <= set(ALPHABET)


@pytest.mark.parametrize("steps", [1, 2])
def test_after_every_step_all_digits_are_equally_frequent(steps):
    every = [Problem(first, chosen) for first in range(10) for chosen in itertools.product(OPERATIONS, repeat=steps)]
    for k in range(steps):
        after = Counter((problem.steps[k], problem.values[k]) for problem in every)
        assert set(after.values()) == {len(every) * CHANCE / len(OPERATIONS)}


def test_a_true_step_never_mends_a_wrong_value():
    for step in OPERATIONS:
        assert {Problem(value, (step,)).answer for value in range(10)} == set(range(10))
        assert any(Problem(value, (step,)).answer != value for value in range(10))


def test_about_a_quarter_is_held_out_of_every_length():
    for steps in range(1, LONGEST + 1):
        rng = np.random.default_rng(steps)
        chosen = rng.integers(len(OPERATIONS), size=(2000, steps))
        held = sum(Problem(int(rng.integers(10)), tuple(OPERATIONS[i] for i in row)).held_out for row in chosen)
        assert abs(held / 2000 - 0.25) < 3 * (0.25 * 0.75 / min(2000, 10 * len(OPERATIONS) ** steps)) ** 0.5


def test_what_is_trained_on_is_never_held_out():
    rng, asked = np.random.default_rng(0), set()
    for _ in range(400):
        text, _ = training_row(rng, LENGTH)
        asked |= {f"{line.partition(':')[0]}:" for line in text.splitlines() if line}
    held = {problem.asked for steps in (1, 2, 3) for problem in drawn(steps, 2000)}
    assert len(asked) > 1000 and len(held) > 2000 and not asked & held


def test_distinct_problems_are_distinct_held_out_and_as_drawn_before():
    one = drawn(1, 500)
    assert len(set(one)) == len(one) < 500 and all(problem.held_out for problem in one)  # there are no more
    every = (Problem(first, (step,)) for first in range(10) for step in OPERATIONS)
    assert {problem for problem in every if problem.held_out} == set(one)
    for steps in (2, 4):
        found = drawn(steps, 30)
        assert len(set(found)) == 30 and all(p.held_out and len(p.steps) == steps for p in found)
        assert found == drawn(steps, 30) != drawn(steps, 30, seed=1)
    assert not draw(np.random.default_rng(0), 3, held_out=False).held_out


@given(st.integers(17, 400), st.integers(1, LONGEST), st.integers(0, 10))
def test_a_row_is_whole_problems_and_what_is_learned_their_steps(length, longest, seed):
    text, kinds = training_row(np.random.default_rng(seed), length, longest)
    assert len(text) == len(kinds) == length and text[0] == text[-1] == "\n" and kinds[0] == ASKED
    lines = [line for line in text.splitlines() if line]
    room = length - 1 - sum(len(line) + 1 for line in lines)
    assert 0 <= room < characters(1)  # no further problem fits
    marked = "".join(c if kind != ASKED else " " for c, kind in zip(text, kinds, strict=True)).split()
    assert marked == [line.partition(":")[2] for line in lines]
    ends = [i for i, (c, kind) in enumerate(zip(text, kinds, strict=True)) if c == "\n" and kind == COPIED]
    assert len(ends) == len(lines)  # and the line break behind each
    assert [i for i in range(length) if kinds[i] == FOUND] == [i + 1 for i in range(length) if text[i] == "="]


def test_too_little_room_and_too_few_problems_are_refused():
    with pytest.raises(ValueError, match="a row of 16 characters: expected room for a problem, 17 or more"):
        training_row(np.random.default_rng(0), 16)
    with pytest.raises(ValueError, match="5 problems of 0 steps"):
        drawn(0, 5)


# Letters


def test_every_character_is_a_token_of_its_own(letters):
    assert len(set(letters.ids.values())) == len(ALPHABET)
    tokenizer = load_model("reference").tokenizer().backend_tokenizer
    problem = drawn(4, 1)[0]
    assert tokenizer.decode(letters.encode(problem.asked + problem.written).tolist()) == problem.asked + problem.written


def test_a_tokenizer_without_the_characters_is_refused(llama):
    tokenizer = load_model(str(llama)).tokenizer().backend_tokenizer
    with pytest.raises(ValueError, match=r"tiny: its tokenizer has no token that is '\+' and nothing else"):
        Letters.of(tokenizer, "tiny")


# Scores


class Scripted(torch.nn.Module):
    """A "model" that picks, behind each prefix, what `pick` says of it; of the rest of transformers only the cache."""

    def __init__(self, letters, pick):
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(()))
        self.config = load_model("reference").config
        self.letters, self.pick = letters, pick

    def forward(self, tokens, past_key_values, use_cache, logits_to_keep):
        seen = getattr(past_key_values, "seen", torch.empty(len(tokens), 0, dtype=torch.int64))
        past_key_values.seen = row = torch.cat([seen, tokens], 1)
        characters = {i: c for c, i in self.letters.ids.items()}
        logits = torch.zeros(*tokens.shape, 2048)
        for i, j in itertools.product(range(len(tokens)), range(tokens.shape[1])):
            prefix = "".join(characters[int(t)] for t in row[i, : seen.shape[1] + j + 1])
            if ":" in prefix:
                logits[i, j, self.letters.ids[self.pick(prefix)]] = 50.0
        return type("Output", (), {"logits": logits[:, -logits_to_keep:]})

    def runtime(self):
        return Runtime(self, DynamicCache)


def truth(prefix):
    """The next character of the steps, from what is asked and the last value written."""
    asked, _, steps = prefix.strip().partition(":")
    at, where = divmod(len(steps), STEP)
    stack = asked.lstrip("(").removesuffix(")%10").split(")")
    left = stack[0][0] if at == 0 else steps[at * STEP - 2]
    line = f"{left}{stack[at][-2:]}"
    return f"{line}={eval(line) % 10};"[where]


def wrong_at(places):
    """Right but for the values of steps at these places, which are one too high."""

    def pick(prefix):
        step, where = divmod(len(prefix.partition(":")[2]), STEP)
        right = truth(prefix)
        return str((int(right) + 1) % 10) if where == 4 and step in places else right

    return pick


def test_a_model_that_is_always_right_scores_one(letters):
    found = marks(Scripted(letters, truth).runtime(), letters, drawn(3, 12), batch=5)
    scores = Scores.of(found)
    for figure in (scores.answer, scores.right, scores.step, scores.value, scores.independent):
        assert figure == Mean(1.0, 0.0)
    assert scores.excess == Mean(0.0, 0.0) and scores.by_place == (1.0, 1.0, 1.0)
    assert scores.nats.value < 1e-6


def test_a_model_that_guesses_values_scores_chance(letters):
    rng, count = np.random.default_rng(0), 300

    def pick(prefix):
        where = len(prefix.partition(":")[2]) % STEP
        return str(rng.integers(10)) if where == 4 else truth(prefix)

    scores = Scores.of(marks(Scripted(letters, pick).runtime(), letters, drawn(2, count)))
    sigma = (CHANCE * (1 - CHANCE) / count) ** 0.5
    assert abs(scores.answer.value - CHANCE) < 3 * sigma
    assert abs(scores.value.value - CHANCE) < 3 * sigma and scores.value == scores.step
    assert scores.right.value < 6 * CHANCE**2  # both values right: one time in a hundred, 9 of 300 are 3 sigma above
    assert abs(scores.excess.value) < 4 * scores.excess.error + 1e-9


def test_an_error_is_carried_on_in_free_writing_and_not_in_forced(letters):
    found = marks(Scripted(letters, wrong_at({0})).runtime(), letters, drawn(3, 20))
    scores = Scores.of(found)
    assert scores.by_place == (0.0, 1.0, 1.0) and scores.step.value == pytest.approx(2 / 3)
    assert scores.answer == Mean(0.0, 0.0)  # no true step mends it
    assert found.free[:, :4].all() and not found.free[:, 4].any()
    assert scores.independent.value == scores.right.value == 0.0


def test_what_is_copied_wrong_counts_against_the_step_and_not_its_value(letters):
    def pick(prefix):
        return "+" if len(prefix.partition(":")[2]) % STEP == 3 else truth(prefix)

    scores = Scores.of(marks(Scripted(letters, pick).runtime(), letters, drawn(2, 8)))
    assert scores.step.value == scores.right.value == 0.0 and scores.value.value == 1.0 == scores.answer.value


def test_errors_that_fall_together_exceed_independence():
    steps = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], dtype=bool)
    forced = np.repeat(steps, STEP, axis=1)
    scores = Scores.of(Marks(free=forced, forced=forced, nats=np.zeros(forced.shape)))
    assert scores.by_place == (0.5, 0.5) and scores.independent.value == 0.25
    assert scores.right.value == 0.5 and scores.excess.value == 0.25
    # influences on the product are (x1 - p1) p2 + (x2 - p2) p1 = +-0.5: their standard error is that of `right` here
    assert scores.independent.error == pytest.approx(scores.right.error) and scores.excess.error == pytest.approx(0.0)


@given(st.integers(0, 100))
def test_the_errors_of_shares_are_those_of_draws(seed):
    values = np.random.default_rng(seed).random(200) < 0.3
    p = values.mean()
    assert Mean.of(values).error == pytest.approx((p * (1 - p) / 199) ** 0.5)
    assert np.isnan(Mean.of(values[:1]).error)


def test_the_error_of_independence_is_that_of_many_draws():
    rng, p, n = np.random.default_rng(0), np.array([0.9, 0.7, 0.8]), 400
    found = []
    for _ in range(400):
        forced = np.repeat(rng.random((n, 3)) < p, STEP, axis=1)
        found.append(Scores.of(Marks(free=forced, forced=forced, nats=np.zeros(forced.shape))))
    for name in ("independent", "excess"):
        values = np.array([getattr(scores, name).value for scores in found])
        claimed = np.mean([getattr(scores, name).error for scores in found])
        assert abs(values.std() / claimed - 1) < 4 / (2 * 400) ** 0.5  # four sigma of a standard deviation of 400 draws
    excess = np.array([scores.excess.value for scores in found])
    assert abs(excess.mean()) < 4 * excess.std() / 400**0.5


def test_changes_are_paired():
    rng = np.random.default_rng(0)
    base = np.repeat(rng.random((50, 2)) < 0.5, STEP, axis=1)
    same = Marks(free=base, forced=base, nats=np.zeros(base.shape))
    assert Change.of(same, same).answer == Mean(0.0, 0.0)
    less = base.copy()
    less[:10] = False
    change = Change.of(Marks(free=less, forced=less, nats=same.nats), same)
    assert change.right.value == pytest.approx(-base[:10].all(1).sum() / 50)
    assert change.step.value == pytest.approx(-(base[:10].mean(1)).sum() / 50)


# Models


@torch.no_grad()
def test_batched_writing_is_writing_one_by_one(letters, small):
    runtime = plain_runtime(load_model(str(small)), torch.float32)
    asked = [f"\n{problem.asked}" for problem in drawn(2, 9)]
    rows = torch.from_numpy(letters.rows(asked))
    together = written(runtime, rows, 10)
    assert len(together.unique()) > 3
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(written(runtime, row[None], 10)[0], found)
        text = row
        for _ in range(10):  # and without a cache
            text = torch.cat([text, runtime.model(text[None]).logits[0, -1].argmax()[None]])
        assert torch.equal(text[len(row) :], found)


@torch.no_grad()
def test_forced_picks_and_likelihoods_are_those_of_a_plain_pass(letters, small):
    runtime = plain_runtime(load_model(str(small)), torch.float32)
    rows = torch.from_numpy(letters.rows([f"\n{p.asked}{p.written}" for p in drawn(2, 6)]))
    logits = runtime.model(rows).logits
    picks, nats = forced(runtime, rows, 12)
    assert torch.equal(picks, logits[:, -13:-1].argmax(-1))
    labels = rows.clone()
    labels[:, :-12] = -100  # what transformers takes no loss of
    assert float(nats.mean()) == pytest.approx(float(runtime.model(rows, labels=labels).loss), rel=1e-5)
    assert text_nats(runtime, rows, batch=4).mean() == pytest.approx(float(runtime.model(rows, labels=rows).loss))


def test_free_writing_is_right_throughout_where_forced_picks_are(letters, small):
    runtime = plain_runtime(load_model(str(small)), torch.float32)
    found = drawn(2, 20)
    whole = marks(runtime, letters, found, batch=7)
    assert np.array_equal(whole.right, whole.forced.all(1))
    assert np.array_equal(whole.right, solved(runtime, letters, found))
    first = whole.forced.argmin(1)  # up to its first error a model writes what it is forced to
    for free, picked, n in zip(whole.free, whole.forced, first, strict=True):
        assert np.array_equal(free[: n + 1], picked[: n + 1])


def test_problems_beyond_the_context_and_of_two_lengths_are_refused(letters, small):
    runtime = plain_runtime(load_model(str(small)), torch.float32)
    with pytest.raises(ValueError, match="expected problems of one length"):
        marks(runtime, letters, [*drawn(1, 1), *drawn(2, 1)])
    with pytest.raises(ValueError, match=r"problems of 26 steps have 266 characters, expected no more than .* 256"):
        marks(runtime, letters, drawn(26, 1))


# Training


def plan_of(small, **changes):
    plan = training.Plan(batch_rows=4, hidden=32, blocks=1, mlp=32, heads=2, cache_heads=1, reasoning=0.5,
                         start=str(small), schedule=Schedule(steps=6))  # fmt: skip
    return replace(plan, **changes)


@pytest.fixture
def little_text(monkeypatch):
    """Of every part of the text the first files that make some rows."""
    read = training.read_files

    def first(part):
        names, size = {}, 0
        for name, text in read(part).items():
            if size < 25_000:
                names[name] = text
                size += len(text)
        return names

    monkeypatch.setattr(training, "read_files", first)


@torch.no_grad()
def test_a_mixture_has_its_share_and_weighs_text_values_and_copies(letters, small):
    text = torch.randint(300, 2048, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    mixture = Mixture(letters=letters, rows=2, batch_rows=5, seed=0)
    rows, kinds = mixture.drawn(7, LENGTH)
    assert rows.shape == kinds.shape == (2, LENGTH) and set(rows.unique().tolist()) <= set(letters.ids.values())
    assert all(torch.equal(a, b) for a, b in zip(mixture.drawn(7, LENGTH), (rows, kinds), strict=True))
    assert not torch.equal(mixture.drawn(8, LENGTH)[0], rows)
    model = plain_runtime(load_model(str(small)), torch.float32).model

    def of(rows, kind=None):  # transformers' own mean over the tokens whose labels are given
        labels = rows if kind is None else rows.masked_fill(kinds != kind, -100)
        return float(model(input_ids=rows, labels=labels).loss)

    expected = 0.6 * of(text) + 0.2 * of(rows, FOUND) + 0.2 * of(rows, COPIED)
    assert float(mixture.loss(model, 7, text)) == pytest.approx(expected, rel=1e-5)


def test_training_starts_from_the_weights_and_goes_on_where_it_was_killed(small, letters, little_text, tmp_path):
    plan, whole, killed = plan_of(small), tmp_path / "whole", tmp_path / "killed"
    card = training.train_reference(whole, plan, every=2)

    def kill(step, loss_nats):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train_reference(killed, plan, kill, every=2)
    assert training.train_reference(killed, plan, every=2) | {"training_seconds": 0} == card | {"training_seconds": 0}
    models = [load_model(str(path)) for path in (whole, killed, whole / "initial", small)]
    assert models[0].sha256 == models[1].sha256 != models[2].sha256 == models[3].sha256 == card["start_sha256"]
    logs = [[line.rsplit(",", 2) for line in (path / "log.csv").read_text().splitlines()] for path in (whole, killed)]
    assert [[line[0], line[2]] for line in logs[0]] == [[line[0], line[2]] for line in logs[1]]  # all but the seconds
    assert logs[0][0][2] == "problems_right" and len(logs[0]) == 4
    rows = [load_tokens(str(path / training.ROWS), "training", models[0], LENGTH).rows for path in (whole, killed)]
    assert rows[0].shape == (6 * 4, LENGTH) and np.array_equal(rows[0], rows[1])
    assert [set(row) <= set(letters.ids.values()) for row in rows[0]] == [False, False, True, True] * 6
    assert card["problems"].startswith("2 of 4 rows of every batch: problems of suite.reasoning of 1 to 6 steps")
    assert card["plan"]["reasoning"] == 0.5 and card["held_out_problems_right"] == float(logs[0][-1][2])
    with pytest.raises(ValueError, match="there is a training of another plan in this directory"):
        training.train_reference(killed, replace(plan, seed=1), every=2)


def test_the_command_trains_a_variant_of_the_shipped_model(little_text, tmp_path):
    out = tmp_path / "variant"
    asked = ["train-reference", str(out), "--from", "reference", "--reasoning", "0.25", "--steps", "1",
             "--rate", "1e-4", "--threads", "1"]  # fmt: skip
    found = CliRunner().invoke(bitfrontier, asked, catch_exceptions=False)
    assert found.exit_code == 0 and "validation perplexity" in found.output
    card = json.loads((out / "card.json").read_text())
    assert card["start_sha256"] == load_model("reference").sha256 != load_model(str(out)).sha256
    plan = card["plan"]
    assert (plan["start"], plan["reasoning"], plan["schedule"]["rate"]) == ("reference", 0.25, 1e-4)
    refused = CliRunner().invoke(bitfrontier, [*asked[:1], str(tmp_path / "no"), "--from", "nowhere"])
    assert refused.exit_code != 0 and "nowhere: no such directory" in str(refused.exception)
    assert not (tmp_path / "no").exists()


def test_without_problems_nothing_is_said_of_them(small, little_text, tmp_path):
    card = training.train_reference(tmp_path, plan_of(small, reasoning=0.0, schedule=Schedule(steps=1)))
    assert not (tmp_path / training.ROWS).exists()
    assert "problems" not in card and "problems_right" not in (tmp_path / "log.csv").read_text()


def test_a_start_of_another_shape_is_refused_and_nothing_written(small, tmp_path):
    with pytest.raises(ValueError, match=r"expected a llama of .*'hidden_size': 64"):
        training.train_reference(tmp_path / "out", plan_of(small, hidden=64))
    assert not (tmp_path / "out").exists()


def test_a_share_is_some_rows_and_not_all():
    with pytest.raises(ValueError, match=r"reasoning 1.0: expected a share from 0 to below 1"):
        training.Plan(reasoning=1.0)
    for share, rows in ((0.03, 0), (0.97, 16)):
        with pytest.raises(ValueError, match=f"reasoning {share}: that is {rows} of 16 rows"):
            training.Plan(reasoning=share)


def test_the_shipped_model_knows_no_problems():
    assert "problems" not in json.loads((REFERENCE / "card.json").read_text())


# The command


@pytest.fixture(scope="module")
def packed(small, tmp_path_factory):
    """Packed models of the small one by a short name, with their records; and text."""
    root = tmp_path_factory.mktemp("reasoning")
    text = tiny.save_tokens(root / "text.npy", 6, 64, 1)
    recipes = {
        "four": "Recipe(weights=Target(Integer(bits=4, group=16)))",
        "eight": "Recipe(weights=Target(Integer(bits=8)), layers=(('*embed*', Target(Integer(bits=8))),))",
        "cache": "Recipe(cache=CacheTarget(keys=CacheGrid(grid=Integer(bits=2, group=8), along='tokens'), "
                 "values=CacheGrid(grid=Integer(bits=2, group=8)), window=8))",
    }  # fmt: skip
    records = {}
    for name, recipe in recipes.items():
        records[name] = run(str(small), recipes=[recipe], save=root / name, calibration=str(text), store=root / "s.db",
                            evaluation=str(text), jobs=1)[0]  # fmt: skip
    return root, text, records


def test_packed_models_are_asked_beside_their_base_once(packed, small):
    root, text, records = packed
    before = torch.get_num_threads()
    task = Task(problems=20, steps=(1, 2), evaluation=str(text))
    found = list(measure_reasoning([str(root / name) for name in records], task))
    torch.set_num_threads(before)
    assert [rows[0].model for rows in found] == [str(small), *(str(root / name) for name in records)]
    base, *others = found
    assert base[0].answer_base is None and base[0].ppl_base is None and base[0].bpw is None
    for record, rows in zip(records.values(), others, strict=True):
        assert [row.steps for row in rows] == [1, 2]
        assert all(row.base_sha256 == base[0].model_sha256 == record.model_sha256 for row in rows)
        assert rows[0].problems_sha256 == base[0].problems_sha256 != rows[1].problems_sha256
        assert (rows[0].bpw, rows[0].recipe, rows[0].quantized_seed) == (record.bpw, record.recipe, record.seed)
        assert rows[1].step_base == base[1].step and rows[1].step_change_se >= 0
        # the whole model is the one that was evaluated block by block, caches included
        assert rows[0].ppl == pytest.approx(record.ppl, rel=1e-5)
        assert rows[0].ppl_base == pytest.approx(record.ppl_base, rel=1e-5)
        assert rows[0].ppl_se == pytest.approx(record.ppl_se, rel=1e-3)
        assert json.loads(rows[1].by_place) == pytest.approx([rows[1].step] * 2, abs=1.0)
    assert others[0][0].nats != others[1][0].nats


def test_the_command_prints_and_stores(packed, small):
    root, text, records = packed
    before = torch.get_num_threads()
    asked = ["reasoning", str(small), str(root / "four"), "--problems", "8", "--steps", "2,1,2", "--tokens", "128",
             "--evaluation", str(text), "--store", str(root / "command.db")]  # fmt: skip
    outputs = [CliRunner().invoke(bitfrontier, asked, catch_exceptions=False) for _ in range(2)]
    torch.set_num_threads(before)
    assert outputs[0].exit_code == 0 and outputs[0].output == outputs[1].output
    four = f"{records['four'].method}, {number(records['four'].bpw)} bits per weight, perplexity"
    for words in ("unquantized, perplexity", four, "if independent", "+0.0 ± 0.0"):
        assert words in outputs[0].output
    with Store(root / "command.db", create=False) as store:
        rows = store.rows(ReasoningRow)
    assert [(row.model, row.steps) for row in rows] == [
        (str(model), k) for model in sorted([small, root / "four"], key=str) for k in (1, 2)
    ]
    assert rows[0].problems == 8 and rows[0].command.startswith("bitfrontier")


def test_stores_from_before_there_were_problems_are_read_and_written(tmp_path):
    path = tmp_path / "old.db"
    with Store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("drop table reasoning")
    connection.close()
    with Store(path, create=False) as store:
        assert store.rows(ReasoningRow) == []
    with Store(path) as store:
        assert store.rows(ReasoningRow) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["reference", "--steps", "0"], "expected 2 or more, of 1 step or more"),
        (["reference", "--steps", "30"], "problems of 30 steps have 306 characters, reference has a context of 256"),
        (["reference", "--base", "reference"], "base reference: reference are not packed models"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(options, text, tmp_path):
    found = CliRunner().invoke(bitfrontier, ["reasoning", *options, "--store", str(tmp_path / "s.db")])
    assert found.exit_code != 0 and text in f"{found.output} {found.exception}"
    assert not (tmp_path / "s.db").exists()


def test_a_model_without_the_characters_is_refused(llama, tmp_path):
    with pytest.raises(ValueError, match="its tokenizer has no token"):
        measure_reasoning([str(llama)], Task(text_tokens=0))
