"""BitDistiller as a recipe, and as trained cells of both widths, packed and read back."""

import math

import pytest
import tiny
import torch

from suite import run
from suite.adaptation.quantization_aware import Gradient
from suite.bench import Setting, open_bench
from suite.cells import name_of
from suite.grids import Integer, TwoSided
from suite.learning.quantization_aware import control_of, learned_for
from suite.methods.bitdistiller import BITDISTILLER
from suite.recipe import parse
from suite.rows import TrainingRow
from suite.store import Store

BRIEF = {"steps": 12, "rate": 1e-3, "warmup": 0.0, "rows": 4}


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return str(tiny.save_tokens(tmp_path_factory.mktemp("bitdistiller") / "training.npy", 24, tiny.CONTEXT, 3))


def test_the_recipe_is_the_papers():
    three, two = (BITDISTILLER.recipe(bits=bits) for bits in (3, 2))
    assert three.weights.grid == TwoSided(element="n2f3", group=128)
    assert two.weights.grid == Integer(bits=2, group=64, convention="asymmetric")
    how = three.adaptation
    assert two.adaptation == how and how.loss == "cakld" and how.learned == "nothing"
    assert how.gradient == Gradient(range="open")
    assert how.clipping.shares == tuple(1 - i / 20 for i in range(10))
    taken = [how.clipping.takes(f"model.layers.0.self_attn.{name}_proj") for name in "qkvo"]
    assert taken == [False, False, True, True]
    for recipe in (two, three):
        assert recipe.unsupported is None and parse(str(recipe)) == recipe and name_of(recipe) == "bitdistiller"
        assert control_of(recipe).adaptation.loss == "cakld" and control_of(recipe).adaptation.clipping is None


def test_groups_are_an_option_at_both_widths():
    assert [BITDISTILLER.recipe(bits=bits, group=32).weights.grid.group for bits in (2, 3)] == [32, 32]
    with pytest.raises(ValueError, match="unexpected element"):
        BITDISTILLER.recipe(bits=3, element="nf4")
    with pytest.raises(ValueError, match="bits 4"):
        BITDISTILLER.recipe(bits=4)


@pytest.mark.parametrize(("bits", "beside"), [(3, 32), (2, 16 + 2)])
def test_a_cell_is_trained_packed_and_read_back(bits, beside, llama, inputs, training, tmp_path):
    recipe = BITDISTILLER.recipe(bits=bits, group=16, **BRIEF)
    (record,) = run(str(llama), recipes=[recipe], training=training, store=tmp_path / "s.db", jobs=1,
                    save=tmp_path / "packed", **inputs)  # fmt: skip
    assert record.status == "ok", record.reason
    assert math.isclose(record.bpw, bits + beside / 16)  # 48 and 80 inputs are whole groups
    with Store(tmp_path / "s.db", create=False) as store:
        (row,) = store.rows(TrainingRow)
    assert row.updates == 12 and row.moved > row.moved_control > 0 and math.isfinite(row.excess_nats)
    (again,) = run(str(tmp_path / "packed"), store=tmp_path / "other.db", jobs=1, base=str(llama),
                   evaluation=inputs["evaluation"])  # fmt: skip
    assert (again.ppl, again.bpw, again.model_bytes) == (record.ppl, record.bpw, record.model_bytes)


@pytest.mark.parametrize("bits", [3, 2])
def test_clipping_and_training_lower_the_divergence(bits, llama, inputs, training):
    """The first loss is the clipped model's: below the unclipped one's; and the last ones are below the first."""
    bench = open_bench(Setting(model=str(llama), training=training, **inputs), 0)
    recipe = BITDISTILLER.recipe(bits=bits, group=16, **(BRIEF | {"steps": 40}))
    plain = BITDISTILLER.recipe(bits=bits, group=16, clipping=None, **(BRIEF | {"steps": 1}))
    clipped, unclipped = (learned_for(bench.checkpoint, r, bench.training, seed=0, threads=1,
                                      calibration=bench.calibration).losses_nats for r in (recipe, plain))  # fmt: skip
    assert float(clipped[0]) < float(unclipped[0])
    assert float(clipped[-5:].mean()) < 0.9 * float(clipped[:5].mean())
    assert bool(torch.isfinite(clipped).all()) and float(clipped.min()) > 0
