import numpy as np
import pytest
import tiny
import torch

from theory.experiment import Setting
from theory.limits import liu_2024_kivi as kivi


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.save(tiny.model_of("llama", max_position_embeddings=128), tmp_path_factory.mktemp("llama"))
    tiny.save_tokenizer(path)
    return str(path)


def test_axes_are_those_of_kivi_and_all_pairs_pay_alike():
    found = kivi.caches(2)
    assert found["keys by channel, values by token"] == found["kivi"]
    assert found["keys by channel, values by token"].keys.along == "tokens"
    assert len({cache.bits for cache in found.values()}) == 1


def test_a_seed_draws_the_rows_and_nothing_is_free(model):
    first, again, other = (kivi.costs(Setting(model=model, seed=seed, effort=0.2), 2) for seed in (3, 3, 4))
    assert first == again != other
    assert all(np.isfinite(kl) and kl > 0 for kl, _ in first.values())


def test_wide_caches_cost_less(model):
    at = {bits: kivi.costs(Setting(model=model, effort=0.2), bits)["kivi"][0] for bits in (2, 4, 8)}
    assert at[8] < at[4] / 8 < at[2] / 16


def test_an_exact_cache_is_the_models_own(model):
    checkpoint, text, _, exact = kivi._opened(model, 2, 0)
    assert torch.equal(kivi._hidden(checkpoint, text.tensor(), None, ()), exact)


def test_the_spread_of_channels_is_that_of_the_projections(model):
    found = kivi.channel_spread(Setting(model=model, effort=0.2))
    checkpoint, text, _, _ = kivi._opened(model, 3, 0)
    hidden, spread = checkpoint.embed(text.tensor()), []
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        V = block.get_submodule("self_attn.v_proj")(block.get_submodule("input_layernorm")(hidden)).double()
        size = V.square().mean((0, 1)).sqrt().reshape(2, -1)  # two heads
        spread += (size.amax(-1) / size.median(-1).values).tolist()
        hidden = checkpoint.run(i, block, hidden)
    assert found["values"] == pytest.approx(torch.tensor(spread).median().item(), rel=1e-4)
    assert found["keys"] >= 1


def test_the_sentence_follows_the_points(model):
    points = kivi.EXPERIMENT.measure(Setting(model=model, effort=0.2))
    assert "kvquant" in kivi.EXPERIMENT.sentence(points)
