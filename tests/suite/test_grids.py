"""What every grid promises, whatever its levels and scales: one table of grids, one list of promises."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packing import pack, unpack
from suite.grids import (
    E8P,
    GRIDS,
    BellSplit,
    BFloat16,
    Codebooks,
    DoubleQuantized,
    Exl2,
    GaussianTable,
    Gguf,
    Integer,
    KMeansTable,
    LeastSquares,
    OutlierColumns,
    PartlyBinary,
    PowerOfTwo,
    RealScale,
    ResidualBinary,
    Scaled,
    Shifted,
    Sparse,
    Steps,
    Trellis,
    TwoLevel,
    TwoSided,
    Unscaled,
)  # fmt: skip
from suite.recipe import Target, parse
from suite.rounding import Feedback, Nearest, Stochastic


@dataclass(frozen=True)
class Promise:
    """A grid and what holds for it beyond the contract of all.

    `again`: fitting to rounded values gives them back. `powers`: scaling by a power of two scales the result.
    `odd`: the result for -W is the negative of that for W. `zero`: a matrix of zeros stays one.
    `constant`: the largest relative error of a matrix that is constant. Formats that choose codes before they round
    their scales have a `slack`.
    """

    grid: object
    again: bool = False
    powers: bool = True
    odd: bool = False
    zero: bool = True
    constant: float = 2.0**-10  # of a float16 scale
    slack: float = 1e-5  # relative to the largest value: how much nearer another level may be, by the scale as stored

    def __str__(self):
        return str(Target(self.grid)).removeprefix("Target(").removesuffix(")")


def mx(element, **options):
    return Scaled(element=element, group=32, scale=PowerOfTwo(**options), pad=True)


def gaussian(bits, spacing):
    table = GaussianTable(bits=bits, spacing=spacing)
    return Scaled(element=table, group=16, scale=RealScale(statistic="rms"))


PROMISES = [
    Promise(Integer(bits=4, group=16)),
    Promise(Integer(bits=3, group=16, convention="narrow"), odd=True),
    Promise(Integer(bits=2, group=16, convention="half-integer"), zero=False),
    # a constant of mantissa just below 2 is clipped to 1.5, 1.75, .. of its power of two, or rounded to the next
    Promise(mx("e2m1"), again=True, odd=True, constant=0.25),
    Promise(mx("e2m1", rule="up"), again=True, odd=True, constant=0.2),
    Promise(mx("e2m3"), again=True, odd=True, constant=1 / 16),
    Promise(mx("e3m2"), again=True, odd=True, constant=1 / 8),
    Promise(mx("e4m3"), again=True, odd=True, constant=1 / 8),
    Promise(mx("e5m2"), again=True, odd=True, constant=1 / 8),
    Promise(mx("int8"), again=True, odd=True, constant=2.0**-7),
    Promise(Scaled(element="e2m1", group=16, scale=TwoLevel(), pad=True), odd=True, constant=2.0**-20),
    Promise(Scaled(element="e2m1", group=16, scale=TwoLevel(matrix=False), pad=True), powers=False, odd=True,
            constant=1 / 16),
    Promise(Scaled(element="e4m3", group="row"), odd=True),
    Promise(Scaled(element="e3m2", group=24), odd=True),
    Promise(Scaled(element="e2m1", group=5, axis=0), odd=True),
    Promise(Scaled(element="nf4", group=64, scale=RealScale(bits=32), axis="flat", first="high"), constant=2.0**-22),
    Promise(Scaled(element="nf4", group=64, scale=DoubleQuantized(), axis="flat", first="high"), slack=1),
    Promise(Scaled(element="e2m1", group=64, scale=DoubleQuantized()), slack=1),
    Promise(Scaled(element="nf2", group=64, scale=DoubleQuantized(stored_first=True), axis="flat"), constant=2.0**-20),
    Promise(Scaled(element="ternary", group=16, scale=RealScale(statistic="absmean")), odd=True),
    Promise(Scaled(element="binary", group=16, scale=RealScale(statistic="absmean")), zero=False),
    Promise(Scaled(element="ternary", group=16, scale=LeastSquares(starts=(1.0, 2.0))), odd=True),
    Promise(Scaled(element="binary", group=16, scale=LeastSquares()), zero=False),
    Promise(Scaled(element="seq3", group="row"), odd=True, constant=1 / 3 + 2.0**-10),
    Promise(Scaled(element="seq4", group="row"), zero=False, constant=1 / 4 + 2.0**-10),
    Promise(Scaled(element="unbalanced", group="row", scale=RealScale(signed=True))),
    # the level nearest to 1 is .7560 among eight, and 1.4935 among four of equal steps
    Promise(gaussian(3, "free"), zero=False, constant=0.245),
    Promise(gaussian(2, "uniform"), zero=False, constant=0.495),
    Promise(Scaled(element=KMeansTable(bits=2), group="row")),
    Promise(Scaled(element="float16", group="tensor", scale=Unscaled()), again=True, odd=True),
    Promise(BFloat16(), again=True, odd=True, constant=2.0**-8),
    Promise(Gguf(type="q2_k")), Promise(Gguf(type="q3_k")),
    Promise(Gguf(type="q4_k")), Promise(Gguf(type="q5_k")),
    Promise(Gguf(type="q6_k")), Promise(Gguf(type="q4_0"), slack=2.0**-10),
    Promise(Gguf(type="q8_0"), odd=True, slack=2.0**-10),
    Promise(Sparse(grid=Integer(bits=4, group=16)), constant=1.0),
    Promise(Sparse(grid=Scaled(element="float16", group="tensor", scale=Unscaled())), again=True, odd=True, constant=1),
    Promise(Exl2(budget=4.5, widths=(2, 4)), constant=0.34),
    # cells are whole steps and levels centroids: the nearest level may be another one's
    Promise(Steps(bits=2.37), constant=2.0**-13, slack=1),
    Promise(Steps(bits=4, spacing="pivots", centers=2), constant=2.0**-13, slack=1),
    Promise(ResidualBinary(orders=1, group=16)), Promise(ResidualBinary(orders=3, group="row")),
    Promise(ResidualBinary(orders=4, group=24, scales="greedy")),
    Promise(PartlyBinary(group=16)), Promise(PartlyBinary(salient=0.3, score="magnitude", average="all"), constant=1.0),
    Promise(BellSplit(group=32)), Promise(BellSplit(score="magnitude", membership="nearest", center=False)),
    # a point near eight equal values is one of different values; sums of two points are not their own nearest where a
    # block is short, nor at 4 bits where the first points of several are as near
    Promise(E8P(), constant=0.7),
    Promise(Trellis(L=8, tile=(4, 4)), constant=1.5), Promise(Trellis(code="hyb", V=2, tile=(4, 8)), constant=1.5),
    # entries and row scales are rounded each; sums of entries are not their own nearest
    Promise(Codebooks(code_bits=3, length=4, scale="row"), constant=2.0**-9),
    Promise(Codebooks(code_bits=4, length=3, axis=0, entry_bits=8), constant=2.0**-7),
    Promise(OutlierColumns(share=0.1, outliers=Codebooks(code_bits=9, length=2, axis=0),
                           rest=Codebooks(code_bits=3, length=2, axis=0))),
    Promise(TwoSided(group=16)), Promise(TwoSided(element="nf4", group="row", scale_bits=32), constant=2.0**-22),
    # codes are chosen by shifts and scales before they are rounded, unless those that are stored come first; a constant
    # is its shift alone, and the lowest level of the dynamic map is -0.993
    Promise(Shifted(steps=3), slack=1, constant=0.0071),
    Promise(Shifted(element="nf2", group=16, steps=3, scale=DoubleQuantized(stored_first=True)), constant=2.0**-20),
]  # fmt: skip

few = settings(max_examples=12)  # of each promise of each grid
promises = pytest.mark.parametrize("promise", PROMISES, ids=str)
quarters = st.integers(-64, 64).map(lambda n: n / 4)


@st.composite
def matrices(draw, least=1):
    """Small matrices of multiples of 1/4, so that no scale falls below what float16 can say."""
    n_out, n_in = draw(st.integers(1, 4)), draw(st.integers(least, 70))
    values = draw(st.lists(quarters, min_size=n_out * n_in, max_size=n_out * n_in))
    return torch.tensor(values).reshape(n_out, n_in)


def bind(grid, W):
    """The grid fitted to `W`, and codes; a budget that is too small for this shape is left to its own tests."""
    H = torch.eye(W.shape[1], dtype=torch.float64)
    try:
        fitted = grid.fit(W, H)
    except ValueError as error:
        assert isinstance(grid, Exl2) and "budget" in str(error)
        return None
    return fitted, fitted.nearest(W)


def test_every_kind_of_grid_has_made_promises():
    assert {type(promise.grid) for promise in PROMISES} == set(GRIDS)


@promises
def test_its_text_stands_for_it(promise):
    assert parse(str(Target(promise.grid))).weights.grid == promise.grid


@promises
@few
@given(W=matrices())
def test_codes_and_what_is_beside_them_part_and_join(promise, W):
    found = bind(promise.grid, W)
    if found is None:
        return
    fitted, codes = found
    header, beside, streams = json.loads(json.dumps(fitted.header())), fitted.beside(), fitted.streams(codes)
    widths = promise.grid.beside_widths(header)
    assert [(values.numel(), width) for values, width in beside] == widths
    assert fitted.beside_bits == sum(count * width for count, width in widths) <= fitted.n_bits
    assert all(stream.ndim == 1 and not stream.is_floating_point() for stream in streams)
    back = promise.grid.restore(unpack(pack(beside), widths), header)
    again = back.codes_of([stream.to(torch.int32) for stream in streams])  # as a coder gives them
    assert torch.equal(again, codes) and again.dtype == codes.dtype
    assert torch.equal(back.decode32(again).view(torch.int32), fitted.decode32(codes).view(torch.int32))


@promises
@few
@given(W=matrices())
def test_its_bytes_are_counted_and_read_back(promise, W):
    found = bind(promise.grid, W)
    if found is None:
        return
    fitted, codes = found
    payload, Q = fitted.to_bytes(codes), fitted.decode32(codes)
    assert isinstance(fitted.n_bits, int) and len(payload) == -(-fitted.n_bits // 8)
    back, again = promise.grid.from_bytes(payload, json.loads(json.dumps(fitted.header())))
    assert torch.equal(again, codes) and again.dtype == codes.dtype
    assert torch.equal(back.decode32(again).view(torch.int32), Q.view(torch.int32))
    assert back.n_bits == fitted.n_bits and back.to_bytes(again) == payload
    with pytest.raises(ValueError, match="payload has"):
        promise.grid.from_bytes(payload + b"\0", fitted.header())


@promises
@few
@given(W=matrices())
def test_codes_are_nearest_and_stay_where_they_are(promise, W):
    found = bind(promise.grid, W)
    if found is None:
        return
    fitted, codes = found
    Q = fitted.decode(codes)
    snapped, values = fitted.snap(W)
    assert torch.equal(snapped, codes) and torch.equal(values, Q)
    assert torch.equal(fitted.decode(fitted.nearest(Q)), Q)
    if promise.grid.block != (1, 1):
        with pytest.raises(ValueError, match="cost"):
            fitted.nearest(W, cost=torch.zeros(fitted.n_codes))
    elif fitted.n_codes <= 256:
        penalized = fitted.decode(fitted.nearest(W, cost=torch.zeros(fitted.n_codes)))
        assert ((Q - W).abs() <= (penalized - W).abs() + promise.slack * W.abs().max()).all()
    width, n_in = promise.grid.block[1], W.shape[1]
    whole = torch.arange(n_in).split(width)  # the last may be short, and stays the last
    shuffled = torch.cat([*whole[:-1][::-1], whole[-1]])
    half = len(whole) // 2 * width
    for columns in (slice(0, min(width, n_in)), slice(half, n_in), shuffled):
        coded = codes[:, torch.arange(n_in)[columns][::width] // width]
        assert torch.equal(fitted.nearest(W[:, columns], columns), coded)
        assert torch.equal(fitted.decode(coded, columns), Q[:, columns])


@promises
@few
@given(W=matrices(least=2), shift=st.floats(-0.25, 0.25, width=32))
def test_neighbors_enclose(promise, W, shift):
    found = bind(promise.grid, W)
    if found is None:
        return
    fitted, _ = found
    if promise.grid.block != (1, 1):
        with pytest.raises(ValueError, match="neighbors"):
            fitted.neighbors(W)
        return
    x = W + shift
    one, other = (fitted.decode(c) for c in fitted.neighbors(x))
    low, high = torch.minimum(one, other), torch.maximum(one, other)  # scales may be negative
    slack = 1e-6 * W.abs().max()
    inside = (low < high) & (low - slack <= x) & (x <= high + slack)
    assert (inside | (low == high)).all()
    Q = fitted.decode(fitted.nearest(x))
    between = inside & (low < x) & (x < high)
    assert promise.slack > 1e-5 or (((Q == low) | (Q == high)) | ~between).all()


@promises
@few
@given(W=matrices())
def test_what_it_promises_about_itself(promise, W):
    found = bind(promise.grid, W)
    if found is None:
        return
    fitted, codes = found
    Q = fitted.decode(codes)
    if promise.again:
        same, there = bind(promise.grid, Q)
        assert torch.equal(same.decode(there), Q)
    if promise.powers:
        for k in (1, 3):
            scaled, there = bind(promise.grid, W * 2.0**k)
            least = 0 if promise.zero else 2.0**-20  # what zeros become where there is no zero does not scale
            assert torch.allclose(scaled.decode(there), Q * 2.0**k, rtol=0, atol=least)
    if promise.odd:
        turned, there = bind(promise.grid, -W)
        assert torch.equal(turned.decode(there), -Q)


@promises
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (2, 300)], ids=str)
def test_zeros_and_constants(promise, shape):
    for value in (0.0, 0.6, -1.9):
        found = bind(promise.grid, torch.full(shape, value))
        if found is None:
            continue
        fitted, codes = found
        Q = fitted.decode32(codes)
        if value == 0:
            assert (Q == 0).all() if promise.zero else Q.abs().max() <= 2.0**-24
        else:
            assert ((Q - value).abs() <= promise.constant * abs(value)).all()


@promises
def test_what_is_not_finite_is_refused(promise):
    for value in (math.nan, math.inf, -math.inf):
        W = torch.ones(3, 64)
        W[1, 5] = value
        with pytest.raises(ValueError, match="expected finite values"):
            promise.grid.fit(W, torch.eye(64, dtype=torch.float64))


@promises
def test_what_is_no_matrix_is_refused(promise):
    for W in (torch.ones(3), torch.ones(0, 4), torch.ones(4, 0)):
        with pytest.raises(ValueError, match="expected a non-empty matrix"):
            promise.grid.fit(W, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("grid", "block"), [(mx("e2m1"), 32), (mx("e5m2"), 32),
                                             (Scaled(element="e2m1", group=16, scale=TwoLevel(), pad=True), 16),
                                             (Gguf(type="q4_k"), 256), (Gguf(type="q8_0"), 32),
                                             (Sparse(grid=Integer(bits=4, group="row")), 4)], ids=str)  # fmt: skip
@pytest.mark.parametrize("n_in", [1, 3, 64, 65, 172, 256])
def test_padding_is_charged(grid, block, n_in):
    """A row that is no whole number of blocks costs as much as the next one that is."""
    W = torch.randn(5, n_in, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.pad(W, (0, -n_in % block))
    (short, _), (full, _) = bind(grid, W), bind(grid, whole)
    assert short.n_bits == full.n_bits


@promises
@pytest.mark.parametrize("rounding", [Nearest(), Stochastic(), Feedback(groups="static"), Feedback(),
                                      Feedback(order="decreasing", pick=Stochastic())], ids=str)  # fmt: skip
def test_every_rounding_puts_values_on_it_or_says_why_not(promise, rounding):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 96, generator=generator)
    X = torch.randn(200, 96, generator=generator, dtype=torch.float64) @ torch.randn(96, 96, dtype=torch.float64,
                                                                                     generator=generator)  # fmt: skip
    H = X.T @ X / 200
    target = Target(promise.grid, rounding)
    if target.unsupported:
        return
    rounded = rounding.round(W, promise.grid, H, generator)
    Q = rounded.grid.decode32(rounded.codes)
    assert Q.shape == W.shape and bool(torch.isfinite(Q).all())
    payload = rounded.grid.to_bytes(rounded.codes)
    assert len(payload) == -(-rounded.grid.n_bits // 8)
    back, codes = promise.grid.from_bytes(payload, rounded.grid.header())
    assert torch.equal(back.decode32(codes), Q)


@promises
def test_error_feedback_lowers_the_error_it_is_for(promise):
    """On correlated inputs, over several matrices together: it need not on any single one."""
    errors = []
    for rounding in (Nearest(), Feedback(groups="static", damping=1e-3)):
        if Target(promise.grid, rounding).unsupported:
            return
        total = 0.0
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            W = torch.randn(16, 64, generator=generator, dtype=torch.float64)
            spectrum = torch.arange(1, 65, dtype=torch.float64).rsqrt()
            root = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0] * spectrum
            H = root @ root.T
            rounded = rounding.round(W, promise.grid, H, generator)
            E = W - rounded.grid.decode(rounded.codes)
            total += float(((E @ H) * E).sum())
        errors.append(total)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("element", ["nf4", "e2m1", "e4m3"])
def test_double_quantization_of_scales_costs_little_whatever_an_element_reaches(element):
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    fitted = [Scaled(element=element, group=64, scale=scale).fit(W) for scale in (RealScale(), DoubleQuantized())]
    plain, doubled = (float((grid.decode(grid.nearest(W)) - W).square().sum()) for grid in fitted)
    assert doubled < 1.02 * plain  # eight bits of a scale are within 1% of it
