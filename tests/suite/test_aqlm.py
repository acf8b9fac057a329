"""Additive codebooks: every step against its definition, and the whole against the release on the same matrices."""

import math
from dataclasses import replace

import pytest
import torch
from aqlm_release import ROWS
from golden import matrices, needed, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.adaptation.block_tuning import AQLM_TUNING
from suite.grids import Codebooks, Integer
from suite.methods import method_named
from suite.quantize import quantize_matrix, relative_errors
from suite.recipe import Recipe, Target, parse
from suite.rounding import Additive, additive
from suite.rounding.additive import Descent, Problem, Solution, Sums
from suite.rounding.beam_search import row_losses

EPS = 2.0**-52
HOWS = [Additive(steps=5), Additive(update="least-squares", steps=5, beam=3, sweeps=2)]
every_how = pytest.mark.parametrize("how", HOWS, ids=lambda how: how.update)


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(seed=0, n_out=6, n_in=22, grid=Codebooks(code_bits=3, stages=2, length=4, scale="row")):  # noqa: B008
    """W, H of correlated inputs, the problem of the matrix on a grid fitted to it, and where it starts."""
    W, X = gaussian(seed, n_out, n_in), gaussian(seed + 1, 3 * n_in, n_in) @ gaussian(seed + 2, n_in, n_in)
    H = X.T @ X / len(X)
    fitted = grid.fit(W, H)
    there = Problem.of(W, H, fitted)
    return W, H, there, there.start(fitted.nearest(W))


def error(W, H, rounded):
    """The loss of what comes back from bytes, in float64."""
    return float(row_losses(W.double() - rounded.grid.decode32(rounded.codes).double(), H).sum())


def decoded_one_by_one(fitted, codes):
    """The values (out, in), from the definition: entries gathered one by one, added, scaled."""
    n_out, n_in = fitted.shape
    Q, g = torch.empty(n_out, n_in, dtype=torch.float64), fitted.grid.length
    for i in range(n_out):
        for j in range(n_in):
            total = sum(float(book[int(codes[i, j // g, m]), j % g]) for m, book in enumerate(fitted.codebooks))
            Q[i, j] = total * (1.0 if fitted.scale is None else float(fitted.scale[i, 0]))
    return Q


@every_how
@pytest.mark.parametrize("scale", ["row", "none"])
def test_what_comes_back_is_the_sum_of_entries_times_the_scale(how, scale):
    W, H, _, _ = problem()
    grid = Codebooks(code_bits=3, stages=2, length=4, scale=scale)
    rounded = how.round(W.float(), grid, H, torch.Generator())
    Q = rounded.grid.decode32(rounded.codes)
    exact = decoded_one_by_one(rounded.grid, rounded.codes)
    size = rounded.grid.codebooks.abs().amax((1, 2)).sum() * (1 if scale == "none" else rounded.grid.scale.abs().max())
    assert bool(((Q - exact).abs() <= 3 * 2.0**-24 * size).all())  # two sums and a product in float32


@every_how
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    n_in=st.integers(1, 20),
    length=st.integers(1, 5),
    scale=st.sampled_from(["row", "none"]),
)
def test_no_step_raises_the_loss(how, seed, n_in, length, scale):
    grid = Codebooks(code_bits=2, stages=2, length=length, scale=scale)
    _, _, there, state = problem(seed, 3, n_in, grid)
    update, generator = (Descent(how) if how.update == "adam" else Solution(how.steps)), torch.Generator()
    for _ in range(4):
        moved = there.moved(state, update(there, state))
        found = there.searched(moved, how.beam, generator)
        assert moved.loss <= state.loss and found.loss <= moved.loss * (1 + 1e3 * EPS) + 1e3 * EPS
        state = found


@every_how
def test_the_codes_are_the_last_searchs_for_the_parameters_as_stored(how):
    W, H, _, _ = problem()
    rounded = how.round(W, Codebooks(code_bits=3, stages=2, length=4, scale="row"), H, torch.Generator().manual_seed(3))
    stored = rounded.grid.rounded()
    for name, value in rounded.grid.tunable().items():
        assert torch.equal(value, stored.tunable()[name].to(value.dtype))
    there = Problem.of(W, H, rounded.grid)
    again = there.start(rounded.codes)
    for seed in range(3):  # whatever the order, a search finds little that the last one did not
        found = there.searched(again, how.beam, torch.Generator().manual_seed(seed))
        assert (1 - how.tolerance) * again.loss <= found.loss <= again.loss * (1 + 1e3 * EPS)


def test_adam_takes_the_releases_steps():
    """Against automatic differentiation of the loss as the release has it, a mean over rows."""
    W, H, there, state = problem(n_in=24)
    books, scale = (x.clone().requires_grad_() for x in (state.fitted.codebooks, state.fitted.scale))
    adam = torch.optim.Adam([books, scale], 1e-4, betas=(0.0, 0.95), amsgrad=True)
    update, index = Descent(Additive(steps=7)), state.codes.long()
    for _ in range(2):  # the moments go on
        for _ in range(7):
            Q = (books[0][index[..., 0]] + books[1][index[..., 1]]).reshape(W.shape) * scale
            adam.zero_grad()
            (row_losses(Q - W, H).sum() / len(W)).backward()
            adam.step()
        mine = update(there, state)
        # of 14 steps of 1e-4, each a ratio of a gradient and its size: sums of in products
        assert bool(((mine["codebooks"] - books).abs() <= 1e-4 * 14 * 1e6 * EPS).all())
        assert bool(((mine["scale"] - scale).abs() <= 1e-4 * 14 * 1e6 * EPS).all())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_codebooks_and_scales_are_solved_for(seed):
    W, H, there, state = problem(seed, 9, 24)
    scale, unknowns = state.scale, state.fitted.codebooks.numel()
    found = Solution(20 * unknowns)(there, state)
    sums = Sums(state.codes, state.fitted.n_codes)
    columns = [sums(one.reshape(state.fitted.codebooks.shape), scale).reshape(-1)
               for one in torch.eye(unknowns, dtype=torch.float64)]  # fmt: skip
    root = torch.linalg.cholesky(H)  # e H e^T = |e L|^2
    A = torch.stack([(c.reshape(W.shape) @ root).reshape(-1) for c in columns], 1)
    b = (W @ root).reshape(-1)
    best = float(((A @ torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution)[:, 0] - b).square().sum())
    mine = float(row_losses(W - sums(found["codebooks"], scale), H).sum())
    assert mine <= best + 1e-6 * float(b.square().sum())  # conjugate gradients square a condition of 1e4, as EPS does
    total = sums(found["codebooks"], torch.ones_like(scale))
    for s in (found["scale"] * 1.001, found["scale"] * 0.999):
        assert bool((row_losses(W - total * found["scale"], H) <= row_losses(W - total * s, H)).all())


def test_a_preconditioner_made_in_parts_is_the_same(monkeypatch):
    _, _, there, state = problem()
    sums = Sums(state.codes, state.fitted.n_codes)
    whole = additive._preconditioner(there, sums, state.scale, state.fitted.n_codes)
    monkeypatch.setattr(additive, "_TOGETHER", 1)
    parts = additive._preconditioner(there, sums, state.scale, state.fitted.n_codes)
    assert bool(((whole - parts).abs() <= 1e6 * EPS * whole.abs().amax((2, 3), keepdim=True)).all())  # ridges: 1e-3


def test_sums_and_what_collects_them_are_each_others_transpose():
    _, _, there, state = problem()
    sums = Sums(state.codes, state.fitted.n_codes)
    books, V = gaussian(5, *state.fitted.codebooks.shape), gaussian(6, *there.W.shape)
    left, right = (sums(books, state.scale) * V).sum(), (books * sums.collected(V, state.scale)).sum()
    assert abs(float(left - right)) <= 1e3 * EPS * float((sums(books, state.scale) * V).abs().sum())


@every_how
def test_fewer_vectors_than_codes_are_met_as_closely_as_they_are_stored(how):
    W, H, _, _ = problem(n_out=3, n_in=20)
    rounded = how.round(W, Codebooks(code_bits=8, length=4, scale="row"), H, torch.Generator())
    Q = rounded.grid.decode32(rounded.codes).double()
    # float16 entries and float16 scales: half a unit in the last place of each, and of the row's norm
    assert bool(((W - Q).abs() <= 3 * 2.0**-11 * W.norm(dim=1, keepdim=True)).all())


@every_how
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (64, 172)])
def test_widths_that_are_no_multiple_of_the_length(how, shape):
    W, H, _, _ = problem(0, *shape)
    q = quantize_matrix(W, recipe=Recipe(weights=Target(Codebooks(code_bits=4, stages=2, length=5), how)), H=H)
    assert q.codes.shape == (shape[0], -(-shape[1] // 5), 2)
    assert q.n_bits == 8 * q.codes.shape[0] * q.codes.shape[1] + 16 * 2 * 16 * 5
    assert len(q.to_bytes()) == math.ceil(q.n_bits / 8)
    assert torch.equal(type(q).from_bytes(q.to_bytes(), q.header()).dequantize(), q.dequantize())


@every_how
def test_zeros_constants_and_dead_inputs(how):
    grid = Codebooks(code_bits=2, length=4, scale="row")
    W, H, _, _ = problem(n_in=12)
    zeros = how.round(torch.zeros_like(W), grid, H, torch.Generator())
    assert not bool(zeros.grid.decode32(zeros.codes).any())
    dead = H.clone()
    dead[:5], dead[:, :5] = 0, 0
    for gram in (dead, torch.zeros_like(H)):
        assert math.isfinite(error(W, H, how.round(W, grid, gram, torch.Generator())))
    constant = how.round(torch.full_like(W, 0.3), grid, H, torch.Generator())
    assert bool(((constant.grid.decode32(constant.codes) - 0.3).abs() <= 0.3 * 2.0**-10).all())


def test_a_damped_gram_matrix_is_h_and_a_share_of_its_mean_diagonal():
    W, H, _, _ = problem()
    grid, how = Codebooks(code_bits=3, length=4), Additive(update="least-squares")
    wide = H + 0.1 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    a = replace(how, damping=0.1).round(W, grid, H, torch.Generator().manual_seed(0))
    b = how.round(W, grid, wide, torch.Generator().manual_seed(0))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.grid.codebooks, b.grid.codebooks)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"beam": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"rate": 0.0}, "positive rate"),
        ({"tolerance": 1.0}, "0 to 1"),
        ({"damping": -1.0}, ">= 0"),
        ({"update": "sgd"}, "expected adam or least-squares"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, found):
    with pytest.raises(ValueError, match=found):
        Additive(**options)


def test_what_it_cannot_round_is_refused():
    W, H, _, _ = problem()
    grid, generator = Codebooks(code_bits=2, length=4), torch.Generator()
    for other in (Codebooks(code_bits=2, length=3, axis=0), Integer(bits=2)):
        with pytest.raises(ValueError, match="consecutive inputs"):
            Additive().round(W, other, H, generator)
        assert "consecutive inputs" in Target(other, Additive()).unsupported
    for gram, found in ((None, "none"), (H[:3, :3], r"shape \(3, 3\)"), (H * math.nan, "NaN")):
        with pytest.raises(ValueError, match=found):
            Additive().round(W, grid, gram, generator)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_width_is_split_and_its_codebooks_are_charged(bits):
    recipe = method_named("aqlm").recipe(bits=bits)
    grid = recipe.weights.grid
    assert grid.bits == bits
    assert parse(str(recipe)) == recipe
    W, H, _, _ = problem(0, 8, 24)
    q = quantize_matrix(W, recipe=recipe, H=H)
    entries = grid.stages * 2**grid.code_bits * grid.length
    assert q.n_bits == q.codes.numel() * grid.code_bits + 8 * entries + 16 * grid.stages + 16 * 8


@pytest.mark.parametrize(("codebooks", "code_bits", "length", "bits"), [(1, 16, 8, 2), (2, 8, 8, 2), (1, 8, 8, 1)])
def test_splits_of_the_paper(codebooks, code_bits, length, bits):
    options = {"codebooks": codebooks, "code_bits": code_bits, "length": length, "entry_bits": 16, "update": "adam"}
    recipe = method_named("aqlm").recipe(bits=bits, tuning=AQLM_TUNING, **options)
    assert parse(str(recipe)) == recipe and recipe.inputs == "quantized" and recipe.adaptation == AQLM_TUNING
    assert recipe.weights.rounding == Additive() and not recipe.weights.grid.weighted


def test_splits_that_are_no_such_width_are_refused():
    for options in ({"codebooks": 2}, {"codebooks": 2, "code_bits": 8, "length": 4}):
        with pytest.raises(ValueError, match="expected"):
            method_named("aqlm").recipe(bits=2, **options)


SHAPE = (128, 256)
GOLDEN = [row for row in rows("vector-rotation-adapters") if row["method"] == "AQLM"]


def split(row):
    """Codebooks, bits of a code, length and beam of a row of either table."""
    config = row.get("config", row)
    released = ("num_codebooks", "nbits", "in_group_size", "beam_size")
    return [config[name] for name in (released if "config" in row else ("stages", "bits", "length", "beam"))]


def of_ours(row, W, H, seed=0, **options):
    """`hnmse` of the method at a row's split, with the release's 16-bit entries."""
    codebooks, code_bits, length, beam = split(row)
    splits = {"codebooks": codebooks, "code_bits": code_bits, "length": length, "entry_bits": 16}
    bits = codebooks * code_bits // length
    q = quantize_matrix(W.float(), method="aqlm", bits=bits, H=H, beam=beam, seed=seed, **splits, **options)
    return relative_errors(W, q.dequantize(), H)[1]


@needed
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, [row["seed"], row["weights"], *split(row)])))
def test_it_leaves_no_more_than_the_release(row):
    W, H = matrices(row["seed"], row["weights"], *SHAPE)
    assert of_ours(row, W, H) <= 1.01 * sum(row["hnmse"]) / len(row["hnmse"])


@needed
@pytest.mark.slow
def test_as_the_release_descends_it_leaves_as_much():
    """In the mean over what differs: k-means starts from other vectors, which moves single matrices by 1 to 2%."""
    ratios = []
    for row in ROWS:
        W, H = matrices(row["seed"], row["weights"], *SHAPE)
        mine = of_ours(row, W, H, update="adam")
        ratios.append(mine / (sum(row["hnmse"]) / len(row["hnmse"])))
    assert sum(ratios) / len(ratios) <= 1.01 and max(ratios) <= 1.05


@needed
@pytest.mark.slow
@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: "-".join(map(str, [row["seed"], row["weights"], *split(row)])))
def test_it_leaves_no_more_than_the_golden_numbers(row):
    W, H = matrices(row["seed"], row["weights"])
    assert of_ours(row, W, H, seed=row["config"]["rng_seed"]) <= 1.01 * row["values"]["hnmse"]
