"""Products of quantized tokens and weights: sums of integers to the last bit, every pair of codes, every cut."""

import re
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.byte_product import (
    ByteWeights,
    byte_product,
    byte_product_reference,
    choices,
    integer_sums,
    pack,
    plan,
    triton,
)
from kernels.byte_product.packing import FORMATS, LIMITS, MAX_INPUTS
from kernels.codes import two_in_a_byte, values
from kernels.norm_quantize import norm_quantize
from suite.grids import Integer

INTEGERS = pytest.mark.parametrize("format", ["int8", "int4"])
ALL = pytest.mark.parametrize("format", list(FORMATS))
ONE = torch.ones(1)


def drawn(seed: int, rows: int, inputs: int, format: str = "int8") -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    if format == "e4m3":
        return (32 * torch.randn(rows, inputs, generator=draw)).to(torch.float8_e4m3fn)
    limit = LIMITS[format]
    return torch.randint(-limit, limit, (rows, inputs), generator=draw, dtype=torch.int8)


def tokens(codes: torch.Tensor, format: str) -> torch.Tensor:
    return two_in_a_byte(codes) if format == "int4" else codes


def made(
    seed: int, rows: int, outputs: int, inputs: int, format: str
) -> tuple[torch.Tensor, torch.Tensor, ByteWeights]:
    scale, x_scale = (0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed)) for n in (outputs, rows))
    x = tokens(drawn(seed + 1, rows, inputs, format), format)
    return x, x_scale, pack(drawn(seed + 2, outputs, inputs, format), scale, format=format)


# packing


@given(st.integers(1, 9), st.integers(1, 90), st.sampled_from(list(FORMATS)), st.integers(0, 2**32))
def test_packing_loses_nothing_and_fills_rows_to_sixteen_bytes(outputs, inputs, format, seed):
    inputs *= 2
    codes = drawn(seed, outputs, inputs, format)
    weights = pack(codes, torch.ones(outputs), format=format)
    assert torch.equal(values(weights.codes, format)[:, :inputs], codes.double())
    row = inputs // 2 if format == "int4" else inputs
    assert weights.codes.nbytes == outputs * -(-row // 16) * 16
    assert not weights.codes.view(torch.int8)[:, row:].any()


def test_the_first_of_two_lies_in_the_low_nibble():
    assert two_in_a_byte(torch.tensor([[1, -1, -8, 7]], dtype=torch.int8)).view(torch.uint8).tolist() == [[0xF1, 0x78]]


@pytest.mark.parametrize("high", [0, 1])
def test_nibbles_as_a_gpu_computes_them(high):
    """The inline assembly, executed: every byte at every place of a register, among zeros and ones."""
    byte = np.arange(256, dtype=np.uint32)
    words = np.concatenate([byte << 8 * at | fill & ~np.uint32(0xFF << 8 * at)
                            for at, fill in product(range(4), (np.uint32(0), np.uint32(0xFFFFFFFF)))])  # fmt: skip
    known = {"$1": words}
    for name, target, source, value in re.findall(r"(shl|and)\.b32 (\S+), (\S+), (\w+);", triton.nibble_assembly(high)):
        operand = np.uint32(int(value, 0))
        known[target] = known[source] << operand if name == "shl" else known[source] & operand
    found, given = (known[name].astype("<u4").view(np.int8).astype(int) for name in ("$0", "$1"))
    code = given >> 4 if high else ((given & 15) ^ 8) - 8
    assert np.array_equal(found, 16 * code)


# sums


def test_every_pair_of_bytes():
    every = torch.arange(-128, 128, dtype=torch.int8)[:, None].contiguous()
    sums = integer_sums(every, pack(every, torch.ones(256), format="int8"))
    assert torch.equal(sums, every.int() * every.int().T)


def test_every_pair_of_nibbles_at_both_places():
    every = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(every, every)
    sums = integer_sums(two_in_a_byte(pairs), pack(pairs, torch.ones(256), format="int4"))
    assert torch.equal(sums, (pairs.double() @ pairs.double().T).int())


def test_every_number_of_e4m3():
    """NaN is left out: the interpreter reads its codes as the numbers +-480 that they would be."""
    every = torch.arange(-128, 128).to(torch.int8).view(torch.float8_e4m3fn)
    every = every[~every.float().isnan()][:, None].contiguous()
    assert len(every) == 254
    one = torch.ones(1, 1).to(torch.float8_e4m3fn)
    as_weights = byte_product(one, ONE, pack(every, torch.ones(254), format="e4m3"), torch.float32)
    as_tokens = byte_product(every, torch.ones(254), pack(one, ONE, format="e4m3"), torch.float32)
    assert torch.equal(as_weights.T, every.float()) and torch.equal(as_tokens, every.float())


@settings(max_examples=25)
@given(
    st.integers(1, 80), st.integers(1, 140), st.integers(1, 700), st.sampled_from(["int8", "int4"]),
    st.integers(0, 2**32),
)  # fmt: skip
@example(1, 5, 2051, "int8", 0)  # several programs share the inputs
@example(33, 70, 2600, "int4", 0)
def test_integer_sums_are_exact(rows, outputs, inputs, format, seed):
    inputs += inputs % 2 if format == "int4" else 0
    x, weights = drawn(seed, rows, inputs, format), drawn(seed + 1, outputs, inputs, format)
    sums = integer_sums(tokens(x, format), pack(weights, torch.ones(outputs), format=format))
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), x.long() @ weights.long().T)


def test_sums_are_those_of_torch():
    x, weights = drawn(0, 40, 128), drawn(1, 24, 128)
    assert torch.equal(integer_sums(x, pack(weights, torch.ones(24), format="int8")), torch._int_mm(x, weights.T))


@INTEGERS
def test_sums_at_their_largest(format, monkeypatch):
    monkeypatch.setattr(choices, "default", partial(_always, choices.Choice(16, 16, 16384, 1, 4, 3)))  # soon done
    limit, inputs = LIMITS[format], MAX_INPUTS - 1
    least = torch.full((1, inputs), -limit, dtype=torch.int8)
    assert integer_sums(tokens(least, format), pack(least, ONE, format=format)).item() == limit**2 * inputs
    assert 128**2 * MAX_INPUTS < 2**31 <= 128**2 * (MAX_INPUTS + 1)  # and 16 * 8 = 128


# scales, types, cuts


@settings(max_examples=20)
@given(
    st.integers(1, 70), st.integers(1, 140), st.integers(1, 300), st.sampled_from(list(FORMATS)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.integers(0, 2**32),
)  # fmt: skip
def test_scales_and_types_of_the_output(rows, outputs, inputs, format, dtype, seed):
    x, x_scale, weights = made(seed, rows, outputs, 2 * inputs, format)
    x_scale *= 2.0**-12  # sums of E4M3 would leave float16
    y, wanted = byte_product(x, x_scale, weights, dtype), byte_product_reference(x, x_scale, weights)
    assert y.dtype == dtype
    W = values(weights.codes, format)[:, : 2 * inputs] * weights.scale.double()[:, None]
    size = (values(x, format).abs() @ W.abs().T) * x_scale.double()[:, None]
    sums = 2 * inputs * 2.0**-24 * size if format == "e4m3" else 0  # an addition of float32 for each input
    # rounded: the sum, the product of two scales and that of both, and the output (the interpreter cuts bfloat16 off)
    info = torch.finfo(dtype)
    bound = (1 + 2.0**-24) ** 3 * (1 + info.eps) - 1
    assert ((y.double() - wanted).abs() <= bound * wanted.abs() + sums + info.tiny).all()


@ALL
def test_however_it_is_cut(format, monkeypatch):
    """All tiles that a chip may be given, with shared inputs and without: the same integers, and nearly so E4M3."""
    rows, outputs, inputs = 70, 70, 420
    x, x_scale, weights = made(7, rows, outputs, inputs, format)
    found = []
    for choice in (*choices.FEW, *choices.MANY, choices.NARROW, choices.NARROW._replace(splits=2)):
        monkeypatch.setattr(choices, "default", partial(_always, choice))
        launch = plan(x, x_scale, weights, torch.float32)
        assert launch.grid[2] == choice.splits and launch.constants["BLOCK_N"] == choice.block_n
        found.append(launch.run())
    wanted = byte_product_reference(x, x_scale, weights)
    if format == "e4m3":
        sums = inputs * 2.0**-24 * (values(x, format).abs() @ values(weights.codes, format)[:, :inputs].abs().T)
        allowed = sums * x_scale.double()[:, None] * weights.scale.double() + 4 * 2.0**-24 * wanted.abs()
        assert all(((y.double() - wanted).abs() <= allowed).all() for y in found)
    else:
        assert all(torch.equal(found[0], y) for y in found)


def _always(choice: choices.Choice, problem: choices.Problem) -> choices.Choice:
    return choice


@given(
    st.integers(1, 5000), st.integers(1, 30000), st.integers(1, 30000), st.sampled_from(list(FORMATS)),
    st.sampled_from([(9, 0), (10, 0)]),
)  # fmt: skip
def test_a_choice_fits_its_problem(rows, outputs, row_bytes, format, capability):
    problem = choices.Problem(rows, outputs, row_bytes, format, 132, capability)
    choice = choices.default(problem)
    tiles, turns = choices.tiles(problem, choice), -(-row_bytes // choice.block_k)
    assert 1 <= choice.splits <= turns
    assert choice.block_m == 16 or rows > choice.block_m // 2
    assert tiles >= 132 or choice.block_n == 64  # no wide tile where it would leave multiprocessors idle
    ring = (choice.stages - 1) * (choice.block_m + choice.block_n) * choice.block_k
    assert ring <= 227 << 10


# the way from a token to an output


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ALL
def test_quantized_tokens_are_what_is_multiplied(format, dtype):
    """RMSNorm, quantization and product, against the product of what codes and scales stand for."""
    draw = torch.Generator().manual_seed(0)
    x, gain = torch.randn(5, 256, generator=draw).to(dtype), (0.5 + torch.rand(256, generator=draw)).to(dtype)
    codes, scale = norm_quantize(x, format, gain)
    weights = pack(drawn(1, 48, 256, format), torch.full((48,), 0.01), format=format)
    y = byte_product(codes, scale, weights, torch.float32).double()
    x_hat = values(codes, format) * scale.double()[:, None]
    w_hat = values(weights.codes, format)[:, :256] * 0.01
    torch.testing.assert_close(
        y, x_hat @ w_hat.T, rtol=0, atol=260 * 2.0**-24 * float((x_hat.abs() @ w_hat.abs().T).max())
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_the_suites_integers_multiply_as_they_decode(bits):
    W = torch.randn(20, 200, generator=torch.Generator().manual_seed(bits))
    fitted = Integer(bits=bits, convention="full-range", group="row").fit(W)
    codes = fitted.nearest(W)
    format = f"int{bits}"
    weights = pack((codes - int(fitted.grid.zero)).to(torch.int8), fitted.scale.flatten().float(), format=format)
    x = drawn(1, 3, 200, format)
    y = byte_product(tokens(x, format), torch.ones(3), weights, torch.float32)
    # rounded: the sum and its product with the scale; and the suite's weights
    Q = fitted.decode(codes).double()
    allowed = 2.0**-24 * (2 * (x.double() @ Q.T).abs() + x.double().abs() @ Q.abs().T)
    assert ((y.double() - x.double() @ Q.T).abs() <= 1.001 * allowed).all()


# what does not fit


def _weights(**parts) -> ByteWeights:
    whole = {"codes": torch.zeros(8, 64, dtype=torch.int8), "scale": torch.ones(8), "outputs": 8, "inputs": 64,
             "format": "int8"}  # fmt: skip
    return ByteWeights(**(whole | parts))


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"format": "int3"}, "format is 'int3', expected one of int8, int4, e4m3"),
    ({"format": "e4m3"}, "codes is torch.int8, expected torch.float8_e4m3fn"),
    ({"codes": drawn(0, 8, 64).int()}, "codes is torch.int32, expected torch.int8"),
    ({"codes": drawn(0, 64, 8).T}, "contiguous"),
    ({"codes": drawn(0, 8, 64)[0]}, r"codes has shape \(64,\), expected \(any, any\)"),
    ({"codes": torch.full((8, 64), 8, dtype=torch.int8), "format": "int4"}, r"codes lie in \[8, 8\], expected \[-8"),
    ({"codes": drawn(0, 8, 63, "int4"), "format": "int4"}, "rows of 63 codes, expected an even number"),
    ({"codes": torch.zeros(1, 2**17, dtype=torch.int8)}, "1 to 131071 inputs"),
    ({"codes": torch.zeros(8, 0, dtype=torch.int8)}, "1 to 131071 inputs"),
    ({"codes": torch.zeros(0, 64, dtype=torch.int8)}, "expected outputs"),
    ({"scale": torch.ones(7)}, r"scale has shape \(7,\), expected \(8\)"),
    ({"scale": torch.ones(8).half()}, "scale is torch.float16, expected torch.float32"),
    ({"scale": torch.ones(8, device="meta")}, "scale is on meta, expected cpu"),
])  # fmt: skip
def test_weights_that_cannot_be(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack(**({"codes": drawn(0, 8, 64), "scale": torch.ones(8), "format": "int8"} | wrong))


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"x": drawn(0, 2, 63)}, r"x has shape \(2, 63\), expected \(any, 64\)"),
    ({"x": drawn(0, 2, 64).half()}, "x is torch.float16, expected torch.int8"),
    ({"x": drawn(0, 64, 2).T}, "contiguous"),
    ({"x": drawn(0, 2, 64).to("meta")}, "x is on meta, expected cpu"),
    ({"x": drawn(0, 0, 64), "x_scale": torch.ones(0)}, "x has 0 rows, expected 1 or more"),
    ({"x": torch.empty(2**25, 64, dtype=torch.int8), "x_scale": torch.empty(2**25)}, r"less than 2\^31 bytes of x"),
    ({"x_scale": torch.ones(3)}, r"x_scale has shape \(3,\), expected \(2\)"),
    ({"x_scale": torch.ones(2).double()}, "x_scale is torch.float64, expected torch.float32"),
    ({"x_scale": None}, "x_scale is None, expected a tensor"),
    ({"weights": _weights(codes=torch.zeros(8, 65, dtype=torch.int8))}, "codes has shape"),
    ({"weights": _weights(codes=torch.zeros(8, 64, dtype=torch.uint8))}, "codes is torch.uint8"),
    ({"weights": _weights(format="int2")}, "format is 'int2'"),
    ({"weights": _weights(inputs=2**17)}, "weights have 131072 inputs"),
    ({"weights": _weights(inputs=63, format="int4")}, "weights have 63 inputs"),
    ({"weights": _weights(codes=torch.zeros(2**25, 64, dtype=torch.int8, device="meta"), outputs=2**25)},
     r"codes take 2147483648 bytes, expected 1 to 2\^31 - 1"),
    ({"dtype": torch.float64}, "output of torch.float64"),
])  # fmt: skip
def test_products_that_cannot_be(wrong, complaint):
    arguments = {"x": drawn(0, 2, 64), "x_scale": torch.ones(2), "weights": _weights(), "dtype": torch.float16} | wrong
    with pytest.raises(ValueError, match=complaint):
        byte_product(**arguments)


def test_sums_of_e4m3_are_not_claimed_to_be_exact():
    weights = pack(drawn(0, 8, 64, "e4m3"), torch.ones(8), format="e4m3")
    with pytest.raises(ValueError, match="weights are e4m3, expected integers"):
        integer_sums(drawn(1, 2, 64, "e4m3"), weights)


def test_a_plan_needs_no_values():
    """Tensors of the meta device say as much: the launch of a 70-billion-parameter model's matrix in no memory."""
    codes = torch.empty(8192, 28672, dtype=torch.int8, device="meta")
    weights = ByteWeights(codes, torch.empty(8192, device="meta"), 8192, 28672, "int8")
    x = torch.empty(4096, 28672, dtype=torch.int8, device="meta")
    launch = plan(x, torch.empty(4096, device="meta"), weights)
    assert launch.grid == (32, 32, 1) and launch.output.shape == (4096, 8192)
