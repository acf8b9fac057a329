import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.experiment import Point
from theory.limits.liu_2023_middle import ASKED, EXPERIMENT, Recall, batch, depth, recall


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ASKED), st.integers(0, 1000))
def test_rows_ask_for_facts_of_their_own_once_each(asked, seed):
    how = Recall(asked=asked)
    rows, answers = batch(how, np.random.default_rng(seed), 9)
    assert rows.shape == (9, 16) and answers.shape == (9, 4) and rows.min() >= 0
    for row, said in zip(rows, answers, strict=True):
        told = dict(np.stack(np.divmod(row[:12], 16), -1).tolist())
        assert len(told) == 12 and (row[:12] < 256).all() and ((row[12:] >= 256) & (row[12:] < 272)).all()
        assert [272 + told[key - 256] for key in row[12:]] == said.tolist()
        assert len(set(row[12:])) == 4


@pytest.mark.parametrize("asked", ASKED)
def test_places_are_asked_for_by_weight(asked):
    how = Recall(asked=asked)
    rows, _ = batch(how, np.random.default_rng(0), 6000)
    first = (rows[:, :12] // 16 == rows[:, 12:13] - 256).argmax(1)
    share = np.bincount(first, minlength=12) / 6000
    assert share == pytest.approx(how.weights / how.weights.sum(), abs=4 * np.sqrt(0.25 / 6000))


def test_places_that_are_given_are_asked_for():
    places = np.tile([5, 6, 7, 8], (3, 1))
    rows, _ = batch(Recall(), np.random.default_rng(0), 3, places)
    assert (rows[:, 12:] - 256 == rows[:, 5:9] // 16).all()


def test_a_tiny_training_is_kept_and_follows_its_seed():
    how = Recall(facts=4, symbols=6, hidden=16, blocks=1, rows=4, steps=2, evaluated=8)
    first = recall(how, 0)
    assert first.shape == (4,) and ((first >= 0) & (first <= 1)).all()
    assert (recall(how, 0) == first).all()


@given(st.lists(st.floats(0, 1), min_size=4, max_size=12).filter(lambda x: len(x) % 2 == 0))
def test_the_depth_has_the_sign_of_a_u(right):
    found = depth(np.array(right))
    n = len(right) // 2
    assert found <= min(right[0], right[-1]) - min(right[n - 1 : n + 1]) + 1e-8
    assert depth(np.full(4, 0.5)) == 0 and depth(1 - np.array([1, 0, 0, 1.0])) == -1


def test_the_sentence_follows_the_points_and_bad_input_is_named():
    points = [Point(series="asked U", x=x, y=y) for x, y in zip(range(1, 5), (0.9, 0.5, 0.7, 0.8), strict=True)]
    assert EXPERIMENT.sentence(points) == (
        "Right answers by place: 90.0% first, 60.0% in the middle, 80.0% last where training asked U."
    )
    with pytest.raises(ValueError, match="asked among uniform, U, ends"):
        Recall(queries=13)
