import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grids import Integer
from suite.methods import method_named
from suite.quantize import output_error, quantize_matrix
from suite.recipe import Recipe, Target
from suite.statistics import statistics_of
from suite.transforms import AwqScale, SmoothScale, awq_scale, smooth_scale

EPS = 2.0**-52
POWER = 64 * EPS  # a power, a product and a quotient; pow is good to a few units in the last place


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(seed, n_in=12, tokens=60):
    """Inputs with a few large channels."""
    return gaussian(seed, tokens, n_in) * gaussian(seed + 1, n_in).mul(1.5).exp()


seeds = st.integers(0, 10**6)


@given(seeds)
def test_smoothing_halfway_makes_the_maxima_equal(seed):
    X, weights = inputs(seed), [gaussian(seed + 2, 5, 12), gaussian(seed + 3, 3, 12)]
    s = smooth_scale(weights, X.abs().amax(0), 0.5)
    of_inputs, of_weights = (X / s).abs().amax(0), (torch.cat(weights) * s).abs().amax(0)
    torch.testing.assert_close(of_inputs, of_weights, rtol=POWER, atol=0)
    expected = (X.abs().amax(0) * torch.cat(weights).abs().amax(0)).sqrt()
    torch.testing.assert_close(of_inputs, expected, rtol=POWER, atol=0)


@given(seeds, st.floats(0, 1))
def test_smoothing_moves_a_share_of_the_difficulty(seed, alpha):
    X, W = inputs(seed), gaussian(seed + 2, 5, 12)
    s, top, bottom = smooth_scale([W], X.abs().amax(0), alpha), X.abs().amax(0), W.abs().amax(0)
    torch.testing.assert_close((X / s).abs().amax(0), (top * bottom) ** (1 - alpha), rtol=POWER, atol=0)
    torch.testing.assert_close((W * s).abs().amax(0), (top * bottom) ** alpha, rtol=POWER, atol=0)


def test_channels_that_are_never_used_get_finite_scales():
    W, most = gaussian(0, 3, 4), torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    W[:, 2:] = 0
    for alpha in (0.0, 0.5, 1.0):
        s = smooth_scale([W], most, alpha)
        assert bool(torch.isfinite(s).all() and (s >= 1e-5).all())
    assert bool(torch.isfinite(awq_scale(most, 0.95)).all() and (awq_scale(most, 0.95) > 0).all())


def test_no_awq_ratio_is_no_scaling_at_all():
    mean = inputs(0).abs().mean(0)
    mean[3] = 0
    assert torch.equal(awq_scale(mean, 0.0), torch.ones(12, dtype=torch.float64))


@given(seeds, st.integers(0, 19), st.floats(0.1, 10))
def test_awq_does_not_see_the_size_of_the_inputs(seed, i, c):
    mean = inputs(seed).abs().mean(0).clamp(min=0.01)  # far from the floor at 1e-4 after scaling too
    s, scaled = awq_scale(mean, i / 20), awq_scale(c * mean, i / 20)
    torch.testing.assert_close(scaled, s, rtol=POWER, atol=0)
    assert float(s.max() * s.min()) == pytest.approx(1, rel=POWER)


@settings(max_examples=20)
@given(seeds, st.sampled_from([2, 3, 4]), st.sampled_from([4, 5, 12]))
def test_the_awq_search_never_scores_worse_than_rounding_to_nearest(seed, bits, group):
    W, statistics = gaussian(seed + 2, 6, 12), statistics_of(inputs(seed))
    recipe = method_named("awq").recipe(bits=bits, group=group)
    score = output_error({"matrix": W}, statistics, recipe)
    s = AwqScale().fit([W], statistics, score)
    assert score(s) <= score(torch.ones(12, dtype=torch.float64))
    assert score(s) == min(score(awq_scale(statistics.mean_abs, i / 20)) for i in range(20))


@settings(max_examples=10)
@given(seeds)
def test_the_smoothing_search_takes_the_best_of_its_shares(seed):
    W, statistics = gaussian(seed + 2, 6, 12), statistics_of(inputs(seed))
    score = output_error({"matrix": W}, statistics, method_named("smoothquant").recipe(bits=4))
    best = score(SmoothScale(alpha="search").fit([W], statistics, score))
    for i in range(1, 20):
        assert best <= score(SmoothScale(alpha=i / 20).fit([W], statistics, score))


def test_the_score_is_the_output_error_of_scaled_and_rounded_weights():
    X, s = inputs(0), gaussian(1, 12).exp()
    weights = {"a": gaussian(2, 6, 12), "b": gaussian(3, 4, 12)}
    grid = Integer(bits=3, group=5)
    found = output_error(weights, statistics_of(X), Recipe(weights=Target(grid)))(s)
    expected = 0.0
    for W in weights.values():
        fitted = grid.fit(W * s)
        Q = fitted.decode(fitted.nearest(W * s)) / s
        expected += float(((X @ (W - Q).T) ** 2).sum()) / len(X)
    # sums of at most 60 * 12 * 10 terms through the Gram matrix instead of the tokens, errors 2^-3 of the values
    assert found == pytest.approx(expected, rel=60 * 12 * 10 * EPS * 2**6)


@pytest.mark.parametrize("group", ["row", "tensor"])
def test_the_score_counts_the_activations_errors_too(group):
    X, s, W = inputs(0).float(), gaussian(1, 12).exp(), gaussian(2, 6, 12).float()
    grid, of_inputs = Integer(bits=4, group=5), Integer(bits=8, group=group, convention="full-range", scale_bits=32)
    recipe = Recipe(weights=Target(grid), activations=Target(of_inputs))
    found = output_error({"a": W}, statistics_of(X), recipe)(s)
    scaled, there = W * s.float(), X / s.float()
    fitted, bound = grid.fit(scaled), of_inputs.fit(there)
    Q, Xq = fitted.decode(fitted.nearest(scaled)), bound.decode(bound.nearest(there))
    expected = float(((there.double() @ scaled.double().T - Xq.double() @ Q.double().T) ** 2).sum()) / len(X)
    # float32 products of 12 terms; the error is above 2^-6 of them, its square doubles the share
    assert found == pytest.approx(expected, rel=2 * 12 * 2.0**-23 * 2**6)


def test_a_layer_that_no_target_names_keeps_its_weights():
    X, W = inputs(0), gaussian(2, 6, 12)
    recipe = Recipe(layers=(("b", Target(Integer(bits=2))),))
    ones = torch.ones(12, dtype=torch.float64)
    assert output_error({"a": W}, statistics_of(X), recipe)(ones) == 0
    assert output_error({"b": W}, statistics_of(X), recipe)(ones) > 0


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_kept_scale_is_charged_and_divided_out(method, bits):
    W, X = gaussian(0, 6, 12).float(), inputs(1)
    recipe = method_named(method).recipe(bits=bits, group=5)
    q = quantize_matrix(W, recipe=recipe, X=X)
    assert q.n_bits == recipe.weights.grid.fit(W, statistics_of(X).gram).n_bits + 16 * 12
    assert torch.equal(q.in_scale, q.in_scale.half().double())
    assert torch.equal(q.dequantize(), q.grid.decode32(q.codes) / q.in_scale.float())


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_transforms_that_look_at_activations_ask_for_them(method):
    with pytest.raises(ValueError, match=r"looks at activations: give X \(tokens, in\)"):
        quantize_matrix(gaussian(0, 6, 12), method=method, bits=4, H=torch.eye(12, dtype=torch.float64))
