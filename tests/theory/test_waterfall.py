import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import quantize_matrix
from suite.recipe import parse
from theory.bounds.instances import power_law
from theory.bounds.pivots import factored
from theory.rate_distortion import reverse_waterfilling
from theory.waterfall import (
    SHAPING_BITS,
    TERMS,
    UNSPLIT,
    Gram,
    Rounded,
    gaussian_code_bits,
    integer_terms,
    limit_bits,
    mean_error,
    pooled,
    split_of,
)
from theory.waterfall_figures import EXPERIMENTS, predicted_bits

RECIPES = {
    "feedback": "Recipe(weights=Target(Integer(bits={bits}, group=16), Feedback()))",
    "damped, in another order": "Recipe(weights=Target(Integer(bits={bits}, group=16), "
                                "Feedback(damping=0.1, order='decreasing')))",
    "nearest": "Recipe(weights=Target(Integer(bits={bits}, group=16)))",
    "entropy coded": "Recipe(weights=Target(Integer(bits={bits}, group=16)), coding=Ans())",
    "a table": "Recipe(weights=Target(Scaled(element='nf4', group=8)))",
}  # fmt: skip


def drawn(n_out, n_in, seed, exponent=0.7):
    rng = np.random.default_rng(seed)
    W = torch.from_numpy(rng.normal(size=(n_out, n_in)) * rng.uniform(0.5, 2, size=(n_out, 1))).float()
    told, asked = (power_law(n_in, exponent, np.random.default_rng(k)) + 1e-3 * np.eye(n_in) for k in (seed, seed + 1))
    return W, torch.from_numpy(told), torch.from_numpy(asked)


@pytest.mark.parametrize("recipe", RECIPES)
@given(st.integers(2, 12), st.integers(3, 40), st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=15)
def test_terms_add_up_to_the_distance(recipe, n_out, n_in, bits, seed):
    W, told, asked = drawn(n_out, n_in, seed)
    how = parse(RECIPES[recipe].format(bits=bits))
    found = quantize_matrix(W, H=told, recipe=how, seed=seed)
    grams = [Gram.of(x.numpy()) for x in (told, asked)]
    split = split_of("a", W, found, how.weights, *grams)
    assert abs(sum(split.terms.values()) - split.distance) < 1e-6
    assert set(split.terms) == set(UNSPLIT if recipe == "a table" else TERMS)
    E = (W - found.dequantize()).double().numpy()
    direct = found.n_bits / W.numel() - limit_bits(W.double().numpy(), grams[1], mean_error(E, asked.numpy()))
    assert split.distance == pytest.approx(direct, abs=1e-9)
    if recipe != "a table":
        assert split.terms["water level"] <= 1e-9
        assert split.terms["clipping"] >= -1e-9
        assert split.terms["pivots"] >= -1e-9  # by Hadamard's inequality without feedback too


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 10**6), st.floats(0.01, 4))
def test_the_limit_is_the_inverse_of_reverse_waterfilling(n_out, n_in, seed, rate):
    W, told, _ = drawn(n_out, n_in, seed)
    W, gram = W.double().numpy(), Gram.of(told.numpy())
    variances = np.outer(np.square(W).mean(1), gram.eigenvalues).ravel()
    D = float(reverse_waterfilling(variances, rate)) / variances.size
    assert limit_bits(W, gram, D) == pytest.approx(rate, rel=1e-9, abs=1e-9)


def test_at_high_rate_shaping_and_pivots_are_all_there_is():
    rng = np.random.default_rng(3)
    W, H = rng.normal(size=(400, 32)), power_law(32, 0.8, rng) + 0.05 * np.eye(32)
    d, step = factored(H).d, 1e-3
    missed = rng.uniform(-step / 2, step / 2, size=W.shape)  # what feedback leaves of dispersed weights
    R = factored(H).R
    E = np.linalg.solve(R.T, (missed * np.diag(R)).T).T
    how = Rounded(steps=np.full_like(W, step), missed=missed, d=d, q=d, damping=0.0)
    terms = integer_terms(W, E, Gram.of(H), how)
    sigma = np.sqrt(4 / 5 * np.square(d).sum() / 400) / d.sum() / 2 / np.log(2)  # of u^2 / mean is 4 / 5
    assert terms["shaping"] == SHAPING_BITS == pytest.approx(0.254614, abs=1e-6)
    assert terms["pivots"] == pytest.approx(np.log2(d.mean() / np.exp(np.log(d).mean())) / 2, abs=1e-9)
    assert abs(terms["cell"]) < 4 * sigma
    for name in ("clipping", "water level", "damping"):
        assert terms[name] == pytest.approx(0, abs=1e-9)
    assert gaussian_code_bits(W, how.steps) == pytest.approx(
        np.log2(2 * np.pi * np.e) / 2 + np.log2(np.square(W).mean(1)).mean() / 2 - np.log2(step), abs=1e-9)  # fmt: skip


def test_what_cannot_be_split_is_said():
    W, told, _ = drawn(4, 8, 0)
    W[1] = 0
    how = parse(RECIPES["nearest"].format(bits=4))
    gram = Gram.of(told.numpy())
    with pytest.raises(ValueError, match="layer x: expected an error and no row of zeros"):
        split_of("layer x", W, quantize_matrix(W, recipe=how), how.weights, gram, gram)


def test_the_figure_shows_terms_that_add_up_on_the_shipped_model():
    from theory.experiment import Setting

    points = EXPERIMENTS[0].measure(Setting())
    named = {(p.series, p.x): p.y for p in points}
    for bits in (2.0, 8.0):
        assert sum(named[name, bits] for name in TERMS) == pytest.approx(named["distance", bits], abs=1e-6)
    assert named["by high-rate theory", 8.0] == pytest.approx(named["distance", 8.0] - named["calibration", 8.0],
                                                              abs=0.05)  # fmt: skip
    assert "bits from the limit" in EXPERIMENTS[0].sentence(points)


def test_means_are_over_weights():
    from theory.waterfall import Split

    none = dict.fromkeys(("source", "cell", "clipping", "water level", "calibration"), 0.0)
    splits = [Split(layer="a", n_weights=n, stored=1.0, distance=y, terms={"shaping": y} | none)
              for n, y in ((3, 1.0), (1, 5.0))]  # fmt: skip
    assert pooled(splits)["distance"] == pooled(splits)["shaping"] == predicted_bits(pooled(splits)) == 2.0
