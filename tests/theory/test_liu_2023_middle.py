import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.experiment import Point
from theory.limits.liu_2023_middle import ASKED, EXPERIMENT, Recall, batch, depth, recall


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ASKED), st.integers(0, 1000))
def test_rows_ask_for_pairs_of_their_own_once_each(asked, seed):
    how = Recall(asked=asked)
    rows = batch(how, np.random.default_rng(seed), 9)
    assert rows.shape == (9, 32) and rows.min() >= 0 and rows.max() < 48
    for row in rows:
        keys, values = row[:24:2], row[1:24:2]
        told = dict(zip(keys, values, strict=True))
        assert len(told) == 12 and (keys < 24).all() and (values >= 24).all()
        assert [told[key] for key in row[24::2]] == row[25::2].tolist()
        assert len(set(row[24::2])) == 4


@pytest.mark.parametrize("asked", ASKED)
def test_places_are_asked_for_by_weight(asked):
    how = Recall(asked=asked)
    rows = batch(how, np.random.default_rng(0), 6000)
    first = np.array([np.flatnonzero(row[:24:2] == row[24])[0] for row in rows])
    share = np.bincount(first, minlength=12) / 6000
    assert share == pytest.approx(how.weights / how.weights.sum(), abs=4 * np.sqrt(0.25 / 6000))


def test_places_that_are_given_are_asked_for():
    how = Recall()
    places = np.tile([5, 6, 7, 8], (3, 1))
    rows = batch(how, np.random.default_rng(0), 3, places)
    assert (rows[:, 24::2] == rows[:, 10:18:2]).all()


def test_a_tiny_training_is_kept_and_follows_its_seed():
    how = Recall(pairs=4, symbols=6, hidden=16, blocks=1, rows=4, steps=2, evaluated=8)
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
