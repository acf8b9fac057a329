"""Error feedback against its identities, its bound, and a second implementation that inverts H and updates it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from feedback import CONDITION, EPS, GROUPS, ORDERS, damping, gaussian, grids
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from suite.grids import Integer
from suite.grids.integer import CONVENTIONS, FittedInteger
from suite.rounding import Feedback, HalfQuadratic, Nearest, Stochastic
from suite.rounding.feedback import factor
from suite.rounding.half_quadratic import shrink

CLOSE = CONDITION * 40 * 8 * EPS  # relative rounding error of n_in = 40 solves with such a matrix, about 1e-9


def gram(seed, n_in):
    """H of strongly correlated inputs."""
    X = gaussian(seed, 3 * n_in, n_in) @ gaussian(seed + 1, n_in, n_in)
    return X.T @ X / len(X)


@st.composite
def instances(draw, most=24):
    seed, n_in = draw(st.integers(0, 10**6)), draw(st.integers(1, most))
    return gaussian(seed + 2, draw(st.integers(1, 4)), n_in), gram(seed, n_in)


def damped(H, damping):
    return H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


def rounded(rounding, W, grid, H=None, seed=0):
    return rounding.round(W, grid, H, torch.Generator().manual_seed(seed))


def energy(E, H):
    return ((E @ H) * E).sum(1)


def levels(fitted):
    codes = torch.arange(fitted._lowest, fitted.n_codes, dtype=torch.uint8)
    return torch.stack([fitted.decode(c.expand(fitted.shape)) for c in codes])


def step(fitted):
    a, b = (fitted.decode(torch.full(fitted.shape, c, dtype=torch.uint8)) for c in (1, 2))
    return (a - b).abs()


def compensated(found, W, H, order, damping):
    """What each value was when its turn came, w' = q + ((W - Q) R)_j / R_jj, and the factor's diagonal, as (in,)."""
    R, perm, _ = factor(H, order, damping)
    Q = found.grid.decode(found.codes)
    pushed, diagonal = torch.empty_like(W), torch.empty_like(W[0])
    pushed[:, perm] = (W - Q)[:, perm] @ R / R.diagonal()
    diagonal[perm] = R.diagonal()
    return Q + pushed, diagonal


def textbook(W, H, grid, perm, groups, block):
    """Codes of GPTQ as optimal brain surgeon: quantize a weight, move the others by the inverse, take it out.

    Also the least distance, in steps, of any rounded value from a tie.
    """
    work, inverse = W.clone(), torch.linalg.inv(H)
    codes, margin = torch.empty(W.shape, dtype=torch.uint8), torch.inf
    size = grid.layout(tuple(W.shape)).width
    fitted = grid.fit(W)
    for place, j in enumerate(perm.tolist()):
        if place % block == 0:
            seen = work.clone()
        if groups != "static" and place % size == 0:
            now = work if groups == "dynamic" else seen
            fitted = replace(grid, group="row").fit(now[:, perm[place : place + size]])
        column = slice(j, j + 1) if groups == "static" else slice(0, 1)
        x = work[:, j : j + 1]
        codes[:, j : j + 1] = fitted.nearest(x, column)
        error = x - fitted.decode(codes[:, j : j + 1], column)
        margin = min(margin, float((error.abs() / fitted._affine(column)[0].abs() - 0.5).abs().min()))
        work = work - error / inverse[j, j] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, margin


@settings(max_examples=150)
@given(
    instances(),
    st.sampled_from(ORDERS),
    st.sampled_from(GROUPS),
    damping,
    st.sampled_from([3, 8, "row"]),
    st.sampled_from(CONVENTIONS),
    st.sampled_from([1, 4, 16]),
)
def test_error_feedback_agrees_with_a_textbook_implementation(
    instance, order, groups, damping, group, convention, block
):
    W, H = instance
    grid = Integer(bits=3, group=group, convention=convention, scale_bits=32)
    groups = "static" if group == "row" else groups
    _, perm, _ = factor(H, order, damping)
    expected, margin = textbook(W, damped(H, damping), grid, perm, groups, block)
    assume(margin > CLOSE)
    found = rounded(Feedback(order=order, groups=groups, damping=damping, block=block), W, grid, H)
    assert torch.equal(found.codes, expected)
    assert found.fallbacks == ()


@settings(max_examples=150)
@given(instances(), grids, st.sampled_from(ORDERS), st.sampled_from(GROUPS), damping, st.booleans())
def test_the_errors_energy_is_what_rounding_left_behind(instance, grid, order, groups, damping, stochastic):
    W, H = instance
    pick = Stochastic() if stochastic else Nearest()
    found = rounded(Feedback(order=order, groups=groups, damping=damping, pick=pick), W, grid, H)
    x, diagonal = compensated(found, W, H, order, damping)
    Q, s = found.grid.decode(found.codes), step(found.grid)
    total = energy(W - Q, damped(H, damping))
    torch.testing.assert_close(((x - Q) ** 2 * diagonal**2).sum(1), total, rtol=CLOSE, atol=0)
    ends = levels(found.grid)
    nearest = (x - ends).abs().amin(0)
    inside = (x >= ends.amin(0)) & (x <= ends.amax(0))
    allowed = torch.where(inside, s, nearest) if stochastic else nearest
    assert bool(((x - Q).abs() <= allowed + CLOSE * (s + x.abs())).all())


@settings(max_examples=60)
@given(instances(), st.sampled_from(ORDERS), st.sampled_from(["static", "dynamic"]), damping)
def test_without_clipping_the_error_is_bounded_by_the_pivots(instance, order, groups, damping):
    W, H = instance
    n_in, wide = W.shape[1], 64.0
    # two uncorrelated inputs with large weights make the range so wide that no other value leaves it
    W = torch.cat([W, W.new_tensor([[wide, -wide]]).expand(len(W), 2)], dim=1)
    H = torch.block_diag(H, torch.eye(2, dtype=H.dtype) * H.diagonal().mean())
    found = rounded(Feedback(order=order, groups=groups, damping=damping), W, Integer(bits=8, group="row"), H)
    x, diagonal = compensated(found, W, H, order, damping)
    ends, s = levels(found.grid), step(found.grid)
    assert bool(((x - s / 2 <= ends.amax(0)) & (x + s / 2 >= ends.amin(0)))[:, :n_in].all())
    # the two that make the range miss it by the rounding of scale and zero point, at most one step
    worst = torch.where(torch.arange(n_in + 2) < n_in, s / 2, s)
    bound = (worst**2 * diagonal**2).sum(1)
    assert bool((energy(W - found.grid.decode(found.codes), damped(H, damping)) <= bound * (1 + CLOSE)).all())


@settings(max_examples=60)
@given(st.integers(0, 10**6), grids, st.sampled_from(ORDERS), st.sampled_from([0.0, 0.01, 10.0]))
def test_uncorrelated_inputs_leave_rounding_to_nearest(seed, grid, order, damping):
    W, H = gaussian(seed, 4, 20), gaussian(seed + 1, 20).abs().add(0.01).diag()
    plain = rounded(Nearest(), W, grid)
    for groups in ("static", "dynamic", "stale"):
        if groups == "static" or order == "given":
            found = rounded(Feedback(order=order, groups=groups, damping=damping), W, grid, H)
            assert torch.equal(found.codes, plain.codes)
            assert torch.equal(found.grid.scale, plain.grid.scale)


@settings(max_examples=30)
@given(instances(), grids)
def test_ever_more_damping_ends_in_rounding_to_nearest(instance, grid):
    W, H = instance
    x = W / step(grid.fit(W))
    assume(bool(((x - x.round()).abs() - 0.5).abs().min() > 1e-6) and bool((x - x.round()).abs().min() > 1e-6))
    # corrections are at most |E| |H_offdiagonal| / (1e12 mean diagonal) per column
    found = rounded(Feedback(groups="static", damping=1e12), W, grid, H)
    assert float((found.codes.int() - rounded(Nearest(), W, grid).codes.int()).abs().max()) == 0


@settings(max_examples=30)
@given(instances(most=40), grids, st.sampled_from(ORDERS))
def test_static_groups_do_not_see_the_block_size(instance, grid, order):
    W, H = instance
    codes = [
        rounded(Feedback(order=order, groups="static", block=block), W, grid, H).codes for block in (1, 3, 16, 128)
    ]
    assert all(torch.equal(a, b) for a, b in pairwise(codes))


@settings(max_examples=30)
@given(instances(most=40), st.sampled_from(ORDERS), st.sampled_from([4, 8]), st.sampled_from(CONVENTIONS))
def test_stale_groups_are_dynamic_where_every_group_begins_a_block(instance, order, group, convention):
    W, H = instance
    grid = Integer(bits=3, group=group, convention=convention)
    dynamic = rounded(Feedback(order=order, groups="dynamic"), W, grid, H)
    for block in {4, group}:
        stale = rounded(Feedback(order=order, groups="stale", block=block), W, grid, H)
        assert torch.equal(stale.codes, dynamic.codes)
        assert torch.equal(stale.grid.scale, dynamic.grid.scale)


@settings(max_examples=30)
@given(instances(), grids, st.sampled_from(ORDERS), st.sampled_from(GROUPS), st.sampled_from([2.0**-10, 3.0, 1e6]))
def test_the_size_of_the_gram_matrix_does_not_matter(instance, grid, order, groups, c):
    W, H = instance
    rounding = Feedback(order=order, groups=groups)
    assert torch.equal(rounded(rounding, W, grid, c * H).codes, rounded(rounding, W, grid, H).codes)


@settings(max_examples=30)
@given(instances(), st.randoms(use_true_random=False), st.sampled_from(["decreasing", "pivot"]))
def test_an_order_of_its_own_does_not_see_the_inputs_order(instance, random, order):
    W, H = instance
    grid, rounding = Integer(bits=3, group="row"), Feedback(order=order)
    shuffled = torch.tensor(random.sample(range(len(H)), len(H)))
    found = rounded(rounding, W[:, shuffled], grid, H[shuffled][:, shuffled])
    assert torch.equal(found.codes, rounded(rounding, W, grid, H).codes[:, shuffled])


@settings(max_examples=30)
@given(instances(), st.sampled_from([3, 8, "row"]), st.sampled_from(ORDERS), st.sampled_from(GROUPS))
def test_rows_do_not_see_each_other(instance, group, order, groups):
    W, H = instance
    grid, rounding = Integer(bits=3, group=group), Feedback(order=order, groups=groups)
    alone = torch.cat([rounded(rounding, row[None], grid, H).codes for row in W])
    assert torch.equal(rounded(rounding, W, grid, H).codes, alone)


def test_over_many_matrices_feedback_beats_rounding_to_nearest():
    # single matrices may lose; the sum over 40 of them does not
    grid, ours, plain = Integer(bits=3, group="row"), 0.0, 0.0
    for seed in range(40):
        W, H = gaussian(seed, 4, 16), gram(100 + seed, 16)
        for order in ORDERS:
            found = rounded(Feedback(order=order), W, grid, H)
            ours += float(energy(W - found.grid.decode(found.codes), H).sum()) / len(ORDERS)
        nearest = rounded(Nearest(), W, grid)
        plain += float(energy(W - nearest.grid.decode(nearest.codes), H).sum())
    assert ours < plain


@settings(max_examples=40)
@given(instances(most=8), damping)
def test_decreasing_order_sorts_the_diagonal(instance, damping):
    _, H = instance
    _, perm, _ = factor(H, "decreasing", damping)
    assert bool((H.diagonal()[perm].diff() <= 0).all())


@settings(max_examples=40)
@given(instances(most=8), damping)
def test_pivot_order_takes_the_smallest_schur_complement_last(instance, damping):
    H = damped(instance[1], damping)
    R, perm, _ = factor(instance[1], "pivot", damping)
    chosen: list[int] = []
    for place in reversed(range(len(H))):
        left = [i for i in range(len(H)) if i not in chosen]
        pivots = H.diagonal()[left]
        if chosen:
            across = H[left][:, chosen]
            pivots = pivots - (across @ torch.linalg.inv(H[chosen][:, chosen]) * across).sum(1)
        assert float(pivots[left.index(int(perm[place]))]) <= float(pivots.min()) * (1 + CLOSE)
        assert float(R[place, place]) ** 2 == pytest.approx(float(pivots.min()), rel=CLOSE)
        chosen.append(int(perm[place]))


@settings(max_examples=40)
@given(instances(), st.sampled_from(ORDERS), st.sampled_from([0.01, 1.0]))
def test_the_factor_is_upper_triangular_and_gives_the_matrix_back(instance, order, damping):
    _, H = instance
    R, perm, fallbacks = factor(H, order, damping)
    assert sorted(perm.tolist()) == list(range(len(H)))
    assert torch.equal(R, R.triu()) and bool((R.diagonal() > 0).all()) and fallbacks == ()
    atol = len(H) * 8 * EPS * float(H.diagonal().max()) * (1 + damping)
    torch.testing.assert_close(R @ R.T, damped(H, damping)[perm][:, perm], rtol=0, atol=atol)


@pytest.mark.parametrize("groups", ["dynamic", "stale"])
def test_an_order_of_its_own_with_moving_groups_names_the_groups(groups):
    W, H = gaussian(0, 3, 10), gram(1, 10)
    found = rounded(Feedback(order="decreasing", groups=groups), W, Integer(bits=4, group=4), H)
    assert found.grid.group_of[factor(H, "decreasing", 0.01)[1]].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert rounded(Feedback(order="decreasing", groups="static"), W, Integer(bits=4, group=4), H).grid.group_of is None
    assert (
        rounded(Feedback(order="decreasing", groups=groups), W, Integer(bits=4, group="row"), H).grid.group_of is None
    )


def test_damping_that_had_to_be_raised_is_recorded():
    W, ones = gaussian(0, 3, 4), torch.ones(4, 4, dtype=torch.float64)  # rank one: the second pivot is 1 - 1
    assert rounded(Feedback(damping=0.01), W, Integer(bits=4), ones).fallbacks == ()
    assert rounded(Feedback(damping=0.0), W, Integer(bits=4), ones).fallbacks == ("damping raised from 0 to 0.0001",)
    below = torch.ones(4, 4, dtype=torch.float64) - 0.05 * torch.eye(4, dtype=torch.float64)  # least eigenvalue -0.05
    assert rounded(Feedback(), W, Integer(bits=4), below).fallbacks == ("damping raised from 0.01 to 0.1",)


@pytest.mark.parametrize("order", ORDERS)
def test_dead_inputs_are_recorded_and_rounded_to_nearest(order):
    W, H = gaussian(0, 3, 6), gram(1, 6)
    H[[1, 4]], H[:, [1, 4]] = 0.0, 0.0
    grid = Integer(bits=3, group="row")
    found = rounded(Feedback(order=order), W, grid, H)
    assert found.fallbacks == ("2 dead input channels: rounded without feedback",)
    assert torch.equal(found.codes[:, [1, 4]], rounded(Nearest(), W, grid).codes[:, [1, 4]])
    assert torch.equal(rounded(Feedback(), W, grid, 0 * H).codes, rounded(Nearest(), W, grid).codes)


def test_a_gram_matrix_that_is_none_is_an_error():
    W, grid = gaussian(0, 3, 4), Integer(bits=4)
    with pytest.raises(ValueError, match=r"needs the Gram matrix H of shape \(4, 4\), found none"):
        rounded(Feedback(), W, grid)
    with pytest.raises(ValueError, match=r"found shape \(5, 5\)"):
        rounded(Feedback(), W, grid, gram(0, 5))
    for bad in (-torch.eye(4, dtype=torch.float64), torch.full((4, 4), torch.nan, dtype=torch.float64)):
        with pytest.raises(ValueError, match="cannot be factored with damping up to 10"):
            rounded(Feedback(), W, grid, bad)


@pytest.mark.parametrize("rounding", [Nearest(), Stochastic(), Feedback(), HalfQuadratic()], ids=str)
def test_rounding_leaves_its_inputs_alone(rounding):
    W, H = gaussian(0, 4, 20), gram(1, 20)
    before = W.clone(), H.clone()
    rounded(rounding, W, Integer(bits=3, group=8, convention="real-zero"), H)
    assert torch.equal(W, before[0]) and torch.equal(H, before[1])


@pytest.mark.parametrize("scale", [0.5, -0.5])  # "signed-max" has negative scales
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.97])
def test_stochastic_rounding_is_unbiased(fraction, scale):
    n, x = 20000, scale * (2 + fraction)
    grid = Integer(bits=3, group="row", convention="signed-max")
    fitted = FittedInteger(grid=grid, shape=(1, n), scale=torch.tensor([[scale]], dtype=torch.float64))
    values = torch.full((1, n), x, dtype=torch.float64)
    codes, _ = Stochastic().pick(values, fitted, slice(None), torch.Generator().manual_seed(1))
    q = fitted.decode(codes)
    assert float((q - values).abs().max()) < 0.5
    four_sigma = 4 * 0.5 * (fraction * (1 - fraction) / n) ** 0.5
    assert abs(float(q.mean()) - x) <= four_sigma + 4 * EPS * abs(x)


def test_stochastic_rounding_follows_its_generator_alone():
    W, grid = gaussian(0, 8, 32), Integer(bits=2)
    first, again, other = (rounded(Stochastic(), W, grid, seed=seed).codes for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("bits", [2, 4])
def test_stochastic_rounding_leaves_levels_and_outsiders_where_nearest_puts_them(bits):
    fitted = Integer(bits=bits, group=8, convention="narrow").fit(gaussian(0, 4, 32))
    on = fitted.decode(fitted.nearest(gaussian(1, 4, 32)))
    outside = 10 * gaussian(2, 4, 32).sign()
    for x in (on, outside):
        codes, _ = Stochastic().pick(x, fitted, slice(None), torch.Generator().manual_seed(0))
        # a level divided by its step is whole up to one rounding, and then one side has probability 2^-50
        assert torch.equal(codes, fitted.nearest(x))


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.sampled_from([3, 8, "row", "tensor"]),
    st.sampled_from([0, 1]),
    st.sampled_from([16, 32]),
    st.sampled_from([0.5, 0.7, 1.0]),
)
def test_half_quadratic_rounding_never_raises_the_mean_absolute_error(seed, bits, group, axis, scale_bits, norm):
    assume(bits > 1)
    grid = Integer(bits=bits, group=group, axis=axis, convention="real-zero", scale_bits=scale_bits)
    W = gaussian(seed, 5, 11) ** 3
    errors = []
    for rounding in (Nearest(), HalfQuadratic(norm=norm)):
        found = rounded(rounding, W, grid)
        errors.append(float((W - found.grid.decode(found.codes)).abs().mean()))
        assert torch.equal(found.codes, found.grid.nearest(W))
    assert errors[1] <= errors[0]


def test_half_quadratic_rounding_without_iterations_is_rounding_to_nearest():
    W, grid = gaussian(0, 4, 16), Integer(bits=3, group=8, convention="real-zero")
    none, plain = rounded(HalfQuadratic(iterations=0), W, grid), rounded(Nearest(), W, grid)
    assert torch.equal(none.codes, plain.codes) and torch.equal(none.grid.zero, plain.grid.zero)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([3, 8, "row", "tensor"]), st.sampled_from([0, 1]))
def test_refitted_zero_points_are_the_least_squares_ones(seed, group, axis):
    W = gaussian(seed, 5, 11)
    grid = Integer(bits=3, group=group, axis=axis, convention="real-zero", scale_bits=32)
    fitted = grid.fit(W)
    codes, target = fitted.nearest(W), W + 0.1 * gaussian(seed + 1, 5, 11)
    best = fitted.refit_zero(target, codes)

    def squares(z):
        E = target - replace(fitted, zero=z).decode(codes)
        return grid.layout(tuple(E.shape)).grouped(E**2, 0.0).sum(-1)

    for away in (-1e-3, 1e-3):  # far beyond float32's rounding of a zero point of size 2^3, 2^-21
        assert bool((squares(best.zero) < squares(best.zero + away)).all())
    assert torch.equal(best.scale, fitted.scale)


def test_half_quadratic_rounding_needs_real_zero_points():
    with pytest.raises(ValueError, match="moves the real zero points of integers"):
        rounded(HalfQuadratic(), gaussian(0, 2, 4), Integer(bits=4))


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(0.1, 1.0))
def test_shrinking_is_odd_and_never_stretches(x, beta, norm):
    x = torch.tensor([x, -x, 0.0], dtype=torch.float64)
    found = shrink(x, beta, norm)
    assert found[0] == -found[1] and found[2] == 0
    assert bool((found.abs() <= x.abs()).all()) and bool((found * x >= 0).all())


def test_shrinking_with_norm_one_is_the_soft_threshold():
    x = gaussian(0, 100)
    torch.testing.assert_close(shrink(x, 2.0, 1.0), x.sign() * (x.abs() - 0.5).clamp(min=0), rtol=0, atol=4 * EPS)
