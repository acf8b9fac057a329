from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grids import Integer, OutputSearch, ShrinkSearch
from suite.grids.integer import CONVENTIONS, FittedInteger

SUPPORTED = [(c, bits) for c in CONVENTIONS for bits in range(1, 9) if bits > 1 or c == "half-integer"]
GROUPINGS = [(3, 1), (3, 0), ("row", 1), ("tensor", 1)]  # 3 divides neither side of the matrices below
GRIDS = [Integer(bits=b, group=g, convention=c, axis=a) for c, b in SUPPORTED for g, a in GROUPINGS]
WIDTHS = [Integer(bits=b, group=3, convention=c) for c, b in SUPPORTED]
OWN_ZERO = ("asymmetric", "real-zero")

all_grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.convention}-{g.bits}-{g.group}-axis{g.axis}")
all_widths = pytest.mark.parametrize("grid", WIDTHS, ids=lambda g: f"{g.convention}-{g.bits}")

# x / s and q are at most 2^9 steps from 0 here, so that the few roundings on the way are below this share of s
SLACK = 2.0**9 * 8 * 2.0**-52


def matrix(seed=0, n_out=5, n_in=7, dtype=torch.float64):
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def levels(fitted):
    """All values (2^b or, narrow, 2^b - 1; out, in) that codes can stand for."""
    first = 1 if fitted.grid.convention == "narrow" else 0
    codes = torch.arange(first, fitted.n_codes, dtype=torch.uint8)
    return torch.stack([fitted.decode(c.expand(fitted.shape)) for c in codes])


def step(fitted):
    return (fitted.decode(torch.ones(fitted.shape, dtype=torch.uint8)) -
            fitted.decode(torch.zeros(fitted.shape, dtype=torch.uint8))).abs()  # fmt: skip


def members(grid, n_out, n_in):
    """(row of the scale, column of the scale, rows, columns) of every group, from the grid's description."""
    if grid.group == "tensor":
        return [(0, 0, range(n_out), range(n_in))]
    if grid.group == "row":
        return [(r, 0, [r], range(n_in)) for r in range(n_out)]
    if grid.axis == 1:
        starts = range(0, n_in, grid.group)
        return [(r, i, [r], range(j, min(j + grid.group, n_in))) for r in range(n_out) for i, j in enumerate(starts)]
    count = -(-n_out // grid.group)
    return [(r, j, range(r, n_out, count), [j]) for r in range(count) for j in range(n_in)]


def holds_nearest_levels(fitted, x):
    """Whether x is rounded to a level that no other beats."""
    gap = (x - fitted.decode(fitted.nearest(x))).abs()
    return bool((gap <= (x - levels(fitted)).abs().amin(0) + step(fitted) * SLACK).all())


@all_grids
def test_every_code_is_the_nearest_to_its_own_value(grid):
    for x in (matrix(1), matrix(2).abs(), -matrix(3).abs()):
        fitted = grid.fit(x)
        first = 1 if grid.convention == "narrow" else 0
        for code in range(first, fitted.n_codes):
            codes = torch.full(fitted.shape, code, dtype=torch.uint8)
            assert torch.equal(fitted.nearest(fitted.decode(codes)), codes)


@all_grids
def test_no_level_is_nearer_than_the_chosen_one(grid):
    fitted = grid.fit(matrix(1))
    for x in (matrix(1), matrix(4), 100 * matrix(5)):
        assert holds_nearest_levels(fitted, x)


@all_grids
def test_within_the_range_the_error_is_at_most_half_a_step(grid):
    fitted, x = grid.fit(matrix(1)), 2 * matrix(4)
    ends, s = levels(fitted), step(fitted)
    inside = (x >= ends.amin(0)) & (x <= ends.amax(0))
    assert 0 < int(inside.sum()) < x.numel()
    gap = (x - fitted.decode(fitted.nearest(x))).abs()
    assert bool((gap[inside] <= s[inside] * (0.5 + SLACK)).all())
    codes = fitted.nearest(x)[~inside]
    assert set(codes.tolist()) <= {fitted._lowest, fitted.n_codes - 1}


@all_grids
def test_neighbors_are_the_levels_on_both_sides(grid):
    fitted, x = grid.fit(matrix(1)), 2 * matrix(4)
    below, above = fitted.neighbors(x)
    a, b = fitted.decode(below), fitted.decode(above)
    slack = step(fitted) * SLACK
    inside = below != above
    assert bool((above[inside] == below[inside] + 1).all())
    assert bool((torch.minimum(a, b) <= x + slack)[inside].all() and (x <= torch.maximum(a, b) + slack)[inside].all())
    ends = levels(fitted)
    assert bool(((x >= ends.amax(0) - slack) | (x <= ends.amin(0) + slack))[~inside].all())
    assert torch.equal(fitted.nearest(x)[~inside], below[~inside])
    nearest = fitted.nearest(x)
    assert bool(((nearest == below) | (nearest == above)).all())


@all_grids
def test_a_group_has_the_parameters_of_its_members_alone(grid):
    x = matrix(6)
    fitted, alone = grid.fit(x), replace(grid, group="tensor", axis=1)
    found = members(grid, *x.shape)
    assert fitted.scale.numel() == len(found)
    assert sum(len(rows) * len(columns) for _, _, rows, columns in found) == x.numel()
    q = fitted.decode(fitted.nearest(x))
    for r, c, rows, columns in found:
        block = x[list(rows)][:, list(columns)]
        own = alone.fit(block)
        assert fitted.scale[r, c] == own.scale
        assert fitted.zero is None or fitted.zero[r, c] == own.zero
        assert torch.equal(q[list(rows)][:, list(columns)], own.decode(own.nearest(block)))


@all_grids
def test_some_columns_are_rounded_as_among_all(grid):
    x = matrix(7)
    fitted = grid.fit(x)
    codes = fitted.nearest(x)
    q = fitted.decode(codes)
    for columns in (slice(2, 3), slice(0, 5), slice(4, 7), slice(None), torch.tensor([6, 0, 3])):
        assert torch.equal(fitted.nearest(x[:, columns], columns), codes[:, columns])
        assert torch.equal(fitted.decode(codes[:, columns], columns), q[:, columns])
        for mine, among_all in zip(fitted.neighbors(x[:, columns], columns), fitted.neighbors(x), strict=True):
            assert torch.equal(mine, among_all[:, columns])


@all_grids
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_what_can_be_stored(grid, dtype):
    x = matrix(8, dtype=dtype)
    for scale_bits, kind in ((16, torch.float16), (32, torch.float32)):
        fitted = replace(grid, scale_bits=scale_bits).fit(x)
        assert torch.equal(fitted.scale, fitted.scale.to(kind).to(dtype))
        if fitted.zero is not None:
            whole = grid.convention == "asymmetric"
            stored = fitted.zero.round().clamp(0, fitted.n_codes - 1) if whole else fitted.zero.to(kind).to(dtype)
            assert torch.equal(fitted.zero, stored)


@all_grids
@pytest.mark.parametrize("scale_bits, exponent", [(16, 3), (32, -20), (32, 20)])
def test_powers_of_two_pass_through(grid, scale_bits, exponent):
    x, grid = matrix(9, 5, 8), replace(grid, scale_bits=scale_bits)  # no group of one value: its scale is always 1
    fitted, scaled = grid.fit(x), grid.fit(x * 2.0**exponent)
    assert torch.equal(scaled.scale, fitted.scale * 2.0**exponent)
    assert fitted.zero is None or torch.equal(scaled.zero, fitted.zero)
    assert torch.equal(scaled.nearest(x * 2.0**exponent), fitted.nearest(x))


@all_grids
@pytest.mark.parametrize("shape", [(5, 1), (1, 7), (1, 1)])
def test_one_row_and_one_column_are_matrices_too(grid, shape):
    x = matrix(10, *shape)
    assert holds_nearest_levels(grid.fit(x), x)


@all_grids
def test_values_of_one_sign_are_rounded_to_nearest(grid):
    for x in (matrix(11).abs() + 1, -matrix(11).abs() - 1):
        assert holds_nearest_levels(grid.fit(x), x)


@all_grids
def test_zeros_stay_zeros(grid):
    x = torch.zeros(5, 7)
    fitted = grid.fit(x)
    q = fitted.decode(fitted.nearest(x))
    if grid.convention == "half-integer":
        assert torch.equal(q.abs(), torch.full_like(q, 2.0**-25))  # half of float16's smallest step
    else:
        assert torch.equal(q, x)
        assert torch.equal(fitted.scale.abs(), torch.ones_like(fitted.scale))


@all_widths
@pytest.mark.parametrize("value", [0.75, -0.75])
def test_a_constant_is_met_where_the_convention_has_its_level(grid, value):
    x = torch.full((5, 7), value, dtype=torch.float64)
    fitted = grid.fit(x)
    q = fitted.decode(fitted.nearest(x))
    if grid.convention in ("real-zero", "signed-max"):
        assert torch.equal(q, x)
    elif grid.convention == "span" and value > 0:
        assert bool((x - q <= step(fitted) * 0.5 + x * 2.0**-10).all() and (q < x).all())  # passed by, as documented
    else:  # met but for the rounding of the scale to 11 bits
        half = step(fitted) / 2 if grid.convention == "span" else 0
        assert bool(((x - q).abs() <= half + x.abs() * 2.0**-11 + SLACK).all())


@pytest.mark.parametrize("scale_bits, digits", [(16, 11), (32, 24)])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("center", [1e-3, 0.1, 1000.0, 60000.0, 1e6, -0.1])
def test_a_narrow_group_far_from_zero_is_met_to_the_precision_of_what_is_stored(center, spread, scale_bits, digits):
    x = center * (1 + spread * torch.linspace(0, 1, 7, dtype=torch.float64)[None])
    fitted = Integer(bits=4, group=7, convention="real-zero", scale_bits=scale_bits).fit(x)
    gap = (x - fitted.decode(fitted.nearest(x))).abs()
    # half a step, and the zero point's own rounding; no scale is below the 2^-15th part of float16's largest value
    smallest = abs(center) * 2.0**-15 + 2.0**-24 if scale_bits == 16 else 0.0
    assert float(gap.max()) <= max(spread * abs(center) / 15, smallest) + abs(center) * (1 + spread) * 2.0**-digits


@pytest.mark.parametrize("grid", WIDTHS, ids=lambda g: f"{g.convention}-{g.bits}")
def test_values_beyond_float16_saturate(grid):
    for x in (torch.tensor([[1e30, -1e30, 1.0]]), torch.full((1, 3), 1e30), torch.tensor([[1e-30, 0.0, -1e-30]])):
        fitted = grid.fit(x)
        assert bool(torch.isfinite(fitted.decode(fitted.nearest(x))).all())


@all_widths
def test_ties_go_to_the_even_side_that_is_documented(grid):
    s = 0.25
    zero = {"asymmetric": 1.0, "real-zero": 0.5}.get(grid.convention)
    fitted = FittedInteger(grid=grid, shape=(1, 1), scale=torch.tensor([[s]]),
                           zero=None if zero is None else torch.tensor([[zero]]))  # fmt: skip
    z = grid.zero if zero is None else zero
    for code in range(fitted._lowest, fitted.n_codes - 1):
        x = torch.tensor([[s * (code + 0.5 - z)]])  # exact, halfway between `code` and the next one
        even = code if (code - int(z) if z == int(z) else code) % 2 == 0 else code + 1
        assert fitted.nearest(x).item() == even


@pytest.mark.parametrize("bits", range(2, 9))
def test_conventions_are_what_their_names_say(bits):
    x, top = torch.tensor([[-0.5, 1.0, 0.25]]), 2**bits - 1

    def ends(convention, x=x):
        fitted = Integer(bits=bits, group="row", convention=convention, scale_bits=32).fit(x)
        found = levels(fitted)[:, 0, 0]
        return float(found.min()), float(found.max())

    near = dict(rel=bits * 2.0**-20)
    assert ends("full-range") == pytest.approx((-(2 ** (bits - 1)) / (top // 2), 1.0), **near)
    assert ends("narrow") == pytest.approx((-1.0, 1.0), **near)
    assert ends("span") == pytest.approx((-(2**bits) / top, 1 - 1 / top), **near)
    assert ends("half-integer") == pytest.approx((-1.0, 1.0), **near)
    assert ends("signed-max") == pytest.approx((-1 + 2.0 ** (1 - bits), 1.0), **near)
    assert ends("signed-max", -x) == pytest.approx((-1.0, 1 - 2.0 ** (1 - bits)), **near)
    assert ends("real-zero") == pytest.approx((-0.5, 1.0), **near)
    assert ends("real-zero", x + 2) == pytest.approx((1.5, 3.0), **near)
    low, high = ends("asymmetric", x + 2)
    assert low == 0 and high == pytest.approx(3.0, **near)
    low, high = ends("asymmetric")
    assert high - low == pytest.approx(1.5, **near)
    assert abs(high - 1.0) <= 1.5 / top / 2 + 1e-6  # the zero point moves by at most half a step


@all_widths
def test_without_a_cost_the_rate_term_is_silent_and_with_one_it_is_minimized(grid):
    fitted, x = grid.fit(matrix(1)), 2 * matrix(12)
    assert torch.equal(fitted.nearest(x, cost=torch.zeros(fitted.n_codes, dtype=x.dtype)), fitted.nearest(x))
    cost = torch.rand(fitted.n_codes, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    total = (x - levels(fitted)) ** 2 + cost[fitted._lowest :, None, None]
    assert torch.equal(fitted.nearest(x, cost=cost).long(), total.argmin(0) + fitted._lowest)
    columns = slice(2, 5)
    among_all = fitted.nearest(x, cost=cost)[:, columns]
    assert torch.equal(fitted.nearest(x[:, columns], columns, cost=cost), among_all)


@pytest.mark.parametrize("group, axis", GROUPINGS)
@pytest.mark.parametrize("convention, bits", [(c, b) for c, b in SUPPORTED if b in (1, 2, 4)])
def test_a_shrink_search_never_raises_its_own_norm(convention, bits, group, axis):
    search = ShrinkSearch(norm=2.4, steps=20)
    plain = Integer(bits=bits, group=group, convention=convention, axis=axis)
    x = matrix(13) ** 3  # heavy tails, so that something is clipped
    sums = []
    for grid in (plain, replace(plain, clip=search)):
        fitted = grid.fit(x)
        E = (x - fitted.decode(fitted.nearest(x))).abs() ** search.norm
        sums.append(torch.stack([E[list(r)][:, list(c)].sum() for _, _, r, c in members(grid, *x.shape)]))
    before, after = sums
    assert bool((after <= before * (1 + 35 * 2.0**-52)).all())
    assert convention == "half-integer" or bits == 4 or bool((after < before).any())


@pytest.mark.parametrize("group", [3, "row"])
@pytest.mark.parametrize("convention, bits", [(c, b) for c, b in SUPPORTED if b in (1, 2, 4)])
def test_an_output_search_never_raises_the_output_error_of_a_group(convention, bits, group):
    plain = Integer(bits=bits, group=group, convention=convention)
    x, X = matrix(13) ** 3, matrix(14, 40, 7) @ matrix(15, 7, 7)
    H = X.T @ X / 40
    sums = []
    for grid in (plain, replace(plain, clip=OutputSearch())):
        fitted = grid.fit(x, H)
        E = x - fitted.decode(fitted.nearest(x))
        parts = [E[list(r)][:, list(c)] @ H[list(c)][:, list(c)] @ E[list(r)][:, list(c)].T
                 for _, _, r, c in members(grid, *x.shape)]  # fmt: skip
        sums.append(torch.cat(parts).flatten())
    before, after = sums
    # quadratic forms of at most 49 terms of size |E|^2 |H|
    assert bool((after <= before + 49 * 2.0**-52 * float((x**2).max() * H.abs().max())).all())


def test_searches_find_something_to_clip():
    x = torch.cat([matrix(16, 1, 255), torch.full((1, 1), 6.0, dtype=torch.float64)], dim=1)
    H = torch.eye(256, dtype=torch.float64)
    plain = Integer(bits=3, group="row", convention="narrow")
    for clip in (ShrinkSearch(), OutputSearch()):
        assert bool(replace(plain, clip=clip).fit(x, H).scale < plain.fit(x).scale)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(GRIDS))
def test_refitting_a_group_gives_the_parameters_of_its_new_values(seed, grid):
    if grid.axis == 0:
        return
    x, new = matrix(seed), matrix(seed + 1)
    fitted = grid.fit(x)
    if fitted.scale.shape[1] == 1:
        return
    columns = torch.arange(3, 6)
    moved = x.clone()
    moved[:, columns] = new[:, columns]
    refitted, expected = fitted.refit(new[:, columns], 1, columns, None), grid.fit(moved)
    assert torch.equal(refitted.scale, expected.scale)
    assert fitted.zero is None or torch.equal(refitted.zero, expected.zero)


@pytest.mark.parametrize("convention", [c for c in CONVENTIONS if c not in OWN_ZERO and c != "signed-max"])
def test_a_known_range_gives_the_scale_of_values_in_it(convention):
    grid, x = Integer(bits=8, group="tensor", convention=convention), matrix(17)
    high = x.abs().max().reshape(1, 1)
    assert torch.equal(grid.fit_range(-high, high, (5, 7)).scale, grid.fit(x).scale)


# rows of the dossier's table of effective bits, and their like
@pytest.mark.parametrize(
    "bits, shape, options, bpw",
    [
        (4, (2, 512), dict(convention="full-range"), 4.125),
        (4, (2, 512), dict(convention="asymmetric"), 4.15625),
        (4, (2, 512), dict(convention="real-zero"), 4.25),
        (3, (2, 512), dict(convention="asymmetric"), 3 + (16 + 3) / 128),
        (4, (2, 512), dict(convention="full-range", scale_bits=32), 4.25),
        (4, (2, 512), dict(convention="real-zero", scale_bits=32), 4.5),
        (2, (4, 4096), dict(convention="half-integer", group="row"), 2 + 16 / 4096),  # SEQ, LSQ: 2.0039
        (4, (2, 512), dict(convention="signed-max", group=32), 4.5),  # Q4_0
        (8, (4, 64), dict(convention="narrow", group="tensor"), 8 + 16 / 256),
        (4, (2, 130), dict(convention="span"), 4 + 2 * 16 / 130),  # a short last group pays in full
        (4, (64, 3), dict(convention="real-zero", group=64, axis=0), 4.5),
        (4, (65, 3), dict(convention="real-zero", group=64, axis=0), 4 + 2 * 32 / 65),
        (1, (2, 512), dict(convention="half-integer"), 1.125),
    ],
)
def test_every_stored_bit_is_counted(bits, shape, options, bpw):
    fitted = Integer(bits=bits, **options).fit(torch.zeros(shape))
    assert fitted.n_bits == bpw * shape[0] * shape[1]
    beside_codes = sum(count * width for count, width in fitted.widths.values())
    assert beside_codes == fitted.n_bits - bits * shape[0] * shape[1]


@pytest.mark.parametrize("groups, width", [(2, 1), (4, 2), (5, 3), (8, 3)])
def test_named_groups_are_charged(groups, width):
    n_in, codes = 2 * groups, torch.full((3, 2 * groups), 9)
    fitted = Integer(bits=4, group=2).fit(matrix(0, 3, n_in))
    named = replace(fitted, group_of=torch.arange(n_in).flip(0) // 2)
    assert named.n_bits == fitted.n_bits + n_in * width
    assert torch.equal(named.decode(codes), fitted.decode(codes).flip(1))


@pytest.mark.parametrize("convention", [c for c in CONVENTIONS if c != "half-integer"])
def test_one_bit_needs_half_integers(convention):
    grid = Integer(bits=1, convention=convention)
    assert "half-integer" in str(grid.unsupported)
    with pytest.raises(ValueError, match="1-bit integers need half-integer levels"):
        grid.fit(matrix())


def test_one_bit_is_a_sign():
    fitted, x = Integer(bits=1, group="row", convention="half-integer").fit(matrix()), matrix()
    assert torch.equal(fitted.decode(fitted.nearest(x)).sign(), x.sign())
    assert Integer(bits=1, convention="half-integer").unsupported is None


@pytest.mark.parametrize("options", [dict(axis=0), dict(group="tensor")])
def test_an_output_search_needs_groups_along_the_inputs(options):
    grid = Integer(bits=4, clip=OutputSearch(), **options)
    with pytest.raises(ValueError, match="along the inputs"):
        grid.fit(matrix(), torch.eye(7, dtype=torch.float64))


@all_widths
def test_what_is_not_a_finite_matrix_is_an_error(grid):
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = matrix()
        x[1, 2] = bad
        with pytest.raises(ValueError, match=r"finite .* shape \(5, 7\)"):
            grid.fit(x)
    for shape in ((0, 3), (3, 0), (3,), (2, 2, 2)):
        with pytest.raises(ValueError, match="non-empty matrix"):
            grid.fit(torch.zeros(shape))
    with pytest.raises(ValueError, match="needs the Gram matrix"):
        replace(grid, clip=OutputSearch()).fit(matrix())


@all_widths
def test_nothing_that_is_handed_in_changes(grid):
    x, H = matrix(), torch.eye(7, dtype=torch.float64)
    before = x.clone(), H.clone()
    fitted = replace(grid, clip=OutputSearch(steps=4)).fit(x, H)
    parameters = fitted.scale.clone(), None if fitted.zero is None else fitted.zero.clone()
    fitted.nearest(x), fitted.neighbors(x), fitted.refit(x[:, :3], 0, torch.arange(3), H)
    fitted.nearest(x[:, :1], slice(0, 1)), fitted.neighbors(x[:, :1], slice(0, 1))
    assert torch.equal(x, before[0]) and torch.equal(H, before[1])
    assert torch.equal(fitted.scale, parameters[0])
    assert fitted.zero is None or torch.equal(fitted.zero, parameters[1])
