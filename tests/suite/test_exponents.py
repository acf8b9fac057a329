"""Exponent coding gives back every bit pattern, spends no more than it says, and notices damage."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.coding import Exponents, Huffman
from suite.coding.frame import varint
from suite.coding.huffman import code_lengths

FORMATS = [(8, 7), (4, 3), (5, 2), (5, 10), (3, 2), (2, 3), (2, 1), (1, 0), (8, 0), (1, 14)]
formats = pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), FORMATS)

BF16 = Exponents()
E4M3 = Exponents(exponent_bits=4, mantissa_bits=3)


def gaussian(n, seed=0, scale=0.02):
    """BF16 patterns uint16 (n,) of N(0, scale^2), rounded toward zero."""
    values = (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def same(found, symbols):
    return found.dtype == np.int32 and np.array_equal(found, symbols)


@formats
@pytest.mark.parametrize("order", ["ascending", "shuffled", "twice"])
def test_every_pattern_comes_back(exponent_bits, mantissa_bits, order):
    """NaNs with their payloads, infinities, both zeros, subnormals and the highest exponents among them."""
    coder = Exponents(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    symbols = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    if order != "ascending":
        symbols = np.random.default_rng(0).permutation(symbols)
    if order == "twice":
        symbols = np.concatenate([symbols, symbols[::-1], symbols[:1]])
    assert same(coder.decode(coder.encode(symbols)), symbols)


@pytest.mark.parametrize("exponent", [0, 1, 127, 239, 240, 247, 254, 255])
def test_a_rare_exponent_among_common_ones_comes_back(exponent):
    """Those from 240 up are pointers in DFloat11's tables."""
    symbols = gaussian(10_001)
    symbols[[0, 5000, 10_000]] = (exponent << 7) | np.array([0, 1, 0x8000 | 127], dtype=np.uint16)
    assert same(BF16.decode(BF16.encode(symbols)), symbols)


@given(data=st.data())
def test_any_patterns_come_back(data):
    exponent_bits, mantissa_bits = data.draw(st.sampled_from(FORMATS))
    longest = data.draw(st.integers(exponent_bits, 16))
    chunk = data.draw(st.integers(1, 40))
    coder = Exponents(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, longest=longest, chunk=chunk,
                      section=data.draw(st.integers(1, 5)))  # fmt: skip
    top = (1 << (1 + exponent_bits + mantissa_bits)) - 1
    few = data.draw(st.lists(st.integers(0, top), min_size=1, max_size=4))
    drawn = data.draw(st.lists(st.integers(0, top) | st.sampled_from(few), max_size=200))
    kind = data.draw(st.sampled_from([np.uint16, np.int32, np.int64, np.uint64]))
    symbols = np.array(drawn, dtype=kind)
    stream = coder.encode(symbols)
    assert same(coder.decode(stream), drawn) and same(BF16.decode(stream), drawn)
    assert np.array_equal(symbols, np.array(drawn, dtype=kind))  # untouched
    assert stream == coder.encode(symbols)


# around a chunk of 4096, a section of 32 of them, a slab of 2^18
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4095, 4096, 4097, 2**17 - 1, 2**17, 2**18 + 1, 3 * 2**18 - 7])
@pytest.mark.parametrize("coder", [BF16, E4M3, Exponents(exponent_bits=5, mantissa_bits=2)], ids=str)
def test_any_length_comes_back(coder, n):
    symbols = gaussian(n) >> (16 - 1 - coder.exponent_bits - coder.mantissa_bits)
    assert same(coder.decode(coder.encode(symbols)), symbols)


def test_more_chunks_than_are_decoded_at_once_come_back():
    coder = Exponents(chunk=16, section=8)
    symbols = gaussian(16 * 5000 + 3)
    symbols[40_000:41_000] = 0x3F80  # sections of one exponent among others
    assert same(coder.decode(coder.encode(symbols)), symbols)


@pytest.mark.parametrize("n", [1, 5, 4096, 300_000])
def test_a_single_exponent_takes_no_codes(n):
    symbols = np.full(n, 0x3F80, dtype=np.uint16) + np.arange(n, dtype=np.uint16) % 128
    stream = BF16.encode(symbols)
    assert same(BF16.decode(stream), symbols)
    assert len(stream) <= n + 16 + 5 * -(-n // 2**17)  # the planes, the head, an alphabet for each section


def test_memory_beside_input_and_output_is_that_of_slabs():
    """Three copies of the stream at most (its parts, joined, sealed): one int64 for each pattern would be 64 MiB."""
    symbols = gaussian(2**23)
    stream, encoding = traced(lambda: BF16.encode(symbols))
    found, decoding = traced(lambda: BF16.decode(stream))
    assert same(found, symbols)
    assert encoding < 3 * len(stream) + 8 * 2**20 and decoding < found.nbytes + 24 * 2**20


def traced(work):
    """What `work` gives, and the most bytes allocated meanwhile."""
    tracemalloc.start()
    found = work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found, peak


def test_adversarial_exponents_stay_within_the_limit():
    """Counts that double ask for codes of up to 18 bits, Fibonacci's for even longer ones."""
    for counts in ([2**i for i in range(19)], [1, *np.cumsum([1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610,
                                                              987, 1597, 2584, 4181, 6765])]):  # fmt: skip
        symbols = np.repeat(np.arange(len(counts)) << 7, counts)
        np.random.default_rng(1).shuffle(symbols)
        for longest in (8, 12, 16):
            coder = Exponents(longest=longest)
            assert same(coder.decode(coder.encode(symbols)), symbols)


def test_the_size_is_what_the_layout_says():
    """Byte for byte: head, table, sizes of chunks, plane, codes in words, tag and checksum."""
    symbols = gaussian(20_000)
    counts = np.bincount(symbols >> 7 & 255)
    used = np.flatnonzero(counts)
    coded = int((counts * code_lengths(counts, BF16.longest)).sum())
    head = 3 + 2 + 2 + 1  # varints of 20000, format and longest, 4096, 32
    lowest = 2 if 2 * used[0] > 127 else 1
    span = used[-1] - used[0] + 1
    gaps = 0 if span == used.size else 1 + min((span - 2 + 7) // 8, used.size - 2)
    table = 1 + lowest + 1 + gaps + (used.size + 1) // 2
    assert len(BF16.encode(symbols)) == 5 + head + table + 2 * 5 + 20_000 + 4 * -(-coded // 32)


@pytest.mark.parametrize(("coder", "spare"), [(BF16, 8), (E4M3, 4)], ids=str)
def test_the_rate_is_near_the_entropy_of_exponents(coder, spare):
    """Huffman's redundancy is below p_max + 0.086 (Gallager 1978); 16 / 4096 for chunks, and 100 bytes for the rest."""
    n = 100_000
    symbols = (
        gaussian(n) if coder is BF16 else np.clip(gaussian(n, scale=1).astype(np.int64) - (112 << 7), 0, None) >> 4
    )
    symbols &= (1 << (1 + coder.exponent_bits + coder.mantissa_bits)) - 1
    shares = np.bincount(symbols >> coder.mantissa_bits & (1 << coder.exponent_bits) - 1) / n
    entropy = -sum(p * math.log2(p) for p in shares if p)
    rate = 8 * len(coder.encode(symbols)) / n
    assert spare + entropy <= rate <= spare + entropy + shares.max() + 0.086 + 16 / 4096 + 800 / n


def test_sections_follow_weights_whose_scale_changes():
    symbols = np.concatenate([gaussian(2**15, scale=2.0**-k) for k in range(8)])
    shares = np.bincount(symbols >> 7 & 255) / symbols.size
    together = 8 - sum(p * math.log2(p) for p in shares if p)  # no code for all of them takes fewer bits
    assert 8 * len(Exponents(section=8).encode(symbols)) < together * symbols.size


def test_chunks_cost_16_bits_each():
    symbols = gaussian(2**17)
    rest = set()
    for chunk in (64, 512, 4096):
        size = len(Exponents(chunk=chunk, section=2**17 // chunk).encode(symbols))
        rest.add(size - 2 * 2**17 // chunk - len(varint(chunk)) - len(varint(2**17 // chunk)))
    assert len(rest) == 1  # 16 bits a chunk are all the difference


def sealed(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("n", [0, 1, 60, 5000])
def test_damage_is_an_error(n):
    """Every flip of a bit, or of some, every truncation, or some, and a byte too many."""
    stream = BF16.encode(gaussian(n))
    step = max(1, len(stream) // 97)
    for i in range(0, 8 * len(stream), step):
        broken = bytearray(stream)
        broken[i // 8] ^= 1 << i % 8
        with pytest.raises(ValueError, match=r"damaged|written by"):
            BF16.decode(bytes(broken))
    for size in range(0, len(stream), step):
        with pytest.raises(ValueError, match="damaged"):
            BF16.decode(stream[:size])
    with pytest.raises(ValueError, match="damaged"):
        BF16.decode(stream + b"\0")


@given(data=st.data())
def test_damage_under_a_right_checksum_is_an_error_or_patterns(data):
    """Nothing but a `ValueError`, whatever the body says, and no more patterns than there are bytes."""
    coder = Exponents(chunk=7, section=3)
    stream = coder.encode(gaussian(data.draw(st.sampled_from([1, 20, 90]))))
    body = bytearray(stream[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(1, len(body) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(1, len(body)) | st.just(len(body)))
    try:
        found = coder.decode(sealed(bytes(body[:size])))
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        assert found.dtype == np.int32 and found.size <= 8 * size


def test_what_is_no_pattern_is_refused():
    for symbols, message in [
        (np.array([-1, 3]), "between -1 and 3, expected patterns of 16 bits"),
        (np.array([65536]), "expected patterns of 16 bits"),
        (np.zeros((2, 2), dtype=np.int64), "expected a one-dimensional array of integers"),
        (np.zeros(3), "expected a one-dimensional array of integers"),
        ([1, 2], "expected a one-dimensional array of integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            BF16.encode(symbols)
    with pytest.raises(ValueError, match="expected patterns of 8 bits"):
        E4M3.encode(np.array([256]))
    with pytest.raises(ValueError, match="written by"):
        BF16.decode(Huffman().encode(np.array([1, 2])))


@pytest.mark.parametrize("options", [{"exponent_bits": 0}, {"exponent_bits": 9}, {"mantissa_bits": 8},
                                     {"mantissa_bits": -1}, {"longest": 7}, {"longest": 17}, {"chunk": 0},
                                     {"chunk": 2**16}, {"section": 0}], ids=str)  # fmt: skip
def test_what_makes_no_format_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Exponents(**options)
