"""Qronos against the paper's definition with least-squares solves, and against error feedback where they must agree."""

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from feedback import CONDITION, EPS, GROUPS, ORDERS, damping, gaussian, grids
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from suite import run
from suite.activations import quantize_activations
from suite.grids import Exl2, Integer, Scaled, Sparse, Steps
from suite.grids.integer import CONVENTIONS
from suite.methods import method_named
from suite.quantize import generator_for, quantize_layer, quantize_matrix
from suite.recipe import Recipe, Target, parse
from suite.rounding import Feedback, HalfQuadratic, Nearest, Qronos, RateAware, Stochastic
from suite.rounding.feedback import factor
from suite.rounding.qronos import corrected, largest_eigenvalue

CLOSE = CONDITION * 24 * 8 * EPS  # relative rounding error of n_in = 24 solves with such a matrix, about 4e-10


def both_inputs(seed, n_in, noise=0.2):
    """Strongly correlated inputs X and what a quantized model makes of them, (3 in, in) each."""
    X = gaussian(seed, 3 * n_in, n_in) @ gaussian(seed + 1, n_in, n_in)
    return X, X + noise * X.std() * gaussian(seed + 2, 3 * n_in, n_in)


def grams(X, Xq):
    return Xq.T @ Xq / len(X), X.T @ Xq / len(X)


def rounded(rounding, W, grid, *grams, seed=0):
    return rounding.round(W, grid, grams[0], torch.Generator().manual_seed(seed), *grams[1:])


@st.composite
def instances(draw, most=24):
    seed, n_in = draw(st.integers(0, 10**6)), draw(st.integers(1, most))
    return (gaussian(seed + 3, draw(st.integers(1, 4)), n_in), *both_inputs(seed, n_in))


def solved(A, b):
    return torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution[:, 0]


def definition(W, X, Xq, fitted, perm, added):
    """The paper's alternation with plain solves: codes, and the least distance of a rounded value from a tie, in steps.

    Column after column is rounded from the least-squares value, the others as they are; then those left are solved for.
    Damping by `added` is n more tokens, sqrt(n added) times the unit vectors, that both models see; the first column,
    whose correction is undamped in the paper, does not.
    """
    n_in, margin = W.shape[1], torch.inf
    unit = (len(X) * added) ** 0.5 * torch.eye(n_in, dtype=X.dtype)
    codes = torch.empty(W.shape, dtype=torch.uint8)
    plain, wide = (X, Xq), (torch.cat([X, unit]), torch.cat([Xq, unit]))
    for r, w in enumerate(W):
        row = replace(fitted, shape=(1, n_in), scale=fitted.scale[r : r + 1],
                      zero=None if fitted.zero is None else fitted.zero[r : r + 1])  # fmt: skip
        v = w.clone()
        for place, j in enumerate(perm.tolist()):
            original, quantized = wide if place else plain
            others = torch.arange(n_in) != j
            (x,) = solved(quantized[:, j : j + 1], original @ w - quantized[:, others] @ v[others])
            codes[r, j] = row.nearest(x.reshape(1, 1), slice(j, j + 1))[0, 0]
            v[j] = row.decode(codes[r : r + 1, j : j + 1], slice(j, j + 1))[0, 0]
            margin = min(margin, abs(float(abs(x - v[j]) / row.scale[0, 0].abs()) - 0.5))
            left, done = perm[place + 1 :], perm[: place + 1]
            if len(left):
                original, quantized = wide
                v[left] = solved(quantized[:, left], original @ w - quantized[:, done] @ v[done])
    return codes, margin


@settings(max_examples=60)
@given(instances(most=12), st.sampled_from(ORDERS), damping, st.sampled_from(CONVENTIONS), st.sampled_from([3, 128]))
def test_qronos_agrees_with_the_papers_definition(instance, order, damping, convention, block):
    W, X, Xq = instance
    H, G = grams(X, Xq)
    grid = Integer(bits=3, group="row", convention=convention, scale_bits=32)
    rounding = Qronos(order=order, damping=damping, relative_to="mean", block=block)
    _, perm, _ = factor(H, order, damping)
    expected, margin = definition(W, X, Xq, grid.fit(W), perm, damping * H.diagonal().mean())
    assume(margin > 1e-6)  # solves with the inputs themselves: half the digits of a solve with their Gram matrix
    found = rounded(rounding, W, grid, H, G)
    assert torch.equal(found.codes, expected)
    assert found.fallbacks == ()


@settings(max_examples=100)
@given(instances(), grids, st.sampled_from(ORDERS), st.sampled_from(GROUPS), damping, st.booleans(), st.booleans())
def test_on_matched_inputs_qronos_is_error_feedback(instance, grid, order, groups, damping, stochastic, known):
    W, X, _ = instance
    H, G = grams(X, X)
    pick = Stochastic() if stochastic else Nearest()
    ours = Qronos(order=order, groups=groups, damping=damping, relative_to="mean", pick=pick)
    theirs = Feedback(order=order, groups=groups, damping=damping, pick=pick)
    for weights in (W, W.float()):
        found, expected = rounded(ours, weights, grid, H, *[G] * known), rounded(theirs, weights, grid, H)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.grid.decode32(found.codes), expected.grid.decode32(expected.codes))
        assert found.fallbacks == expected.fallbacks


@dataclass(frozen=True)
class Exact:
    """A grid so fine that every value is a level of it; keeps what it was asked to round, in order."""

    seen: list[torch.Tensor] = field(default_factory=list)

    def pick(self, x, grid, columns, generator):
        self.seen.append(x.clone())
        return torch.zeros(x.shape, dtype=torch.uint8), x


@settings(max_examples=40)
@given(instances(), st.sampled_from(ORDERS), damping)
def test_without_rounding_the_damped_normal_equations_are_solved(instance, order, damping):
    W, X, Xq = instance
    H, G = grams(X, Xq)
    exact = Exact()
    rounded(Qronos(order=order, damping=damping, relative_to="mean", pick=exact), W, Integer(bits=8), H, G)
    _, perm, _ = factor(H, order, damping)
    Q = torch.empty_like(W)
    Q[:, perm] = torch.cat(exact.seen, dim=1)
    first, added = perm[0], damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    others = torch.arange(len(H)) != first
    expected = (W @ G[:, first] - W[:, others] @ H[others, first]) / H[first, first]
    torch.testing.assert_close(Q[:, first], expected, rtol=CLOSE, atol=CLOSE * float(W.abs().max()))
    wrong = (W @ (G + added) - Q @ (H + added))[
        :, perm[1:]
    ]  # the first column is where it is, the others are solved for
    assert float(wrong.abs().max() if wrong.numel() else 0.0) <= CLOSE * float((Q.abs() @ (H + added).abs()).max())
    wanted, _ = corrected(W, H, G, *factor(H, order, damping)[:2])
    assert bool(((W @ (G + added) - wanted @ (H + added)).abs() <= CLOSE * (wanted.abs() @ (H + added).abs())).all())


@settings(max_examples=60)
@given(instances(), grids, st.sampled_from(ORDERS), st.sampled_from(GROUPS), damping)
def test_the_energy_of_what_was_wanted_is_what_rounding_left_behind(instance, grid, order, groups, damping):
    W, X, Xq = instance
    H, G = grams(X, Xq)
    found = rounded(Qronos(order=order, groups=groups, damping=damping, relative_to="mean"), W, grid, H, G)
    R, perm, _ = factor(H, order, damping)
    wanted, first = corrected(W, H, G, R, perm)
    Q = found.grid.decode(found.codes)
    pushed = torch.empty_like(W)
    pushed[:, perm] = (wanted - Q)[:, perm] @ R / R.diagonal()  # what a value was when its turn came, less its level
    total = (((wanted - Q)[:, perm] @ R) ** 2).sum()
    torch.testing.assert_close((pushed[:, perm] ** 2 * R.diagonal() ** 2).sum(), total, rtol=CLOSE, atol=0)
    codes = torch.arange(found.grid._lowest, found.grid.n_codes, dtype=torch.uint8)
    levels = torch.stack([found.grid.decode(code.expand(W.shape)) for code in codes])
    x = Q + pushed
    x[:, perm[0]] = first  # the one column that is not rounded from where the others have pushed it
    assert bool(((x - Q).abs() <= (x - levels).abs().amin(0) + CLOSE * (x.abs() + Q.abs() + levels[-1].abs())).all())


@settings(max_examples=40)
@given(instances(), grids, st.sampled_from(ORDERS), st.sampled_from(GROUPS), st.sampled_from([2.0**-10, 3.0, 1e6]))
def test_the_size_of_both_matrices_does_not_matter(instance, grid, order, groups, c):
    W, X, Xq = instance
    H, G = grams(X, Xq)
    rounding = Qronos(order=order, groups=groups, damping=0.01)
    assert torch.equal(rounded(rounding, W, grid, c * H, c * G).codes, rounded(rounding, W, grid, H, G).codes)


@settings(max_examples=30)
@given(instances(), st.sampled_from([3, 8, "row"]), st.sampled_from(ORDERS), st.sampled_from(GROUPS))
def test_rows_do_not_see_each_other(instance, group, order, groups):
    W, X, Xq = instance
    grid, rounding = Integer(bits=3, group=group), Qronos(order=order, groups=groups, damping=0.01)
    alone = torch.cat([rounded(rounding, row[None], grid, *grams(X, Xq)).codes for row in W])
    assert torch.equal(rounded(rounding, W, grid, *grams(X, Xq)).codes, alone)


@pytest.mark.parametrize("order", ORDERS)
def test_over_many_matrices_qronos_beats_error_feedback_where_inputs_differ(order):
    # single matrices may lose; the sum over 40 of them does not
    grid, ours, theirs = Integer(bits=4, group="row"), 0.0, 0.0
    for seed in range(40):
        W, (X, Xq) = gaussian(seed, 4, 16), both_inputs(100 + seed, 16)
        H, G = grams(X, Xq)
        for rounding, given_ in ((Qronos(order=order), (H, G)), (Feedback(order=order, groups="static"), (H,))):
            found = rounded(rounding, W, grid, *given_)
            error = float((X @ W.T - Xq @ found.grid.decode(found.codes).T).square().sum() / (X @ W.T).square().sum())
            ours, theirs = (ours + error, theirs) if len(given_) > 1 else (ours, theirs + error)
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("n_in", [1, 2, 17, 60])
def test_the_largest_eigenvalue_is_found_for_a_damping(n_in):
    H, _ = grams(*both_inputs(n_in, n_in))
    exact = float(torch.linalg.eigvalsh(H)[-1])
    missing = 0.871 * math.log(n_in) / 29  # of k = 30 steps, on average over starts (Kuczynski, Wozniakowski 1992)
    assert (1 - missing - 1e-12) * exact <= largest_eigenvalue(H) <= (1 + 1e-12) * exact
    assert largest_eigenvalue(0 * H) == 0.0


def test_damping_is_relative_to_the_largest_eigenvalue_or_to_the_mean_diagonal():
    W, (X, Xq), grid = gaussian(0, 8, 24), both_inputs(1, 24), Integer(bits=3, group="row")
    H, G = grams(X, Xq)
    share = largest_eigenvalue(H) / float(H.diagonal().mean())
    by_largest, by_mean = Qronos(damping=0.01), Qronos(damping=0.01 * share, relative_to="mean")
    assert torch.equal(rounded(by_largest, W, grid, H, G).codes, rounded(by_mean, W, grid, H, G).codes)
    assert not torch.equal(rounded(replace(by_largest, damping=1.0), W, grid, H, G).codes,
                           rounded(by_largest, W, grid, H, G).codes)  # fmt: skip


def test_damping_that_had_to_be_raised_is_recorded():
    W, ones = gaussian(0, 2, 4), torch.ones(4, 4, dtype=torch.float64)
    assert rounded(Qronos(damping=0.0), W, Integer(bits=4), ones, ones).fallbacks == (
        "damping raised from 0 to 0.0001",
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dead", [[0], [2], [0, 1, 2, 3, 4, 5]], ids=str)
def test_dead_inputs_keep_their_weights(order, dead):
    W, (X, Xq) = gaussian(0, 4, 6), both_inputs(1, 6)
    X, Xq = X.clone(), Xq.clone()
    Xq[:, dead] = 0
    found = rounded(Qronos(order=order), W, Integer(bits=8, group="row"), *grams(X, Xq))
    assert any("dead input channels" in fallback for fallback in found.fallbacks)
    nearest = rounded(Nearest(), W, Integer(bits=8, group="row"), None)
    assert torch.equal(found.codes[:, dead], nearest.codes[:, dead])


def test_what_does_not_fit_is_an_error():
    W, (X, Xq), grid = gaussian(0, 2, 4), both_inputs(1, 4), Integer(bits=4)
    H, G = grams(X, Xq)
    with pytest.raises(ValueError, match="needs the Gram matrix H"):
        rounded(Qronos(), W, grid, None, G)
    with pytest.raises(ValueError, match=r"cross-Gram matrix of shape \(4, 4\), found \(3, 4\)"):
        rounded(Qronos(), W, grid, H, G[:3])
    with pytest.raises(ValueError, match="finite"):
        rounded(Qronos(), W, grid, H, G * float("nan"))
    for bad in (dict(relative_to="trace"), dict(order="up"), dict(groups="some"), dict(damping=-1.0), dict(block=0)):
        with pytest.raises(ValueError, match="expected"):
            Qronos(**bad)


def test_qronos_leaves_its_inputs_and_the_global_random_state_alone():
    W, (X, Xq) = gaussian(0, 4, 20), both_inputs(1, 20)
    given_ = (W, *grams(X, Xq))
    before, state = [x.clone() for x in given_], torch.random.get_rng_state()
    rounded(Qronos(pick=Stochastic()), W, Integer(bits=3, group=8), *given_[1:])
    assert all(map(torch.equal, given_, before))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_can_be_given_the_cross_gram_matrix(dtype):
    W, (X, Xq), target = gaussian(0, 4, 20).to(dtype), both_inputs(1, 20), Target(Integer(bits=3, group=8), Qronos())
    H, G = grams(X, Xq)
    q = quantize_layer(W, target, H, torch.Generator(), cross=G)
    assert torch.equal(q.codes, rounded(Qronos(), W, target.grid, H, G).codes)
    assert type(q).from_bytes(q.to_bytes(), q.header()).dequantize().equal(q.dequantize())
    gptq = Target(target.grid, Feedback())  # which does not look at it
    assert torch.equal(quantize_layer(W, gptq, H, torch.Generator(), cross=G).codes,
                       quantize_layer(W, gptq, H, torch.Generator()).codes)  # fmt: skip


@pytest.mark.parametrize("method", ["qronos", "gptq", "smoothquant", "awq"])
def test_a_matrix_can_be_given_both_models_inputs(method):
    W, (X, Xq) = gaussian(0, 6, 24), both_inputs(1, 24)
    H, G = grams(X, Xq)
    q = quantize_matrix(W, method=method, bits=3, X=X, Xq=Xq)
    recipe = method_named(method).recipe(bits=3)
    if not recipe.transforms:
        expected = quantize_layer(W, recipe.weights, H, generator_for(0, "matrix"), cross=G)
    else:  # in coordinates in which a channel's scale is divided out of both models' inputs
        s = q.in_scale
        expected = quantize_layer(W * s, recipe.weights, H / s / s[:, None], generator_for(0, "matrix"))
    assert torch.equal(q.codes, expected.codes)


def test_transformed_coordinates_hold_for_both_models_inputs():
    W, (X, Xq) = gaussian(0, 6, 24), both_inputs(1, 24)
    recipe = parse("Recipe(transforms=(SmoothScale(alpha=0.5),), weights=Target(Integer(bits=3), Qronos()))")
    q = quantize_matrix(W, recipe=recipe, X=X, Xq=Xq)
    s = q.in_scale
    H, G = grams(X / s, Xq / s)
    assert torch.equal(q.codes, quantize_layer(W * s, recipe.weights, H, torch.Generator(), cross=G).codes)


def test_without_the_originals_inputs_qronos_takes_them_for_matched():
    W, (_, Xq) = gaussian(0, 6, 24), both_inputs(1, 24)
    matched = quantize_matrix(W, method="qronos", bits=3, X=Xq, damping=0.01, relative_to="mean")
    gptq = quantize_matrix(W, method="gptq", bits=3, group="row", X=Xq, order="decreasing", groups="static")
    assert torch.equal(matched.codes, gptq.codes)


def test_inputs_that_do_not_belong_together_are_an_error():
    W, (X, Xq) = gaussian(0, 6, 24), both_inputs(1, 24)
    for bad in (dict(), dict(X=X[:-1]), dict(X=X, H=grams(X, Xq)[0])):
        with pytest.raises(ValueError, match="Xq of shape"):
            quantize_matrix(W, method="qronos", bits=3, Xq=Xq, **bad)


def test_the_method_is_the_papers_and_takes_the_options_of_both():
    recipe = method_named("qronos").recipe(bits=4)
    assert str(recipe) == "Recipe(weights=Target(Integer(bits=4, group='row'), Qronos()), inputs='quantized')"
    options = dict(order="given", groups="dynamic", damping=0.01, relative_to="mean", block=64, pick=Stochastic(),
                   group=32, convention="full-range", scale_bits=32)  # fmt: skip
    recipe = method_named("qronos").recipe(bits=3, **options)
    assert parse(str(recipe)) == recipe
    assert recipe.weights.rounding.pick == Stochastic() and recipe.weights.grid.group == 32
    with pytest.raises(ValueError, match="qronos"):
        method_named("qronos").recipe(bits=3, angle=1)


PAIRS = (
    (Scaled(element="e2m1", group=32), Qronos(), None),
    (Sparse(grid=Integer(bits=3), score="feedback"), Qronos(order="given"), None),
    (Sparse(grid=Integer(bits=3), score="wanda"), Qronos(order="pivot"), None),
    (Exl2(budget=4.0), Qronos(), None),
    (Steps(bits=3), Qronos(), None),
    (Steps(bits=3, spacing="pivots"), Qronos(order="given"), None),
    (Sparse(grid=Integer(bits=3), score="feedback"), Qronos(), "masks chosen in error feedback take the given order"),
    (Exl2(budget=4.0), Qronos(order="pivot"), "EXL2 takes error feedback in decreasing order"),
    (Steps(bits=3, spacing="pivots"), Qronos(), "steps by pivots"),
    (Integer(bits=1), Qronos(), "half-integer"),
)


@pytest.mark.parametrize("grid, rounding, reason", PAIRS, ids=lambda x: str(x)[:40])
def test_a_pair_is_supported_or_says_why_not(grid, rounding, reason):
    target = Target(grid, rounding)
    if reason is not None:
        assert reason in target.unsupported
        return
    assert target.unsupported is None and parse(str(target)).weights == target
    W, (X, Xq) = gaussian(0, 32, 64).float(), both_inputs(1, 64)
    H, G = grams(X, Xq)
    q = quantize_layer(W, target, H, torch.Generator(), cross=G)
    assert len(q.to_bytes()) == -(-q.n_bits // 8)
    matched = quantize_layer(W, target, H, torch.Generator(), cross=H)
    assert not torch.equal(q.codes, matched.codes)

    def error(Q):
        return float((X @ W.double().T - Xq @ Q.double().T).square().sum())

    assert error(q.dequantize()) < error(matched.dequantize())


def test_roundings_that_wrap_error_feedback_do_not_take_qronos():
    with pytest.raises(ValueError, match="feedback"):
        Recipe(weights=Target(Steps(bits=3), RateAware(feedback=Qronos())))
    assert "real zero points" in Target(Integer(bits=3), HalfQuadratic()).unsupported


@pytest.mark.parametrize("activations", [None, "Target(Integer(bits=4, group='row', convention='full-range'))"])
def test_a_models_layers_see_both_models_inputs(activations, llama, inputs, tmp_path):
    text = "weights=Target(Integer(bits=3, group='row'), Qronos(damping=0.01)), inputs='quantized'"
    recipe = parse(f"Recipe({text}{f', activations={activations}' if activations else ''})")
    (record,) = run(str(llama), recipes=[recipe], export=tmp_path / "out", store=tmp_path / "s.db", jobs=1, **inputs)
    assert record.status == "ok" and record.fallbacks == ()
    (exported,) = tmp_path.glob("out/**/config.json")
    tokens = torch.from_numpy(np.load(inputs["calibration"])).long()
    plain, found, growing = (LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
                             for path in (llama, exported.parent, llama))  # fmt: skip
    seen = {}
    for model in (plain, growing):
        for name, module in model.model.layers.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(partial(_look, seen, model is growing and recipe.activations, name))
    for i, layers in itertools.product(range(len(plain.model.layers)), SITES):
        with torch.no_grad():
            plain(tokens)
            X = seen[f"{i}.{layers[0]}"]
            growing(tokens)
            Xq = seen[f"{i}.{layers[0]}"]
        for layer in layers:
            name = f"model.layers.{i}.{layer}"
            W, Q = (model.get_submodule(name).weight.data for model in (plain, found))
            q = quantize_layer(W, recipe.weights, *grams(Xq, Xq)[:1], generator_for(0, name), cross=grams(X, Xq)[1])
            # inputs that other batches give in another last place move single values that are all but ties
            assert float((q.dequantize() != Q).float().mean()) < 0.01
            growing.get_submodule(name).weight.data.copy_(Q)


SITES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def _look(seen, target, name, module, arguments):
    """Keep a layer's inputs, rounded to the target's grid if there is one, and hand them on."""
    x = arguments[0]
    if target:
        x = quantize_activations(x, target.grid, float("nan"))
    seen[name] = x.reshape(-1, x.shape[-1]).double()
    return (x,)
