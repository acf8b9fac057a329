"""Lossless formats: BF16 rounds once, DFloat11 and ECF8 lose nothing more, at sizes no larger than others'."""

import heapq
import json

import golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.coding import Exponents
from suite.coding.fixed import entropy_bits
from suite.coding.huffman import code_lengths
from suite.grids import BFloat16, Integer
from suite.methods import method_named
from suite.models.checkpoint import load_model
from suite.quantize import quantize_matrix
from suite.quantized import Quantized

LARGEST = (2 - 2.0**-7) * 2.0**127
SIZES = (1000, 10_000, 2**16, 2**17, 2**20)


def fitted(dtype=torch.float32):
    return BFloat16().fit(torch.zeros(1, 1, dtype=dtype))


def bits_of(x):
    return x.view(torch.int32)


def patterns(x):
    """BF16 bit patterns of a tensor, uint16 (n,), as torch casts it."""
    return x.float().to(torch.bfloat16).contiguous().view(torch.int16).numpy().reshape(-1).view(np.uint16)


def gaussian(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.02


# BF16


def test_all_patterns_decode_to_the_float32_they_are_half_of():
    codes = torch.arange(1 << 16, dtype=torch.int32)
    found = fitted().decode32(codes)
    assert torch.equal(bits_of(found), codes << 16)
    numbers = ~found.isnan()
    cast = codes.to(torch.int16).view(torch.bfloat16).float()
    assert torch.equal(found[numbers], cast[numbers]) and bool(cast[~numbers].isnan().all())


def test_all_finite_patterns_round_to_themselves():
    codes = torch.arange(1 << 16, dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        grid = fitted(dtype)
        values = grid.decode(codes)
        finite = values.isfinite()
        assert values.dtype == dtype and torch.equal(grid.nearest(values)[finite], codes[finite])
    special = fitted().nearest(torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38]))
    assert special.tolist() == [0x7F7F, 0xFF7F, 0x7FC0, 0x7F7F, 0xFF7F]


def test_float32_rounds_as_torch_casts():
    """Between any two neighbors: the float32 next to each, next to their middle and on it, subnormals included."""
    below = torch.arange(0x7F7F, dtype=torch.int32)[:, None] << 16
    x = (below + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)).view(torch.float32)
    for signed in (x, -x):
        cast = signed.to(torch.bfloat16)
        assert torch.equal(fitted().nearest(signed), cast.view(torch.int16).to(torch.int32) & 0xFFFF)


@given(
    code=st.integers(0, 0x7F7E),
    negative=st.booleans(),
    where=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    aside=st.sampled_from([0, 0, 2.0**-24, 2.0**-30, 2.0**-40, -(2.0**-24), -(2.0**-30), -(2.0**-40)]),
)
def test_float64_is_rounded_once(code, negative, where, aside):
    """Against exact arithmetic: all these numbers are sums of few powers of two, exact in float64."""
    low, high = fitted(torch.float64).decode(torch.tensor([code, code + 1])).tolist()
    share = where + aside
    if share < 0:
        return
    x = low + (high - low) * share
    expected = code if share < 0.5 or (share == 0.5 and code % 2 == 0) else code + 1
    found = fitted(torch.float64).nearest(torch.tensor([[-x if negative else x]], dtype=torch.float64)).item()
    assert found == expected + (0x8000 if negative else 0)


def test_rounding_twice_would_be_wrong():
    """Just below a tie, float32 has only the tie: torch's cast, which goes by it, ends on the even number."""
    x = torch.tensor([[1 + 3 * 2.0**-8 - 2.0**-40]], dtype=torch.float64)
    assert fitted(torch.float64).nearest(x).item() == 0x3F81 and patterns(x).item() == 0x3F82


def test_neighbors_are_the_next_numbers_and_costs_are_refused():
    grid = fitted()
    x = torch.tensor([[1.0, 1.001, -1.001, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]])
    low, high = grid.neighbors(x)
    assert low.tolist() == [[0x3F80, 0x3F80, 0xBF81, 0, 0, 0, 0x8001, 0x7F7F, 0xFF7F]]
    assert high.tolist() == [[0x3F80, 0x3F81, 0xBF80, 0, 0, 1, 0, 0x7F7F, 0xFF7F]]
    with pytest.raises(ValueError, match="no costs"):
        grid.nearest(x, cost=torch.zeros(1 << 16))


# methods


def test_dfloat11_gives_back_a_bf16_matrix_bit_for_bit():
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(70, 301, generator=generator)
    W[0, :6] = torch.tensor([0.0, -0.0, 1e-45, 2.0**-133, LARGEST, -LARGEST])
    stored = W.bfloat16()
    for given_as in (W, stored, stored.float(), stored.double()):
        q = quantize_matrix(given_as, method="dfloat11")
        assert torch.equal(bits_of(q.dequantize()), bits_of(stored.float()))
    payload = q.to_bytes()
    assert len(payload) == q.n_bits // 8 and q.n_bits < 0.72 * 16 * W.numel()
    back = Quantized.from_bytes(payload, json.loads(json.dumps(q.header())))
    assert torch.equal(bits_of(back.dequantize()), bits_of(stored.float())) and back.to_bytes() == payload
    with pytest.raises(ValueError, match="damaged"):
        Quantized.from_bytes(payload[:-1] + bytes([payload[-1] ^ 1]), q.header())


def test_ecf8_stores_the_codes_of_fp8():
    W = gaussian(64 * 515).reshape(64, 515)
    plain, coded = quantize_matrix(W, method="fp8"), quantize_matrix(W, method="ecf8")
    assert torch.equal(coded.codes, plain.codes) and coded.n_bits < 0.9 * plain.n_bits
    back = Quantized.from_bytes(coded.to_bytes(), coded.header())
    assert back.grid.to_bytes(back.codes) == plain.to_bytes()
    assert torch.equal(bits_of(back.dequantize()), bits_of(plain.dequantize()))


@pytest.mark.parametrize("sign", [1, -1])
def test_entrollm_is_unsigned_where_all_weights_have_one_sign(sign):
    W = sign * gaussian(40 * 64).abs().reshape(40, 64)
    q = quantize_matrix(W, method="entrollm", bits=4)
    scale = W.abs().max().half().float() / 15
    assert q.grid.zero.item() == (0 if sign == 1 else 15)
    assert q.grid.scale.item() == pytest.approx(scale.item(), rel=2.0**-10)  # of float16
    levels = (W.abs() / q.grid.scale).round()
    assert torch.equal(q.codes.float(), levels if sign == 1 else 15 - levels)


def test_entrollm_takes_the_whole_range_of_mixed_signs_and_codes_it():
    W = gaussian(300 * 256).reshape(300, 256)
    W[0, 0] = 0.5  # stretches the range of the matrix
    for bits in (4, 8):
        q = quantize_matrix(W, method="entrollm", bits=bits)
        same = quantize_matrix(W, recipe=method_named("rtn").recipe(bits=bits, group="tensor"))
        assert q.grid.grid == Integer(bits=bits, group="tensor") and torch.equal(q.codes, same.codes)
        assert q.n_bits < 0.75 * same.n_bits


# sizes, beside those of others


def optimum(counts):
    """The bits of a Huffman code without a limit: every merge costs its weight."""
    heap, total = sorted(int(c) for c in counts if c), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        total += merged
    return total


@golden.needed
@pytest.mark.parametrize("row", [r for r in golden.rows("vector-rotation-adapters") if r["method"] == "Lossless"],
                         ids=lambda r: f"{r['weights']}-{r['seed']}")  # fmt: skip
def test_no_larger_than_released_coders(row):
    """Exponents as DFloat11 counts them; its code has a word for the end, ours at most 16 bits. In all, no larger."""
    theirs = row["values"]
    symbols = patterns(golden.matrices(row["seed"], row["weights"])[0])
    n = symbols.size
    exponents = torch.from_numpy((symbols >> 7 & 255).astype(np.int64))
    counts = np.bincount(exponents)
    assert {str(e): int(c) for e, c in enumerate(counts) if c} == theirs["counter"]
    assert entropy_bits(exponents) / n == pytest.approx(theirs["exponent_entropy"], rel=1e-12)
    best = optimum(counts)
    assert best / n <= theirs["huffman_exponent_bits"] < (best + n / 2**13) / n
    assert best <= (counts * code_lengths(counts)).sum() < best + n / 2**13
    size = len(Exponents().encode(symbols))
    assert size <= theirs["zipnn_bf16_bytes"]
    assert 8 * size / n <= theirs["dfloat11_bits_stored"]


def zipped(symbols):
    """What ZipNN takes for BF16 patterns; it changes the buffer it is given."""
    zipnn = pytest.importorskip("zipnn", reason="ZipNN is installed by tox -e oracles")
    coder, plain = zipnn.ZipNN(bytearray_dtype="bfloat16"), symbols.tobytes()
    stream = coder.compress(bytearray(plain))
    assert bytes(coder.decompress(stream)) == plain
    return len(stream)


@pytest.mark.parametrize("n", SIZES)
def test_no_larger_than_zipnn_on_gaussian_weights(n):
    symbols = patterns(gaussian(n))
    assert len(Exponents().encode(symbols)) <= zipped(symbols)


def test_no_larger_than_zipnn_on_the_reference_model():
    """Each matrix by itself, and all in one row, where ZipNN makes a new code every 256 KiB."""
    model = load_model("reference")
    matrices = []
    for key, values in model.stored(""):
        if values.ndim == 2:
            matrices.append(patterns(values))
            assert len(Exponents().encode(matrices[-1])) <= zipped(matrices[-1]), key
    symbols = np.concatenate(matrices)
    assert len(Exponents().encode(symbols)) <= zipped(symbols)
