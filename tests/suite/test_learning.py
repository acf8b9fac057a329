"""Training whole models: from a recipe to a record, with a control, resumed bit for bit, packed like any other."""

import math
from dataclasses import replace

import pytest
import tiny
import torch

from suite import run
from suite.adaptation.training import DivergedError
from suite.learning import student as students
from suite.learning.objective import batch_of, read
from suite.learning.quantization_aware import control_of, learned_for
from suite.learning.student import Student, whole_model
from suite.learning.sub_norms import with_sub_norms
from suite.methods import METHODS
from suite.models.checkpoint import load_model
from suite.outside import UnsupportedError
from suite.recipe import parse
from suite.rows import TrainingRow
from suite.store import Store

W3 = "weights=Target(Integer(bits=3, group='row', convention='full-range'))"
A8 = "activations=Target(Integer(bits=8, group='row', convention='full-range', scale_bits=32))"


def trained(*parts, how=""):
    schedule = "schedule=Schedule(steps=6, rate=0.002, warmup=0.0), rows=4"
    return (
        f"Recipe({', '.join(parts)}{', ' * bool(parts)}adaptation=QuantizationAware({schedule}{', ' * bool(how)}{how}))"
    )


LSQ = trained(W3, how="start='lsq'")
RECIPES = {
    "control": trained(),
    "lsq": LSQ,
    "activations": trained(W3, A8),
    "static activations": trained(W3, A8.replace("row", "tensor")),
    "both ends of static activations": trained(W3, A8.replace("row", "tensor").replace("full-range", "real-zero")),
    "static activations, zeroth order": trained(W3, A8.replace("row", "tensor"), how="perturbation=Perturbation()"),
    "fitted, open": trained(W3, how="learned='nothing', gradient=Gradient(range='open')"),
    "forward KL": trained(W3, how="loss='forward-kl', hidden=0.5"),
    "CAKLD": trained(W3, how="loss='cakld'"),
    "zeroth order": trained(W3, how="perturbation=Perturbation(directions=2)"),
    "scratch": trained(W3, how="scratch=True"),
    "sub norms": trained(W3, A8, how="scratch=True, sub_norm=True"),
}
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return str(tiny.save_tokens(tmp_path_factory.mktemp("training") / "training.npy", 24, tiny.CONTEXT, 3))


@pytest.fixture(scope="module")
def tokens(training):
    from suite.tokens import load_tokens

    return lambda checkpoint: load_tokens(training, "training", checkpoint, tiny.CONTEXT)


@recipes
def test_a_trained_cell_is_measured_packed_and_read_back(llama, inputs, training, tmp_path, recipe):
    path = tmp_path / "store.db"
    (record,) = run(str(llama), recipes=[recipe], training=training, store=path, jobs=1, save=tmp_path / "packed",
                    **inputs)  # fmt: skip
    assert record.status == "ok", record.reason
    with Store(path, create=False) as store:
        (row,) = store.rows(TrainingRow)
    assert (row.cell, row.updates) == (record.cell, 6)
    assert row.tokens == 6 * 4 * tiny.CONTEXT and row.operations > 0
    assert math.isfinite(row.excess_nats) and row.excess_se >= 0
    if "weights" not in recipe:
        assert row.excess_nats == 0 and row.moved is None and row.turning is None and row.disorder is None
        assert math.isclose(row.ppl_control, record.ppl, rel_tol=1e-12)
        return
    assert row.moved > 0 and row.moved_control > 0 and 0 <= row.turning <= 1
    by_gradients = "learned='nothing'" not in recipe and "Perturbation" not in recipe
    assert (row.disorder is not None) == by_gradients and 0 <= (row.disorder or 0) <= 1
    (again,) = run(str(tmp_path / "packed"), store=tmp_path / "other.db", jobs=1, base=str(llama),
                   evaluation=inputs["evaluation"])  # fmt: skip
    assert (again.ppl, again.bpw, again.model_bytes) == (record.ppl, record.bpw, record.model_bytes)


TRAINED = [(method, bits) for method in METHODS if method.needs == "training"
           for bits in dict.fromkeys((method.bits[0], method.bits[-1]))]  # fmt: skip


@pytest.mark.parametrize(("method", "bits"), TRAINED, ids=lambda x: getattr(x, "name", str(x)))
def test_every_method_is_trained_packed_and_read_back(method, bits, llama, inputs, training, tmp_path):
    recipe = method.recipe(bits=bits, steps=3, rows=4)
    (record,) = run(str(llama), recipes=[recipe], training=training, store=tmp_path / "s.db", jobs=1,
                    save=tmp_path / "packed", **inputs)  # fmt: skip
    assert record.status == "ok", record.reason
    (again,) = run(str(tmp_path / "packed"), store=tmp_path / "other.db", jobs=1, base=str(llama),
                   evaluation=inputs["evaluation"])  # fmt: skip
    assert (again.ppl, again.bpw, again.model_bytes) == (record.ppl, record.bpw, record.model_bytes)


def test_a_trained_cell_is_another_one_on_other_training_tokens(llama, inputs, training, tmp_path):
    other = str(tiny.save_tokens(tmp_path / "other.npy", 24, tiny.CONTEXT, 4))
    cells = [run(str(llama), recipes=[LSQ], training=t, store=tmp_path / "s.db", jobs=1, **inputs)[0].cell
             for t in (training, other)]  # fmt: skip
    assert cells[0] != cells[1]


def test_a_killed_training_continues_bit_for_bit(llama, tokens, monkeypatch):
    checkpoint, recipe = load_model(str(llama)), parse(LSQ)
    monkeypatch.setattr(students, "KEPT", 2)
    rows = tokens(checkpoint)
    whole = learned_for(checkpoint, recipe, rows, seed=1, threads=1)

    class Killed(Exception):
        pass

    def kill(step, loss_nats):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        learned_for(checkpoint, recipe, rows, seed=2, threads=1, report=kill)
    resumed = learned_for(checkpoint, recipe, rows, seed=2, threads=1)
    student = Student.of(checkpoint, recipe, 2)
    losses, unrest = student.train(rows.tensor(), 2, None, lambda step, loss_nats: None)
    assert torch.equal(resumed.losses_nats, losses) and resumed.unrest == unrest
    assert unrest.turning >= 0 and 0 <= unrest.disorder <= 1
    assert all(torch.equal(resumed.checkpoint.held[name], x) for name, x in student.weights().items())
    assert not torch.equal(whole.losses_nats, losses)  # another seed


def test_training_lowers_the_loss_of_the_rounded_model(llama, tokens):
    checkpoint = load_model(str(llama))
    recipe = parse(LSQ.replace("steps=6", "steps=60"))
    student = Student.of(checkpoint, recipe, 0)
    losses, _ = student.train(tokens(checkpoint).tensor(), 0, None, lambda step, loss_nats: None)
    assert float(losses[-5:].mean()) < 0.9 * float(losses[:5].mean())


def test_a_diverging_training_fails_its_cell_with_the_step(llama, inputs, training, tmp_path):
    recipe = LSQ.replace("rate=0.002", "rate=1e+30")
    (record,) = run(str(llama), recipes=[recipe], training=training, store=tmp_path / "s.db", jobs=1, **inputs)
    assert record.status == "failed" and record.ppl is None
    assert "DivergedError: training diverged at step" in record.reason
    with pytest.raises(DivergedError):
        student = Student.of(load_model(str(llama)), parse(recipe), 0)
        student.train(torch.zeros(4, 8, dtype=torch.int64), 0, None, lambda step, loss_nats: None)


@pytest.mark.parametrize("name", ["", "+outliers:both:8"])
def test_the_whole_model_is_the_checkpoint(llama, name):
    checkpoint = load_model(str(llama) + name)
    rows = torch.randint(0, tiny.VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, logits = read(whole_model(checkpoint), rows)
    assert torch.allclose(logits, tiny.logits_of(checkpoint, rows), atol=1e-4)


def test_random_weights_follow_from_the_seed(llama):
    checkpoint, state = load_model(str(llama)), torch.get_rng_state()
    first, again, other = (whole_model(checkpoint, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_every_row_comes_once_in_an_epoch():
    rows = torch.arange(12)[:, None]
    epochs = [torch.cat([batch_of(rows, part, rows_per_batch=4, seed=5) for part in range(3 * e, 3 * e + 3)]).flatten()
              for e in range(2)]  # fmt: skip
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs) and not torch.equal(*epochs)


def test_controls_are_shared_by_what_is_trained_alike():
    plain = {str(control_of(parse(RECIPES[name]))) for name in ("control", "lsq", "activations", "fitted, open")}
    assert len(plain) == 1
    assert str(control_of(parse(RECIPES["scratch"]))) not in plain


def test_a_sub_norm_more_is_bitnets_architecture(llama):
    checkpoint = with_sub_norms(load_model(str(llama)))
    names = set(checkpoint.skeleton.state_dict())
    assert {"model.layers.0.self_attn.attn_sub_norm.weight", "model.layers.2.mlp.ffn_sub_norm.weight"} <= names
    assert checkpoint.config.hidden_act == load_model(str(llama)).config.hidden_act
    biased = replace(load_model(str(llama)), config=type(checkpoint.config)(attention_bias=True, hidden_size=48,
                                                                            num_attention_heads=4))  # fmt: skip
    with pytest.raises(UnsupportedError, match="no biases"):
        with_sub_norms(biased)


@pytest.mark.parametrize(("recipe", "why"), [
    (LSQ.replace("Recipe(", "Recipe(transforms=(AwqScale(),), "), "transforms have no part"),
    (LSQ.replace("'full-range')", "'full-range'), Feedback()"), "rounded to nearest, as in training"),
    (LSQ.replace(W3, W3 + ", layers=(('lm_head', Target(Integer(bits=8))),)"), "lm_head is not fake quantized"),
])  # fmt: skip
def test_what_cannot_be_trained_says_why(recipe, why):
    assert why in parse(recipe).unsupported


def test_blocks_read_from_held_weights_are_copies(llama):
    checkpoint = load_model(str(llama))
    name = "model.layers.0.mlp.up_proj.weight"
    held = checkpoint.holding({name: checkpoint.tensor(name).float()})
    with torch.no_grad():
        held.block(0).mlp.up_proj.weight.zero_()
    assert bool(held.tensor(name).any())


def test_fewer_rows_than_a_batch_are_a_batch():
    assert len(batch_of(torch.arange(3)[:, None], 7, rows_per_batch=16, seed=0)) == 3
