"""Sweeps of coordinate descent against a plain twin, and what they promise about the error."""

import pytest
import torch
from feedback import damping, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grids import PROMISES

from suite.grids import E8P, Codebooks, Integer, Scaled
from suite.recipe import Target, parse
from suite.rounding import Descent, Feedback, Stochastic

GRIDS = [E8P(), E8P(bits=3), E8P(bits=4, tries=4),
         Codebooks(code_bits=3, length=3), Codebooks(code_bits=2, length=3, axis=0),
         Integer(bits=2, group=8), Integer(bits=3, group="row", convention="full-range"),
         Scaled(element="nf4", group=16)]  # fmt: skip
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(Target(grid)))
few = settings(max_examples=8)


def problem(seed, n_out=5, n_in=20):
    W, X = gaussian(seed, n_out, n_in), gaussian(seed + 1, 3 * n_in, n_in) @ gaussian(seed + 2, n_in, n_in)
    return W, X.T @ X / len(X)


def damped(H, share):
    return H + share * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


def error(W, found, H):
    E = W - found.grid.decode(found.codes)
    return float(((E @ H) * E).sum())


def rounded(how, W, grid, H):
    return how.round(W, grid, H, torch.Generator().manual_seed(0))


def one_sweep(W, H, codes, fitted, monotone):
    """As the header says it: everything anew for every block, last to first; a code of several rows is all or none."""
    rows, width = fitted.grid.block
    codes, n_in = codes.clone(), len(H)
    for first in reversed(range(0, n_in, width)):
        k = slice(first, min(first + width, n_in))
        Q = fitted.decode(codes)
        wanted = Q[:, k] + (W - Q) @ H[:, k] @ torch.linalg.inv(H[k, k])
        new = codes.clone()
        new[:, first // width] = fitted.nearest(wanted, k)[:, 0]
        if monotone:
            before, after = (((W - fitted.decode(c)) @ H * (W - fitted.decode(c))).sum(1) for c in (codes, new))
            for r in range(len(codes)):
                mine = slice(r * rows, (r + 1) * rows)
                if not after[mine].sum() < before[mine].sum():
                    new[r] = codes[r]
        codes = new
    return codes


@grids
@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("n_in", [20, 150])
def test_a_sweep_is_the_plain_one(grid, monotone, n_in):
    """Over more columns than are kept up to date together, and with a short last block."""
    W, H = problem(3, 5, n_in)
    start = Feedback(order="reversed", groups="static")
    begun = rounded(start, W, grid, H)
    found = rounded(Descent(start=start, sweeps=1, monotone=monotone), W, grid, H)
    plain = one_sweep(W, damped(H, 0.01), begun.codes, begun.grid, monotone)
    if monotone:  # a code as good as the old one may go either way with the last bits
        again = type(found)(plain, begun.grid)
        assert error(W, found, damped(H, 0.01)) == pytest.approx(error(W, again, damped(H, 0.01)), rel=1e-9)
    else:
        assert torch.equal(found.codes, plain)


@grids
@few
@given(seed=st.integers(0, 10**6), share=damping, sweeps=st.integers(1, 4))
def test_monotone_sweeps_never_raise_the_error(grid, seed, share, sweeps):
    W, H = problem(seed)
    start = Feedback(order="reversed", damping=share)
    before, after = (rounded(how, W, grid, H) for how in (start, Descent(start=start, sweeps=sweeps)))
    wide = damped(H, share)
    assert error(W, after, wide) <= error(W, before, wide) * (1 + 1e-9)
    assert after.codes.shape == before.codes.shape and after.codes.dtype == before.codes.dtype
    assert after.fallbacks == before.fallbacks


@pytest.mark.parametrize("promise", PROMISES, ids=str)
@pytest.mark.parametrize("order", ["given", "reversed", "decreasing"])
def test_it_lowers_the_error_on_every_grid(promise, order):
    """What comes after error feedback in any order that the grid takes."""
    start = Feedback(order=order)
    if Target(promise.grid, Descent(start=start)).unsupported:
        return
    W, H = problem(11, 20, 40)
    before, after = (rounded(how, W, promise.grid, H) for how in (start, Descent(start=start, sweeps=3)))
    assert error(W, after, damped(H, 0.01)) < error(W, before, damped(H, 0.01))


@few
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 4))
def test_single_columns_need_not_be_told_to_be_monotone(seed, bits):
    """Nearest in the Euclidean norm is best where one value is rounded at a time."""
    W, H = problem(seed)
    grid, start = Integer(bits=bits, group="row"), Feedback(groups="static")
    before, after = (rounded(h, W, grid, H) for h in (start, Descent(start=start, sweeps=2, monotone=False)))
    assert error(W, after, damped(H, 0.01)) <= error(W, before, damped(H, 0.01)) * (1 + 1e-9)


@grids
def test_what_it_ends_with_it_does_not_change(grid):
    W, H = problem(5)
    ends = [rounded(Descent(start=Feedback(order="reversed"), sweeps=sweeps), W, grid, H) for sweeps in (60, 61)]
    assert torch.equal(ends[0].codes, ends[1].codes)


@grids
def test_without_correlations_nothing_is_gained(grid):
    W, H = problem(6)[0], torch.eye(20, dtype=torch.float64)
    start = Feedback(order="reversed", groups="static", damping=0.0)
    begun, found = (rounded(how, W, grid, H) for how in (start, Descent(start=start, sweeps=3, monotone=False)))
    assert torch.equal(begun.codes, begun.grid.nearest(W))
    assert torch.equal(found.grid.decode(found.codes), begun.grid.decode(begun.codes))


def test_no_sweeps_are_error_feedback():
    W, H = problem(7)
    for grid in GRIDS:
        start = Feedback(order="reversed")
        assert torch.equal(rounded(Descent(sweeps=0), W, grid, H).codes, rounded(start, W, grid, H).codes)


def test_it_gains_on_correlated_inputs():
    """On 64 rows together, by what the sums of plain error feedback leave."""
    W, H = problem(8, 64, 64)
    for grid in (E8P(), Integer(bits=2, group="row")):
        before, after = (rounded(how, W, grid, H) for how in (Feedback(order="reversed"), Descent()))
        assert error(W, after, damped(H, 0.01)) < 0.99 * error(W, before, damped(H, 0.01))


def test_nothing_that_is_handed_in_changes():
    W, H = problem(9)
    kept = W.clone(), H.clone()
    rounded(Descent(), W, E8P(), H)
    assert torch.equal(W, kept[0]) and torch.equal(H, kept[1])


def test_its_text_and_what_it_cannot_be_combined_with():
    target = Target(E8P(), Descent(sweeps=3, monotone=False))
    assert parse(str(target)).weights == target
    assert target.unsupported is None
    assert "not decreasing" in Target(E8P(), Descent(start=Feedback(order="decreasing"))).unsupported
    stochastic = Descent(start=Feedback(order="reversed", pick=Stochastic()))
    assert "nearest code" in Target(E8P(), stochastic).unsupported


def test_bad_options_are_errors():
    for sweeps in (-1, 1.5):
        with pytest.raises(ValueError, match="sweeps"):
            Descent(sweeps=sweeps)
    W, H = problem(10)
    for bad in (None, H[:3, :3]):
        with pytest.raises(ValueError, match="needs the Gram matrix H"):
            rounded(Descent(), W, E8P(), bad)
