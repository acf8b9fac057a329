"""Floating-point weights: formats against ml_dtypes, layouts there and back, every code and scale in a product."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.check import excess_of
from kernels.float_product import E2M1, E2M3, E3M2, E4M3, E5M2, float_product, float_product_reference, pack, plan
from kernels.float_product import triton as kernel
from kernels.float_product.formats import FORMATS, layout_of, places
from kernels.float_product.packing import SPREAD, TOP
from kernels.float_product.reference import dequantize, values
from kernels.product.words import fields, from_words, to_words
from suite.grids import PowerOfTwo, Scaled, TwoLevel
from suite.grids.scales import RealScale

THEIRS = {
    E2M1: ml_dtypes.float4_e2m1fn, E2M3: ml_dtypes.float6_e2m3fn, E3M2: ml_dtypes.float6_e3m2fn,
    E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2,
}  # fmt: skip
BY_FORMAT = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
BY_DTYPE = pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=lambda dtype: str(dtype)[6:])
POWERS, FP8 = torch.float8_e8m0fnu, torch.float8_e4m3fn


def codes_of(format, seed, *shape):
    """Any codes that are numbers."""
    draw = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, shape, generator=draw) << (format.bits - 1)
    return (torch.randint(format.top + 1, shape, generator=draw) + sign).to(torch.uint8)


def powers(exponents):
    """E8M0 scales of these powers of two."""
    return (torch.as_tensor(exponents) + 127).to(torch.uint8).view(POWERS)


def ones(codes, group, dtype=torch.float32):
    """A scale of 1 for each group."""
    return torch.ones(codes.shape[0], -(-codes.shape[1] // group)).to(dtype)


# formats and layouts


@BY_FORMAT
def test_numbers_are_those_of_ml_dtypes(format):
    codes = torch.arange(2**format.bits)
    theirs = torch.from_numpy(codes.numpy().astype(np.uint8).view(THEIRS[format]).astype(np.float64))
    numbers = (codes & (2 ** (format.bits - 1) - 1)) <= format.top
    assert torch.equal(theirs.isfinite(), numbers)
    assert torch.equal(values(codes, format)[numbers], theirs[numbers])


@BY_FORMAT
@pytest.mark.parametrize("group", (16, 32))
def test_every_bit_of_a_row_of_words_is_one_bit_of_one_code(format, group):
    layout = layout_of(format, group)
    taken = [
        (plane, at + i, piece, low + i)
        for piece in range(layout.pieces)
        for plane, at, mask, low in places(layout, piece)
        for i in range(mask.bit_length())
    ]
    assert len({bit[:2] for bit in taken}) == len({bit[2:] for bit in taken}) == len(taken) == 16 * layout.planes
    assert {bit[2:] for bit in taken} == {
        (piece, low + i)
        for piece in range(layout.pieces)
        for _, _, mask, low in fields(layout, piece)
        for i in range(mask.bit_length())
    }


@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(1, 600), st.booleans(), st.integers(0, 2**32))
def test_unpacking_inverts_packing(format, outputs, inputs, fine, seed):
    layout = layout_of(format, 16 if fine else 32)
    codes = codes_of(format, seed, outputs, inputs)
    words = to_words(codes, layout, places)
    assert torch.equal(from_words(words, layout, outputs, inputs, places), codes.int())


@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(1, 600), st.integers(0, 2**32), st.integers(-140, 20))
def test_weights_are_numbers_times_scales(format, outputs, inputs, seed, low):
    """With E8M0 scales, of which those of zeros may be anything."""
    draw = torch.Generator().manual_seed(seed)
    codes = codes_of(format, seed, outputs, inputs)
    codes[:, : inputs // 64 * 32] = 0
    low = max(low, -127)
    exponents = torch.randint(low, low + SPREAD + 1, (outputs, -(-inputs // 32)), generator=draw).clamp(max=127)
    exponents[:, : inputs // 64] = torch.randint(-127, 128, (outputs, inputs // 64), generator=draw)
    weights = pack(codes, powers(exponents), format=format)
    wanted = values(codes, format) * 2.0 ** exponents.double().repeat_interleave(32, 1)[:, :inputs]
    assert torch.equal(dequantize(weights), wanted)


@pytest.mark.parametrize(("format", "scales", "group", "block", "bits"), [
    (E2M1, POWERS, 32, 1, 4.25), (E2M1, FP8, 16, 1, 4.5), (E2M3, POWERS, 32, 1, 6.25), (E3M2, POWERS, 32, 1, 6.25),
    (E4M3, POWERS, 32, 1, 8.25), (E5M2, POWERS, 32, 1, 8.25), (E4M3, torch.float32, 512, 1, 8 + 32 / 512),
    (E4M3, torch.float32, 128, 128, 8 + 32 / 128**2), (E2M1, torch.float32, 64, 1, 4.5),
])  # fmt: skip
def test_bits_of_a_weight(format, scales, group, block, bits):
    codes = codes_of(format, 0, 1024, 512)
    scale = torch.ones(1024 // block, 512 // group).to(scales)
    weights = pack(codes, scale, format=format, group=group, block=block)
    assert 8 * (weights.words.nbytes + weights.scale.nbytes) == bits * codes.numel()


# what the GPU executes: inline assembly, and operations on two words in a register


def e4m3_scale(byte):
    """What half precision has in bits 7 to 14."""
    return (byte << 7).astype(np.uint16).view(np.float16).astype(np.float64)


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize(("times", "plus", "of", "bytes", "scale"), [
    (1 << 10, -97 << 10, np.float16, (103, 128), lambda byte: 2.0 ** (byte - TOP + 15)),
    (1 << 7, 126 << 7, ml_dtypes.bfloat16, (2, 128), lambda byte: 2.0 ** (byte - TOP + 126)),
    (1 << 7, 0, np.float16, (16, 248), e4m3_scale),
    (1 << 4, 224 << 7, ml_dtypes.bfloat16, (16, 248), lambda byte: e4m3_scale(byte) * 2.0**112),
], ids=("e8m0-float16", "e8m0-bfloat16", "e4m3-float16", "e4m3-bfloat16"))  # fmt: skip
def test_bytes_become_pairs_of_halves(at, times, plus, of, bytes, scale):
    """Every byte that a scale can be stored as: the assembly, by what its two instructions do."""
    said = kernel.spread_assembly(at, times, plus)
    selector, factor, term = (int(number, 0) for number in re.search(
        r"prmt\.b32 byte, \$1, 0, (\w+); mad\.lo\.u32 \$0, byte, (\w+), (\w+);", said).groups())  # fmt: skip
    assert [selector >> 4 * i & 7 for i in range(4)] == [at, 4, 4, 4]  # the byte, and three of the second operand, 0
    byte = np.arange(*bytes)
    register = (byte * factor + term) & 0xFFFFFFFF
    for half in (register & 0xFFFF, register >> 16):
        assert np.array_equal(half.astype(np.uint16).view(of).astype(np.float64), scale(byte))


@BY_FORMAT
@BY_DTYPE
def test_bits_that_a_shift_leaves_undefined_are_masked(format, dtype):
    low = (10 if dtype == torch.float16 else 7) - format.mantissa
    for piece in range(layout_of(format, 32).pieces):
        (_, at, mask, _), (_, sign, _, _) = places(layout_of(format, 32), piece)
        for up, kept in ((low - at, mask << low), (15 - sign, 0x8000)):
            defined = 0xFFFF >> -up if up < 0 else 0xFFFF << up & 0xFFFF
            assert kept & defined == kept
            if up >= 0:
                assert kernel.lift_assembly(up) == f"shl.b32 $0, $1, {up};"


# products


@BY_FORMAT
@BY_DTYPE
def test_every_code_in_every_place_is_decoded_exactly(format, dtype):
    """All codes as outputs; one row of activations reads one piece of the tile."""
    layout = layout_of(format, 32)
    known = torch.tensor([code for code in range(2**format.bits) if code % 2 ** (format.bits - 1) <= format.top])
    codes = torch.stack([known.roll(k) for k in range(layout.inputs)], 1).to(torch.uint8)
    weights = pack(codes, ones(codes, layout.inputs), format=format)
    x = torch.zeros(layout.pieces, layout.inputs, dtype=dtype)
    at = torch.arange(layout.pieces) * (layout.rows + 1)
    x[torch.arange(layout.pieces), at] = 1
    found = float_product(x, weights)
    assert torch.equal(found.double(), values(codes[:, at], format).T)


@BY_DTYPE
def test_every_scale_of_nvfp4_is_applied_exactly(dtype):
    """All E4M3 scales, zero and subnormal ones too, times all codes: six significant bits."""
    scale = torch.arange(127, dtype=torch.uint8).view(FP8)[:, None].expand(127, 4).contiguous()
    codes = torch.arange(16, dtype=torch.uint8).repeat(127, 4)
    weights = pack(codes, scale, format=E2M1, factor=0.5)
    x = torch.zeros(16, 64, dtype=dtype)
    at = torch.arange(16) * 17 % 64
    x[torch.arange(16), at] = 1
    wanted = values(codes, E2M1) * scale.double().repeat_interleave(16, 1) / 2
    assert torch.equal(dequantize(weights), wanted)
    assert torch.equal(float_product(x, weights).double(), wanted[:, at].T)


@BY_DTYPE
@pytest.mark.parametrize("format", (E2M1, E3M2, E4M3), ids=lambda format: format.name)
@pytest.mark.parametrize("spread", (24, 25, SPREAD))
def test_powers_of_two_are_applied_exactly(format, dtype, spread):
    """Across the spread at which float16 begins to scale sums instead of weights; one output per power of two."""
    exponents = torch.arange(spread + 1)[:, None].expand(-1, 2) - spread
    codes = codes_of(format, 0, spread + 1, 64)
    weights = pack(codes, powers(exponents), format=format, factor=2.0**-3 if dtype == torch.float16 else 2.0**10)
    assert weights.spread == spread
    x = torch.zeros(2, 64, dtype=dtype)
    x[0, 5] = x[1, 40] = 1
    wanted = dequantize(weights)[:, [5, 40]].T
    assert torch.equal(float_product(x, weights).double(), wanted.to(dtype).double())


def test_float16_scales_weights_only_where_that_is_exact():
    codes, x = codes_of(E2M1, 0, 2, 64), torch.zeros(1, 64, dtype=torch.float16)
    for spread, decode in ((24, kernel.e2m1_with_powers), (25, kernel.e2m1)):
        weights = pack(codes, powers([[0, 0], [-spread, -spread]]), format=E2M1)
        assert plan(x, weights).constants["DECODE"] is decode
        assert plan(x.bfloat16(), weights).constants["DECODE"] is kernel.e2m1_with_powers


KINDS = st.one_of(
    st.tuples(st.sampled_from(FORMATS), st.just(POWERS), st.just(32), st.just(1)),
    st.tuples(st.just(E2M1), st.just(FP8), st.just(16), st.just(1)),
    st.tuples(st.sampled_from(FORMATS), st.just(torch.float32), st.sampled_from((32, 96, 256, None)), st.just(1)),
    st.tuples(st.sampled_from((E4M3, E5M2)), st.just(torch.float32), st.just(128), st.just(128)),
)


@settings(max_examples=20)
@given(KINDS, st.integers(1, 20), st.integers(1, 140), st.integers(1, 260), st.booleans(), st.integers(0, 2**32))
def test_products_of_any_size(kind, rows, outputs, inputs, half, seed):
    format, scales, group, block = kind
    draw = torch.Generator().manual_seed(seed)
    shape = (-(-outputs // block), -(-inputs // (group or inputs)))
    scale = (torch.rand(shape, generator=draw) + 0.5).to(scales)
    weights = pack(codes_of(format, seed, outputs, inputs), scale, format=format, group=group, block=block)
    x = torch.randn(rows, inputs, generator=draw).to(torch.float16 if half else torch.bfloat16) / 256
    assert excess_of(float_product(x, weights), float_product_reference(x, weights), 1e-4) <= 1


# the suite's grids


def of_suite(W, element, scale, group):
    grid = Scaled(element=element, group=group, scale=scale, pad=group in (16, 32))
    fitted = grid.fit(W)
    return fitted, fitted.nearest(W)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_microscaling_weights_of_the_suite(format):
    W = torch.randn(9, 200, generator=torch.Generator().manual_seed(0)) * torch.exp2(torch.arange(9)[:, None] - 12.0)
    W[3] = 0
    fitted, codes = of_suite(W, format.name, PowerOfTwo(), 32)
    weights = pack(codes, fitted.scale.contiguous().to(POWERS), format=format)
    assert torch.equal(dequantize(weights).float(), fitted.decode(codes))


def test_nvfp4_weights_of_the_suite():
    W = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    fitted, codes = of_suite(W, "e2m1", TwoLevel(), 16)
    stored = fitted.stored
    weights = pack(codes, stored["scale"].to(FP8), format=E2M1, factor=float(stored["tensor_scale"]))
    # the suite multiplies the two scales in float32, and the number after that
    wanted = fitted.decode(codes).double()
    assert (dequantize(weights) - wanted).abs().max() <= 2 * 2.0**-24 * wanted.abs().max()
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1)).half()
    assert excess_of(float_product(x, weights), x.double() @ wanted.T, 1e-4) <= 1


@pytest.mark.parametrize("format", (E4M3, E5M2), ids=lambda format: format.name)
def test_fp8_weights_of_the_suite(format):
    W = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    fitted, codes = of_suite(W, format.name, RealScale(bits=32), "row")
    weights = pack(codes, fitted.scale.contiguous(), format=format)
    assert torch.equal(dequantize(weights).float(), fitted.decode(codes))


# what cannot be


@pytest.mark.parametrize(("change", "complaint"), [
    ({"format": "e2m1"}, "format is 'e2m1', expected one of e2m1, e2m3, e3m2, e4m3, e5m2"),
    ({"codes": torch.zeros(4, 64)}, "codes is torch.float32, expected torch.uint8"),
    ({"codes": torch.zeros(4, dtype=torch.uint8)}, r"codes has shape \(4,\), expected \(any, any\)"),
    ({"codes": torch.full((4, 64), 16, dtype=torch.uint8), "format": E2M1, "scale": torch.ones(4, 1)},
     r"codes lie in \[16, 16\], expected \[0, 15\]"),
    ({"codes": torch.full((4, 64), 0x7F, dtype=torch.uint8)}, "256 codes of 256 are infinity or NaN in e4m3"),
    ({"codes": torch.full((4, 64), 0xFC, dtype=torch.uint8), "format": E5M2}, "256 codes of 256 are infinity or NaN"),
    ({"scale": torch.ones(4, 3)}, r"scale has shape \(4, 3\), expected \(4, 1\)"),
    ({"scale": torch.ones(4, 1).half()}, "scale is torch.float16, expected torch.float8_e8m0fnu or"),
    ({"codes": torch.ones(64, 4, dtype=torch.uint8).T}, r"codes of shape \(4, 64\) has strides \(1, 4\)"),
    ({"scale": torch.tensor([1, 2, float("inf"), 4])[:, None]}, "scale has infinity or NaN"),
    ({"scale": torch.full((4, 2), 255, dtype=torch.uint8).view(POWERS)}, "scale has infinity or NaN"),
    ({"scale": torch.tensor([[0, 126]] * 4).to(torch.uint8).view(POWERS)}, r"scales span 2\^126, from 2\^-127 on"),
    ({"scale": torch.ones(4, 4).to(FP8)}, "scale is torch.float8_e4m3fn with e4m3, expected a format of 4 bits"),
    ({"scale": torch.full((4, 4), -1.0).to(FP8), "format": E2M1, "codes": torch.ones(4, 64, dtype=torch.uint8)},
     "scale has -1.0, expected no scales below zero"),
    ({"group": 64, "scale": powers(torch.zeros(4, 2))}, "group is 64 with torch.float8_e8m0fnu scales, expected 32"),
    ({"group": 48}, "group is 48, expected a positive multiple of 32"),
    ({"block": 64}, "block is 64 with torch.float32 scales, expected 1, or 128 with torch.float32"),
    ({"block": 128, "scale": powers(torch.zeros(4, 2))}, "block is 128 with torch.float8_e8m0fnu scales"),
])  # fmt: skip
def test_weights_that_cannot_be_packed(change, complaint):
    good = {"codes": torch.ones(4, 64, dtype=torch.uint8), "scale": torch.ones(4, 1), "format": E4M3}
    pack(**good)
    with pytest.raises(ValueError, match=complaint):
        pack(**good | change)


def _weights():
    return pack(torch.ones(4, 64, dtype=torch.uint8), powers(torch.zeros(4, 2)), format=E2M1)


@pytest.mark.parametrize(("x", "change", "complaint"), [
    (torch.ones(1, 63).half(), {}, r"x has shape \(1, 63\), expected \(any, 64\)"),
    (torch.ones(64).half(), {}, r"x has shape \(64,\), expected \(any, 64\)"),
    (torch.ones(1, 64), {}, "x is torch.float32, expected torch.float16 or torch.bfloat16"),
    (torch.ones(64, 2).half().T, {}, r"x of shape \(2, 64\) has strides \(1, 2\), expected a contiguous tensor"),
    (torch.ones(1, 64, device="meta").half(), {}, "x is on meta, expected cpu"),
    (None, {"words": torch.zeros(1, 1, 32, 8, dtype=torch.int32)}, "words is torch.int32, expected torch.int16"),
    (None, {"words": torch.zeros(1, 1, 32, 4, dtype=torch.int16)}, r"words has shape \(1, 1, 32, 4\)"),
    (None, {"scale": torch.zeros(4, 8, dtype=torch.uint8)}, r"scale has shape \(4, 8\), expected \(1, 8\)"),
    (None, {"scale": torch.zeros(1, 8)}, "scale is torch.float32, expected torch.int32"),
    (None, {"factor": 2.0**130}, r"factor of the weights is 1.36\d*e\+39, expected at most 2\^128"),
])  # fmt: skip
def test_products_that_cannot_be(x, change, complaint):
    x = torch.ones(1, 64).half() if x is None else x
    with pytest.raises(ValueError, match=complaint):
        float_product(x, replace(_weights(), **change))
