"""Matrices and caches packed by kernels, bit for bit as the packers pack what the suite's grids choose."""

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cache_attention, float_product, integer_product, table_product, ternary_product
from kernels.float_product.formats import E2M1, E2M3, E3M2, E4M3, E5M2
from kernels.quantize_pack import cache, floats, integers, tables, ternary
from kernels.quantize_pack.reference import (
    floats_reference,
    integers_reference,
    table_reference,
    ternary_reference,
    tokens_reference,
)
from kernels.quantize_pack.rows import excess
from kernels.table_product.packing import NF4
from suite.grids import Integer, PowerOfTwo, RealScale, Scaled, TwoLevel

TYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
SEEDS = st.integers(0, 2**32)


@pytest.fixture
def _quietly():
    """The interpreter's arithmetic is numpy's, which warns of infinity and NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        yield


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Gaussian, one group in a few zeros, constant or of values on ties."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(*shape, generator=draw) * scale
    ties = (torch.randint(-15, 16, shape, generator=draw) / 2) * scale
    kind = torch.randint(8, (shape[0], 1), generator=draw)
    W = torch.where(kind == 0, 0.0, torch.where(kind == 1, scale, torch.where(kind < 4, ties, W)))
    return W.to(dtype)


def same(found: object, wanted: object) -> bool:
    """Whether two packed matrices agree in all their parts; a zero point may be -0 in one and 0 in the other."""
    pairs = [(getattr(found, field.name), getattr(wanted, field.name)) for field in fields(found)]
    return all(bool((a == b).all()) if torch.is_tensor(a) else a == b for a, b in pairs)


# arithmetic


def _fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return _rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def _rounded(exact: Fraction) -> np.float32:
    """To nearest, halves to even, of normal numbers: by the integer of 24 bits."""
    if exact == 0:
        return np.float32(0)
    exponent = 24 - 1 - int(np.floor(np.log2(abs(float(exact)))))
    return np.float32(round(exact * Fraction(2) ** exponent) * 2.0**-exponent)


def test_quotients_of_three_operations_are_rounded_once():
    """What the assembly does, in exact arithmetic, with reciprocals as far off as they may be."""
    assert integers.QUOTIENT_ASSEMBLY.value.split(";")[1:4] == [
        " mul.rn.f32 q, $1, $3", " fma.rn.f32 rest, q, $2, $1", " fma.rn.f32 $0, rest, $3, q"
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    divisors = np.abs(rng.standard_normal(300)).astype(np.float16)
    divisors = np.concatenate([divisors, np.nextafter(np.float16(2), np.float16(1), dtype=np.float16)[None], [15, 3]])
    for divisor in divisors.astype(np.float32):
        half = np.float32((rng.integers(0, 255) + 0.5) * divisor)  # quotients near halves decide codes
        for x in (np.float32(rng.standard_normal()), half, np.nextafter(half, np.float32(9)), np.float32(divisor * 3)):
            for off in (-1, 0, 1):
                inverse = np.float32(1) / divisor
                inverse = np.float32(inverse * (1 + off * 2.0**-23))
                q = _rounded(Fraction(float(x)) * Fraction(float(inverse)))
                rest = _fma(q, -divisor, x)
                assert _fma(rest, inverse, q) == x / divisor, (x, divisor, off)


@triton.jit
def _odd(x, low, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, cache.to_odd(tl.load(x + at), tl.load(low + at)))


def test_differences_are_rounded_to_odd():
    """Above, equal to or below every number of 16 bits as the exact difference is: exact, or odd and on its side."""
    draw = torch.Generator().manual_seed(0)
    size = 2.0 ** torch.randint(-14, 13, (2, 4096), generator=draw)
    x, low = (torch.randn(2, 4096, generator=draw) * size).half().float()
    x, low = torch.maximum(x, low), torch.minimum(x, low)
    x[0], low[0] = 1.5, 3 * 2.0**-24
    out = torch.empty(4096)
    _odd[(1,)](x, low, out, 4096)
    exact = x.double() - low.double()
    inexact = out.double() != exact
    assert inexact[0] and 100 < inexact.sum() < 4000
    assert ((out.view(torch.int32) & 1) == 1)[inexact].all()
    assert ((out.double() - exact).abs() <= torch.finfo(torch.float32).eps * exact).all()
    assert "sub.rz.f32 cut, $1, $2; sub.rp.f32 up, $1, $2;" in cache.ODD_ASSEMBLY.value
    table = int(cache.ODD_ASSEMBLY.value.split("1, ")[-1].split(";")[0], 16)
    assert table == 0xF0 | ((0xF0 ^ 0xCC) & 0xAA)


def test_base_three_bytes():
    assert all((v * 13 + 242) * 4316 // 2**20 + v == -(-256 * v // 243) for v in range(243))


# integers


@settings(max_examples=4)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from([2, 3, 4, 8]), st.sampled_from([1, 2, 3, 4, 8, None]),
       st.sampled_from(integers.CONVENTIONS), TYPES, SEEDS)  # fmt: skip
def test_integers_are_those_of_the_grid(outputs, inputs, bits, runs, convention, dtype, seed):
    W = drawn(seed, outputs, inputs, dtype=dtype, scale=0.02)
    group = None if runs is None else runs * (16 if bits == 3 else 32)
    fitted = Integer(bits=bits, group="row" if group is None else group, convention=convention).fit(W.float())
    codes = fitted.nearest(W.float())
    zero = None if fitted.zero is None else fitted.zero.half().contiguous()
    wanted = integer_product.pack(codes, fitted.scale.half().contiguous(), zero, bits=bits, group=group)
    assert same(integers.quantize_integers(W, bits=bits, group=group, convention=convention), wanted)
    found = integers.plan(W, bits, group, convention).run()
    assert excess(found, integers_reference(W, bits, group, convention), 0) == 0


@pytest.mark.usefixtures("_quietly")
@pytest.mark.parametrize("convention", integers.CONVENTIONS)
def test_ranges_at_the_ends_of_float16(convention):
    """Scales that would be larger than float16 has, smaller, and groups of tiny numbers."""
    W = drawn(1, 4, 64)
    W[0], W[1], W[2], W[3] = W[0] * 1e30, W[1] * 1e-30, 1e-8, 3e8
    fitted = Integer(bits=4, group=32, convention=convention).fit(W)
    zero = None if fitted.zero is None else fitted.zero.half().contiguous()
    wanted = integer_product.pack(fitted.nearest(W), fitted.scale.half().contiguous(), zero, bits=4, group=32)
    assert same(integers.quantize_integers(W, bits=4, group=32, convention=convention), wanted)


# tables


@settings(max_examples=3)
@given(st.integers(1, 20), st.integers(1, 200), st.sampled_from([16, 64, 128, None]), TYPES, SEEDS)
def test_nf4_is_that_of_the_grid(outputs, inputs, group, dtype, seed):
    W = drawn(seed, outputs, inputs, dtype=dtype)
    grid = Scaled(element="nf4", group="row" if group is None else group, scale=RealScale(bits=32))
    fitted = grid.fit(W.float())
    table = torch.tensor(NF4)
    wanted = table_product.pack(fitted.nearest(W.float()), fitted.scale.contiguous(), table, group=group)
    found = tables.quantize_table(W, table, group=group)
    assert same(found, wanted)
    assert excess(table_reference(W, table, group, torch.float32), (wanted.words, wanted.scale), 0) == 0


@settings(max_examples=3)
@given(SEEDS)
def test_any_ascending_table(seed):
    """Ties between levels that are integers are many; the largest magnitude is met."""
    table = torch.randperm(41, generator=torch.Generator().manual_seed(seed))[:16].sort().values.float() - 20
    W = drawn(seed, 6, 96, dtype=torch.float16)
    found = tables.quantize_table(W, table, group=32, scales=torch.float16)
    wanted = table_reference(W, table, 32, torch.float16)
    assert excess((found.words, found.scale), wanted, 0) == 0


# floating point


@settings(max_examples=4)
@given(st.integers(1, 20), st.integers(1, 200), st.sampled_from([E2M1, E2M3, E3M2, E4M3, E5M2]),
       st.sampled_from(["e8m0", "e4m3", "float16"]), TYPES, SEEDS)  # fmt: skip
def test_floats_are_those_of_the_grid(outputs, inputs, format, scales, dtype, seed):
    format = E2M1 if scales == "e4m3" else format
    W = drawn(seed, outputs, inputs, dtype=dtype, scale=0.02)
    rule = {"e8m0": PowerOfTwo(), "e4m3": TwoLevel(), "float16": RealScale()}[scales]
    group = {"e8m0": 32, "e4m3": 16, "float16": "row"}[scales]
    fitted = Scaled(element=format.name, group=group, scale=rule, pad=scales != "float16").fit(W.float())
    codes = fitted.nearest(W.float())[:, :inputs].contiguous()
    if scales == "e8m0":
        scale, factor = fitted.scale.to(torch.float8_e8m0fnu), 1.0
    elif scales == "e4m3":
        scale, factor = fitted.stored["scale"].to(torch.float8_e4m3fn), float(fitted.stored["tensor_scale"])
    else:
        scale, factor = fitted.scale, 1.0
    wanted = float_product.pack(codes, scale.contiguous(), format=format, factor=factor)
    assert same(floats.quantize_floats(W, format, scales), wanted)


def test_blocks_of_outputs_and_inputs():
    W = drawn(3, 200, 300)
    found = floats.quantize_floats(W, E4M3, "float32", 128, block=128)
    words, scale = floats_reference(W, E4M3, "float32", 128, 128)
    assert excess((found.words, found.scale), (words, scale), 0) == 0
    near = float_product.reference.dequantize(found)
    most = W.abs().amax()
    assert ((near - W).abs() <= W.abs() * 2.0**-4 + most / 448 * 2.0**-10).all()  # half a step of 3 bits


def test_a_known_largest_magnitude_spares_a_pass():
    W = drawn(4, 10, 128)
    known = floats.quantize_floats(W, E2M1, "e4m3", largest=W.abs().amax().reshape(1))
    assert same(known, floats.quantize_floats(W, E2M1, "e4m3"))


def test_matrices_of_zeros():
    W = torch.zeros(3, 100).half()
    assert not float_product.reference.dequantize(floats.quantize_floats(W, E2M1, "e8m0")).any()
    assert not float_product.reference.dequantize(floats.quantize_floats(W, E2M1, "e4m3")).any()
    assert not ternary_product.reference.dequantize(ternary.quantize_ternary(W)).any()


# ternary


@settings(max_examples=3)
@given(st.integers(1, 50), st.integers(1, 700), st.sampled_from([4, 5]), st.booleans(), TYPES, SEEDS)
def test_trits_are_those_of_the_grid(outputs, inputs, per_byte, per_output, dtype, seed):
    W = drawn(seed, outputs, inputs, dtype=dtype)
    grid = Scaled(element="ternary", group="row" if per_output else "tensor",
                  scale=RealScale(statistic="absmean", bits=32))  # fmt: skip
    fitted = grid.fit(W.float())
    scale = fitted.scale.reshape(-1).contiguous()
    wanted = ternary_product.pack(fitted.nearest(W.float()).to(torch.int8) - 1, scale, per_byte=per_byte)
    assert same(ternary.quantize_ternary(W, scale, per_byte=per_byte), wanted)
    assert excess((wanted.words,), ternary_reference(W, scale, per_byte), 0) == 0


def test_the_scale_of_ternary_weights_is_the_mean_magnitude():
    W = drawn(2, 8, 200)
    found = ternary.quantize_ternary(W).scale
    assert found.shape == (1,) and float((found - W.double().abs().mean()).abs()) <= 1600 * 2.0**-24 * float(found)


# caches


@settings(max_examples=4)
@given(st.integers(1, 2), st.integers(1, 150), st.sampled_from([64, 128]), st.sampled_from([2, 4]),
       st.sampled_from([32, 64, 128]), st.sampled_from([32, 64]), SEEDS)  # fmt: skip
def test_caches_are_those_of_attention(heads, length, width, bits, key_group, value_group, seed):
    draw = torch.Generator().manual_seed(seed)
    spread = 2.0 ** torch.randint(-14, 4, (1, heads, length, 1), generator=draw)
    keys, values = ((torch.randn(1, heads, length, width, generator=draw) * spread).half() for _ in range(2))
    wanted = cache_attention.pack(keys, values, torch.tensor([length], dtype=torch.int32), bits=bits,
                                  key_group=key_group, value_group=value_group)  # fmt: skip
    found = cache.quantize_keys(keys, bits=bits, group=key_group)
    assert excess(found, (wanted.keys, wanted.key_scale, wanted.key_least), 0) == 0
    found = cache.quantize_values(values, bits=bits, group=value_group)
    assert excess(found, (wanted.values, wanted.value_scale, wanted.value_least), 0) == 0


def test_ties_that_float32_cannot_tell():
    """(x - low) / scale is 1/2 but for the last of 26 bits: 0 or 1, where float32 sees a tie and takes 0."""
    x = torch.zeros(1, 1, 32, 64).half()
    x[..., 0], x[..., 1] = 3 * 2.0**-24, 15.0  # the least and the largest of 64 channels: the scale is 1
    x[..., 2], x[..., 3] = 8.5, 1.5
    x[..., 4:] = 1.0
    found = cache.quantize_values(x, bits=4, group=64)
    assert excess(found, tokens_reference(x, "values", 4, 64), 0) == 0
    codes = cache_attention.packing.from_words(found[0], 4)[0, 0, 0]
    assert found[1][0, 0, 0, 0, 0] == 1 and codes[:5].tolist() == [0, 15, 8, 1, 1]


# what is not finite


@pytest.mark.usefixtures("_quietly")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_groups_that_are_not_finite_say_so_and_no_others(bad):
    W = drawn(0, 5, 256) + 0.1
    other = W.clone()
    W[2, 70] = bad
    for convention in integers.CONVENTIONS:
        found = integers.quantize_integers(W, bits=4, group=64, convention=convention)
        whole = integers.quantize_integers(other, bits=4, group=64, convention=convention)
        assert found.scale.isnan().nonzero().tolist() == [[1, 2]]
        kept = ~found.scale.isnan()
        assert torch.equal(found.scale[kept], whole.scale[kept])
        codes, wanted = (integer_product.reference.from_words(w.words, w.layout, 5, 256) for w in (found, whole))
        assert (codes[2, 64:128] == int(convention == "narrow")).all()
        wanted[2, 64:128] = codes[2, 64:128]
        assert torch.equal(codes, wanted)
    assert excess(integers.plan(W, 4, 64, "asymmetric").run(), integers_reference(W, 4, 64, "asymmetric"), 0) == 0
    assert tables.quantize_nf4(W).scale.isnan().nonzero().tolist() == [[1, 2]]
    assert floats.quantize_floats(W, E4M3, "float32", 64).scale.isnan().nonzero().tolist() == [[1, 2]]
    for scales in ("e8m0", "e4m3"):
        with pytest.raises(ValueError, match=r"W of shape \(5, 256\) has NaN or infinity, expected numbers"):
            floats.quantize_floats(W, E2M1, scales)
    keys = W.clamp(-1e4, 1e4).half()[None, None, :, :64].contiguous() if bad != bad else W.half()[None, None, :, 64:128]
    keys = keys.contiguous()
    keys[0, 0, 2, 6] = bad
    for found, wanted in ((cache.quantize_keys(keys, bits=4), tokens_reference(keys, "keys", 4)),
                          (cache.quantize_values(keys, bits=4), tokens_reference(keys, "values", 4))):  # fmt: skip
        assert int(found[1].isnan().sum()) == int(found[2].isnan().sum()) == 1
        assert excess(found, wanted, 0) == 0


def test_a_plan_needs_no_values():
    """Every launch has tensors of the meta device, and bytes that count: 4 bits a weight, 16 for a scale."""
    W = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
    words, scale, zero = integers.plan(W, 4, 128, "asymmetric").outputs
    assert words.nbytes == W.numel() // 2 and scale.nbytes == zero.nbytes == W.numel() // 128 * 2
    words, scale = floats.plan(W, E2M1, "e8m0").outputs
    assert words.nbytes == W.numel() // 2 and scale.nbytes == W.numel() // 32


@pytest.mark.parametrize(("call", "complaint"), [
    (lambda W: integers.quantize_integers(W, bits=5), "weights of 5 bits, expected one of"),
    (lambda W: integers.quantize_integers(W, bits=4, group=48), "group is 48, expected a positive multiple of 32"),
    (lambda W: integers.quantize_integers(W, bits=4, convention="odd"), "convention is 'odd', expected one of asymm"),
    (lambda W: integers.quantize_integers(W.double(), bits=4), "W is torch.float64, expected torch.float16 or"),
    (lambda W: integers.quantize_integers(W.T, bits=4), "contiguous"),
    (lambda W: integers.quantize_integers(W[:0], bits=4), r"W has shape \(0, 128\), expected at least one weight"),
    (lambda W: tables.quantize_table(W, torch.arange(16.0).flip(0)), "expected finite ones in ascending order"),
    (lambda W: tables.quantize_table(W, torch.arange(16.0), scales=torch.float64), "scales are torch.float64, exp"),
    (lambda W: tables.quantize_table(W, torch.arange(8.0)), r"table has shape \(8,\), expected \(16\)"),
    (lambda W: floats.quantize_floats(W, E4M3, "e4m3"), "scales are 'e4m3' with e4m3, expected a format of 4 bits"),
    (lambda W: floats.quantize_floats(W, E4M3, "e8m0", 64), "group is 64 with 'e8m0' scales, expected 32"),
    (lambda W: floats.quantize_floats(W, E4M3, "e5m0"), "scales are 'e5m0', expected one of e8m0"),
    (lambda W: floats.quantize_floats(W, E4M3, "float32", 128, block=64), "block is 64 with 'float32' scales"),
    (lambda W: floats.quantize_floats(torch.diag(torch.tensor([2.0**100, 2.0**-100])), E2M1, "e8m0"),
     "expected at most 2"),
    (lambda W: ternary.quantize_ternary(W, per_byte=6), "6 weights to a byte, expected one of"),
    (lambda W: ternary.quantize_ternary(W, torch.ones(3)), r"scale has shape \(3,\), expected \(4\)"),
    (lambda W: cache.quantize_keys(W, bits=4), "keys has shape"),
    (lambda W: cache.quantize_keys(W.half()[None, None], bits=3), "heads of 128 channels in 3 bits, expected"),
    (lambda W: cache.quantize_keys(W.half()[None, None], bits=4, group=48), "group is 48, expected a positive mult"),
    (lambda W: cache.quantize_values(W.half()[None, None], bits=4, group=48), "channels is 128, expected a positive"),
    (lambda W: cache.plan(W.half()[None, None], "both", 4), "what is 'both', expected keys or values"),
])  # fmt: skip
def test_what_does_not_fit(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(drawn(0, 4, 128))
