"""Codebooks of vectors: what is chosen, what is stored, and what may be tuned."""

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grids import Codebooks, Integer
from suite.grids.lloyd_max import k_means as k_means_of_numbers
from suite.quantized import Quantized
from suite.recipe import Target, parse
from suite.rounding import Feedback, Nearest

GRIDS = [Codebooks(code_bits=b, stages=s, length=g, axis=a, scale=scale, entry_bits=e)
         for (b, s, g, scale, e), a in product([(3, 1, 4, "none", 16), (2, 2, 3, "row", 16), (4, 2, 4, "none", 8),
                                                (9, 1, 5, "row", 8), (1, 3, 1, "none", 16)], (0, 1))
         if (a, scale) != (0, "row")]  # fmt: skip
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: str(Target(g))[17:-2])
shapes = st.tuples(st.integers(1, 11), st.integers(1, 11))


def matrix(seed=0, n_out=10, n_in=14, dtype=torch.float64):
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram(seed=0, n_in=14):
    X = matrix(seed, 60, n_in) @ matrix(seed + 1, n_in, n_in)
    return X.T @ X / 60


@grids
@pytest.mark.parametrize("shape", [(10, 14), (1, 1), (4, 12), (13, 3)])
def test_values_are_sums_of_entries_and_stay_where_they_are_coded(grid, shape):
    """Checked vector by vector, against the definition."""
    W = matrix(1, *shape)
    fitted = grid.fit(W)
    codes = fitted.nearest(W)
    Q = fitted.decode(codes)
    rows, columns = grid.block
    assert codes.shape == (math.ceil(shape[0] / rows), math.ceil(shape[1] / columns), grid.stages)
    assert Q.shape == W.shape and codes.dtype == (torch.uint8 if grid.code_bits <= 8 else torch.int32)
    for i, j in product(range(codes.shape[0]), range(codes.shape[1])):
        block = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
        value = sum(book[code] for book, code in zip(fitted.codebooks, codes[i, j].long(), strict=True))
        scale = 1.0 if fitted.scale is None else fitted.scale[block[0]]
        there = value[: Q[block].numel()].reshape(Q[block].shape) * scale
        assert torch.allclose(Q[block], there, rtol=1e-15, atol=0)


@grids
def test_each_stage_takes_the_entry_nearest_to_what_is_left(grid):
    """By the values that a vector has: those beyond the matrix count for nothing."""
    W = matrix(2)
    fitted = grid.fit(matrix(1))
    codes = fitted.nearest(W)
    left, held = fitted.cut(W if fitted.scale is None else W / fitted.scale), fitted.cut(torch.ones_like(W))
    for stage, book in enumerate(fitted.codebooks):
        squares = (held[:, :, None] * (left[:, :, None] - book).square()).sum(-1)
        taken = squares.gather(-1, codes[..., stage, None].long())[..., 0]
        assert bool((taken <= squares.amin(-1) * (1 + 1e-12) + 1e-14).all())
        left = left - book[codes[..., stage].long()]


def test_one_stage_is_the_nearest_of_all():
    fitted = Codebooks(code_bits=5, length=3).fit(matrix(1, 10, 15))
    x = matrix(3, 10, 15)
    best = (fitted.cut(x)[:, :, None] - fitted.codebooks[0]).square().sum(-1).argmin(-1)
    assert torch.equal(fitted.nearest(x)[..., 0].long(), best)


@grids
@settings(max_examples=10)
@given(shape=shapes, seed=st.integers(0, 99))
def test_bytes_are_counted_and_read_back(grid, shape, seed):
    W = matrix(seed, *shape, dtype=torch.float32)
    fitted = grid.fit(W)
    codes = fitted.nearest(W)
    blocks = math.ceil(shape[0] / grid.block[0]) * math.ceil(shape[1] / grid.block[1])
    entries = grid.stages * 2**grid.code_bits * grid.length * grid.entry_bits
    rows = 16 * shape[0] if grid.scale == "row" else 0
    steps = 16 * grid.stages if grid.entry_bits == 8 else 0
    assert fitted.n_bits == blocks * grid.stages * grid.code_bits + entries + rows + steps
    payload, header = fitted.to_bytes(codes), json.loads(json.dumps(fitted.header()))
    assert len(payload) == -(-fitted.n_bits // 8)
    back, again = grid.from_bytes(payload, header)
    assert torch.equal(again, codes) and again.dtype == codes.dtype
    assert torch.equal(back.decode32(again).view(torch.int32), fitted.decode32(codes).view(torch.int32))  # -0 is not 0
    assert torch.equal(fitted.decode32(codes), fitted.decode(codes))  # what is chosen is what is stored
    assert back.to_bytes(again) == payload and back.n_bits == fitted.n_bits
    assert torch.equal(fitted.codes_of(fitted.streams(codes)), codes)
    with pytest.raises(ValueError, match="payload has"):
        grid.from_bytes(payload + b"\0", header)


@grids
def test_its_text_stands_for_it_and_a_container_carries_it(grid):
    assert parse(str(Target(grid))).weights.grid == grid
    W = matrix(1, dtype=torch.float32)
    fitted = grid.fit(W)
    q = Quantized(codes=fitted.nearest(W), grid=fitted)
    back = Quantized.from_bytes(q.to_bytes(), json.loads(json.dumps(q.header())))
    assert torch.equal(back.dequantize(), q.dequantize()) and q.coded_bits > 0 and q.entropy_bits <= q.n_bits


@grids
def test_columns_are_coded_alike_alone_and_together(grid):
    W = matrix(1, 10, 15)
    fitted = grid.fit(W)
    codes, Q = fitted.snap(W)
    width = grid.block[1]
    for first, last in ((0, width), (width, 2 * width), (15 // width * width, 15)):
        if first == last:
            continue
        columns = slice(first, last)
        here = slice(first // width, -(-last // width))
        assert torch.equal(fitted.nearest(W[:, columns], columns), codes[:, here])
        assert torch.equal(fitted.decode(codes[:, here], columns), Q[:, columns])
    index = torch.arange(width, 2 * width)
    assert torch.equal(fitted.decode(codes[:, 1:2], index), Q[:, index])


def test_filling_is_zeros_and_costs_what_it_takes():
    """To k-means, a matrix that is no whole number of vectors is the one that zeros make of it."""
    for axis, whole in ((0, (12, 5)), (1, (5, 12))):
        grid, W = Codebooks(code_bits=3, length=4, axis=axis), matrix(4, *whole)
        short = W[:10] if axis == 0 else W[:, :10]
        W[10:] = 0 if axis == 0 else W[10:]
        if axis == 1:
            W[:, 10:] = 0
        a, b = grid.fit(short), grid.fit(W)
        assert torch.equal(a.codebooks, b.codebooks)
        assert a.n_bits == b.n_bits


def test_numbers_have_the_exact_method():
    W = matrix(5, 6, 40)
    fitted = Codebooks(code_bits=3, length=1).fit(W)
    assert torch.equal(fitted.codebooks[0, :, 0], k_means_of_numbers(W.reshape(-1), 8).half().double())


def test_the_importance_of_columns_pulls_entries():
    """With all the weight on one column its vectors are met exactly; without H there is nothing to weigh by."""
    W = matrix(6, 16, 8)
    H = torch.zeros(8, 8, dtype=torch.float64)
    H[3, 3] = 1
    grid = Codebooks(code_bits=2, length=4, axis=0, weighted=True)
    fitted = grid.fit(W, H)
    gap = (W - fitted.decode(fitted.nearest(W)))[:, 3]
    assert float(gap.abs().max()) <= 2.0**-11 * float(W.abs().max())  # of an entry in float16
    assert torch.equal(grid.fit(W, 4 * H).codebooks, fitted.codebooks)
    plain = Codebooks(code_bits=2, length=4, axis=0)
    assert torch.equal(grid.fit(W, torch.eye(8).double()).codebooks, plain.fit(W).codebooks)
    for wrong in (None, torch.eye(7)):
        with pytest.raises(ValueError, match="weighted codebooks need the Gram matrix"):
            grid.fit(W, wrong)


def test_more_bits_and_more_stages_lower_the_error():
    W, errors = matrix(7, 64, 64), []
    for bits, stages in ((2, 1), (4, 1), (6, 1), (4, 2), (4, 3)):
        fitted = Codebooks(code_bits=bits, stages=stages, length=4).fit(W)
        errors.append(float((W - fitted.decode(fitted.nearest(W))).square().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[1] > errors[3] > errors[4]


def test_rows_are_scaled_by_their_norm():
    W = matrix(8) * torch.logspace(-2, 2, 10, dtype=torch.float64)[:, None]
    W[4] = 0
    fitted = Codebooks(code_bits=4, length=2, scale="row").fit(W)
    norms = W.norm(dim=1, keepdim=True)
    norms[4] = 1
    assert torch.allclose(fitted.scale, norms, rtol=2.0**-11, atol=0)
    plain = Codebooks(code_bits=4, length=2).fit(W)
    worst = [((W - f.decode(f.nearest(W))).norm(dim=1) / norms[:, 0]).max() for f in (fitted, plain)]
    assert worst[0] < worst[1] / 2 and fitted.group_size == 14 and plain.group_size == W.numel()


@grids
def test_values_beyond_what_is_stored_saturate(grid):
    for x in (torch.tensor([[1e30, -1e30, 1.0]]), torch.full((1, 3), 1e30), torch.tensor([[1e-30, 0.0, -1e-30]])):
        fitted = grid.fit(x)
        codes = fitted.nearest(x)
        assert bool(torch.isfinite(fitted.decode32(codes)).all())
        assert torch.equal(fitted.decode32(codes), fitted.decode(codes))


@grids
@pytest.mark.parametrize("value", [0.0, 0.6, -1.9])
def test_zeros_and_constants(grid, value):
    W = torch.full((4, 20), value)
    fitted = grid.fit(W)
    Q = fitted.decode32(fitted.nearest(W))
    # an entry, a row's scale, the step and the half of it that an entry is off
    assert ((W - Q).abs() <= (2.0**-9 + (1 / 254 if grid.entry_bits == 8 else 0)) * abs(value)).all()


@grids
def test_parameters_may_be_tuned_and_are_rounded_where_they_are_stored(grid):
    W = matrix(9, dtype=torch.float32)
    fitted = grid.fit(W)
    codes, found = fitted.nearest(W), fitted.tunable()
    assert torch.equal(fitted.tuned(found).decode(codes), fitted.decode(codes))
    values = {name: (1.001 * value).requires_grad_() for name, value in found.items()}
    tuned = fitted.tuned(values)
    (tuned.decode(codes) - W).square().sum().backward()
    for name, value in values.items():
        assert value.grad is not None and value.grad.shape == found[name].shape, name
    before = {name: value.detach().clone() for name, value in values.items()}
    Q = tuned.decode32(codes)
    assert not Q.requires_grad
    back, again = grid.from_bytes(tuned.to_bytes(codes), tuned.header())
    assert torch.equal(back.decode32(again), Q)
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert torch.equal(tuned.rounded().decode(codes), Q)
    assert tuned.nearest(W).shape == codes.shape


def test_its_gradient_is_that_of_a_sum_of_entries():
    fitted = Codebooks(code_bits=2, stages=2, length=3, scale="row").fit(matrix(10, 7, 5))
    codes = fitted.nearest(matrix(10, 7, 5))
    books, scale = fitted.codebooks.requires_grad_(), fitted.scale.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, s: fitted.tuned({"codebooks": b, "scale": s}).decode(codes), (books, scale)
    )


@grids
def test_what_is_gathered_is_the_gradient(grid):
    W, G = matrix(9), matrix(12)
    fitted = grid.fit(W)
    codes, books = fitted.nearest(W), fitted.codebooks.clone().requires_grad_()
    (fitted.tuned(fitted.tunable() | {"codebooks": books}).decode(codes) * G).sum().backward()
    assert torch.allclose(fitted.gathered(codes, G), books.grad, rtol=1e-12, atol=1e-12)


@grids
def test_training_goes_on_from_where_it_is(grid):
    """Kept codebooks stay, others start from what they are and so never get worse on the values they are trained on."""
    W, x, drawn = matrix(13, 24, 24), matrix(14, 24, 24), torch.Generator().manual_seed(0)
    fitted = replace(grid, stages=1).bind(W).trained(W, 1, drawn)
    more = fitted.trained(x, 3, drawn, keep=1)
    assert torch.equal(more.codebooks[:1], fitted.codebooks) and more.codebooks.shape[0] == 3
    again = fitted.trained(x, 1, drawn)

    def missed(f):
        codes = f.nearest(x)
        left = (f.cut(x if f.scale is None else x / f.scale) - f.codebooks[0][codes[..., 0].long()]).square().sum()
        return float(left)

    rounding = 2.0**-9 * float(fitted.cut(x if fitted.scale is None else x / fitted.scale).square().sum())
    assert missed(again) <= missed(fitted) + rounding * (grid.entry_bits == 16 or 4)


def test_it_follows_from_its_seed():
    W = matrix(11, 40, 40)
    state, kept = torch.get_rng_state(), W.clone()
    one, other = (Codebooks(code_bits=5, length=4, seed=seed).fit(W).codebooks for seed in (0, 1))
    assert torch.equal(Codebooks(code_bits=5, length=4).fit(W).codebooks, one) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(W, kept)


@pytest.mark.parametrize("axis", [0, 1])
def test_error_feedback_lowers_the_error_it_is_for(axis):
    totals = []
    for rounding in (Nearest(), Feedback(damping=1e-3)):
        total = 0.0
        for seed in range(4):
            W, H = matrix(seed, 64, 14), gram(seed)
            target = Target(Codebooks(code_bits=4, length=2, axis=axis), rounding)
            rounded = target.rounding.round(W, target.grid, H, torch.Generator().manual_seed(0))
            E = W - rounded.grid.decode(rounded.codes)
            total += float((E @ H * E).sum())
        totals.append(total)
    assert totals[1] < totals[0]


@pytest.mark.parametrize("options", [dict(code_bits=0), dict(code_bits=17), dict(code_bits=2.0), dict(stages=0),
                                     dict(length=0), dict(axis=2), dict(scale="column"), dict(entry_bits=4),
                                     dict(iterations=0)])  # fmt: skip
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=r"expected|takes"):
        Codebooks(**options)


def test_row_scales_and_vectors_of_outputs_do_not_go_together():
    grid = Codebooks(code_bits=2, length=2, axis=0, scale="row")
    assert "row scales differ within a vector" in grid.unsupported and Target(grid).unsupported == grid.unsupported
    with pytest.raises(ValueError, match="row scales differ within a vector"):
        grid.fit(matrix())


def test_what_is_no_finite_matrix_is_refused():
    grid = Codebooks(code_bits=2, length=2)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite values"):
            grid.fit(torch.full((3, 4), bad))
    for shape in ((3,), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="non-empty matrix"):
            grid.fit(torch.zeros(shape))


def test_blocks_have_no_rate_and_no_two_neighbors():
    fitted = Codebooks(code_bits=2, length=2).fit(matrix())
    with pytest.raises(ValueError, match="no cost by code"):
        fitted.nearest(matrix(), cost=torch.zeros(4))
    with pytest.raises(ValueError, match="no neighbors"):
        fitted.neighbors(matrix())
    assert Integer(bits=2).block == (1, 1) and fitted.grid.block == (1, 2)
