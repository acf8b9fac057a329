"""Slopes and Fisher information, against the whole model with plain autograd and against each other."""

import weakref

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from suite.allocation import sensitivity
from suite.allocation.sensitivity import Fisher, Noise, layer_names, linearity
from suite.evaluation import clustered_se
from suite.models.checkpoint import Checkpoint, load_model
from suite.quantize import generator_for
from suite.tokens import Tokens

ROWS, LENGTH = 5, 13


def tokens(rows=ROWS, length=LENGTH, seed=3):
    ids = np.random.default_rng(seed).integers(0, tiny.VOCABULARY, (rows, length))
    return Tokens(ids, np.arange(rows))


@pytest.fixture(params=["llama", "llama tied", "qwen2", "mistral", "qwen3 tied"])
def model(request, tmp_path):
    """A model as `transformers` has it, and the same as a checkpoint."""
    architecture, options = tiny.ARCHITECTURES[request.param]
    whole = tiny.model_of(architecture, **options)
    return whole, load_model(str(tiny.save(whole, tmp_path / "model")))


def squares_of_gradients(whole, labels, rows):
    """Sums over rows of squared gradients of a row's log-likelihood, by the whole model's own autograd."""
    weights = {name: p for name, p in whole.named_parameters() if p.ndim == 2}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for row, wanted in zip(rows, labels, strict=True):
        log_p = whole(row[None]).logits[0, :-1].log_softmax(-1)
        found = torch.autograd.grad(log_p.gather(-1, wanted[:, None]).sum(), list(weights.values()))
        for name, gradient in zip(weights, found, strict=True):
            total[name] += gradient**2
    return {name.removesuffix(".weight"): square for name, square in total.items()}


def test_fisher_information_is_plain_autograds(model):
    whole, checkpoint = model
    data = tokens()
    ids = data.tensor()
    expected = squares_of_gradients(whole, ids[:, 1:], ids)
    found = Fisher.of(checkpoint, data, seed=0, threads=1, labels="observed", ends=True)
    every = [F for i in range(checkpoint.n_blocks) for F in found.block(i).items()] + list(found.ends().items())
    assert {name for name, _ in every} == set(layer_names(checkpoint, True)) == set(expected)
    slopes = found.slopes(ends=True)
    for name, F in every:
        reference = expected[name] / (ROWS * (LENGTH - 1))
        # float32 both ways: gradients agree to a few 1e-5 of the largest, squares to twice that
        assert float((F - reference).abs().max()) <= 2e-4 * float(reference.max()), name
        W = whole.get_submodule(name).weight.detach()
        assert slopes[name].nats == pytest.approx(0.5 * float((W**2).sum() * reference.mean()), rel=1e-3)
        assert slopes[name].se > 0


def test_sampled_labels_are_unbiased_for_the_models_own_fisher_information(tmp_path):
    """One row many times over, each with labels of its own, against the sum over all labels of all tokens."""
    whole = tiny.model_of("llama", num_hidden_layers=1)
    checkpoint = load_model(str(tiny.save(whole, tmp_path / "model")))
    row, times = tokens(1, 3).rows, 800
    log_p = whole(torch.from_numpy(row)).logits[0, :-1].log_softmax(-1)
    expected = dict.fromkeys(layer_names(checkpoint, True), 0.0)
    weights = {name: whole.get_submodule(name).weight for name in expected}
    for t in range(2):
        for y in range(tiny.VOCABULARY):
            gradients = torch.autograd.grad(log_p[t, y], list(weights.values()), retain_graph=True)
            for name, gradient in zip(weights, gradients, strict=True):
                expected[name] += float(log_p[t, y].detach().exp() * (gradient**2).sum()) / 2
    data = Tokens(np.repeat(row, times, axis=0), np.arange(times))
    found = Fisher.of(checkpoint, data, seed=0, threads=1, ends=True).slopes(ends=True)
    for name, F in expected.items():
        exact = 0.5 * float((weights[name].detach() ** 2).mean()) * F
        assert abs(found[name].nats - exact) < 4 * found[name].se, name  # 9 layers: one in 1,800 fails by chance
        assert found[name].se < 0.2 * exact


def whole_kl(whole, changed, ids):
    """KL by row of two models of `transformers`."""
    with torch.no_grad():
        log_p, log_q = (m(ids).logits[:, :-1].log_softmax(-1) for m in (whole, changed))
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().mean(-1).numpy()


def test_slopes_are_those_of_noise_put_into_the_whole_model(model):
    whole, checkpoint = model
    data, noise, seed = tokens(), Noise(sizes=(0.1, 0.3), draws=2), 7
    found = linearity(checkpoint, data, seed=seed, threads=1, noise=noise, ends=True)
    assert list(found) == layer_names(checkpoint, True)
    for name in (*list(found)[:21:10], *list(found)[21:]):
        weight = whole.get_submodule(name).weight
        original, generator, ratios = weight.detach().clone(), generator_for(seed, name), []
        reference = tiny_copy(whole)
        for t in (0.1, 0.1, 0.3, 0.3):
            E = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            E *= t * original.double().norm() / E.norm()
            weight.data.copy_(original + E.float())
            ratios.append(whole_kl(reference, whole, data.tensor()) / t**2)
        weight.data.copy_(original)
        by_draw = np.array(ratios)
        # KL of 1e-3 and more from logits of a few units in float32, whose rounding is 1e-6 each
        assert found[name].nats == pytest.approx(by_draw.mean(), rel=1e-2), name
        rows = clustered_se(by_draw.mean(0)[:, None], data.clusters)
        draws = by_draw.mean(1).std(ddof=1) / 2
        assert found[name].se == pytest.approx((rows**2 + draws**2) ** 0.5, rel=2e-2)


def tiny_copy(whole):
    copy = type(whole)(whole.config).eval()
    copy.load_state_dict(whole.state_dict())
    return copy


def test_noise_and_gradients_agree_on_the_slopes(llama):
    """alpha = 1/2 ||W||^2 mean(F): two estimates of one number, each with its standard error."""
    checkpoint, data = load_model(str(llama)), tokens(64, 16)
    noise = linearity(checkpoint, data, seed=0, threads=1, noise=Noise(sizes=(0.03,), draws=4), ends=True)
    information = Fisher.of(checkpoint, data, seed=0, threads=1, ends=True).slopes(ends=True)
    off = [(noise[n].nats - information[n].nats) / np.hypot(noise[n].se, information[n].se) for n in noise]
    assert len(off) == 23 and np.abs(off).max() < 4  # 23 layers: one in 700 fails by chance


def test_the_noise_has_its_size_and_the_weights_come_back():
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    before, seen = weight.clone(), []
    for _ in sensitivity._perturbed(weight, "a layer", Noise(sizes=(0.1, 0.5), draws=3), 0):
        seen.append(weight.clone())
    assert torch.equal(weight, before) and len(seen) == 6
    sizes = [float((x - before).double().norm() / before.double().norm()) for x in seen]
    assert sizes == pytest.approx([0.1] * 3 + [0.5] * 3, rel=1e-5)  # float32 sums W + E
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 6


def test_a_layer_of_zeros_has_the_slope_zero(tmp_path):
    whole = tiny.model_of("llama", num_hidden_layers=1)
    whole.model.layers[0].mlp.down_proj.weight.data.zero_()
    checkpoint = load_model(str(tiny.save(whole, tmp_path / "model")))
    found = linearity(checkpoint, tokens(), seed=0, threads=1)
    assert found["model.layers.0.mlp.down_proj"] == sensitivity.Slope(nats=0.0, se=0.0)
    assert found["model.layers.0.mlp.up_proj"].nats == 0.0 < found["model.layers.0.self_attn.q_proj"].nats


def test_measuring_is_deterministic_kept_and_leaves_global_random_state_alone(llama, monkeypatch):
    checkpoint, data = load_model(str(llama)), tokens()
    state = torch.get_rng_state()
    first = np.stack(list(sensitivity._all_divergences(checkpoint, data, Noise(), 0, True)))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, np.stack(list(sensitivity._all_divergences(checkpoint, data, Noise(), 0, True))))
    kept = linearity(checkpoint, data, seed=0, threads=1)
    fisher = Fisher.of(checkpoint, data, seed=0, threads=1)
    monkeypatch.setattr(Checkpoint, "block", lambda *_: pytest.fail("measured twice"))
    assert linearity(checkpoint, data, seed=0, threads=1) == kept
    assert Fisher.of(checkpoint, data, seed=0, threads=1).directory == fisher.directory


@pytest.mark.parametrize("measure", ["noise", "gradients"])
def test_one_block_is_in_memory_at_a_time(measure, llama, monkeypatch):
    read, alive, most = Checkpoint.block, weakref.WeakSet(), []

    def block(self, i, *rest):
        found = read(self, i, *rest)
        alive.add(found)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Checkpoint, "block", block)
    checkpoint, data = load_model(str(llama)), tokens(seed=11)
    if measure == "noise":
        linearity(checkpoint, data, seed=0, threads=1)
    else:
        Fisher.of(checkpoint, data, seed=0, threads=1)
    assert len(most) > checkpoint.n_blocks and max(most) == 1


def test_hidden_states_in_front_of_a_block_are_reused(llama, monkeypatch):
    """Noise on block i runs blocks i, i + 1, .. and no block before them."""
    runs, run = [], Checkpoint.run
    monkeypatch.setattr(Checkpoint, "run", lambda self, i, *rest: (runs.append(i), run(self, i, *rest))[1])
    list(sensitivity._all_divergences(load_model(str(llama)), tokens(), Noise(sizes=(0.1,), draws=2), 0, False))
    layers = 7
    assert runs.count(0) == 1 + 1 + 2 * layers
    assert runs.count(1) == 1 + 1 + 2 * layers + layers  # two draws behind one block go together
    assert runs.count(2) == 1 + 1 + 2 * layers + 2 * layers


@pytest.mark.parametrize("wrong", [{"sizes": ()}, {"sizes": (0.1, 0.0)}, {"draws": 0}])
def test_noise_without_size_or_draws_is_refused(wrong):
    with pytest.raises(ValueError, match="expected positive sizes and at least one draw"):
        Noise(**wrong)


def test_a_weights_own_gradient_reaches_the_square_sum_once_for_each_row():
    layer = nn.Linear(3, 2, bias=False)
    squares = sensitivity._Squares(layer.weight.detach())
    squares.add(torch.full((2, 3), 2.0))
    squares.add(torch.full((2, 3), 1.0))
    kept = squares.finish("w", tokens(2, 6))
    assert torch.equal(kept["w"], torch.full((2, 3), 0.5))  # (4 + 1) / (2 rows * 5 predicted tokens)
    half = 0.5 * float((layer.weight.detach().double() ** 2).mean())
    assert kept["w/slope"][0] == pytest.approx(half * 6 * 0.5, rel=1e-6)
