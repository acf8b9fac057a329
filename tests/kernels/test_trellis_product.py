import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.check import excess_of
from kernels.inputs import ACTIVATIONS
from kernels.kernel import Size
from kernels.trellis_product import TrellisWeights, pack, trellis_product, trellis_product_reference
from kernels.trellis_product.codes import DECODE, DIVISOR
from kernels.trellis_product.packing import STEP_VALUES, WIDTHS, from_words
from kernels.trellis_product.reference import hyb, one_mad, states_of, three_inst, values_of
from kernels.trellis_product.rows import inputs
from suite.grids import viterbi
from suite.grids.trellis import Trellis
from suite.grids.trellis_codes import hyb_table
from suite.grids.trellis_codes import values_of as suite_values

CODES = st.sampled_from(sorted(STEP_VALUES))
BITS = st.sampled_from(WIDTHS)
STATES = torch.arange(1 << 16)
TABLE = hyb_table().half()


def random_codes(code: str, bits: int, outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    shape = (-(-outputs // 16), -(-inputs // 16), 256 // STEP_VALUES[code])
    return torch.randint(2 ** (bits * STEP_VALUES[code]), shape, generator=draw, dtype=torch.uint8)


def packed(code: str, bits: int, outputs: int, inputs: int) -> TrellisWeights:
    codes, table = random_codes(code, bits, outputs, inputs), TABLE if code == "hyb" else None
    return pack(codes, torch.ones(1).half(), table, code=code, bits=bits, outputs=outputs, inputs=inputs)


@given(CODES, BITS, st.integers(1, 70), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_packing_goes_back_and_forth(code: str, bits: int, outputs: int, inputs: int) -> None:
    assert torch.equal(from_words(packed(code, bits, outputs, inputs)), random_codes(code, bits, outputs, inputs))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("code", sorted(STEP_VALUES))
def test_bytes_of_whole_tiles_are_those_of_the_codes(code: str, bits: int) -> None:
    assert packed(code, bits, 48, 128).words.nbytes * 8 == 48 * 128 * bits
    assert packed(code, bits, 33, 65).words.nbytes * 8 == 48 * 128 * bits


@given(st.sampled_from([2, 3, 4, 6, 8]), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_states_are_those_of_the_search(width: int, seed: int) -> None:
    codes = torch.randint(2**width, (2, 128), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(states_of(codes, width), viterbi.states_of(codes, 16, width))


def test_codes_are_those_of_the_grid() -> None:
    """Bit for bit in float32; the release rounds the sum of 3INST to float16, so that sum rounded is the same."""
    assert torch.equal(one_mad(STATES).float()[:, None], suite_values("1mad", 16, 1))
    assert torch.equal(three_inst(STATES).half().float()[:, None], suite_values("3inst", 16, 1))
    assert torch.equal(hyb(STATES, TABLE).float(), suite_values("hyb", 16, 2))


@triton.jit
def decoded(a, b, c, table, out, DECODE: tl.constexpr, AT: tl.constexpr, APART: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    row = (tl.load(a + i), tl.load(b + i), tl.load(c + i))
    v0, v1, v2, v3 = DECODE(row[0].to(tl.uint32), row[1].to(tl.uint32), row[2].to(tl.uint32), table, AT, APART)
    tl.store(out + i, v0.to(tl.int32, bitcast=True))
    tl.store(out + N + i, v1.to(tl.int32, bitcast=True))
    tl.store(out + 2 * N + i, v2.to(tl.int32, bitcast=True))
    tl.store(out + 3 * N + i, v3.to(tl.int32, bitcast=True))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("code", sorted(STEP_VALUES))
def test_every_state_is_decoded_exactly(code: str, bits: int) -> None:
    """Rows of 96 bits, and every window a kernel takes of them; one of four windows in a launch holds every state."""
    exact = {
        "1mad": lambda states: (one_mad(states) * DIVISOR).round()[:, None],
        "3inst": lambda states: three_inst(states)[:, None],
        "hyb": lambda states: hyb(states, TABLE),
    }[code]
    apart, n = 4 * bits, len(STATES)
    for turn, first in enumerate(range(0, apart, bits * STEP_VALUES[code])):
        rows, at = torch.randint(2, (n, 96), generator=torch.Generator().manual_seed(turn)), first + turn * apart
        rows[:, at : at + 16] = STATES[:, None] >> torch.arange(15, -1, -1) & 1
        words = (rows.view(-1, 3, 32) << torch.arange(31, -1, -1)).sum(-1).T.contiguous()
        out = torch.empty(4, n, dtype=torch.int32)
        decoded[(1,)](*words, TABLE.view(torch.int32), out, DECODE[code], first, apart, n)
        for place, halves in enumerate(out.view(torch.float16).view(4, n, 2).double()):
            window = rows[:, first + place * apart :][:, :16]
            found = halves if code == "hyb" else halves.sum(-1, keepdim=True)
            assert torch.equal(found, exact((window << torch.arange(15, -1, -1)).sum(-1)))


@pytest.mark.parametrize(("code", "bits"), [("1mad", 2), ("3inst", 2), ("hyb", 2), ("hyb", 3), ("3inst", 4)])
def test_products_are_those_of_the_grid(code: str, bits: int) -> None:
    """A matrix as the benchmark stores it: its own decoding, one scale, its own table."""
    grid = Trellis(bits=bits, code=code, V=STEP_VALUES[code], own_table=code == "hyb")
    fitted = grid.fit(torch.randn(35, 70, generator=torch.Generator().manual_seed(1)))
    codes = random_codes(code, bits, 35, 70)
    table = None if fitted.table is None else fitted.table.half()
    scale = fitted.scale.reshape(1).half()
    weights = pack(codes, scale, table, code=code, bits=bits, outputs=35, inputs=70)
    W = fitted.decode32(codes).double()
    one_rounding = 2.0**-11 if code == "3inst" else 2.0**-23  # of a weight: the grid's sums in float16, or its scaling
    assert ((values_of(weights) * scale.double() - W).abs() <= W.abs() * one_rounding).all()

    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(2)).half()
    wanted = x.double() @ W.T
    sums = 1e-5 * wanted.square().mean().sqrt()
    allowed = one_rounding * x.double().abs() @ W.abs().T + 2.0**-11 * wanted.abs() + sums
    assert ((trellis_product(x, weights).double() - wanted).abs() <= allowed).all()


@given(CODES, BITS, st.integers(1, 20), st.integers(1, 300), st.integers(1, 140), st.sampled_from(ACTIVATIONS))
@settings(max_examples=12, deadline=None)
def test_any_size(code: str, bits: int, rows: int, outputs: int, n_in: int, dtype: torch.dtype) -> None:
    x, weights = inputs(Size(rows, outputs, n_in), 0, code=code, bits=bits, dtype=dtype)
    if outputs % 2:
        weights = dataclasses.replace(weights, scale=weights.scale[:1].clone())
    assert excess_of(trellis_product(x, weights), trellis_product_reference(x, weights), 1e-4) <= 1


def test_bfloat16_of_any_size_is_as_exact() -> None:
    """A row times a power of two is its product times that, bit for bit; a row of zeros gives zeros."""
    x, weights = inputs(Size(6, 20, 100), 0, code="1mad", dtype=torch.bfloat16)
    x[1:] = x[0]
    powers = torch.tensor([0.0, -100.0, -20.0, 17.0, 100.0]).exp2()
    found = trellis_product(torch.cat([x[:5] * powers[:, None], 0 * x[:1]]).to(torch.bfloat16), weights)
    assert torch.equal(found[:5].float(), found[:1].float() * powers[:, None])
    assert (found[5] == 0).all()


def test_bfloat16_far_apart() -> None:
    """Float16 has five bits of exponent, and yet an activation counts beside one 2^30 times as large."""
    x, weights = inputs(Size(1, 8, 64), 0, code="hyb", dtype=torch.bfloat16)
    x.zero_()[0, 5:7] = torch.tensor([2.0**100, 2.0**70])
    weights.table[:, 1] = 0  # which leaves weights at even inputs
    found, wanted = trellis_product(x, weights), trellis_product_reference(x, weights)
    assert (wanted != 0).all() and excess_of(found, wanted, 1e-6) <= 1


CASES = [
    ({"code": "2mad"}, "code '2mad', expected one of 1mad, 3inst, hyb"),
    ({"bits": 5}, r"weights of 5 bits, expected one of \(2, 3, 4\)"),
    ({"inputs": 0}, r"weights \(20, 0\), expected at least one"),
    ({"outputs": 33}, r"codes has shape \(2, 3, 256\), expected \(3, 3, 256\)"),
    ({"codes": torch.full((2, 3, 256), 4, dtype=torch.uint8)}, r"codes lie in \[4, 4\], expected \[0, 3\]"),
    ({"scale": torch.ones(3).half()}, r"scale has shape \(3,\), expected \(20\)"),
    ({"scale": torch.ones(20)}, "scale is torch.float32, expected torch.float16"),
    ({"table": TABLE}, "a table goes with the code 'hyb' and no other, the code is '1mad'"),
]


@pytest.mark.parametrize(("changed", "message"), CASES)
def test_packing_refuses_what_does_not_fit(changed: dict, message: str) -> None:
    good = {"codes": random_codes("1mad", 2, 20, 40), "scale": torch.ones(1).half(), "code": "1mad", "bits": 2,
            "outputs": 20, "inputs": 40}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        pack(**(good | changed))


def test_a_table_is_asked_for_and_looked_at() -> None:
    codes, scale = random_codes("hyb", 2, 20, 40), torch.ones(1).half()
    for table, message in ((None, "a table goes with the code 'hyb'"), (TABLE[:256], r"table has shape \(256, 2\)")):
        with pytest.raises(ValueError, match=message):
            pack(codes, scale, table, code="hyb", bits=2, outputs=20, inputs=40)


def test_the_product_refuses_what_does_not_fit() -> None:
    weights = packed("1mad", 2, 20, 40)
    for x, message in (
        (torch.ones(2, 41).half(), r"x has shape \(2, 41\), expected \(any, 40\)"),
        (torch.ones(0, 40).half(), "x has 0 numbers, expected 1 to"),
        (torch.ones(2, 40), "x is torch.float32, expected torch.float16 or torch.bfloat16"),
        (torch.ones(40, 2).half().T, r"strides \(1, 2\), expected a contiguous tensor"),
        (torch.ones(2, 40, device="meta").half(), "x is on meta, expected cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            trellis_product(x, weights)
    with pytest.raises(ValueError, match=r"words has shape \(1, 4, 2, 16\), expected \(1, 6, 2, 16\)"):
        trellis_product(torch.ones(2, 40).half(), dataclasses.replace(weights, bits=3))
