from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from float64 import kept_in_float64

from suite import run
from suite.grids import Integer
from suite.learning import rotations as rotation_learning
from suite.learning.rotations import (
    ROWS,
    Network,
    batches,
    learn,
    learn_rotations,
    learned_on,
    ranges,
    start,
    straight_through,
    through_ranges,
)
from suite.methods.spinquant import SPINQUANT
from suite.models.checkpoint import load_model
from suite.models.turn import Turn
from suite.recipe import Recipe, Target
from suite.rounding import Feedback
from suite.tokens import Tokens
from suite.transforms import LearnedRotations, RotateHeads, RotateInputs

FAST = LearnedRotations(rate=10.0, steps=20)
A4 = Target(Integer(bits=4, group="row", convention="asymmetric", scale_bits=32))
A3 = Target(Integer(bits=3, group="row", convention="asymmetric", scale_bits=32))
W4 = Target(Integer(bits=4, group="row", convention="full-range"))
ONLINE = (RotateHeads(), RotateInputs())


@pytest.fixture(scope="module")
def rows(llama):
    """Rows (48, 24) that the model itself has drawn, so that whatever harms it raises their negative log-likelihood."""
    checkpoint, generator = load_model(str(llama)), torch.Generator().manual_seed(1)
    found = torch.randint(0, tiny.VOCABULARY, (48, 1), generator=generator)
    while found.shape[1] < 24:
        p = tiny.logits_of(checkpoint, found)[:, -1].softmax(-1)
        found = torch.cat([found, torch.multinomial(p, 1, generator=generator)], dim=1)
    return found


@pytest.fixture(scope="module")
def learned(llama, rows):
    """The tiny model's turn, and the losses on the way."""
    recipe = Recipe(transforms=(FAST, *ONLINE), weights=W4, activations=A3)
    return learn(Network.of(load_model(str(llama)), recipe), rows, FAST, 0)


def worst(logits, base):
    """The largest difference relative to the largest logit."""
    return float((logits - base).abs().max() / base.abs().max())


def drift(R):
    return float((R @ R.T - torch.eye(len(R), dtype=R.dtype)).abs().max())


@pytest.mark.parametrize("solver", ["exact", "fixed-point"])
def test_learned_rotations_are_orthogonal_to_1e_10(llama, rows, solver):
    how = replace(FAST, solver=solver, steps=8)
    network = Network.of(load_model(str(llama)), Recipe(transforms=(how,), activations=A4))
    turn, losses_nats = learn(network, rows, how, 0)
    begun = start(network.checkpoint, how, 0)
    assert losses_nats.shape == (8,) and turn.heads is not None
    for R, before in zip((turn.matrix, *turn.heads), begun, strict=True):
        assert R.dtype == torch.float64 and drift(R) < 1e-10
        assert float((R - before).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
@pytest.mark.parametrize("architecture", tiny.ROTATING)
def test_the_learner_runs_the_model_that_it_learns_for(architecture, kind, rows, tmp_path):
    name, options = tiny.ARCHITECTURES[architecture]
    checkpoint = load_model(str(tiny.save(tiny.model_of(name, **options), tmp_path)), dtype=torch.float64)
    with kept_in_float64():
        base = tiny.logits_of(checkpoint, rows)
        begun = start(checkpoint, LearnedRotations(kind=kind), 0)
        plain = Network.of(checkpoint, Recipe(transforms=ONLINE)).logits(rows, begun[0], begun[1:])
        quantized = Network.of(checkpoint, Recipe(transforms=ONLINE, activations=A4)).logits(rows, begun[0], begun[1:])
    assert worst(plain, base) < 1e-9 < worst(quantized, base)


def test_a_learned_turn_leaves_the_function_as_it_was(llama, rows, learned):
    checkpoint = load_model(str(llama), dtype=torch.float64)
    with kept_in_float64():
        base = tiny.logits_of(checkpoint, rows)
        assert worst(tiny.logits_of(checkpoint.turned(learned[0], exact=True), rows), base) < 1e-9
    plain = load_model(str(llama))
    assert worst(tiny.logits_of(plain.turned(learned[0]), rows), tiny.logits_of(plain, rows)) < 1e-4


@torch.no_grad()
def losses_of(network, rows, Rs):
    """The mean negative log-likelihood of every row, (n,)."""
    R1, *R2 = (R.float() for R in Rs)
    log_p = network.logits(rows, R1, R2)[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, rows[:, 1:, None])[..., 0].mean(1)


@pytest.mark.parametrize("weights", [None, W4], ids=["activations", "both"])
def test_learning_lowers_the_quantized_networks_loss(llama, rows, weights):
    checkpoint, how = load_model(str(llama)), replace(FAST, steps=40)
    network = Network.of(checkpoint, Recipe(transforms=(how, *ONLINE), weights=weights, activations=A4))
    turn = learn(network, rows, how, 0)[0]
    gain = losses_of(network, rows, start(checkpoint, how, 0)) - losses_of(network, rows, (turn.matrix, *turn.heads))
    assert float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5


def test_each_step_has_its_loss_and_the_first_is_that_of_the_start(llama, rows, learned):
    checkpoint = load_model(str(llama))
    network = Network.of(checkpoint, Recipe(transforms=(FAST, *ONLINE), weights=W4, activations=A3))
    begun, first = start(checkpoint, FAST, 0), batches(rows, 20, rotation_learning.generator_for(0, "rows"))[0]
    loss = network.nll(first, begun[0].float(), [R.float() for R in begun[1:]])
    assert float(learned[1][0]) == float(loss)


def test_batches_take_every_row_before_any_comes_again():
    rows = torch.arange(20)[:, None]
    found = torch.cat(batches(rows, 5, torch.Generator().manual_seed(0)))[:, 0]
    assert len(found) == 5 * ROWS
    for at in (0, 20):
        assert sorted(found[at : at + 20].tolist()) == list(range(20))
    few = batches(rows[:3], 2, torch.Generator().manual_seed(0))
    assert [sorted(batch[:, 0].tolist()) for batch in few] == [[0, 1, 2]] * 2


def test_the_same_seed_gives_the_same_bits_and_draws_nothing_from_the_global_generator(llama, rows, learned):
    before = torch.random.get_rng_state()
    recipe = Recipe(transforms=(FAST, *ONLINE), weights=W4, activations=A3)
    again = learn(Network.of(load_model(str(llama)), recipe), rows, FAST, 0)
    other = learn(Network.of(load_model(str(llama)), recipe), rows, replace(FAST, steps=1), 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again[0].sha256 == learned[0].sha256 != other[0].sha256
    assert torch.equal(again[1], learned[1])


def test_recipes_that_share_what_is_learned_on_share_the_rotations(llama, rows, monkeypatch):
    checkpoint, tokens = load_model(str(llama)), Tokens(rows.numpy(), np.arange(len(rows)))
    three, four = (SPINQUANT.recipe(bits=bits, steps=2) for bits in (3, 4))
    assert three != four and learned_on(three) == learned_on(four)
    first = learn_rotations(checkpoint, three, tokens, seed=0, threads=1)
    monkeypatch.setattr(rotation_learning, "learn", None)  # not called again
    assert learn_rotations(checkpoint, four, tokens, seed=0, threads=1).sha256 == first.sha256
    with pytest.raises(TypeError):
        learn_rotations(checkpoint, four, tokens, seed=1, threads=1)


def test_no_steps_leave_the_rotations_that_were_drawn(llama, rows):
    how = LearnedRotations(steps=0)
    network = Network.of(load_model(str(llama)), Recipe(transforms=(how,), activations=A4))
    turn, losses_nats = learn(network, rows, how, 3)
    begun = start(network.checkpoint, how, 3)
    assert all(map(torch.equal, (turn.matrix, *turn.heads), begun)) and losses_nats.shape == (0,)


def test_heads_are_left_alone_where_they_are_not_learned(llama, rows):
    recipe = Recipe(transforms=(LearnedRotations(steps=1, heads=False),), activations=A4)
    turn = learn_rotations(
        load_model(str(llama)), recipe, Tokens(rows.numpy(), np.arange(len(rows))), seed=0, threads=1
    )
    assert isinstance(turn, Turn) and turn.heads is None


def test_what_is_learned_on():
    how, feedback = LearnedRotations(), Target(W4.grid, Feedback())
    plain = Recipe(transforms=(how, *ONLINE), weights=W4, activations=A4)
    assert learned_on(plain) == plain
    assert learned_on(replace(plain, weights=feedback, inputs="quantized")) == replace(plain, weights=None)
    assert learned_on(replace(plain, weights=feedback, activations=None)) == replace(plain, activations=None)
    searched = SPINQUANT.recipe(bits=4, rounding="rtn").weights
    assert learned_on(replace(plain, weights=searched)) == plain
    with pytest.raises(ValueError, match="expected one LearnedRotations among the transforms, found 0"):
        rotation_learning.transform_of(Recipe(transforms=ONLINE))


@pytest.mark.parametrize("convention", ["asymmetric", "full-range"])
@pytest.mark.parametrize("group", ["row", "tensor", 5, 4])
def test_through_ranges_an_input_that_grows_is_a_result_that_grows(convention, group):
    grid = Integer(bits=3, group=group, convention=convention, scale_bits=32)
    x = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    c = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fitted = grid.fit(x.detach())
    rounded = fitted.decode(fitted.nearest(x.detach())).double()
    for passed, along in ((straight_through, x.detach()), (lambda x, q: through_ranges(x, q, grid), rounded)):
        found = passed(x, rounded)
        assert torch.equal(found, rounded)
        (gradient,) = torch.autograd.grad((c * found).sum(), x)
        assert float((gradient * x.detach()).sum()) == pytest.approx(
            float((c * along).sum())
        )  # d/dt of f(t x) at t = 1


def test_ranges_are_those_of_the_groups():
    x = torch.tensor([[1.0, -3.0, 2.0, 0.0, 0.5]])
    symmetric = Integer(bits=4, group=2, convention="full-range")
    assert ranges(x, symmetric).tolist() == [[3.0, 3.0, 2.0, 2.0, 0.5]]
    assert ranges(x, replace(symmetric, convention="asymmetric")).tolist() == [[4.0, 4.0, 2.0, 2.0, 0.5]]
    zero = torch.zeros(2, 3, requires_grad=True)
    assert torch.equal(through_ranges(zero, torch.zeros(2, 3), W4.grid), torch.zeros(2, 3))


def test_the_methods_options():
    plain = SPINQUANT.recipe(bits=4)
    assert [transform.place for transform in plain.transforms] == ["residual", "online", "keys"]
    assert plain.cache is None and plain.inputs == "quantized"
    cached = SPINQUANT.recipe(bits=4, cache_bits=3, activation_bits=None)
    assert (cached.cache.bits, cached.held_cache.keys.rotate, cached.held_cache.values.rotate) == (3, True, False)
    assert cached.activations is None
    offline = SPINQUANT.recipe(bits=4, cache_bits=3, online=False, rounding="rtn", steps=7)
    assert offline.transforms == (LearnedRotations(steps=7),) and not offline.held_cache.keys.rotate
    assert offline.inputs == "original"
    assert RotateHeads() in SPINQUANT.recipe(bits=4, heads=True).transforms
    with pytest.raises(ValueError, match="rounding 'ldlq': expected one of gptq, qronos, rtn"):
        SPINQUANT.recipe(bits=4, rounding="ldlq")


@pytest.mark.slow
def test_learned_rotations_beat_drawn_ones_on_a_trained_model(stories, tmp_path):
    options = {"bits": [4], "seed": 0, "jobs": 1, "store": tmp_path / "store.db", **stories.inputs}
    drawn, turned = run(str(stories.path), methods=["quarot", "spinquant"], **options)
    assert (drawn.method, turned.method) == ("quarot", "spinquant")
    assert turned.kl + 2 * turned.kl_se < drawn.kl - 2 * drawn.kl_se  # 0.175 and 0.219, each +-0.002


@pytest.mark.parametrize("option", [{"steps": -1}, {"rate": 0}, {"kind": "haar"}, {"solver": "qr"}, {"gradient": "no"}])
def test_bad_options_are_named(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name} {value!r}"):
        LearnedRotations(**option)
