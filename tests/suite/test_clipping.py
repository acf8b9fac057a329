"""Asymmetric clipping: the search against brute force, never worse than none, and what of a training it changes."""

import itertools
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.adaptation import clipping
from suite.adaptation.clipping import AsymmetricClip, clipped, output_errors, unsupported_clipping
from suite.adaptation.quantization_aware import QuantizationAware
from suite.adaptation.training import Schedule
from suite.calibration import Calibration
from suite.grids import (
    E8P,
    BellSplit,
    Codebooks,
    DoubleQuantized,
    Gguf,
    Integer,
    KMeansTable,
    OutputSearch,
    ResidualBinary,
    Scaled,
    ShrinkSearch,
    Sparse,
    TwoLevel,
    TwoSided,
)
from suite.learning.quantization_aware import control_of, learned_for
from suite.learning.student import Student, latent
from suite.models.architecture import linear
from suite.models.checkpoint import load_model
from suite.outside import UnsupportedError
from suite.recipe import Recipe, Target, parse
from suite.tokens import load_tokens

FEW = AsymmetricClip(steps=4, most=0.75)  # shares 1, .75, .5
GRIDS = [
    Integer(bits=2, group=5),
    Integer(bits=3, group=5, convention="real-zero"),
    Integer(bits=3, group="row", convention="full-range", clip=ShrinkSearch(steps=10)),
    Integer(bits=2, group=5, clip=OutputSearch(steps=4)),
    Scaled(element="nf2", group=5),
    TwoSided(group=5),
    ResidualBinary(orders=2, group=5),
]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
seeds = st.integers(0, 2**31)


def problem(seed, shape=(4, 12)):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    X = torch.randn(64, shape[1], generator=generator, dtype=torch.float64)
    X = X @ torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    return W, X.T @ X / 64


def error_of(grid, W, inside, H):
    """e H_gg e^T (R, C), of `inside` rounded on the grid that is fitted to it."""
    return output_errors(grid.fit(inside, H).snap(inside)[1] - W, grid.layout(tuple(W.shape)), H)


def by_hand(grid, w, H, how):
    """One group (n,) at a time, every pair of ends in turn, as equation 4 has it."""
    alone, best, least = replace(grid, group="row"), w, float("inf")
    for top, bottom in itertools.product(how.shares, how.shares):
        inside = w.clamp(float(w.min()) * bottom, float(w.max()) * top)
        e = alone.fit(inside[None], H).snap(inside[None])[1][0] - w
        if float(e @ H @ e) < least:
            best, least = inside, float(e @ H @ e)
    return best, least


@grids
@settings(max_examples=6)
@given(seed=seeds)
def test_the_search_finds_what_brute_force_finds(grid, seed):
    W, H = problem(seed)
    found, width = clipped(W, grid, H, FEW), grid.layout(tuple(W.shape)).width
    errors = error_of(grid, W, found, H)
    for row, (c, start) in itertools.product(range(len(W)), enumerate(range(0, W.shape[1], width))):
        columns = slice(start, start + width)
        wanted, least = by_hand(grid, W[row, columns], H[columns, columns], FEW)
        assert abs(float(errors[row, c]) - least) <= 1e-12 * float(H.abs().max())
        assert torch.equal(found[row, columns], wanted)


@grids
@settings(max_examples=6)
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_no_group_is_worse_than_unclipped(grid, seed, scale):
    W, H = problem(seed, (8, 12))
    W = scale * W
    before, after = error_of(grid, W, W, H), error_of(grid, W, clipped(W, grid, H, AsymmetricClip()), H)
    assert (after <= before * (1 + 1e-12)).all() and float(after.sum()) < float(before.sum())


@settings(max_examples=10)
@given(seed=seeds)
def test_weights_stay_or_move_to_the_ends_of_their_group(seed):
    W, H = problem(seed)
    found = clipped(W, TwoSided(group=5), H, AsymmetricClip())
    groups, inside = (TwoSided(group=5).layout((4, 12)).grouped(x, 0.0) for x in (W, found))
    low, high = inside.aminmax(dim=-1, keepdim=True)
    moved = inside != groups
    assert ((inside == low) | (inside == high))[moved].all() and (inside.abs() <= groups.abs()).all()
    assert (inside * groups >= 0).all()


@grids
def test_rows_are_searched_in_any_number_together(grid, monkeypatch):
    W, H = problem(3, (9, 12))
    together = clipped(W, grid, H, FEW)
    for at_once in (1, 30):
        monkeypatch.setattr(clipping, "_AT_ONCE", at_once)
        assert torch.equal(clipped(W, grid, H, FEW), together)


def test_an_end_on_the_wrong_side_of_zero_clamps_nothing():
    W, H = torch.tensor([[1.0, 2.0, 3.0, 3.9], [-4.0, -1.0, -2.0, -3.0]]), torch.eye(4, dtype=torch.float64)
    found = clipped(W, TwoSided(group="row"), H, AsymmetricClip())
    assert found[0].min() == 1 and found[1].max() == -1


def test_the_first_share_is_one_and_the_last_above_what_is_left():
    assert AsymmetricClip().shares == tuple(1 - i / 20 for i in range(10))  # as released: down to .55
    assert AsymmetricClip(most=0.0).shares == AsymmetricClip(steps=1).shares == (1.0,)
    W, H = problem(5)
    assert torch.equal(clipped(W, TwoSided(), H, AsymmetricClip(most=0.0)), W)


def test_as_released():
    """The first groups of `auto_2clip_layer` of DD-DuDa/BitDistiller at 9faaab8, as twentieths off (top, bottom)."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, 16, generator=generator)
    X = torch.randn(512, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    H = X.double().T @ X.double() / 512
    released = {
        TwoSided(group=8, scale_bits=32): [(0, 0), (3, 0), (1, 2), (1, 0), (0, 2), (0, 1), (2, 0), (0, 4), (2, 0),
                                           (0, 0), (2, 2), (1, 0)],
        Integer(bits=2, group=8, scale_bits=32): [(0, 0), (3, 3), (1, 7), (2, 0), (0, 0), (0, 0), (6, 1), (1, 0),
                                                  (0, 0), (4, 5), (0, 0), (4, 6)],
    }  # fmt: skip
    for grid, wanted in released.items():
        low, high = W.reshape(128, 8).aminmax(dim=-1)
        inside = clipped(W, grid, H, AsymmetricClip()).reshape(128, 8).aminmax(dim=-1)
        off = [(round(20 * (1 - float(t / h))), round(20 * (1 - float(b / l))))
               for t, h, b, l in zip(inside.max, high, inside.min, low, strict=True)]  # fmt: skip
        assert off[:12] == wanted


@pytest.mark.parametrize(("grid", "why"), [
    (Integer(bits=3, group=8, axis=0), "along the inputs"), (TwoSided(group="tensor"), "along the inputs"),
    (Scaled(element="nf4", group=8, axis="flat"), "along the inputs"),
    (Scaled(element="nf4", group=8, scale=DoubleQuantized()), "a second scale"),
    (Scaled(element="e2m1", group=16, scale=TwoLevel()), "a second scale"),
    (Scaled(element=KMeansTable(bits=3), group="row"), "share a table"),
    (E8P(), "E8P has none"), (Codebooks(), "Codebooks has none"), (Gguf(type="q4_k"), "Gguf has none"),
    (Sparse(grid=Integer(bits=4)), "Sparse has none"), (BellSplit(), "BellSplit has none"),
], ids=str)  # fmt: skip
def test_what_cannot_be_clipped_group_by_group_says_why(grid, why):
    assert why in unsupported_clipping(grid)
    how = QuantizationAware(schedule=Schedule(steps=1), learned="nothing", clipping=AsymmetricClip())
    assert why in Recipe(weights=Target(grid), adaptation=how).unsupported
    assert Recipe(weights=Target(grid), adaptation=replace(how, clipping=None)).unsupported is None
    with pytest.raises(ValueError, match=why):
        clipped(torch.ones(4, 32), grid, torch.eye(32, dtype=torch.float64), AsymmetricClip())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"most": 1.5}, {"most": -0.1}])
def test_searches_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="expected at least 1, and 0 to 1"):
        AsymmetricClip(**wrong)
    with pytest.raises(ValueError, match="expected finite"):
        clipped(torch.tensor([[float("nan")]]), TwoSided(), torch.eye(1), AsymmetricClip())
    with pytest.raises(ValueError, match="random weights are not clipped"):
        QuantizationAware(schedule=Schedule(steps=1), scratch=True, clipping=AsymmetricClip())


# in training

PLAIN = ("Recipe(weights=Target(TwoSided(group=16)), adaptation=QuantizationAware(schedule=Schedule(steps=2, "
         "rate=0.001, warmup=0.0), rows=4, learned='nothing', loss='cakld'))")  # fmt: skip
CLIPPED = PLAIN.replace("'cakld'", "'cakld', clipping=AsymmetricClip(steps=4, unclipped=('*.q_proj', '*.k_proj'))")


@pytest.fixture(scope="module")
def opened(llama, inputs, tmp_path_factory):
    checkpoint = load_model(str(llama))
    path = tiny.save_tokens(tmp_path_factory.mktemp("clipping") / "training.npy", 16, tiny.CONTEXT, 3)
    training = load_tokens(str(path), "training", checkpoint, tiny.CONTEXT)
    return checkpoint, training, load_tokens(inputs["calibration"], "calibration", checkpoint, tiny.CONTEXT)


def test_a_students_weights_are_clipped_and_its_teachers_are_not(opened):
    checkpoint, _, tokens = opened
    calibration, recipe = Calibration.of(checkpoint, tokens, 1), parse(CLIPPED)
    student = Student.of(checkpoint, recipe, 0, calibration)
    names, grid = checkpoint.architecture, recipe.weights.grid
    for i in range(checkpoint.n_blocks):
        for site in names.sites:
            H = calibration.statistics(i)[site.layers[0]].gram
            for name in (names.full_name(i, layer) for layer in site.layers):
                W = linear(student.teacher, name).weight
                found, untouched = latent(linear(student.model, name)), name.endswith(("q_proj", "k_proj"))
                assert torch.equal(W, checkpoint.tensor(f"{name}.weight"))
                assert torch.equal(found, W if untouched else clipped(W, grid, H, recipe.adaptation.clipping))
                assert torch.equal(found, W) == untouched
    with pytest.raises(ValueError, match="expected a calibration"):
        Student.of(checkpoint, recipe, 0)


def test_what_is_kept_depends_on_the_calibration_only_where_weights_are_clipped(opened):
    checkpoint, training, tokens = opened
    other = tokens.draw(tiny.CONTEXT, 0)

    def hashes(recipe):
        return [learned_for(checkpoint, parse(recipe), training, seed=0, threads=1, calibration=c).checkpoint.sha256
                for c in (tokens, other)]  # fmt: skip

    assert len(set(hashes(CLIPPED))) == 2 and len(set(hashes(PLAIN))) == 1


def test_controls_are_not_clipped():
    assert control_of(parse(CLIPPED)) == control_of(parse(PLAIN)) and "clipping" not in str(control_of(parse(CLIPPED)))


def test_a_grid_that_cannot_be_fitted_is_a_skip(opened):
    checkpoint, _, tokens = opened
    recipe = parse(CLIPPED.replace("TwoSided(group=16)", "Integer(bits=1)"))  # no such convention at 1 bit
    with pytest.raises(UnsupportedError, match="half-integer"):
        Student.of(checkpoint, recipe, 0, Calibration.of(checkpoint, tokens, 1))
