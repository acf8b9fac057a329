"""Coded weights: bit for bit, at the rates that are claimed, and their products within their rounding."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kernels.check import excess_of
from kernels.coded_product import (
    CodedWeights,
    coded_product,
    coded_product_reference,
    decode,
    decode_patterns,
    decode_reference,
    pack,
    packing,
    plan,
    plan_decode,
)  # fmt: skip
from kernels.coded_product.packing import FORMATS, PIECES, TILE, exponent_at, fraction_at, windows
from suite.coding.exponents import Exponents
from suite.coding.huffman import code_lengths
from suite.models.checkpoint import REFERENCE

HALVES = (torch.float16, torch.bfloat16)
BF16, FP8 = FORMATS
BY_FORMAT = pytest.mark.parametrize("dtype", FORMATS, ids=str)
BY_TYPE = pytest.mark.parametrize("activations", HALVES, ids=str)
TWINS = {BF16: ml_dtypes.bfloat16, FP8: ml_dtypes.float8_e4m3fn}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def any_patterns(seed: int, outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    bits = 8 * dtype.itemsize
    drawn = torch.randint(2**bits, (outputs, inputs), generator=generator(seed), dtype=torch.int32)
    return drawn.to(FORMATS[dtype].pattern).view(dtype)


def normal(seed: int, outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """Outputs of different scales, with zeros, tiny and large weights among the usual ones."""
    draw = generator(seed)
    W = torch.randn(outputs, inputs, generator=draw) * 2.0 ** -torch.randint(5, (outputs, 1), generator=draw)
    rare = torch.randint(40, W.shape, generator=draw)
    W = torch.where(rare == 0, 0, torch.where(rare == 1, W / 1024, torch.where(rare == 2, W * 16, W)))
    return W.clamp(-448, 448).to(dtype)


def bits_of(W: torch.Tensor) -> torch.Tensor:
    return W.view(FORMATS[W.dtype].pattern)


def close(found: torch.Tensor, x: torch.Tensor, weights: CodedWeights) -> bool:
    """Within what float32 sums may err: n additions are off by n 2^-24 of the sum of their terms' sizes at most.

    There are an output's inputs, its escapes twice (what they read is subtracted), and three sums to be added, in at
    most as many parts as there are tiles. An escape reads 2^(base - bias), both when it is added and subtracted.
    """
    W, reference = decode_reference(weights).view(weights.dtype).double(), coded_product_reference(x, weights)
    reads = 2.0 ** (weights.base[: weights.outputs].double() - weights.format.bias)
    sizes = (x.double().abs() @ (W.abs() + 2 * reads[:, None]).T).max().item()
    additions = 3 * x.shape[1] + 3 + -(-x.shape[1] // TILE)
    rms = reference.square().mean().sqrt().item()
    return excess_of(found, reference, additions * 2.0**-24 * sizes / max(rms, 1e-30)) <= 1


# the format


@BY_FORMAT
def test_every_pattern_comes_back(dtype):
    count = 2 ** (8 * dtype.itemsize)
    patterns = torch.arange(count, dtype=torch.int32).to(FORMATS[dtype].pattern)
    W = patterns.view(-1, 256).view(dtype)
    for matrix in (W, W.T.contiguous()):
        weights = pack(matrix)
        assert torch.equal(decode_reference(weights), bits_of(matrix))
        assert torch.equal(decode_patterns(weights), bits_of(matrix))
    with np.errstate(invalid="ignore"):  # signaling NaNs
        twin = patterns.numpy().view(TWINS[dtype]).astype(np.float64).reshape(W.shape)
    np.testing.assert_array_equal(decode(pack(W)).double().numpy(), twin)


@settings(max_examples=10)
@given(
    st.sampled_from([BF16, FP8]), st.integers(1, 80), st.integers(1, 400), st.booleans(), st.integers(0, 2**32)
)  # fmt: skip
def test_decoding_is_bit_exact(dtype, outputs, inputs, trained, seed):
    W = (normal if trained else any_patterns)(seed, outputs, inputs, dtype)
    weights = pack(W)
    assert torch.equal(decode_reference(weights), bits_of(W))
    assert torch.equal(decode_patterns(weights), bits_of(W))


@BY_FORMAT
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, float("nan"), 2.0**-9])
def test_matrices_of_one_value(dtype, value):
    W = torch.full((9, 300), value).to(dtype)
    assert torch.equal(bits_of(decode(pack(W))), bits_of(W))
    outside = value != value or (value == 2.0**-9 and dtype == FP8)  # NaN; E4M3's smallest subnormal number
    assert pack(W).escapes == (W.numel() if outside else 0)


def test_programs_that_share_the_inputs_write_their_own_escapes():
    W = any_patterns(0, 5, 1000, BF16)
    launch = plan_decode(pack(W))
    assert launch.grid[1] > 1
    assert torch.equal(launch.run(), bits_of(W))


@BY_FORMAT
def test_words_have_no_bit_to_spare(dtype):
    kind, used = FORMATS[dtype], []
    for piece in range(PIECES):
        word, sign, fraction = fraction_at(kind.words, piece)
        used += [(word, sign), *((word, fraction + bit) for bit in range(kind.mantissa))]
        used += [(kind.words + word, at + bit) for word, at, width, _ in exponent_at(piece) for bit in range(width)]
    assert sorted(used) == [(word, bit) for word in range(kind.planes) for bit in range(16)]


@BY_FORMAT
def test_a_window_holds_as_many_as_any(dtype):
    W = torch.cat([normal(1, 20, 200, dtype), any_patterns(2, 20, 200, dtype), torch.zeros(1, 200).to(dtype)])
    kind = FORMATS[dtype]
    patterns = bits_of(W).to(torch.int32) & (2 ** (8 * dtype.itemsize) - 1)
    base, outside = windows(patterns, kind)
    for row, low, out in zip(W.double().abs(), base.tolist(), outside, strict=True):
        held = [((row >= 2.0 ** (b - kind.bias)) & (row < min(2.0 ** (b + 8 - kind.bias), float("inf")))).sum()
                for b in range(1, kind.top - 6)]  # fmt: skip
        held = [(row == 0).sum(), *held]
        assert (~out).sum() == max(held) == held[low]


def test_packing_in_parts_is_the_same(monkeypatch):
    W = any_patterns(3, 70, 300, BF16)
    whole = pack(W)
    monkeypatch.setattr(packing, "CHUNK", 1000)
    parts = pack(W)
    assert all(torch.equal(getattr(whole, name), getattr(parts, name))
               for name in ("words", "base", "start", "place", "value"))  # fmt: skip


# its rate


@BY_FORMAT
def test_bits_count_everything(dtype):
    weights = pack(normal(4, 21, 700, dtype))
    kind, entry = weights.format, 16 + 8 * dtype.itemsize
    assert weights.escapes > 0
    assert weights.bits() == 3 * kind.planes * 16 * 24 * 16 + 24 * 8 + 25 * 32 + weights.escapes * entry


def rates(matrices: list[torch.Tensor], dtype: torch.dtype) -> list[float]:
    """Bits a weight of this format, of DFloat11 as reckoned and of `Exponents`, the entropy, escapes in percent."""
    kind, totals = FORMATS[dtype], np.zeros(5)
    exponent_bits = 8 * dtype.itemsize - 1 - kind.mantissa
    for W in matrices:
        scaled = W if dtype == BF16 else W * (448 / W.abs().max())
        weights = pack(scaled.to(dtype))
        patterns = decode_reference(weights).numpy().astype(np.int32).ravel() & (2 ** (8 * dtype.itemsize) - 1)
        counts = np.bincount(patterns >> kind.mantissa & (2**exponent_bits - 1), minlength=2**exponent_bits)
        share = counts[counts > 0] / counts.sum()
        plain = W.numel() * (1 + kind.mantissa)
        coder = Exponents(exponent_bits=exponent_bits, mantissa_bits=kind.mantissa)
        coded = (counts * code_lengths(counts)).sum() * (1 + 5 / 64) + 256 * 8  # a table of 256 lengths
        entropy = -W.numel() * (share * np.log2(share)).sum()
        stream = 8 * len(coder.encode(patterns))
        totals += [weights.bits(), plain + coded, stream, plain + entropy, 100 * weights.escapes]
    return (totals / sum(W.numel() for W in matrices)).tolist()


@BY_FORMAT
@pytest.mark.parametrize("source", ["reference", "Gaussian"])
def test_rates_are_those_of_the_table(dtype, source):
    if source == "Gaussian":
        matrices = [0.02 * torch.randn(1024, 4096, generator=generator(0))]
    else:
        matrices = [W for W in load_file(REFERENCE / "model.safetensors").values() if W.ndim == 2]
    name = f"{'BF16' if dtype == BF16 else 'FP8'} {source}"
    line = next(line for line in packing.__doc__.splitlines() if line.strip().startswith(name))
    told = [float(word.rstrip("%")) for word in line.split()[2:]]
    assert rates(matrices, dtype) == pytest.approx(told, abs=0.0051)


@pytest.mark.parametrize(("dtype", "most"), [(BF16, 43), (FP8, 31)])
def test_the_worst_rate(dtype, most):
    """Of patterns that are all as likely a window holds a few."""
    weights = pack(any_patterns(0, 64, 2048, dtype))
    assert weights.bits() / (64 * 2048) < most


# products


@BY_TYPE
@BY_FORMAT
def test_every_number_of_a_window_is_exact_in_every_piece(dtype, activations):
    kind = FORMATS[dtype]
    count = 8 << (1 + kind.mantissa)  # codes, signs, fractions
    base = 120 if dtype == BF16 else 7
    k = torch.arange(TILE)
    # 16 rows of a piece have all numbers of 128 outputs for BF16, of 8 for FP8
    n = torch.arange(count // 16)[:, None]
    number = (n + len(n) * (k // 8 % 2) + (2 << kind.mantissa) * (k % 8)) % count
    field = base + (number >> (1 + kind.mantissa))
    pattern = field << kind.mantissa | number & (2**kind.mantissa - 1)
    pattern |= (number >> kind.mantissa & 1) << (8 * dtype.itemsize - 1)
    W = pattern.to(kind.pattern).view(dtype)
    weights = pack(W)
    assert weights.escapes == 0 and (weights.base == base).all()
    assert all(number[:, piece * 16 : piece * 16 + 16].unique().numel() == count for piece in range(PIECES))
    assert torch.equal(coded_product(torch.eye(TILE, dtype=activations), weights).T.double(), W.double())


@BY_FORMAT
def test_escapes_are_exact(dtype):
    W = any_patterns(5, 40, 60, dtype)
    W = torch.where(W.double().abs() < 2.0**100, W.double(), 0).to(dtype)  # neither NaN nor what overflows below
    weights = pack(W)
    assert weights.escapes > W.numel() // 4
    # subnormal numbers of bfloat16, too; but the interpreter does not store these
    found = coded_product(2.0**20 * torch.eye(60, dtype=torch.bfloat16), weights)
    assert torch.equal(found.T.double(), 2.0**20 * W.double())


def product_is_close(dtype, activations, rows: int, outputs: int, inputs: int, seed: int) -> None:
    weights = pack(normal(seed, outputs, inputs, dtype))
    x = torch.randn(rows, inputs, generator=generator(seed)).to(activations)
    assert close(coded_product(x, weights), x, weights)


@settings(max_examples=2)
@given(rows=st.integers(1, 40), outputs=st.integers(1, 80), inputs=st.integers(1, 300), seed=st.integers(0, 2**32))
@BY_TYPE
@BY_FORMAT
def test_products_are_within_their_rounding(dtype, activations, rows, outputs, inputs, seed):
    product_is_close(dtype, activations, rows, outputs, inputs, seed)


@pytest.mark.slow
@settings(max_examples=25)
@given(rows=st.integers(1, 70), outputs=st.integers(1, 150), inputs=st.integers(1, 800), seed=st.integers(0, 2**32))
@BY_TYPE
@BY_FORMAT
def test_more_products_are_within_their_rounding(dtype, activations, rows, outputs, inputs, seed):
    product_is_close(dtype, activations, rows, outputs, inputs, seed)


@pytest.mark.parametrize("splits", [2, 4])
def test_any_number_of_splits_gives_the_product(splits):
    """Three tiles: two shares of two and one; four leave a program with escapes alone."""
    weights = pack(normal(6, 20, 3 * TILE - 3, BF16))
    x = torch.randn(5, 3 * TILE - 3, generator=generator(7)).half()
    launch = plan(x, weights)
    grid, across = launch.grid, launch.grid[0] * launch.grid[1]
    partial, tickets = torch.full((splits, 5, 24), torch.nan), torch.zeros(across, dtype=torch.int32)
    launch = replace(
        launch, grid=(*grid[:2], splits), arguments={**launch.arguments, "partial": partial, "tickets": tickets},
        constants={**launch.constants, "SPLITS": splits},
    )  # fmt: skip
    found = launch.run().clone()
    assert close(found, x, weights) and not tickets.any()
    assert torch.equal(found, launch.run())


def test_numbers_that_are_none_reach_their_outputs_only():
    W = torch.ones(3, 20, dtype=BF16)
    W[1, 4], W[2, 5] = torch.inf, torch.nan
    found = coded_product(torch.ones(1, 20, dtype=torch.bfloat16), pack(W))[0]
    assert found[0] == 20 and found[1] == torch.inf and found[2].isnan()


@pytest.mark.slow
def test_machine_code():
    """Compiled for chips that are not here, with the bounds that the module's docstring reckons with."""
    program = """
import json
from kernels.coded_product.rows import CODED_KERNELS, Matrix
from kernels.compiler import compiled
from kernels.kernel import Size
import torch
found = []
for at, chip in ((0, 90), (5, 100)):
    kernel = CODED_KERNELS[at]
    how = {"dtype": torch.bfloat16} if at == 0 else {}
    size = Size(1, 9216, 512) if at == 0 else Matrix(9216, 512)
    code = compiled(kernel.plan(*kernel.inputs(size, 0, "cpu", **how)), chip)
    found.append([code.local_accesses, code.stack_bytes, code.loop_conversions, code.loop_narrow_loads,
                  code.loop_wide_loads * 16 - code.loop_bytes_per_thread, code.slots_per_weight])
print(json.dumps(found))
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    product, decoder = json.loads(said.stdout)
    assert product[:5] == [0, 0, 0, 0, 0] and product[5] < 9.7  # all of an H200's bandwidth
    assert decoder[:5] == [0, 0, 0, 0, 0]
    assert decoder[5] < 29.6e12 / (0.3 * 4.3e12)  # weights a second, a byte each, at 0.3 of an H200's bandwidth


# errors


def small() -> tuple[torch.Tensor, CodedWeights]:
    return torch.ones(2, 64, dtype=torch.float16), pack(normal(0, 3, 64, BF16))


@pytest.mark.parametrize(("weights", "complaint"), [
    (torch.zeros(3, 4), r"weights is torch.float32, expected torch.bfloat16 or torch.float8_e4m3fn"),
    (torch.zeros(3, 4, dtype=torch.float8_e5m2), r"weights is torch.float8_e5m2, expected"),
    (torch.zeros(4, dtype=BF16), r"weights has shape \(4,\), expected \(any, any\)"),
    (torch.zeros(3, 0, dtype=BF16), r"weights has shape \(3, 0\), expected 1 to 65536 inputs"),
    (torch.zeros(0, 3, dtype=BF16), r"weights has shape \(0, 3\), expected 1 to 65536 inputs and an output"),
    (torch.zeros(1, 65537, dtype=BF16), r"weights has shape \(1, 65537\), expected 1 to 65536 inputs"),
    (torch.zeros(4, 3, dtype=BF16).T, r"weights of shape \(3, 4\) has strides \(1, 3\), expected a contiguous"),
    ([1.0], r"weights is a list, expected a tensor"),
])  # fmt: skip
def test_packing_refuses(weights, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack(weights)


@pytest.mark.parametrize(("x", "complaint"), [
    (torch.ones(2, 64), r"x is torch.float32, expected torch.float16 or torch.bfloat16"),
    (torch.ones(2, 65).half(), r"x has shape \(2, 65\), expected \(any, 64\)"),
    (torch.ones(64, 2).half().T, r"x of shape \(2, 64\) has strides \(1, 2\), expected a contiguous tensor"),
    (torch.ones(0, 64).half(), r"x has 0 numbers, expected 1 to 2\^31 - 1"),
    (torch.ones(2, 64, device="meta").half(), r"x is on meta, expected cpu"),
])  # fmt: skip
def test_activations_are_refused(x, complaint):
    with pytest.raises(ValueError, match=complaint):
        coded_product(x, small()[1])


@pytest.mark.parametrize(("parts", "complaint"), [
    ({"dtype": torch.float16}, r"weights are torch.float16, expected torch.bfloat16 or"),
    ({"dtype": FP8}, r"words has shape \(1, 11, 16, 8\), expected \(1, 7, 16, 8\)"),
    ({"outputs": 9}, r"words has shape \(1, 11, 16, 8\), expected \(1, 11, 16, 16\)"),
    ({"inputs": 0}, r"weights have 3 outputs and 0 inputs, expected 1 to 2\^16"),
    ({"base": torch.zeros(3, dtype=torch.uint8)}, r"base has shape \(3,\), expected \(8\)"),
    ({"start": torch.zeros(9)}, r"start is torch.float32, expected torch.int32"),
    ({"start": torch.zeros(8, dtype=torch.int32)}, r"start has shape \(8,\), expected \(9\)"),
    ({"value": torch.zeros(1, dtype=torch.int16)}, r"value has shape \(1,\), expected"),
    ({"place": torch.zeros(2, dtype=torch.int32)}, r"place is torch.int32, expected torch.int16"),
])  # fmt: skip
def test_weights_that_do_not_belong_together_are_refused(parts, complaint):
    x, weights = small()
    for act in (lambda broken: coded_product(x, broken), decode):
        with pytest.raises(ValueError, match=complaint):
            act(replace(weights, **parts))
