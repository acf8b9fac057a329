"""Rotations as recipe values, and the recipes of QuaRot, model expansion and DuQuant."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.hadamard import hadamard, is_hadamard_size
from suite.grids import ClipRatio, Integer, ShrinkSearch
from suite.kv_cache.target import CacheGrid, CacheTarget
from suite.methods import method_named
from suite.recipe import Recipe, Target, parse
from suite.rounding import Feedback, Nearest, Qronos
from suite.statistics import statistics_of
from suite.transforms import (
    DualRotation,
    RotateHeads,
    RotateInputs,
    RotateKeys,
    RotateResidual,
    RotateValues,
    SmoothScale,
    Zigzag,
)
from suite.transforms.maps import Hadamard, HeadHadamard

EPS = 2.0**-52
sizes = st.sampled_from([n for n in range(1, 100) if is_hadamard_size(n)])
seeds = st.integers(0, 10**6)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def fit_inputs(transform, n):
    X = torch.randn(5, n, generator=generator(n))
    return transform.fit([torch.randn(3, n, generator=generator(1))], statistics_of(X), generator(2))


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
@given(sizes, seeds)
def test_the_residual_stream_is_turned_by_an_orthogonal_matrix(kind, n, seed):
    R, again = (RotateResidual(kind=kind).fit(n, generator(seed)) for _ in range(2))
    assert R.shape == (n, n) and R.dtype == torch.float64 and torch.equal(R, again)
    assert float((R @ R.T - torch.eye(n, dtype=torch.float64)).abs().max()) <= 32 * n * EPS
    if kind == "hadamard":
        signs = R[:, 0] / hadamard(n, torch.float64)[:, 0] * n**0.5
        torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=4 * EPS, atol=0)
        assert torch.equal(R, signs.sign()[:, None] * (hadamard(n, torch.float64) / n**0.5))


def test_signs_are_random():
    signs = torch.stack([RotateResidual().fit(64, generator(seed))[:, 0].sign() for seed in range(100)])
    assert float(signs.mean(0).abs().max()) <= 5 / 100**0.5  # five standard errors, of 64 means
    assert float(signs.mean().abs()) <= 4 / 6400**0.5


@given(sizes, seeds)
def test_values_are_turned_by_a_plain_hadamard_matrix(n, seed):
    R = RotateValues().fit(n, generator(seed))
    assert torch.equal(R, hadamard(n, torch.float64) / n**0.5)
    Q = RotateValues(kind="orthogonal").fit(n, generator(seed))
    assert float((Q @ Q.T - torch.eye(n, dtype=torch.float64)).abs().max()) <= 32 * n * EPS


@pytest.mark.parametrize(
    ("n", "steps", "n_out"),
    [(172, 0, 172), (172, 1, 192), (768, 0, 768), (768, 1, 832), (92, 1, 96), (11008, 7, 18432), (14336, 3, 18432)],
)
def test_inputs_are_padded_to_the_size_that_many_steps_away(n, steps, n_out):
    assert fit_inputs(RotateInputs(steps=steps), n) == (Hadamard(n_in=n, n_out=n_out),)


def test_run_time_rotations_of_heads_and_keys():
    assert RotateHeads().fit(12, 64) == (HeadHadamard(heads=12, head_dim=64),)
    assert RotateKeys().fit(64) == Hadamard(n_in=64, n_out=64)


@given(st.sampled_from([1, 2, 4, 8, 12, 64]), seeds)
def test_scores_of_turned_queries_and_keys_stay(n, seed):
    q, k = torch.randn(2, 3, n, generator=generator(seed), dtype=torch.float64)
    m = RotateKeys().fit(n)
    error = (m.forward(q) @ m.forward(k).T - q @ k.T).abs()
    assert bool((error <= 8 * n * EPS * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1)).all())


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: RotateResidual().fit(92, generator(0)), "order 92 can be built, which is the size of the residual"),
        (lambda: RotateValues().fit(18, generator(0)), "order 18 can be built, which is the size of a head"),
        (lambda: RotateHeads().fit(14, 64), "order 14 can be built, which is the size of the heads"),
        (lambda: RotateKeys().fit(18), "order 18 can be built, which is the size of a head"),
        (lambda: fit_inputs(RotateInputs(), 92), "order 92 can be built, which is the size of the inputs of down_proj"),
        (lambda: RotateInputs(steps=-1), "steps -1: expected 0 or more"),
        (lambda: RotateResidual(kind="haar"), "kind 'haar': expected one of hadamard, orthogonal"),
        (lambda: RotateValues(kind="haar"), "kind 'haar': expected one of hadamard, orthogonal"),
    ],
)
def test_sizes_without_a_matrix_are_refused(fit, message):
    with pytest.raises(ValueError, match=message):
        fit()


@pytest.mark.parametrize(
    "transform",
    [
        RotateResidual(kind="orthogonal"), RotateValues(kind="orthogonal"), RotateHeads(), RotateKeys(),
        RotateInputs(sites=("o_proj", "down_proj"), steps=3), Zigzag(sites=("q_proj",), block=64),
        DualRotation(sites=("q_proj",), block=64, steps=10, permutations=0, exchange="release"),
    ],
    ids=str,
)  # fmt: skip
def test_transforms_are_recipe_values(transform):
    recipe = Recipe(transforms=(transform,), weights=Target(Integer(bits=4)))
    assert parse(str(recipe)) == recipe and str(parse(str(recipe))) == str(recipe)


# --- methods


def test_quarot_is_the_papers_recipe():
    recipe = method_named("quarot").recipe(bits=4)
    assert recipe == Recipe(
        transforms=(RotateResidual(), RotateValues(), RotateHeads(), RotateInputs(sites=("down_proj",))),
        weights=Target(
            Integer(bits=4, group="row", convention="full-range", clip=ShrinkSearch()), Feedback(damping=0.01)
        ),
        activations=Target(Integer(bits=4, group="row", convention="full-range", clip=ClipRatio(0.9), scale_bits=32)),
        inputs="quantized",
    )


def test_quarots_options():
    quarot = method_named("quarot")
    assert quarot.recipe(bits=4, activation_bits=None).activations is None
    assert quarot.recipe(bits=4, activation_bits=8).activations.grid.bits == 8
    assert quarot.recipe(bits=4, rounding="rtn").weights.rounding == Nearest()
    assert quarot.recipe(bits=4, rounding="rtn").inputs == "original"
    assert quarot.recipe(bits=4, rounding="qronos").weights.rounding == Qronos()
    assert quarot.recipe(bits=4, order="decreasing").weights.rounding == Feedback(order="decreasing")
    assert RotateHeads() not in quarot.recipe(bits=4, heads=False).transforms
    assert quarot.recipe(bits=4, kind="orthogonal").transforms[0] == RotateResidual(kind="orthogonal")
    assert quarot.recipe(bits=4, group=64, clip=None).weights.grid == Integer(bits=4, group=64, convention="full-range")
    grid = Integer(bits=4, group="row", convention="asymmetric", clip=ClipRatio(0.95))
    assert quarot.recipe(bits=4).cache is None
    cache = CacheTarget(keys=CacheGrid(grid=grid, rotate=True), values=CacheGrid(grid=grid))
    assert quarot.recipe(bits=4, cache_bits=4).cache == cache
    with pytest.raises(ValueError, match="rounding 'nearest': expected one of gptq, qronos, rtn"):
        quarot.recipe(bits=4, rounding="nearest")


@pytest.mark.parametrize("options", [{}, {"activation_bits": None}, {"rounding": "qronos"}, {"rounding": "rtn"}])
def test_expansion_by_no_steps_is_quarot(options):
    expansion, quarot = (method_named(name).recipe for name in ("expansion", "quarot"))
    ordered = {} if options.get("rounding") == "rtn" else {"order": "decreasing"}
    assert expansion(bits=4, steps=0, **options) == quarot(bits=4, **ordered, **options)


def test_expansion_takes_larger_matrices_for_one_layer_or_two():
    recipe = method_named("expansion").recipe(bits=4, steps=3)
    assert recipe.transforms == (RotateResidual(), RotateValues(), RotateHeads(), RotateInputs(steps=3))
    assert recipe.weights.rounding == Feedback(order="decreasing")
    double = method_named("expansion").recipe(bits=4, layers="double")
    assert double.transforms == (
        RotateResidual(), RotateValues(), RotateInputs(sites=("o_proj", "down_proj"), steps=1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="layers 'both': expected single or double"):
        method_named("expansion").recipe(bits=4, layers="both")


def test_duquant_is_the_releases_script():
    """Of run.sh: block_size 128, max_rotation_step 256, alpha 0.6, smooth, lac 0.9, swc 0.8; permutation_times 1."""
    assert method_named("duquant").recipe(bits=4) == Recipe(
        transforms=(
            SmoothScale(alpha=0.6, sources=("norm", "linear")),
            DualRotation(block=128, steps=256, permutations=1, exchange="column"),
        ),
        weights=Target(Integer(bits=4, group="row", convention="asymmetric", clip=ClipRatio(0.8))),
        activations=Target(Integer(bits=4, group="row", convention="asymmetric", clip=ClipRatio(0.9), scale_bits=32)),
    )
    bare = method_named("duquant").recipe(bits=4, alpha=None, activation_bits=None, exchange="release")
    assert bare.transforms == (DualRotation(exchange="release"),) and bare.activations is None
