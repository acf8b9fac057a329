"""Hadamard transforms on matrix units: every size and shape of a tile, known answers, codes, and machine code."""

import json
import os
import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import machine_code
from kernels.byte_product import integer_sums, pack
from kernels.check import excess_of
from kernels.codes import LARGEST, values
from kernels.compiler import SHARED_LIMIT
from kernels.fast_hadamard import decode, fast_hadamard, hadamard_quantize, hadamard_reference, plan
from kernels.fast_hadamard import triton as fast_hadamard_triton
from kernels.fast_hadamard.reference import excess_of_codes
from kernels.fast_hadamard.rows import TOLERANCE
from kernels.fast_hadamard.shapes import shape_of
from kernels.hadamard import factors, hadamard

ORDERS = (1, 12, 20, 28, 36, 40, 108, 172)
SIZES = sorted({order << k for order in ORDERS for k in range(16) if order << k <= 32768})
EACH = pytest.mark.parametrize("format", LARGEST)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_wrong_code_is_seen():
    y = hadamard_reference(drawn(0, 2, 64))
    codes, scale = hadamard_quantize(drawn(0, 2, 64), "int8")
    wrong = (codes + (codes == codes.amax()), scale)
    assert excess_of_codes((codes, scale), y, TOLERANCE, "int8") <= 1 < excess_of_codes(wrong, y, TOLERANCE, "int8")
    assert excess_of_codes((codes, scale * float("nan")), y, TOLERANCE, "int8") == float("inf")


# shapes


@pytest.mark.parametrize("n", SIZES)
def test_every_size_is_taken_whole(n):
    shape = shape_of(n)
    A, F, B = prod(shape.left), shape.fold, prod(shape.right)
    assert A * F * B == n and F & (F - 1) == 0
    assert (*shape.left, *[2] * (F.bit_length() - 1), *shape.right) == factors(n)
    assert shape.rows * A <= shape.block_a + shape.extra and B <= shape.block_b
    assert shape.values // (shape.block_a * 2) <= 192, "sums that a thread holds"
    assert plan(torch.empty(5, n, dtype=torch.float16, device="meta")).output.shape == (5, n)


@settings(max_examples=12)
@given(st.sampled_from([n for n in SIZES if n <= 2048]), st.integers(1, 20), st.booleans(), st.booleans(),
       st.integers(0, 2**32))  # fmt: skip
def test_drawn_sizes(n, rows, inverse, short, seed):
    x = drawn(seed, rows, n, dtype=torch.bfloat16 if short else torch.float16)
    assert excess_of(fast_hadamard(x, inverse), hadamard_reference(x, inverse), TOLERANCE) <= 1


@pytest.mark.parametrize("n", [5120, 9216, 12288, 13824, 22016, 27648])
def test_large_sizes_both_ways(n):
    x = drawn(n, 1, n)
    for inverse in (False, True):
        assert excess_of(fast_hadamard(x, inverse), hadamard_reference(x, inverse), TOLERANCE) <= 1


# known answers


@pytest.mark.parametrize("n", [4, 64, 256, 1024, 4096])
def test_integers_are_exact(n):
    """Integers up to 8: sums of 4096 fit into 16 bits, so both halves hold all of them; sqrt(n) is a power of two."""
    x = torch.randint(-8, 9, (3, n), generator=torch.Generator().manual_seed(n)).half()
    assert torch.equal(fast_hadamard(x), (x.double() @ hadamard(n, torch.float64) / n**0.5).half())


@pytest.mark.parametrize("n", [12, 172, 768, 8192, 11008])
def test_one_value_gives_a_row_of_the_matrix(n):
    x = torch.zeros(3, n, dtype=torch.float16)
    at = torch.tensor([0, n // 3, n - 1])
    x[range(3), at] = 1
    H = hadamard(n, torch.int8)
    assert torch.equal(fast_hadamard(x).sign(), H[at].half())
    assert torch.equal(fast_hadamard(x, inverse=True).sign(), H[:, at].T.half())
    assert fast_hadamard(x).abs().unique().numel() == 1


@pytest.mark.parametrize("n", [64, 640, 4096, 5504])
def test_the_inverse_gives_the_values_back(n):
    x = drawn(0, 3, n)
    back = fast_hadamard(fast_hadamard(x), inverse=True)
    # the first transform is rounded to 2^-11 of each value; the second spreads that evenly, and rounds once more
    torch.testing.assert_close(back, x, rtol=2.0**-10, atol=8 * 2.0**-11)


def test_no_sum_overflows():
    """The largest half-precision numbers in a column: their sum is far beyond half precision, the result is not."""
    x = torch.zeros(1, 4096, dtype=torch.float16)
    x[0, 3::64] = 60000.0
    y = hadamard_reference(x)
    assert excess_of(fast_hadamard(x / 16), y / 16, TOLERANCE) <= 1
    assert y.abs().max() / 16 < 65504 < 64 * 60000 / 16


# codes


@EACH
@pytest.mark.parametrize("n", [64, 512, 5504])
def test_rows_of_zeros(format, n):
    codes, scale = hadamard_quantize(torch.zeros(3, n, dtype=torch.float16), format)
    assert not codes.view(torch.uint8).any() and not scale.any()


@EACH
def test_a_constant_row_has_one_code(format):
    codes, scale = hadamard_quantize(torch.ones(2, 4096, dtype=torch.float16), format)
    values = decode(codes, scale, format)
    assert torch.equal(values[:, 1:], torch.zeros(2, 4095, dtype=torch.float64))
    torch.testing.assert_close(values[:, 0], torch.full((2,), 64.0).double(), rtol=2**-22, atol=0)


@EACH
@settings(max_examples=5)
@given(n=st.sampled_from([2, 20, 128, 320, 768, 1376]), rows=st.integers(1, 20), seed=st.integers(0, 2**32),
       exponent=st.integers(-8, 8))  # fmt: skip
def test_codes_are_the_nearest(format, n, rows, seed, exponent):
    x = (drawn(seed, rows, n).double() * 2.0**exponent).half()
    y = hadamard_reference(x)
    assert excess_of_codes(hadamard_quantize(x, format), y, TOLERANCE, format) <= 1


def test_scales_belong_to_their_rows():
    x = drawn(0, 21, 768) * 2.0 ** torch.arange(-10, 11).half()[:, None]
    _, scale = hadamard_quantize(x, "int8")
    torch.testing.assert_close(scale.double(), hadamard_reference(x).abs().amax(1) / 127, rtol=TOLERANCE, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("n", "together"), [(256, 1), (512, 8), (4096, 1), (11008, 1)])
def test_what_is_not_finite_stays_in_its_matrix(value, n, together):
    x = drawn(0, 9, n)
    x[0, 7] = value
    y = fast_hadamard(x)
    assert not y[0].isfinite().any() and y[together:].isfinite().all()
    _, scale = hadamard_quantize(x, "int8")
    assert not scale[0].isfinite() and scale[together:].isfinite().all()


def test_codes_are_what_products_take():
    codes, _ = hadamard_quantize(drawn(0, 3, 256), "int4")
    W = torch.randint(-8, 8, (5, 256), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    sums = integer_sums(codes, pack(W, torch.ones(5), format="int4"))
    assert torch.equal(sums.double(), values(codes, "int4") @ W.double().T)


# what does not fit


@pytest.mark.parametrize(("x", "complaint"), [
    (torch.zeros(2, 64), "x is torch.float32, expected torch.float16 or torch.bfloat16"),
    (torch.zeros(64).half(), r"x has shape \(64,\), expected \(any, any\)"),
    (torch.zeros(64, 2).half().T, "contiguous"),
    (torch.zeros(0, 64).half(), r"x has shape \(0, 64\), expected 1 to"),
    (torch.zeros(2, 0).half(), r"x has shape \(2, 0\), expected 1 to"),
    (torch.zeros(2, 92).half(), "no Hadamard matrix of order 92"),
    (torch.zeros(1, 29568).half(), r"rows of 29568 values, with .* \(84, 44, 2, 2, 2\), do not become matrices"),
    (torch.zeros(1, 65536).half(), r"rows of 65536 values, with .* do not become matrices"),
])  # fmt: skip
def test_rows_that_cannot_be(x, complaint):
    with pytest.raises(ValueError, match=complaint):
        fast_hadamard(x)


def test_formats_that_cannot_be():
    with pytest.raises(ValueError, match="format is 'int5', expected one of int8, int4, e4m3"):
        hadamard_quantize(torch.zeros(1, 64).half(), "int5")
    with pytest.raises(ValueError, match="rows of 1 values, expected an even number"):
        hadamard_quantize(torch.zeros(2, 1).half(), "int4")


# machine code

_COMPILE = """
import json, sys, torch
from dataclasses import asdict
from kernels.compiler import compiled
from kernels.fast_hadamard import plan
from kernels.product.triton import on
for n, dtype, format, chip in json.loads(sys.argv[1]):
    x = torch.empty(max(4096, 2**23 // n), n, dtype=getattr(torch, dtype), device="meta")
    code = compiled(on(plan(x, False, format), divmod(chip, 10)), chip)
    print(json.dumps([n, dtype, format, asdict(code)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("chip", [90, 100])
@pytest.mark.parametrize(
    ("dtype", "format"), [("float16", None), ("bfloat16", None), *(("float16", f) for f in LARGEST)]
)
def test_machine_code_of_every_size(dtype, format, chip):
    """As the contract asks of a few; short rows, of matrices or of all, are loaded in parts."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    cases = [(n, dtype, format, chip) for n in SIZES if n >= 64]
    command = [sys.executable, "-c", _COMPILE, json.dumps(cases)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(found) == len(cases)
    for n, *known, code in found:
        spilled = 8 if (n, format, chip) == (344, None, 100) else 0  # two registers of one size, which is not shipped
        assert code["stack_bytes"] <= spilled and code["local_accesses"] <= spilled // 4, (n, known, code)
        assert code["loop_conversions"] == 0, (n, known, code)
        assert code["shared_bytes"] <= SHARED_LIMIT and code["loop_matrix"] > 0, (n, known, code)
        wide = code["loop_wide_loads"] * 16 >= code["loop_bytes_per_thread"]
        assert wide or n < 512 or prod(shape_of(n).right) < 32, (n, known, code)


def test_memory_binds_rather_than_instructions():
    """Slots of a value, in the kept table, while an H200's memory moves its bytes: 2 read, and 2 or up to 1 written."""
    for row in machine_code.kept():
        if row["kernel"].startswith("hadamard") and row["architecture"] == "90":
            room = 29.6e12 / 4.3e12 * (4 if row["kernel"] == "hadamard" else 2.5)
            assert float(row["slots_per_weight"]) < room, row


@pytest.mark.parametrize(("n", "format"), [(32768, None), (4096, "int4")])
def test_a_plan_needs_no_values(n, format):
    launch = plan(torch.empty(4096, n, dtype=torch.float16, device="meta"), format=format)
    rows, columns = launch.outputs[0].shape
    assert (rows, columns) == (4096, n if format is None else n // 2)
    if fast_hadamard_triton.TRITON >= (3, 9):
        assert launch.elsewhere((10, 0)).constants["STAGES"] == (1 if n == 32768 else 3)


def test_triton_that_compiles_long_rows_to_nothing_is_refused(monkeypatch):
    x = torch.empty(4096, 18432, dtype=torch.float16, device="meta")
    monkeypatch.setattr(fast_hadamard_triton, "TRITON", (3, 6))
    with pytest.raises(ValueError, match=r"rows of 18432 values on Blackwell with Triton .*, expected 3\.9 or later"):
        plan(x).elsewhere((10, 0))
    assert plan(x[:, :16384].contiguous()).elsewhere((10, 0)).num_warps == 4


def test_several_rows_take_more_warps_on_blackwell():
    launch = plan(torch.empty(4096, 3072, dtype=torch.float16, device="meta"), format="int8")
    assert launch.num_warps == 4 and launch.elsewhere((10, 0)).num_warps == 8
