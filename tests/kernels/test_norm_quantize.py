"""Tokens quantized behind a norm: codes to the last bit, and what comes out against RMSNorm itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.codes import LARGEST, unpack_nibbles, values
from kernels.norm_quantize import norm_quantize, norm_quantize_reference, plan, token_quantize
from kernels.norm_quantize.rows import TOLERANCE
from kernels.ternary_product import quantize_tokens

FORMATS = pytest.mark.parametrize("format", list(LARGEST))
formats = st.sampled_from(list(LARGEST))
types = st.sampled_from([torch.float16, torch.bfloat16])


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float16, exponent: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)


def bits(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.int8)


# whole rows


@settings(max_examples=60)
@given(
    st.integers(1, 6), st.integers(1, 600), formats, types, st.booleans(), st.booleans(),
    st.sampled_from(["none", "same", "float32"]), st.integers(-12, 12), st.integers(0, 2**32),
)  # fmt: skip
@example(1, 3000, "int4", torch.bfloat16, True, True, "same", 0, 0)  # several warps
def test_codes_are_exact(rows, n, format, dtype, norm, with_residual, gains, exponent, seed):
    n += n % 2 if format == "int4" else 0
    x = drawn(seed, rows, n, dtype=dtype, exponent=exponent)
    gain = None if gains == "none" else drawn(seed + 1, n, dtype=dtype if gains == "same" else torch.float32)
    residual = drawn(seed + 2, rows, n, dtype=dtype, exponent=exponent) if with_residual else None
    arguments = (x, format, gain, residual, 1e-5 if norm else None)
    codes, scale, *rest = plan(*arguments).run()
    wanted, wanted_scale, *wanted_rest = norm_quantize_reference(*arguments)
    assert torch.equal(bits(codes), bits(wanted))
    assert ((scale.double() - wanted_scale).abs() <= TOLERANCE * wanted_scale).all()
    assert len(rest) == len(wanted_rest) == with_residual and all(map(torch.equal, rest, wanted_rest))


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 200), formats, types, st.integers(0, 2**32))
def test_it_is_rms_norm_within_half_a_step(rows, n, format, dtype, seed):
    """Against torch's RMSNorm in float64: nothing here shares its order of operations."""
    n *= 2
    x, gain = drawn(seed, rows, n, dtype=dtype), drawn(seed + 1, n, dtype=dtype)
    codes, scale = norm_quantize(x, format, gain, eps=1e-5)
    y = F.rms_norm(x.double(), (n,), gain.double(), float(torch.tensor(1e-5, dtype=torch.float32)))
    found = values(codes, format)
    size = found.abs()
    # half a step is half of 1, or half of 2^-3 of the binade; numbers rounded up into a binade come from the one below
    step = torch.ones_like(size) if format != "e4m3" else (2.0 ** size.clamp(min=2.0**-6).log2().floor()) / 8
    rounding_errors = TOLERANCE + 5 * 2.0**-24  # of the scale, and of u, the factor and their product
    allowed = scale.double()[:, None] * (step / 2 + size.clamp(min=1) * 2 * rounding_errors)
    assert ((found * scale.double()[:, None] - y).abs() <= allowed).all()
    assert (size.amax(1) == LARGEST[format]).all()


@FORMATS
def test_codes_do_not_depend_on_the_norm(format):
    x = drawn(0, 5, 128)
    with_norm, without = norm_quantize(x, format), token_quantize(x, format)
    assert torch.equal(bits(with_norm[0]), bits(without[0]))
    assert not torch.equal(with_norm[1], without[1])


def test_tokens_are_bitnets():
    """Without a norm and in 8 bits: the activations of `kernels.ternary_product`, which says whose they are."""
    x = drawn(3, 7, 300, dtype=torch.bfloat16)
    codes, scale = token_quantize(x, "int8")
    wanted, wanted_scale = quantize_tokens(x)
    assert torch.equal(codes, wanted) and torch.equal(scale, wanted_scale)


def test_two_of_four_bits_lie_in_a_byte_low_nibble_first():
    codes, scale = token_quantize(torch.tensor([[7.0, -7.0, 1.0, -1.0]]).half(), "int4")
    assert codes.view(torch.uint8).tolist() == [[0x97, 0xF1]] and scale.tolist() == [1.0]
    assert unpack_nibbles(codes).tolist() == [[7, -7, 1, -1]]


def test_halves_are_rounded_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 125.5]]).half()
    codes, scale = token_quantize(x, "int8")
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, 126, 126]] and scale.tolist() == [1.0]


@FORMATS
def test_rows_of_zeros_and_of_what_is_not_finite(format):
    x = drawn(0, 7, 64, dtype=torch.bfloat16)
    x[0], x[1], x[2, 5], x[3, 6], x[4, 7] = 0, 2.0**-119, float("nan"), float("inf"), -float("inf")
    x[5] = 2.0**100  # its squares are beyond float32
    with np.errstate(invalid="ignore", over="ignore"):
        codes, scale = norm_quantize(x, format, drawn(1, 64).abs().clamp(0.1, 1).bfloat16())
        plain_codes, plain = token_quantize(x, format)
    assert not values(codes[:6], format).any() and values(codes[6], format).any()
    assert scale[:2].tolist() == [0, 0] and scale[2:6].isnan().all() and scale[6] > 0
    assert plain[:2].tolist() == [0, 0] and plain[2:5].isnan().all()
    assert plain[5] == torch.tensor(2.0**100) / LARGEST[format] and values(plain_codes[5], format).abs().min() > 0


def test_sums_are_those_of_torch():
    x, other = drawn(0, 4, 100, dtype=torch.bfloat16), drawn(1, 4, 100, dtype=torch.bfloat16)
    codes, scale, total = norm_quantize(x, "e4m3", residual=other)
    assert torch.equal(total, x + other) and codes.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    again, _ = norm_quantize(x + other, "e4m3")
    assert torch.equal(bits(codes), bits(again))


@FORMATS
@pytest.mark.parametrize("hidden", [2, 48, 1024, 16384, 32768])
def test_a_plan_needs_no_values(format, hidden):
    """Bytes read and written, in tensors of the meta device; every value has a place in a program."""
    x = torch.empty(100, hidden, dtype=torch.bfloat16, device="meta")
    launch = plan(x, format)
    codes, scale = launch.outputs
    assert codes.nbytes * 8 == 100 * hidden * (4 if format == "int4" else 8) and scale.nbytes == 400
    rows, block = launch.constants["ROWS"], launch.constants["BLOCK"]
    assert block >= hidden and launch.grid[0] * rows >= 100 > (launch.grid[0] - 1) * rows
    assert launch.num_warps * 32 * 64 >= rows * block


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"x": drawn(0, 64)}, r"x has shape \(64,\), expected \(any, any\)"),
    ({"x": drawn(0, 2, 64, dtype=torch.float32)}, "x is torch.float32, expected torch.float16 or torch.bfloat16"),
    ({"x": drawn(0, 64, 2).T}, "contiguous"),
    ({"x": drawn(0, 0, 64)}, r"x has shape \(0, 64\), expected rows of 1 to 32768 values"),
    ({"x": drawn(0, 1, 0)}, r"x has shape \(1, 0\), expected rows"),
    ({"x": torch.zeros(1, 32770).half()}, "expected rows of 1 to 32768 values"),
    ({"format": "int3"}, "format is 'int3', expected one of int8, int4, e4m3"),
    ({"x": drawn(0, 2, 63), "format": "int4"}, "rows of 63 values, expected an even number"),
    ({"gain": drawn(0, 63)}, r"gain has shape \(63,\), expected \(64\)"),
    ({"gain": drawn(0, 64, dtype=torch.bfloat16)}, "gain is torch.bfloat16, expected torch.float16 or torch.float32"),
    ({"gain": drawn(0, 64).to("meta")}, "gain is on meta, expected cpu"),
    ({"residual": drawn(0, 3, 64)}, r"residual has shape \(3, 64\), expected \(2, 64\)"),
    ({"residual": drawn(0, 2, 64, dtype=torch.bfloat16)}, "residual is torch.bfloat16, expected torch.float16"),
    ({"eps": 0.0}, "eps is 0.0, expected a positive number"),
    ({"eps": float("nan")}, "eps is nan, expected a positive number"),
    ({"eps": None}, "eps is None, expected a number"),
])  # fmt: skip
def test_what_does_not_fit(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        norm_quantize(**({"x": drawn(0, 2, 64), "format": "int8"} | wrong))
