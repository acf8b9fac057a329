"""EXL2: the budget is kept and used up, scales follow a plain twin in float64, and every bit is charged."""

import json
import math
from fractions import Fraction

import golden
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from suite.grids import Exl2, Integer
from suite.grids.exl2 import WIDTHS
from suite.methods import method_named
from suite.quantize import quantize_layer, quantize_matrix, relative_errors
from suite.quantized import Quantized
from suite.recipe import Recipe, Target, parse
from suite.rounding import Feedback, HalfQuadratic, Nearest, Stochastic
from suite.rounding.feedback import factor

EPS = 2.0**-52
CLOSE = 1e4 * 200 * 8 * EPS  # as in test_rounding: condition 1e4, at most 200 solves
BY_IMPORTANCE = Feedback(order="decreasing")

shapes = st.tuples(st.integers(1, 12), st.integers(1, 150))
groups = st.sampled_from([32, 64, 128])
budgets = st.one_of(st.floats(2.01, 12), st.integers(3, 12).map(float))
ladders = st.sampled_from([None, (4,), (2, 8), (3, 4), (2, 4, 8), WIDTHS, tuple(range(2, 9))])


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gram(seed, n_in):
    """H of inputs of very different size."""
    X = gaussian(seed, n_in + 20, n_in) * gaussian(seed + 1, n_in).exp()
    return X.T @ X / len(X) + 0.01 * torch.eye(n_in, dtype=torch.float64)


def fitted_or_none(grid, W, H):
    """The fitted grid, or None where the shape does not fit the budget."""
    try:
        return grid.fit(W, H)
    except ValueError as error:
        assert "takes at least" in str(error) or "take more than" in str(error)
        return None


@settings(max_examples=100)
@given(st.integers(0, 10**6), shapes, groups, budgets, ladders)
def test_the_budget_is_never_exceeded_and_used_as_far_as_steps_go(seed, shape, group, budget, ladder):
    W, H = gaussian(seed, *shape), gram(seed, shape[1])
    grid = Exl2(budget=budget, group=group, widths=ladder)
    fitted, (n_out, n_in) = fitted_or_none(grid, W, H), shape
    allowed = Fraction(budget) * n_out * n_in
    narrowest = (ladder or WIDTHS)[0]
    if fitted is None:
        assert n_out * n_in * narrowest + grid.beside_bits(n_out, n_in) > allowed
        return
    widths = fitted.widths.tolist()
    assert fitted.n_bits <= allowed and fitted.n_bits / (n_out * n_in) <= budget
    assert set(widths) <= set(ladder or WIDTHS) and widths == sorted(widths, reverse=True)
    if ladder is None and len(set(widths)) > 1:  # two widths, one after the other
        assert sorted(set(widths)) == [w for w in WIDTHS if min(widths) <= w <= max(widths)]
    if ladder is None or len(ladder) == 2:  # the first group that is not wide does not fit
        narrow = widths.index(min(widths))
        wider = [w for w in (ladder or WIDTHS) if w > widths[narrow]]
        if wider and not (ladder is not None and len(set(widths)) == 1 and widths[0] == ladder[1]):
            step = n_out * grid.counts(n_in)[narrow] * (wider[0] - widths[narrow])
            assert fitted.n_bits + step > allowed


@settings(max_examples=40)
@given(shapes, groups, st.sampled_from([2, 3, 5]))
def test_the_least_budget_that_an_error_names_fits_and_hardly_less_does(shape, group, narrowest):
    importance = torch.ones(shape[1])
    grid = Exl2(budget=narrowest + 1e-4, group=group, widths=(narrowest, 8))
    with pytest.raises(ValueError, match=rf"matrix of shape \({shape[0]}, {shape[1]}\) takes at least") as error:
        grid.allocate(shape[0], importance)
    least = float(str(error.value).split()[-1])
    assert Exl2(budget=least, group=group, widths=(narrowest, 8)).allocate(shape[0], importance).min() == narrowest
    with pytest.raises(ValueError, match="takes at least"):  # named to four digits, rounded up
        Exl2(budget=least - 1.01e-4, group=group, widths=(narrowest, 8)).allocate(shape[0], importance)


def test_allocation_takes_the_steps_that_save_most_for_their_bits():
    grid = Exl2(budget=4.9, group=32, widths=(2, 4, 8))

    # beside the codes of 100 outputs: 3 (19 + 400) + 96 * 7 = 1929 bits, .2 of a bit, which leaves 2.7 beyond 2 bits:
    # 8.1 for one of the three groups. Its step 2 -> 4 saves i 15/256 / 2 for a bit, 4 -> 8 saves i 255/65536 / 4:
    # a thirtieth
    def widths(*importance):
        return grid.allocate(100, torch.tensor(importance, dtype=torch.float64).repeat_interleave(32)).tolist()

    assert widths(1.0, 1.0, 1.0) == [4, 4, 4]
    assert widths(20.0, 1.0, 1.0) == [4, 4, 4]
    assert widths(1000.0, 1.0, 1.0) == [8, 4, 2]
    assert widths(0.0, 0.0, 0.0) == [8, 4, 2]  # nothing to save: the earlier group first


def test_stored_bits_are_the_releases_formula_but_for_places_and_layouts():
    n = 4096
    for group, released in ((128, 4.0392), (32, 4.1332)):
        grid = Exl2(budget=5.0, group=group, widths=(4,))
        ours = 4 * n * n + grid.beside_bits(n, n)
        theirs = 4 * n * n + n // group * (16 + 32) + n // group * n * 4 + n * 32
        assert theirs / n**2 == pytest.approx(released, abs=5e-5)
        assert theirs - ours == n // group * (32 - 3) + n * (32 - 12)  # widths in 3 bits, places in 12
    assert 4 + Exl2(budget=5.0, group=128).beside_bits(n, n) / n**2 == pytest.approx(4.0342, abs=5e-5)


@settings(max_examples=100)
@given(st.integers(0, 10**6), shapes, groups, budgets, ladders, st.sampled_from([torch.float32, torch.float64]))
def test_bytes_give_the_same_value_back_and_nothing_is_free(seed, shape, group, budget, ladder, dtype):
    W, H = gaussian(seed, *shape, dtype=dtype), gram(seed, shape[1])
    fitted = fitted_or_none(Exl2(budget=budget, group=group, widths=ladder), W, H)
    if fitted is None:
        return
    q = Quantized(codes=fitted.nearest(W), grid=fitted)
    (n_out, n_in), payload, header = shape, q.to_bytes(), json.loads(json.dumps(q.header()))
    n_groups = -(-n_in // group)
    order_bits = n_in * math.ceil(math.log2(n_in))
    code_bits = sum(int(fitted.widths[fitted.group_of[j]]) for j in range(n_in)) * n_out
    assert q.n_bits == code_bits + n_groups * (3 + 16 + 4 * n_out) + order_bits
    assert len(payload) == -(-q.n_bits // 8) and q.entropy_bits <= q.n_bits * (1 + 2.0**-40)
    back = Quantized.from_bytes(payload, header)
    assert torch.equal(back.codes, q.codes) and torch.equal(back.dequantize(), q.dequantize())
    assert back.to_bytes() == payload and back.n_bits == q.n_bits and back.grid.grid == fitted.grid
    for wrong in (b"", payload[:-1], payload + b"\0"):
        with pytest.raises(ValueError, match=r"payload has \d+ bytes, its streams need \d+"):
            Quantized.from_bytes(wrong, header)


def twin(x, bits):
    """Steps, candidates for t and their objectives, in plain float64 (numpy), from the description alone."""
    most = np.abs(x).max(axis=1) / (2**bits - 1) * 2
    largest = most.max()
    steps = np.clip(np.rint(16 * np.sqrt(most / largest)), 1, 16)
    found = []
    for p in (1 - i / 48 / 4 for i in range(49)):
        top = float(np.float16(p * largest))
        s = ((steps / 16) ** 2 * top)[:, None]
        codes = np.clip(np.rint(x / s) + 2 ** (bits - 1), 0, 2**bits - 1)
        found.append((float((np.abs(x - (codes - 2 ** (bits - 1)) * s) ** 3.5).sum()), top))
    return steps, found


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 80), st.sampled_from([2, 3, 4, 6, 8]))
def test_scales_follow_a_plain_twin(seed, n_out, n_in, bits):
    W, H = gaussian(seed, n_out, n_in) * gaussian(seed + 1, n_out, 1).exp(), gram(seed, n_in)
    fitted = Exl2(budget=200.0, group=32, widths=(bits,)).fit(W, H)
    order = H.diagonal().argsort(descending=True, stable=True)
    assert torch.equal(fitted.order, order)
    assert bool((fitted.steps >= 1).all() & (fitted.steps <= 16).all() & (fitted.steps == fitted.steps.round()).all())
    for g, columns in enumerate(order.split(32)):
        steps, found = twin(W[:, columns].numpy(), bits)
        assert fitted.steps[:, g].tolist() == steps.tolist()
        least = min(objective for objective, _ in found)
        best = [top for objective, top in found if objective <= least * (1 + n_out * n_in * 8 * EPS)]
        assert float(fitted.tops[g]) in best and float(fitted.tops[g].half()) == float(fitted.tops[g])


@settings(max_examples=60)
@given(st.integers(0, 10**6), shapes, groups, budgets, ladders)
def test_values_are_the_nearest_levels_and_float32_is_exact_in_its_scales(seed, shape, group, budget, ladder):
    W, H = gaussian(seed, *shape), gram(seed, shape[1])
    fitted = fitted_or_none(Exl2(budget=budget, group=group, widths=ladder), W, H)
    if fitted is None:
        return
    width = fitted.widths[fitted.group_of]
    scale = (fitted.steps / 16)[:, fitted.group_of] ** 2 * fitted.tops[fitted.group_of]
    assert torch.equal(scale.float().double(), scale)  # 8 bits of k^2 times 11 of a float16
    x = 1.5 * W
    codes, values = fitted.snap(x)
    levels = torch.arange(256)
    distance = (x[..., None] - (levels - 2 ** (width - 1)[:, None]) * scale[..., None]).abs()
    distance = distance.masked_fill(levels >= 2 ** width[:, None], math.inf)
    chosen = distance.gather(2, codes.long()[..., None])[..., 0]
    assert bool((chosen <= distance.amin(2) + scale * 2**9 * EPS).all())
    assert torch.equal(values, fitted.decode(codes)) and torch.equal(codes, fitted.nearest(x))
    assert torch.equal(fitted.decode32(codes), values.float())  # one rounding, of an exact product
    below, above = (fitted.decode(c) for c in fitted.neighbors(x))
    assert bool(((above - below == 0) | ((above - below - scale).abs() <= scale * 2**9 * EPS)).all())
    inside = below < above
    assert bool(((below <= x + scale * 2**9 * EPS) & (x <= above + scale * 2**9 * EPS))[inside].all())
    cost = torch.rand(256, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    total = (distance**2 + cost).masked_fill(distance.isinf(), math.inf)
    rated = total.gather(2, fitted.nearest(x, cost=cost).long()[..., None])[..., 0]
    torch.testing.assert_close(rated, total.amin(2), rtol=2**10 * EPS, atol=0)
    for columns in (slice(0, 1), slice(0, shape[1] // 2 + 1), torch.tensor([shape[1] - 1, 0])):
        assert torch.equal(fitted.nearest(x[:, columns], columns), codes[:, columns])
        assert torch.equal(fitted.decode(codes[:, columns], columns), values[:, columns])
        for mine, among_all in zip(fitted.neighbors(x[:, columns], columns), fitted.neighbors(x), strict=True):
            assert torch.equal(mine, among_all[:, columns])


def test_ties_go_to_even():
    fitted = Exl2(budget=200.0, widths=(4,)).fit(torch.tensor([[7.5, 1.0, 0.0]]), torch.eye(3, dtype=torch.float64))
    s = float(fitted.decode(torch.full((1, 3), 9, dtype=torch.uint8))[0, 0])
    codes = fitted.nearest(torch.tensor([[0.5, 1.5, -0.5]]) * s)
    assert codes.tolist() == [[8, 10, 8]]


def textbook(W, H, fitted, damping):
    """Codes of EXL2 as optimal brain surgeon: quantize a weight, move the others by the inverse, take it out.

    Also the least distance, in steps, of any rounded value from a tie.
    """
    work, codes, margin = W.clone(), torch.empty(W.shape, dtype=torch.uint8), math.inf
    inverse = torch.linalg.inv(H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype))
    for place, j in enumerate(fitted.order.tolist()):
        if place % fitted.grid.group == 0:
            columns = fitted.order[place : place + fitted.grid.group]
            bits = int(fitted.widths[place // fitted.grid.group])
            steps, found = twin(work[:, columns].numpy(), bits)
            s = torch.from_numpy(steps / 16) ** 2 * min(found, key=lambda pair: pair[0])[1]
        whole = (work[:, j] / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        margin = min(margin, float(((work[:, j] / s - whole).abs() - 0.5).abs().min()))
        codes[:, j] = (whole + 2 ** (bits - 1)).to(torch.uint8)
        work = work - torch.outer((work[:, j] - whole * s) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, margin


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 100), st.sampled_from([(3,), (2, 4), (2, 3, 5)]))
def test_error_feedback_fits_each_group_when_it_comes_up(seed, n_out, n_in, ladder):
    W, H = gaussian(seed, n_out, n_in), gram(seed, n_in)
    grid = Exl2(budget=ladder[-1] + 30.0 / n_out, group=32, widths=ladder)
    plain = fitted_or_none(grid, W, H)
    assume(plain is not None)
    expected, margin = textbook(W, H, plain, 0.07)
    assume(margin > 1e-6)
    found = Feedback(order="decreasing", damping=0.07).round(W, grid, H, torch.Generator())
    assert torch.equal(found.codes, expected) and torch.equal(found.grid.widths, plain.widths)


@settings(max_examples=40)
@given(st.integers(0, 10**6), shapes, groups, st.sampled_from([3.0, 4.5]), st.sampled_from(["static", "dynamic"]))
def test_the_errors_energy_is_what_rounding_left_behind(seed, shape, group, budget, moving):
    W, H = gaussian(seed, *shape), gram(seed, shape[1])
    grid = Exl2(budget=budget + 30.0 / shape[0] + 20.0 / shape[1], group=group)
    assume(fitted_or_none(grid, W, H) is not None)
    found = Feedback(order="decreasing", groups=moving, damping=0.07).round(W, grid, H, torch.Generator())
    R, perm, _ = factor(H, "decreasing", 0.07)
    Q, errors = found.grid.decode(found.codes), torch.empty_like(W)
    errors[:, perm] = (W - Q)[:, perm] @ R / R.diagonal()  # w' - q of each value, w' as it was when its turn came
    D = H + 0.07 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    energy = (errors[:, perm] ** 2 * R.diagonal() ** 2).sum(1)
    torch.testing.assert_close(energy, (((W - Q) @ D) * (W - Q)).sum(1), rtol=CLOSE, atol=0)
    nearest = found.grid.decode(found.grid.nearest(Q + errors))
    slack = CLOSE * (Q.abs() + errors.abs() + W.abs().max())
    assert bool((errors.abs() <= (Q + errors - nearest).abs() + slack).all())


def test_it_goes_with_error_feedback_in_its_own_order_only():
    grid = Exl2(budget=3.5)
    assert Target(grid, BY_IMPORTANCE).unsupported is None
    for rounding in (Nearest(), Stochastic(), Feedback(), Feedback(order="pivot")):
        assert "EXL2 takes error feedback in decreasing order" in Target(grid, rounding).unsupported
    assert "half-quadratic" in Target(grid, HalfQuadratic()).unsupported
    found = Recipe(weights=Target(Integer(bits=4)), activations=Target(grid, BY_IMPORTANCE)).unsupported
    assert found == "activations are rounded to nearest"
    W, H = gaussian(0, 40, 70), gram(1, 70)
    with pytest.raises(ValueError, match="found another order of columns"):
        Feedback(order="pivot").round(W, grid, H, torch.Generator())
    with pytest.raises(ValueError, match="has other columns than the 32 given"):
        Feedback(order="given").round(W, grid, H, torch.Generator())


def test_bad_input_is_an_error_that_names_it():
    H = torch.eye(7, dtype=torch.float64)
    for bad in (float("nan"), float("inf")):
        W = gaussian(0, 5, 7)
        W[2, 3] = bad
        with pytest.raises(ValueError, match=r"expected finite values, .* shape \(5, 7\)"):
            Exl2(budget=9.0).fit(W, H)
    with pytest.raises(ValueError, match="non-empty"):
        Exl2(budget=9.0).fit(torch.empty(3, 0), torch.empty(0, 0))
    for wrong, found in ((None, "none"), (torch.eye(4), r"shape \(4, 4\)")):
        with pytest.raises(ValueError, match=rf"needs the Gram matrix H of shape \(7, 7\), found {found}"):
            Exl2(budget=9.0).fit(gaussian(0, 5, 7), wrong)
    with pytest.raises(ValueError, match="codes of 2 bits and their scales take more than 2 bits per weight"):
        Exl2(budget=2).fit(gaussian(0, 5, 7), H)
    q = quantize_matrix(gaussian(0, 40, 70), method="exl2", bits=4, H=gram(0, 70))
    with pytest.raises(ValueError, match="the order is not one of 70 input channels"):
        Quantized.from_bytes(q.to_bytes()[:1] + bytes(70) + q.to_bytes()[71:], q.header())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(budget="3"), "budget '3': expected bits per weight"),
        (dict(budget=math.inf), "budget inf"),
        (dict(budget=3, group=48), "groups of 32, 64 and 128"),
        (dict(budget=3, widths=()), "expected ascending ones from 2 to 8"),
        (dict(budget=3, widths=(4, 3)), "expected ascending ones from 2 to 8"),
        (dict(budget=3, widths=(1, 3)), "expected ascending ones from 2 to 8"),
    ],
)
def test_a_grid_that_is_none_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Exl2(**arguments)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_zeros_and_values_beyond_float16_stay_finite(scale):
    W = gaussian(0, 20, 70, dtype=torch.float32) * scale
    q = quantize_matrix(W, method="exl2", bits=4, H=gram(0, 70))
    assert bool(torch.isfinite(q.dequantize()).all()) and q.n_bits <= 4 * W.numel()
    if scale < 1:
        assert torch.equal(q.dequantize(), torch.zeros_like(W))


def test_the_methods_bits_are_the_whole_budget():
    method, W, H = method_named("exl2"), gaussian(0, 128, 256, dtype=torch.float32), gram(1, 256)
    for bits in range(3, 9):
        recipe = method.recipe(bits=bits)
        assert parse(str(recipe)) == recipe and recipe.unsupported is None and recipe.weights.grid.bits == bits
        q = quantize_matrix(W, recipe=recipe, H=H)
        step = 128 * 32 * 2  # of one group, by at most two bits
        assert bits * W.numel() - step < q.n_bits <= bits * W.numel() or set(q.grid.widths.tolist()) == {8}
    assert "2 bits per weight" in method.recipe(bits=2).unsupported
    fraction = method.recipe(bits=2, budget=2.75, group=64)
    assert fraction.weights.grid == Exl2(budget=2.75, group=64) and parse(str(fraction)) == fraction
    assert str(Exl2(budget=3)) == str(Exl2(budget=3.0))


@golden.needed
@pytest.mark.parametrize("bits", [3, 4])
def test_at_the_bits_of_gptq_in_the_same_order_the_error_is_lower(bits):
    gptq = Target(Integer(bits=bits), Feedback(order="decreasing", groups="static"))
    totals = [0.0, 0.0]
    for seed in (11, 12):
        for weights in ("gaussian", "student"):
            W, H = golden.matrices(seed, weights)
            plain = quantize_layer(W.float(), gptq, H, torch.Generator())
            ours = quantize_matrix(W.float(), method="exl2", bits=bits, budget=plain.n_bits / W.numel(), H=H)
            assert ours.n_bits <= plain.n_bits
            totals = [t + relative_errors(W, q.dequantize(), H)[1] for t, q in zip(totals, (plain, ours), strict=True)]
    assert totals[1] < totals[0]
