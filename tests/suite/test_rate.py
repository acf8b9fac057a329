"""Rate-aware rounding: its identities, GPTQ at multiplier zero, and the rate that it keeps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from suite.coding import entropy_bits
from suite.grids import Steps
from suite.quantize import quantize_matrix
from suite.rounding import Feedback, RateAware
from suite.rounding.rate import ByRate, Norm, Sweep, ridged
from suite.statistics import quadratic
from theory.rate_distortion import ecsq_distortion


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(n_out, n_in, seed=0, exponent=1.0, dtype=torch.float64):
    """A Gaussian matrix, and the Gram matrix of inputs of the spectrum k^-exponent in a random basis."""
    draw = generator(seed)
    basis = torch.linalg.qr(torch.randn(n_in, n_in, generator=draw, dtype=torch.float64))[0]
    H = basis * torch.arange(1, n_in + 1, dtype=torch.float64) ** -exponent @ basis.T
    return torch.randn(n_out, n_in, generator=draw, dtype=torch.float64).to(dtype), H


def sweep_of(W, H, feedback, weight, ridge=True):
    norm_ = None if feedback is None else Norm.of(H, feedback)
    return Sweep(W=W, norm=norm_, weight=weight, ridge=ridge, generator=generator())


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(0, 2**32), st.floats(1e-6, 1e3))
def test_completing_the_square_is_exact(n, seed, size):
    """The constant is that of any one Q; both sides are sums of some n^2 products of size |.|, each off by 2^-53."""
    W, H = correlated(3, n, seed)
    H = H + 0.01 * torch.eye(n, dtype=torch.float64)
    draw = generator(seed)
    c = size * torch.rand(n, generator=draw, dtype=torch.float64)
    pulled, wide = ridged(W, H, c)
    differences, sizes = [], []
    for scale in (0.0, 1.0, 5.0):
        Q = scale * torch.randn(3, n, generator=draw, dtype=torch.float64)
        left = quadratic(Q - W, H) + float((c * Q * Q).sum())
        right = quadratic(Q - pulled, wide)
        differences.append(left - right)
        sizes.append(abs(left) + abs(right))
    condition = float(torch.linalg.cond(wide))
    assert max(differences) - min(differences) <= 100 * n * n * condition * 2.0**-53 * max(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", ["given", "decreasing", "pivot"])
@pytest.mark.parametrize(("bits", "damping", "shape"), [(2, 0.01, (64, 96)), (3.3, 0.1, (50, 33)), (5, 0.0, (7, 64))])
def test_at_multiplier_zero_it_is_gptq_code_for_code(bits, damping, shape, order, dtype):
    """One sweep on the steps that plain error feedback rounds to, whatever the sweep before had."""
    W, H = correlated(*shape, dtype=dtype)
    for spacing in ("even", "pivots") if order == "given" else ("even",):
        grid, feedback = Steps(bits=bits, spacing=spacing), Feedback(order=order, damping=damping)
        plain = feedback.round(W, grid, H, generator())
        before = torch.randint(0, plain.grid.n_codes, W.shape, generator=generator())
        for ridge in (True, False):
            codes, _ = sweep_of(W, H, feedback, 0.0, ridge)(plain.grid, before)
            assert torch.equal(codes, plain.codes)


def test_the_multiplier_is_continuous_at_zero():
    """A vanishing multiplier, which takes the way of all others, gives those codes too: levels are whole steps here."""
    W, H = correlated(64, 96)
    fitted = Steps(bits=3).bind(W, 0.5, None)
    plain, tiny = (sweep_of(W, H, Feedback(), w)(fitted, fitted.nearest(W))[0] for w in (0.0, 1e-12))
    assert torch.equal(plain, tiny)


def test_without_feedback_a_ridge_changes_nothing():
    """Where H is the identity, the ridge takes from the error what it gives back to the cost."""
    W, _ = correlated(64, 96)
    eye = torch.eye(96, dtype=torch.float64)
    fitted = Steps(bits=2).fit(W)
    codes = fitted.nearest(W)
    alone = sweep_of(W, None, None, 1.0)(fitted, codes)[0]
    for ridge in (True, False):
        assert torch.equal(sweep_of(W, eye, Feedback(damping=0.0), 1.0, ridge)(fitted, codes)[0], alone)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(0.01, 2), st.booleans())
def test_every_column_takes_the_least_of_its_error_and_length(seed, multiplier, with_ridge):
    W, _ = correlated(12, 20, seed)
    fitted = Steps(bits=2).fit(W)
    codes = fitted.nearest(W)
    pivots = torch.rand(20, generator=generator(seed), dtype=torch.float64) + 0.01
    ridge = pivots * 0.5 if with_ridge else torch.zeros(20, dtype=torch.float64)
    bits = fitted.lengths(codes)
    assert float(torch.exp2(-bits).sum()) == pytest.approx(1)  # Kraft
    pick = ByRate(multiplier, bits, pivots, ridge)
    for j in (0, 7, 19):
        found, values = pick.pick(W[:, j : j + 1], fitted, slice(j, j + 1), generator())
        levels = (fitted.levels * fitted.step)[0]
        every = pivots[j] * (W[:, j : j + 1] - levels).square() + multiplier * bits - ridge[j] * levels.square()
        assert every.gather(1, found.long())[:, 0].tolist() == pytest.approx(every.amin(1).tolist(), abs=1e-9)
        assert torch.equal(values[:, 0], levels[found[:, 0].long()])


ROUNDINGS = {
    "ecsq": ("even", RateAware()),
    "gptq": ("even", RateAware(weight=0.0, feedback=Feedback())),
    "cerwu": ("even", RateAware(feedback=Feedback())),
    "optq-rd": ("even", RateAware(feedback=Feedback(), ridge=False)),
    "watersic": ("pivots", RateAware(weight=0.0, feedback=Feedback())),
    "both": ("pivots", RateAware(feedback=Feedback())),
}


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("bits", [1.0, 1.5, 2.37, 4.0, 7.0])
def test_the_rate_is_kept_to_half_a_percent(bits, name):
    W, H = correlated(256, 192, dtype=torch.float32)
    spacing, rounding = ROUNDINGS[name]
    rounded = rounding.round(W, Steps(bits=bits, spacing=spacing), H, generator())
    assert 0.995 * bits <= rounded.grid.coded_bits(rounded.codes) / W.numel() <= bits
    assert rounded.fallbacks == ()
    wide = int(rounded.codes.max() - rounded.grid.zero), int(rounded.grid.zero - rounded.codes.min().long())
    assert max(wide[0] + 1, wide[1]) > rounded.grid.zero // 2  # codes of fixed width take no bit more than they need


@pytest.mark.parametrize("method", ["ecsq", "cerwu", "watersic"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_methods_are_stored_at_the_rate_that_they_are_asked_for(bits, method):
    W, H = correlated(256, 192, dtype=torch.float32)
    q = quantize_matrix(W, method=method, bits=bits, H=H)
    assert 0.995 * bits <= q.n_bits / W.numel() <= bits and len(q.to_bytes()) == q.n_bits / 8


def test_what_cannot_be_kept_is_said():
    """Four values cannot be coded in four bits with what lies beside them; nor is the error all there is then."""
    W = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    rounded = RateAware().round(W, Steps(bits=1), None, generator())
    assert rounded.grid.coded_bits(rounded.codes) > 4 and rounded.fallbacks == ()  # beside it: promised of codes only


def errors(name, bits, seeds=3):
    total = 0.0
    for seed in range(seeds):
        W, H = correlated(256, 128, seed, exponent=1.5, dtype=torch.float32)
        spacing, rounding = ROUNDINGS[name]
        rounded = rounding.round(W, Steps(bits=bits, spacing=spacing, damping=0.01), H, generator())
        total += quadratic(W - rounded.grid.decode32(rounded.codes), H)
    return total


def test_looking_at_the_rate_pays_at_low_rates():
    """Errors at the same rate: the ridge is what makes it pay, and a step for each pivot pays more; both together."""
    found = {name: errors(name, 2.0) for name in ROUNDINGS}
    assert found["cerwu"] < 0.97 * found["gptq"] and found["cerwu"] < found["optq-rd"]
    assert found["both"] < 0.97 * found["watersic"] < 0.97 * found["gptq"] < found["ecsq"]


@pytest.mark.parametrize(("rate", "best"), [(1.0, 0.348261), (2.0, 0.0889235)])
def test_thresholds_by_length_are_the_best_of_all_scalar_quantizers(rate, best):
    """Chou, Lookabaugh, Gray: 0.02% below uniform cells, on 2^18 quantiles of a Gaussian.

    Their best errors, computed independently to six digits, are moved to the entropy that came out along the curve of
    uniform cells. Quantiles and offsets in 1/256 steps, whose squared error is below (step / 512)^2, leave 2e-5.
    """
    W = torch.from_numpy(norm.ppf((np.arange(1 << 18) + 0.5) / (1 << 18))).reshape(512, 512)
    rounded = RateAware().round(W, Steps(bits=rate, centers=8), None, generator())
    entropy = entropy_bits(rounded.codes) / W.numel()
    error = float((W - rounded.grid.decode(rounded.codes)).square().mean())
    assert error / float(ecsq_distortion(entropy)) == pytest.approx(best / float(ecsq_distortion(rate)), abs=2e-5)


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"weight": math.nan}, {"sweeps": 3}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="expected >= 0 and >= 4"):
        RateAware(**wrong)


def test_feedback_needs_inputs():
    with pytest.raises(ValueError, match=r"needs the Gram matrix H of shape \(6, 6\), found none"):
        RateAware(feedback=Feedback()).round(torch.ones(4, 6), Steps(bits=2), None, generator())
