import numpy as np
import pytest
import tiny
import torch

from theory.experiment import Point, Setting
from theory.limits import hidden_states as m


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.save(tiny.model_of("llama"), tmp_path_factory.mktemp("llama"))
    tiny.save_tokenizer(path)
    return str(path)


def test_states_are_the_models_own(model):
    from suite.learning.student import whole_model
    from suite.models.checkpoint import load_model

    checkpoint = load_model(model)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(tiny.VOCABULARY, size=(3, 20)))
    chosen = np.array([0, 18, 19, 56])  # of 19 in each row
    found = m.states(checkpoint, tokens, chosen)
    assert len(found) == checkpoint.n_blocks
    with torch.no_grad():
        whole = m._last(whole_model(checkpoint), tokens)[chosen]
    assert np.allclose(found[-1], whole, atol=1e-5)


def test_rounding_moves_weights_by_less_at_more_bits(model):
    from suite.models.checkpoint import load_model

    checkpoint = load_model(model)
    W = checkpoint.block(0).get_submodule("mlp.up_proj").weight
    found = [m.rounded(checkpoint, bits).block(0).get_submodule("mlp.up_proj").weight for bits in (8, 4, 2)]
    off = [float((one - W).norm()) for one in found]
    assert 0 < off[0] < off[1] / 8 < off[2] / 16


def test_every_layer_has_its_dimensions_and_a_seed_draws_them(model):
    setting = Setting(model=model, effort=0.2)
    first, again = m.of_model(setting), m.of_model(setting)
    assert first == again != m.of_model(Setting(model=model, effort=0.2, seed=1))
    assert all(len(layers) == 3 for layers in first.values())
    gaussian = first["isotropic Gaussian"][-1]["TwoNN"]
    assert 10 < gaussian < 48  # channels, underestimated


def test_a_small_training_is_looked_at_where_asked():
    how = m.Overfitting(rows=4, length=64, batch_rows=2, hidden=32, blocks=1, steps=3, looks=(1, 3), points=200)
    table = m.overfitted(how, 0)
    assert table.shape == (2, len(m.COLUMNS)) and table[:, 0].tolist() == [1, 3]
    assert np.isfinite(table).all() and (table[:, 1:] > 0).all()
    assert (m.overfitted(how, 0) == table).all()


def test_sentences_follow_the_points():
    of_states, of_training = m.EXPERIMENTS
    points = [Point(series="3 bits, TwoNN", x=4, y=7.25), Point(series="3 bits, TwoNN", x=0, y=2.0)]
    assert of_states.sentence(points) == "TwoNN's dimension of what leaves the last block: 7.2 (3 bits)."
    nats = [Point(series="validation nats", x=x, y=y) for x, y in ((1, 7.0), (50, 5.0), (100, 6.0))]
    held = [Point(series="TwoNN, held out", x=x, y=y) for x, y in ((1, 9.0), (50, 5.0), (100, 6.5))]
    assert "least after 50 updates, 5.00 nats, and 6.00 at the end" in of_training.sentence(nats + held)
