"""Ternary weights: both packings whole, the inline assembly executed in NumPy, integer products to the last bit."""

import re
from fractions import Fraction
from itertools import product
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.integer_product import integer_product
from kernels.integer_product import pack as pack_integers
from kernels.launch import Launch
from kernels.ternary_product import (
    TernaryWeights,
    pack,
    plan,
    quantize_tokens,
    ternary_product,
    ternary_product_reference,
    triton,
    unpack,
)
from kernels.ternary_product.packing import MAX_INPUTS, ROWS
from suite.methods import TERNARY

PER_BYTE = pytest.mark.parametrize("per_byte", [4, 5])
ONE = torch.ones(1)


def drawn(seed: int, *shape: int, low: int = -1, high: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=draw, dtype=torch.int8)


# packing


@given(st.integers(1, 9), st.integers(1, 700), st.sampled_from([4, 5]), st.integers(0, 2**32))
def test_unpacking_inverts_packing(outputs, inputs, per_byte, seed):
    trits = drawn(seed, outputs, inputs)
    weights = pack(trits, ONE, per_byte=per_byte)
    assert torch.equal(unpack(weights), trits)
    assert weights.words.nbytes == outputs * ceil(inputs / (per_byte * ROWS)) * ROWS


@pytest.mark.parametrize(("per_byte", "bits"), [(4, 2.0), (5, 1.6)])
def test_bits_of_a_weight(per_byte, bits):
    assert pack(drawn(0, 7, 640 * 2), ONE, per_byte=per_byte).words.nbytes * 8 / (7 * 640 * 2) == bits


def test_bytes_of_base_three_are_the_fractions_above_their_values():
    digits = torch.tensor(list(product((0, 1, 2), repeat=5)))
    trits = torch.zeros(243, 5 * ROWS, dtype=torch.int8)
    trits[:, ::ROWS] = digits - 1
    found = pack(trits, ONE, per_byte=5).words[0, :, 0].numpy().view(np.uint8)
    assert found.tolist() == [ceil(Fraction(256 * value, 243)) for value in range(243)]


def test_fields_of_two_bits_are_in_twos_complement_lowest_first():
    trits = torch.zeros(1, 4 * ROWS, dtype=torch.int8)
    trits[0, ::ROWS] = torch.tensor([1, 0, -1, -1])
    assert pack(trits, ONE, per_byte=4).words[0, 0, 0].item() & 0xFF == 0b11_11_00_01


# what the GPU executes: the inline assembly, word by word

_OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b,
    "mul.lo.u32": lambda a, b: a * b,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "dp4a.s32.s32": lambda a, b, c: (
        c + np.sum(_octets(a).view(np.int8) * _octets(b).view(np.int8).astype(np.int64), -1)
    ),
    "prmt.b32": lambda a, b, c: _permuted(a, b, int(c)),
}


def _octets(word):
    return np.ascontiguousarray(np.asarray(word, "<u4")[..., None]).view(np.uint8)


def _signed(word):
    return _octets(word).view(np.int8).astype(np.int64)


def _permuted(a, b, selector):
    """Byte i of the result is the one, of those of a and then b, that the i-th hexadecimal digit says."""
    a, b = np.broadcast_arrays(_octets(a), _octets(b))
    eight = np.concatenate([a, b], -1)
    picked = [eight[..., selector >> 4 * i & 7] for i in range(4)]
    return np.ascontiguousarray(np.stack(picked, -1)).view("<u4")[..., 0]


def executed(assembly: str, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run PTX as its manual says, on 32-bit words: all registers that it wrote."""
    known = dict(known)
    body = assembly.strip().removeprefix("{").removesuffix("}")
    for statement in filter(None, (part.strip() for part in body.split(";"))):
        if statement.startswith(".reg"):
            continue
        name, operands = statement.split(" ", 1)
        target, *sources = re.split(r",\s*", operands)
        values = [known[s] if s in known else np.int64(int(s, 0)) for s in sources]
        known[target] = np.asarray(_OPERATIONS[name](*values), np.int64) & 0xFFFFFFFF
    return known


def _neighbors(values: range) -> np.ndarray:
    """Words with every pair of `values` in every two neighboring bytes, the others zero or all ones."""
    low, high = np.meshgrid(np.array(values, np.int64), np.array(values, np.int64))
    return np.stack([
        low << 8 * at | high << 8 * at + 8 | fill & ~(0xFFFF << 8 * at) for at in range(3) for fill in (0, 0xFFFFFFFF)
    ])  # fmt: skip


@pytest.mark.parametrize("at", range(5))
def test_digits_as_a_gpu_computes_them(at):
    """Every pair of bytes beside each other, also those that are no codes: digits of u / 256 in base three."""
    words = _neighbors(range(256))
    found = _octets(executed(triton.digit_assembly(at), {"$1": words})["$0"]).astype(np.int64)
    u = _octets(words).astype(np.int64)
    assert np.array_equal(found, u * 3 ** (at + 1) // 256 % 3)
    values = np.arange(243)
    codes = executed(triton.digit_assembly(at), {"$1": (values * 256 + 242) // 243})["$0"]
    assert np.array_equal(codes & 0xFF, values // 3 ** (4 - at) % 3)


@pytest.mark.parametrize("at", range(4))
def test_fields_as_a_gpu_computes_them(at):
    words = _neighbors(range(256))
    found = _octets(executed(triton.field_assembly(6 - 2 * at), {"$1": words})["$0"]).view(np.int8)
    code = _octets(words).astype(np.int64) >> 2 * at & 3
    assert np.array_equal(found, 64 * np.array([0, 1, -2, -1])[code])


def test_sums_as_a_gpu_computes_them():
    extremes = np.array(list(product((-128, -1, 0, 127), repeat=4)), np.int8)
    octets = np.concatenate([extremes, drawn(0, 1000, 4, low=-128, high=127).numpy()])
    known = executed(triton.SUM_ASSEMBLY.value, {"$4": octets.view("<u4")[:, 0].astype(np.int64)})
    assert np.array_equal(known["$0"].astype(np.uint32).view(np.int32), octets.sum(1, dtype=np.int32))
    assert not any(known[f"${i}"].any() for i in (1, 2, 3))


# products


@PER_BYTE
def test_every_byte_is_decoded(per_byte):
    """One-hot activations read out the weights: every combination of trits in a byte, at some place of a tile."""
    combinations = torch.tensor(list(product((-1, 0, 1), repeat=per_byte)), dtype=torch.int8)
    trits = drawn(1, len(combinations), per_byte * ROWS)
    at = 37
    trits[:, at::ROWS] = combinations
    x = torch.zeros(per_byte, per_byte * ROWS, dtype=torch.int8)
    x[range(per_byte), at + ROWS * torch.arange(per_byte)] = 1
    y = ternary_product(x, torch.ones(per_byte), pack(trits, ONE, per_byte=per_byte), torch.float32)
    assert torch.equal(y.T, combinations.float())


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 140), st.integers(1, 700), st.sampled_from([4, 5]), st.integers(0, 2**32))
@example(1, 5, 2563, 4, 0)  # several programs share the inputs
@example(33, 5, 2563, 5, 0)
def test_integer_sums_are_exact(rows, outputs, inputs, per_byte, seed):
    x, trits = drawn(seed, rows, inputs, low=-128, high=127), drawn(seed + 1, outputs, inputs)
    y = ternary_product(x, torch.ones(rows), pack(trits, ONE, per_byte=per_byte), torch.float32)
    assert torch.equal(y.double(), x.double() @ trits.double().T)  # below 2^24: float32 has them all


@PER_BYTE
def test_sums_at_their_largest(per_byte):
    x = torch.full((1, 3000), -128, dtype=torch.int8)
    y = ternary_product(x, ONE, pack(torch.ones(1, 3000, dtype=torch.int8), ONE, per_byte=per_byte), torch.float32)
    assert y.item() == -128 * 3000
    assert 64 * 128 * MAX_INPUTS < 2**31 <= 64 * 128 * (MAX_INPUTS + 1)


@PER_BYTE
def test_the_result_does_not_depend_on_how_the_inputs_are_shared_out(per_byte, monkeypatch):
    x, x_scale = quantize_tokens(torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)))
    weights = pack(drawn(0, 20, 3000), torch.rand(20), per_byte=per_byte)
    found = []
    for splits in (1, 2, 3, 8):
        monkeypatch.setattr(triton, "splits_for", lambda *_, splits=splits: splits)
        launch = plan(x, x_scale, weights, torch.float32)
        assert launch.grid == (1, 1, splits)
        found.append(launch.run())
    assert all(torch.equal(found[0], other) for other in found[1:])


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_inputs_are_shared_out_so_that_no_program_is_idle(tiles_out, tiles):
    splits = triton.splits_for(tiles_out, tiles, 132)
    share = ceil(tiles / splits)
    assert (splits - 1) * share < tiles <= splits * share
    assert splits == 1 or (share > 1 and splits * tiles_out <= 132 * triton.PROGRAMS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scales", [1, 24])
@PER_BYTE
def test_scales_and_types_of_the_output(dtype, scales, per_byte):
    x, x_scale = quantize_tokens(torch.randn(2, 200, generator=torch.Generator().manual_seed(0)))
    weights = pack(drawn(0, 24, 200), 0.1 + torch.arange(scales) / 10, per_byte=per_byte)
    y, wanted = ternary_product(x, x_scale, weights, dtype), ternary_product_reference(x, x_scale, weights)
    assert y.dtype == dtype
    # rounded: the product of two scales, that with the sum, and the output (the interpreter truncates bfloat16)
    bound = (1 + 2.0**-24) ** 2 * (1 + torch.finfo(dtype).eps) - 1
    assert ((y.double() - wanted).abs() <= bound * wanted.abs()).all()


def test_the_default_output_is_half_precision():
    assert ternary_product(drawn(0, 1, 64), ONE, pack(drawn(1, 1, 64), ONE)).dtype == torch.float16


@PER_BYTE
@pytest.mark.parametrize("group", ["tensor", "row"])
def test_weights_of_the_suite(group, per_byte):
    """BitNet's grid (one scale) and XNOR-Net's (one an output): the kernel computes what the suite evaluates."""
    W = torch.randn(24, 200, generator=torch.Generator().manual_seed(3))
    grid = TERNARY.build(group=group).weights.grid.fit(W)
    codes = grid.nearest(W)
    weights = pack(codes.to(torch.int8) - 1, grid.scale.flatten().float(), per_byte=per_byte)
    x, x_scale = quantize_tokens(torch.randn(3, 200, generator=torch.Generator().manual_seed(4)))
    y = ternary_product(x, x_scale, weights, torch.float32)
    wanted = (x_scale.double()[:, None] * x.double()) @ grid.decode(codes).double().T
    torch.testing.assert_close(y.double(), wanted, rtol=3 * 2.0**-24, atol=0)  # roundings: two, and the suite's own


def test_sixteen_bit_activations_are_the_integer_product():
    """As the docstring says: codes t + 2 of 2 bits, in groups where wanted."""
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)).half()
    trits = drawn(0, 24, 200)
    y = integer_product(x, pack_integers((trits + 2).to(torch.uint8), torch.ones(24, 2).half(), bits=2, group=128))
    sums = 200 * 2.0**-24 * x.double().abs().sum(1).max().item()  # 200 additions in float32
    torch.testing.assert_close(y.double(), x.double() @ trits.double().T, rtol=2.0**-11, atol=sums)


# activations


@given(st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**32), st.floats(-30, 30))
def test_tokens_are_bitnets(tokens, inputs, seed, exponent):
    """`activation_quant` as published: multiplied by 127 / max |x|, rounded, clamped; and within half a step of x."""
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    codes, scale = quantize_tokens(x)
    factor = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    assert torch.equal(codes.float(), (x * factor).round().clamp(-128, 127))
    error = (codes.double() * scale.double()[:, None] - x.double()).abs()
    assert (error <= scale.double()[:, None] * (0.5 + 127 * 4 * 2.0**-24)).all()


def test_tokens_of_zeros_and_of_what_is_not_finite():
    x = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [-float("inf"), 1.0], [2.0, -1.0]])
    codes, scale = quantize_tokens(x)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 0], [127, -64]]
    assert scale.isnan().tolist() == [False, True, True, False] and scale[0] > 0
    y = ternary_product(codes, scale, pack(torch.ones(3, 2, dtype=torch.int8), ONE))
    assert y.isnan().all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(2, 0), torch.zeros(2, 3, dtype=torch.float64),
                               torch.zeros(3, 2).T])  # fmt: skip
def test_tokens_that_cannot_be(x):
    with pytest.raises(ValueError, match=r"^x "):
        quantize_tokens(x)


# what does not fit


def _weights(**parts) -> TernaryWeights:
    whole = {
        "words": torch.zeros(1, 8, ROWS, dtype=torch.int8),
        "scale": ONE,
        "outputs": 8,
        "inputs": 64,
        "per_byte": 5,
    }
    return TernaryWeights(**(whole | parts))


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"trits": drawn(0, 8, 64).int()}, "trits is torch.int32, expected torch.int8"),
    ({"trits": drawn(0, 64)}, r"trits has shape \(64,\), expected \(any, any\)"),
    ({"trits": drawn(0, 64, 8).T}, "contiguous"),
    ({"trits": torch.full((8, 64), 2, dtype=torch.int8)}, r"trits lie in \[2, 2\], expected \[-1, 1\]"),
    ({"trits": torch.full((8, 64), -2, dtype=torch.int8)}, r"trits lie in \[-2, -2\], expected \[-1, 1\]"),
    ({"trits": drawn(0, 1, 2**18)}, "1 to 262143 inputs"),
    ({"trits": torch.zeros(8, 0, dtype=torch.int8)}, "1 to 262143 inputs"),
    ({"trits": torch.zeros(0, 64, dtype=torch.int8)}, "expected outputs"),
    ({"scale": torch.ones(7)}, r"scale has shape \(7,\), expected \(8\)"),
    ({"scale": ONE.half()}, "scale is torch.float16, expected torch.float32"),
    ({"scale": torch.ones(1, device="meta")}, "scale is on meta, expected cpu"),
    ({"per_byte": 3}, r"3 weights to a byte, expected one of \(4, 5\)"),
])  # fmt: skip
def test_weights_that_cannot_be(wrong, complaint):
    arguments = {"trits": drawn(0, 8, 64), "scale": ONE, "per_byte": 5} | wrong
    with pytest.raises(ValueError, match=complaint):
        pack(**arguments)


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"x": drawn(0, 2, 63)}, r"x has shape \(2, 63\), expected \(any, 64\)"),
    ({"x": drawn(0, 2, 64).half()}, "x is torch.float16, expected torch.int8"),
    ({"x": drawn(0, 64, 2).T}, "contiguous"),
    ({"x": drawn(0, 2, 64).to("meta")}, "x is on meta, expected cpu"),
    ({"x": drawn(0, 0, 64), "x_scale": torch.ones(0)}, "x has 0 rows, expected 1 or more"),
    ({"x": torch.empty(2**25, 64, dtype=torch.int8), "x_scale": torch.empty(2**25)}, "less than 2\\^31 values of x"),
    ({"x_scale": torch.ones(3)}, r"x_scale has shape \(3,\), expected \(2\)"),
    ({"x_scale": torch.ones(2).double()}, "x_scale is torch.float64, expected torch.float32"),
    ({"weights": _weights(words=torch.zeros(2, 8, ROWS, dtype=torch.int8))}, "words has shape"),
    ({"weights": _weights(words=torch.zeros(1, 8, ROWS, dtype=torch.uint8))}, "words is torch.uint8"),
    ({"weights": _weights(per_byte=6)}, "6 weights to a byte"),
    ({"weights": _weights(inputs=2**18)}, "weights have 262144 inputs"),
    ({"weights": _weights(words=torch.zeros(1, 2**25, ROWS, dtype=torch.int8, device="meta"), outputs=2**25,
                          scale=ONE.to("meta"))}, r"words take 2147483648 bytes, expected less than 2\^31"),
    ({"dtype": torch.float64}, "output of torch.float64"),
])  # fmt: skip
def test_products_that_cannot_be(wrong, complaint):
    arguments = {"x": drawn(0, 2, 64), "x_scale": torch.ones(2), "weights": _weights(), "dtype": torch.float16} | wrong
    with pytest.raises(ValueError, match=complaint):
        ternary_product(**arguments)


def test_a_plan_needs_no_values():
    """Tensors of the meta device say as much: the launch of a 70-billion-parameter model's matrix in no memory."""
    words = torch.empty(90, 8192, ROWS, dtype=torch.int8, device="meta")
    weights = TernaryWeights(words, torch.ones(1, device="meta"), 8192, 28672, 5)
    launch = plan(torch.empty(1, 28672, dtype=torch.int8, device="meta"), torch.ones(1, device="meta"), weights)
    assert isinstance(launch, Launch) and launch.grid == (1, 64, 8) and launch.output.shape == (1, 8192)
