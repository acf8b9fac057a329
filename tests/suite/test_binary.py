"""Residual binarization, and scales at least squares for their codes."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from suite.grids import LeastSquares, RealScale, ResidualBinary, Scaled
from suite.grids.elements import ELEMENTS
from suite.grids.least_squares import alternate
from suite.methods import method_named
from suite.quantize import quantize_matrix
from suite.rounding import Feedback

EPS = 2.0**-52


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles(n):
    """n values that stand for a Gaussian: the middle of each of n cells of equal probability."""
    return torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n))[None]


def sums(scale):
    """All 2^K levels of scales (.., K), in no order."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=scale.shape[-1])), dtype=scale.dtype)
    return (scale[..., None, :] * signs).sum(-1)


def mean_square(fitted, x):
    return float((x - fitted.decode(fitted.nearest(x))).square().mean())


# scale and mean square left by each order, greedily, of a Gaussian: the first from sqrt(2 / pi), the others integrated
GREEDY = [(0.797885, 0.363380), (0.482624, 0.130454), (0.268441, 0.058394)]


def test_greedy_orders_of_a_gaussian_are_where_the_integrals_put_them():
    """Tolerances: 2^18 cells leave out the tails' 1e-5 of the variance; scales are stored in 24 bits."""
    x = quantiles(1 << 18)
    fitted = ResidualBinary(orders=3, group="row", scales="greedy", scale_bits=32).fit(x)
    assert GREEDY[0] == pytest.approx((math.sqrt(2 / math.pi), 1 - 2 / math.pi), abs=1e-6)
    assert torch.allclose(fitted.scale[0, 0], torch.tensor([s for s, _ in GREEDY], dtype=x.dtype), rtol=0, atol=3e-5)
    for orders, (_, left) in enumerate(GREEDY, 1):
        alone = ResidualBinary(orders=orders, group="row", scales="greedy", scale_bits=32).fit(x)
        assert mean_square(alone, x) == pytest.approx(left, abs=3e-5)


def test_refitted_orders_of_a_gaussian_follow_the_scalar_quantizers():
    """One and two orders are Lloyd and Max's quantizers; three are at most the uniform one of eight levels."""
    x = quantiles(1 << 16)
    left = [mean_square(ResidualBinary(orders=k, group="row", scale_bits=32).fit(x), x) for k in (1, 2, 3)]
    assert left[:2] == pytest.approx([1 - 2 / math.pi, 0.1174818], abs=1e-4)  # tails beyond the last of 2^16 cells
    assert left[2] < 0.03743966  # uniform, best step; Lloyd and Max reach .0345478 with four free levels
    assert left[2] > 0.03454776 - 1e-4


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), orders=st.integers(1, 5), group=st.sampled_from([1, 3, 8, "row", "tensor"]))
def test_every_greedy_order_takes_off_its_squared_scale(seed, orders, group):
    """|r|^2 - n s^2 = |r - s sign(r)|^2 exactly, at s = mean |r| as it is before it is stored."""
    x = gaussian(seed, 3, 13)
    fitted = ResidualBinary(orders=orders, group=group, scales="greedy", scale_bits=32).fit(x)
    layout = fitted.layout
    scales = [layout.expand(fitted.scale[..., k]).expand(3, 13) for k in range(orders)]
    left, bound = x, float(x.square().sum())
    tolerance = orders * bound * 2.0**-22  # a stored scale is off by 2^-24 of it, its square by twice that
    for s in scales:
        exact = layout.grouped(left.abs(), 0.0).sum(-1) / layout.members
        assert torch.allclose(layout.expand(exact).expand(3, 13), s, rtol=2.0**-23, atol=2.0**-140)
        after = left - torch.where(left > 0, s, -s)
        bound -= float(s.square().sum())
        assert float(after.square().sum()) == pytest.approx(bound, rel=0, abs=tolerance)
        left = after
    assert float((x - fitted.decode(fitted.nearest(x))).square().sum()) <= float(left.square().sum()) + 1e-12


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), orders=st.integers(1, 4), group=st.sampled_from([1, 2, 5, "row", "tensor"]))
def test_codes_are_nearest_among_all_sums_of_signs(seed, orders, group):
    x = gaussian(seed, 3, 13)
    for scales in ("greedy", "refitted"):
        fitted = ResidualBinary(orders=orders, group=group, scales=scales).fit(x)
        levels = sums(
            torch.stack([fitted.layout.expand(fitted.scale[..., k]).expand(3, 13) for k in range(orders)], -1)
        )
        gap = (x - fitted.decode(fitted.nearest(x))).abs()
        assert bool((gap <= (x[..., None] - levels).abs().amin(-1) + 8 * EPS).all())


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), orders=st.integers(2, 4), group=st.sampled_from([2, 5, "row", "tensor"]))
def test_refitting_never_raises_the_error_of_a_group(seed, orders, group):
    x = gaussian(seed, 3, 13) ** 3
    errors = []
    for scales in ("greedy", "refitted"):
        fitted = ResidualBinary(orders=orders, group=group, scales=scales).fit(x)
        E = x - fitted.decode(fitted.nearest(x))
        errors.append(fitted.layout.grouped(E.square(), 0.0).sum(-1))
    assert bool((errors[1] <= errors[0] * (1 + 64 * EPS) + 1e-28).all())


@pytest.mark.parametrize("orders", [2, 3, 4])
def test_refitted_scales_are_least_squares_for_their_codes(orders):
    """A fixed point: no other scales serve these codes better, but for the rounding of scales to 24 bits."""
    x = gaussian(1, 4, 500)
    fitted = ResidualBinary(orders=orders, group="row", scale_bits=32).fit(x)
    codes = fitted.nearest(x)
    B = torch.stack([((codes >> k) & 1).double() * 2 - 1 for k in range(orders)], -1)
    best = torch.linalg.lstsq(B, x[..., None]).solution[..., 0]
    assert torch.allclose(fitted.scale[:, 0], best, rtol=0, atol=1e-6)


def test_half_of_a_code_is_a_sign():
    fitted = ResidualBinary(orders=2, group="row", scales="greedy").fit(torch.tensor([[-3.0, -1.0, 1.0, 3.0]]))
    assert fitted.scale.flatten().tolist() == [2.0, 1.0]
    assert fitted.decode(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)).tolist() == [[-3.0, 1.0, -1.0, 3.0]]
    assert fitted.nearest(torch.tensor([[0.0, 2.0, -2.0, 9.0]])).tolist() == [[2, 1, 0, 3]]  # halfway, the lower


@pytest.mark.parametrize("options", [dict(orders=0), dict(orders=9), dict(orders=2, group=0),
                                     dict(orders=2, scales="best"), dict(orders=2, scale_bits=8)], ids=str)  # fmt: skip
def test_what_makes_no_sense_is_an_error(options):
    with pytest.raises(ValueError, match=r"expected|takes"):
        ResidualBinary(**options)
    with pytest.raises(ValueError, match="expected positive numbers"):
        LeastSquares(starts=())


def test_residual_binary_charges_signs_and_scales():
    q = quantize_matrix(gaussian(0, 6, 300), method="residual-binary", bits=3)
    assert q.n_bits == 6 * 300 * 3 + 6 * 3 * 3 * 16  # three groups of a row, the last one short


TERNARY = ELEMENTS["ternary"]


def best_ternary(x):
    """The least squared error (n,) of ternary levels for rows of `x`: the m largest are kept, s is their mean size."""
    kept = x.abs().sort(1, descending=True).values.cumsum(1)
    return x.square().sum(1) - (kept.square() / torch.arange(1, x.shape[1] + 1)).amax(1)


def errors_of(grid, x):
    fitted = grid.fit(x)
    return (x - fitted.decode(fitted.nearest(x))).square().sum(1)


def ternary(scale):
    return Scaled(element="ternary", group="row", scale=scale)


def test_a_ternary_gaussian_is_left_the_three_level_quantizers_error():
    """Max 1960: levels 0 and +-1.2240, .1902 left; the mean magnitude leaves .2635, codes of it refitted once .2132."""
    x = quantiles(1 << 16)
    n = x.shape[1]
    assert float(errors_of(ternary(RealScale(statistic="absmean", bits=32)), x)) / n == pytest.approx(0.2635, abs=2e-4)
    fitted = ternary(LeastSquares(bits=32)).fit(x)
    assert float(fitted.scale) == pytest.approx(1.2240, abs=2e-4)
    assert float(errors_of(ternary(LeastSquares(bits=32)), x)) / n == pytest.approx(0.1902, abs=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_alternation_comes_close_to_the_best_of_all_ternary_codes(seed):
    """On groups of 128 Gaussian values within 1e-4 on average, and never below what can be had."""
    x = gaussian(seed, 512, 128)
    best = best_ternary(x)
    found = errors_of(ternary(LeastSquares(starts=(1.0, 2.0), bits=32)), x)
    assert bool((found >= best * (1 - 1e-12)).all())
    assert float(found.sum() / best.sum()) < 1 + 1e-4


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), element=st.sampled_from(["ternary", "binary", "seq4", "e2m1", "nf4"]))
def test_a_refitted_scale_is_a_fixed_point_and_never_worse(seed, element):
    x = gaussian(seed, 4, 40) ** 3
    plain = Scaled(element=element, group="row", scale=RealScale(statistic="absmean"))
    refitted = Scaled(element=element, group="row", scale=LeastSquares())
    assert bool((errors_of(refitted, x) <= errors_of(plain, x) * (1 + 64 * EPS)).all())
    inside, start = torch.ones_like(x, dtype=torch.bool), x.abs().mean(1, keepdim=True)
    scale = alternate(x, inside, start, ELEMENTS[element])
    levels = ELEMENTS[element].round(x / scale)
    again = (x * levels).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True)
    assert torch.allclose(again, scale, rtol=1e-12)


def test_refitted_ternary_beats_the_mean_magnitude_under_error_feedback_too():
    X = gaussian(3, 400, 128) @ gaussian(4, 128, 128)
    W, H = gaussian(5, 32, 128), X.T @ X / 400
    errors = {}
    for name in ("ternary", "ternary-refit"):
        for rounding in ("nearest", "feedback"):
            options = dict(group=64) | (dict(rounding=Feedback()) if rounding == "feedback" else {})
            q = quantize_matrix(W, recipe=method_named(name).recipe(**options), H=H)
            E = W - q.dequantize()
            errors[name, rounding] = float(((E @ H) * E).sum())
    assert errors["ternary-refit", "nearest"] < errors["ternary", "nearest"]
    assert errors["ternary-refit", "feedback"] < errors["ternary", "feedback"]
    assert errors["ternary-refit", "feedback"] < errors["ternary-refit", "nearest"]
