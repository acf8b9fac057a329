"""Shifts that give the codes the most entropy: a plain twin, the promise about entropy, exact size, the release.

What every grid promises is tested in test_grids.
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.grids import DoubleQuantized, Scaled, Shifted
from suite.grids.elements import ELEMENTS
from suite.grids.nested import dynamic_map
from suite.grids.shift_search import SIGMA, code_entropy, entropy_shift
from suite.histograms import CodeCounts
from suite.quantize import quantize_matrix
from suite.quantized import Quantized
from suite.recipe import Recipe, Target

few = settings(max_examples=20)
seeds = st.integers(0, 2**31)
elements = st.sampled_from(["nf4", "nf2", "n2f3"])
STORED = DoubleQuantized(stored_first=True)


def matrix(seed=0, shape=(6, 37), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def both(grid, W):
    fitted = grid.fit(W)
    codes = fitted.nearest(W)
    return fitted, codes, fitted.decode32(codes)


def plain_entropy(values, shift, levels):
    """-sum p log2 p of one block, value by value."""
    span = max(abs(x - shift) for x in values) or 1.0
    nearest = Counter(min(levels, key=lambda level: abs((x - shift) / span - level)) for x in values)
    return -sum(n / len(values) * math.log2(n / len(values)) for n in nearest.values())


@few
@given(seed=seeds, element=elements, group=st.sampled_from([1, 5, 16]))
def test_the_shift_is_the_best_of_all_candidates_one_by_one(seed, element, group):
    x, levels = matrix(seed, (1, 43), torch.float64).reshape(-1), ELEMENTS[element].levels
    found = entropy_shift(x, group, ELEMENTS[element], 0.1, 4)
    for block, shift in zip(x.split(group), found.tolist(), strict=True):
        values = block.tolist()
        median = sorted(values)[(len(values) - 1) // 2]
        span = max(abs(value - median) for value in values)
        candidates = [median + 0.1 * SIGMA * k / 4 * span for k in range(-4, 5)]
        wanted = [plain_entropy(values, tau, levels) for tau in candidates]
        best = max(wanted)
        first = next(tau for tau, entropy in zip(candidates, wanted, strict=True) if entropy > best - 1e-12)
        assert math.isclose(shift, first, rel_tol=1e-12, abs_tol=1e-12)


@few
@given(seed=seeds, element=elements, group=st.sampled_from([1, 7, 64]), k=st.integers(-3, 3))
def test_entropy_is_never_below_that_at_the_median(seed, element, group, k):
    W = (matrix(seed) * 2.0**k).round(decimals=1)  # with ties, and blocks of few values
    fitted, codes, _ = both(Shifted(element=element, group=group, steps=6), W)
    at_median, there, _ = both(Shifted(element=element, group=group, most=0.0, steps=1), W)
    medians = [float(block.median()) for block in W.reshape(-1).split(group)]
    assert at_median.shift[0].tolist() == medians
    chosen, start = fitted.entropy(codes), at_median.entropy(there)
    assert bool((chosen >= start - 1e-12).all())  # equal histograms have equal entropies up to the last division
    assert bool((chosen <= math.log2(fitted.n_codes) + 1e-12).all()) and bool((chosen >= 0).all())


@few
@given(seed=seeds, group=st.sampled_from([5, 64]))
def test_a_shift_of_the_matrix_moves_the_shifts_alone(seed, group):
    """A power of two, added to multiples of 2^-10 below it, loses no bit of them."""
    W = (matrix(seed, dtype=torch.float64) * 2**8).round() / 2**10
    grid = Shifted(group=group, steps=5)
    (one, codes, _), (other, again, _) = both(grid, W), both(grid, W + 4.0)
    assert torch.allclose(other.shift, one.shift + 4.0, rtol=0, atol=1e-12)
    # candidates are rounded apart by the shift, so that ties of entropy and values at boundaries may part
    assert torch.allclose(one.entropy(codes), other.entropy(again), rtol=0, atol=1e-12)
    assert torch.equal(one.inner.scale, other.inner.scale)


@few
@given(seed=seeds, k=st.integers(-6, 6), element=elements)
def test_powers_of_two_change_scales_and_shifts_alone(seed, k, element):
    W = matrix(seed)
    grid = Shifted(element=element, group=16, steps=5)
    (one, codes, Q), (other, again, scaled) = both(grid, W), both(grid, W * 2.0**k)
    assert torch.equal(codes, again) and torch.equal(one.shift * 2.0**k, other.shift)
    assert torch.equal(one.shift_code, other.shift_code) and torch.equal(Q * 2.0**k, scaled)


@few
@given(seed=seeds, element=elements, stored=st.booleans())
def test_reading_back_adds_the_stored_shift(seed, element, stored):
    W, scale = matrix(seed), DoubleQuantized(stored_first=stored)
    fitted, codes, Q = both(Shifted(element=element, group=16, steps=3, scale=scale), W)
    levels = torch.tensor(ELEMENTS[element].levels)
    map_levels = torch.tensor(dynamic_map().levels)
    shift = map_levels[fitted.shift_code[0].long()] * fitted.shift_absmax[0, 0]  # fewer than 256 blocks
    flat, block = codes.reshape(-1).long(), torch.arange(codes.numel()) // 16
    assert torch.equal(Q.reshape(-1), levels[flat] * fitted.inner.scale[0, block] + shift[block])
    # half a step of the map, 0.9 / 128, which is also how far its lowest level is from -1; and float32's rounding of it
    assert bool(((fitted.stored_shift - fitted.shift).abs() <= 0.9 / 128 * (1 + 1e-4) * fitted.shift_absmax).all())
    if stored:
        assert torch.equal(fitted.stored_shift, fitted.shift)


@pytest.mark.parametrize(("grid", "shape", "bits"), [
    (Shifted(), (16, 1024), 4 + 2 * (8 / 64 + 32 / (64 * 256))), (Shifted(element="nf2"), (3, 130), 2.0),
    (Shifted(group=32), (1, 5), 4.0),
], ids=str)  # fmt: skip
def test_a_shift_costs_as_much_as_a_scale_but_for_the_mean(grid, shape, bits):
    fitted, codes, _ = both(grid, matrix(0, shape))
    n, blocks = math.prod(shape), -(-math.prod(shape) // grid.group)
    assert fitted.n_bits == grid.bits * n + 2 * (8 * blocks + 32 * -(-blocks // 256)) + 32
    assert len(fitted.to_bytes(codes)) == -(-fitted.n_bits // 8)
    assert fitted.n_bits >= bits * n + 32 and fitted.beside_bits == fitted.n_bits - grid.bits * n
    if shape == (16, 1024):
        assert fitted.n_bits == bits * n + 32


def test_four_bits_take_four_and_a_quarter():
    q = quantize_matrix(matrix(0, (256, 512)), recipe=Recipe(weights=Target(Shifted(steps=1))))
    assert q.n_bits / (256 * 512) == 4.25390625 + 32 / (256 * 512)
    again = Quantized.from_bytes(q.to_bytes(), q.header())
    assert torch.equal(again.dequantize(), q.dequantize())


@pytest.mark.parametrize("group", [3, 64])
def test_zeros_and_constants_are_met_by_their_shift(group):
    W = torch.cat(
        [torch.zeros(2, 3), torch.full((2, 3), 0.75), torch.tensor([[0.5, 0.75, 0.25], [1e-30, 0.0, -1e-30]])]
    )
    fitted, codes, Q = both(Shifted(group=group, steps=2), W)
    assert bool(torch.isfinite(Q).all())
    if group == 3:
        assert bool((Q[:2] == 0).all()) and torch.equal(Q[2:4], W[2:4])
        assert fitted.entropy(codes)[:4].tolist() == [0, 0, 0, 0]


def test_searched_in_pieces_or_whole_it_is_the_same():
    """More blocks than fit into one piece of the search, and a short last one."""
    W = matrix(0, (40, 8191))
    whole = entropy_shift(W.reshape(-1), 64, ELEMENTS["nf2"], 0.1, 2)
    parts = [entropy_shift(part, 64, ELEMENTS["nf2"], 0.1, 2) for part in W.reshape(-1).split(64 * 100)]
    assert len(whole) == -(-W.numel() // 64) and torch.equal(whole, torch.cat(parts))


def test_more_entropy_is_not_less_error_on_gaussian_blocks():
    """The gain over NF4 is far beyond chance and yet not in every block: tau = 0 is no candidate."""
    W, grid = matrix(0, (64, 4096)), Shifted(steps=20)
    fitted, codes, Q = both(grid, W)
    unshifted = grid.unshifted.fit(W)
    there = unshifted.nearest(W)
    gain = fitted.entropy(codes) - fitted.entropy(there)
    assert float(gain.mean()) > 5 * float(gain.std()) / math.sqrt(len(gain)) and float(gain.min()) < 0
    worse = ((Q - W).square() - (unshifted.decode32(there) - W).square()).reshape(-1, 64).mean(-1)
    assert float(worse.mean()) > -5 * float(worse.std()) / math.sqrt(len(worse))


def test_what_is_stored_first_has_less_error():
    """Codes are then nearest to what is read back: with shifts of the size of the steps of their map it shows."""
    W = matrix(0, (64, 1024)) * 0.05 + 1.0
    errors = [(both(Shifted(steps=5, scale=scale), W)[2] - W).square().mean() for scale in (STORED, DoubleQuantized())]
    assert errors[0] < errors[1]


def test_entropy_of_codes():
    codes = torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2], [0, 0, 3, 3]], dtype=torch.uint8)
    assert code_entropy(codes, 4).tolist() == [2, 0, 1]
    assert float(code_entropy(torch.tensor([[0, 1, 1]]), 2)) == pytest.approx(math.log2(3) - 2 / 3, abs=1e-9)


def test_its_histogram_is_of_levels():
    counts = CodeCounts()
    counts.add(quantize_matrix(matrix(0, (8, 64)), recipe=Recipe(weights=Target(Shifted(element="nf2", steps=1)))))
    (found,) = counts.histograms()
    assert set(found.levels.tolist()) <= set(ELEMENTS["nf2"].levels) and int(found.counts.sum()) == 512


@pytest.mark.parametrize(("wrong", "why"), [
    ({"element": "e2m1"}, "element 'e2m1': expected a table"), ({"element": "nf5"}, "element 'nf5'"),
    ({"group": 0}, "group 0"), ({"group": "row"}, "group 'row'"), ({"most": -0.1}, "most -0.1"),
    ({"most": math.inf}, "most inf"), ({"steps": 0}, "steps 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        Shifted(**wrong)


def test_blocks_are_not_fitted_one_by_one():
    fitted = Shifted(steps=1).fit(matrix())
    assert not fitted.regroups and fitted.tunable() == {} and fitted.tuned({}) is fitted
    with pytest.raises(ValueError, match="not fitted one by one"):
        fitted.refit(matrix(), 0, torch.arange(37), None)
    with pytest.raises(ValueError, match="no groups of columns"):
        fitted.in_order(torch.arange(37))


def test_without_shifts_it_is_nf4():
    W = matrix(0, (4, 64))
    assert Shifted().unshifted == Scaled(element="nf4", group=64, scale=DoubleQuantized(), axis="flat")
    centered = W - W.reshape(-1, 64).median(-1, keepdim=True).values
    fitted, codes, _ = both(Shifted(most=0.0, steps=1), centered)
    assert torch.equal(codes, Shifted().unshifted.fit(centered).nearest(centered)) and bool((fitted.shift == 0).all())


def test_as_released():
    """256 blocks through `search(tau_range=0.1, tau_n=100)` of htqin/IR-QLoRA at e6fef4a, packing by bitsandbytes' CPU.

    The entropy of no block differs by more than its float32 sums (16 terms below 1); of candidates with equal entropies
    those sums take another one in one block of a hundred, none of them among the first eight.
    """
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    fitted, codes, _ = both(Shifted(), W)
    assert float(fitted.entropy(codes).mean()) == pytest.approx(3.76396692, abs=16 * 2.0**-24)
    released = [0.17700713872909546, -0.055786825716495514, -0.11967319250106812, 0.17700713872909546,
                -0.17700713872909546, 0.38996168971061707, 0.28348439931869507, -0.00015653074660804123]  # fmt: skip
    assert fitted.stored_shift[0, :8].tolist() == pytest.approx(released, rel=1e-6)
