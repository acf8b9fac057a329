import numpy as np
import pytest
import tiny
import torch

from theory.experiment import Point, Setting
from theory.limits import flipped_models as m
from theory.limits.bit_flips import FORMATS, Place, places


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.save(tiny.model_of("llama"), tmp_path_factory.mktemp("llama"))
    tiny.save_tokenizer(path)
    return str(path)


def test_every_place_is_flipped_and_a_seed_draws_them(model):
    setting = Setting(model=model, effort=0.25)
    first, again = m.flips(setting, "int4"), m.flips(setting, "int4")
    assert first == again != m.flips(Setting(model=model, effort=0.25, seed=1), "int4")
    assert {one.place for one in first} == set(places("int4")) and len(first) == 20
    assert all(0 <= one.nats <= np.log(tiny.VOCABULARY) for one in first)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_flip_among_others_is_the_model_with_that_weight(model, rotated):
    """What is added to the outputs is what another weight would have made of them."""
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(model)
    text = load_tokens(None, "evaluation", checkpoint, 32).draw(64, 0).tensor()
    held, added = m._drawn(checkpoint, "int8", rotated, np.random.default_rng(0), 1)
    one = next(one for one in added if one.place == Place("int8", "code", 7))
    other = next(one for one in added if one.place == Place("int8", "code", 0))
    found = m._logits(checkpoint, held, text, [one, other])
    for r, flip in enumerate((one, other)):
        W = held[f"{flip.layer}.weight"].clone()
        W[flip.row] += torch.from_numpy(flip.vector).float()
        alone = m._logits(checkpoint, held | {f"{flip.layer}.weight": W}, text[r : r + 1], [])
        assert torch.allclose(found[r : r + 1], alone, atol=1e-4)


def test_what_is_not_finite_counts_as_a_guess():
    p = torch.tensor([[[0.25, 0.75]]]).log()
    q = torch.tensor([[[torch.nan, 0.0]]])
    assert m._divergences(p, q) == [pytest.approx(np.log(2))]
    assert m._divergences(p, p) == [0]


def test_a_bit_at_random_is_weighted_by_what_is_stored():
    flips = [m.Flip(Place("int4", "code", 0), 1.0, 0.0), m.Flip(Place("int4", "scale", 0), 1.0, 1.0)]
    found = m.harm(flips)
    # a scale of 16 bits for 128 codes: one bit of it for 128 of this place
    assert found["mean"] == pytest.approx(1 / 129) == found["share of harm"] and found["median"] == 0


def test_the_highest_exponent_bit_is_the_worst_of_a_float(model):
    flips = m.flips(Setting(model=model), "bf16")
    worst = np.median([one.nats for one in flips if one.place.bit == 14])
    assert worst > max(np.median([one.nats for one in flips if one.place.bit == bit]) for bit in range(7))


def test_sentences_follow_the_points(model):
    sizes, predictions = m.EXPERIMENTS
    points = sizes.measure(Setting(model=model, effort=0.1))
    assert all(form in sizes.sentence(points) for form in FORMATS)
    few = [Point(series="bf16, floats", x=bit, y=y) for bit, y in ((0, -9.0), (14, 0.5))]
    assert "1e-09 to 3 (bit 14) of bf16, floats" in predictions.sentence(few)
