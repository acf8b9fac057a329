import gzip
import heapq
import itertools
import lzma
import math
import zlib
from fractions import Fraction

import constriction
import dahuffman
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.coding import Ans, Gzip, Huffman, Lzma, Zstd
from suite.coding.ans import costs, frequencies, scaled
from suite.coding.frame import CODERS, Alphabet, Reader, seal, tally, unseal, varint, zigzag
from suite.coding.general import TYPES
from suite.coding.huffman import canonical, code_lengths, read_bits, write_bits

FAST = [Huffman(), Huffman(longest=15, chunk=7), Ans()]
CODERS_HERE = [*FAST, Gzip(), Zstd(level=3), Lzma(preset=0)]
DTYPES = ["i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", "<i8", ">u8"]

every = pytest.mark.parametrize("coder", CODERS_HERE, ids=repr)
fast = pytest.mark.parametrize("coder", FAST, ids=repr)


def random(seed=0):
    return np.random.default_rng(seed)


def fibonacci(m):
    found = [1, 1]
    while len(found) < m:
        found.append(found[-1] + found[-2])
    return np.array(found[:m])


def entropy(counts):
    """Bits a symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float((shares * -np.log2(shares)).sum())


def exponents(n, seed=0):
    """The exponent fields of n values of N(0, .02^2) in bfloat16, cut off."""
    values = (0.02 * random(seed).standard_normal(n)).astype(np.float32)
    return (values.view(np.uint32) >> 23 & 255).astype(np.uint8)


NAMED = {
    "none": np.zeros(0, dtype=np.uint8),
    "one": np.array([7]),
    "one, negative": np.array([-(2**31)]),
    "two": np.array([3, -3], dtype=np.int8),
    "all equal": np.full(10_000, -5, dtype=np.int16),
    "ends of int32": np.array([2**31 - 1, -(2**31), 0, -1] * 9),
    "two of them at the ends": np.array([2**31 - 1, -(2**31)]),
    "one gap": np.array([0, 1, 2, 9, 10] * 100),
    "wide gaps": random().choice([0, 5, 70_000, 1 << 20], 5000),
    "wider gaps": random().choice([-(1 << 30), 0, 5, 1 << 30], 5000),
    "all bytes": np.arange(256, dtype=np.uint8),
    "signed bytes, many": random().integers(-128, 128, 300_001).astype(np.int8),
    "geometric": random().geometric(0.3, 50_000),
    "uniform": random().integers(0, 16, 50_000).astype(np.uint8),
    "Fibonacci": np.repeat(np.arange(25), fibonacci(25)),
    "as many as there may be": random().permutation(np.arange(1 << 15) * 3 - 40_000),
    "very skewed": (random().random(200_000) < 1e-4).astype(np.int32),
    "whole chunks": random().integers(0, 3, 2 * 4096),
    "a symbol more than whole chunks": random().integers(0, 3, 2 * 4096 + 1),
    "strided, read-only": np.broadcast_to(np.array([[4], [6]]), (2, 100)).T.reshape(-1)[::2],
}


@every
@pytest.mark.parametrize("name", NAMED)
def test_decode_undoes_encode(coder, name):
    symbols = NAMED[name]
    before = symbols.copy()
    stream = coder.encode(symbols)
    found = coder.decode(stream)
    assert found.dtype == np.int32 and found.shape == symbols.shape and (found == symbols).all()
    assert coder.encode(symbols) == stream and (symbols == before).all()
    found[:] = 0  # the caller's own


@st.composite
def rows_of_symbols(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    lowest, highest = max(np.iinfo(dtype).min, -(2**31)), min(np.iinfo(dtype).max, 2**31 - 1)
    near = draw(st.integers(lowest, highest))
    value = st.one_of(st.integers(lowest, highest), st.integers(max(near - 9, lowest), min(near + 9, highest)))
    alphabet = draw(st.lists(value, min_size=1, max_size=40))
    return np.array(draw(st.lists(st.sampled_from(alphabet), max_size=300)), dtype=dtype)


@every
@settings(max_examples=150)
@given(symbols=rows_of_symbols())
def test_decode_undoes_encode_whatever_the_symbols(coder, symbols):
    found = coder.decode(coder.encode(symbols))
    assert found.dtype == np.int32 and found.shape == symbols.shape and (found == symbols).all()


@fast
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 1500), skew=st.floats(0, 3), n=st.integers(0, 60_000))
def test_decode_undoes_encode_of_long_rows(coder, seed, m, skew, n):
    shares = np.arange(1, m + 1) ** -skew
    symbols = random(seed).choice(m, n, p=shares / shares.sum()) - m // 2
    assert (coder.decode(coder.encode(symbols)) == symbols).all()


@pytest.mark.parametrize("coder", [Huffman(), Ans()], ids=repr)
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_ten_million_symbols(coder, kind):
    symbols = exponents(10_000_000).astype(kind)
    stream = coder.encode(symbols)
    assert (coder.decode(stream) == symbols).all()
    assert 8 * len(stream) <= 10_000_000 * 2.61


# --- what is damaged


SMALL = np.array([0, 3, 1, 0, 0, 2, 5, 0, 1, 0, 0, 0])


@every
def test_a_stream_cut_anywhere_is_refused(coder):
    stream = coder.encode(SMALL)
    for size in range(len(stream)):
        with pytest.raises(ValueError, match=rf"^stream of {size} bytes is damaged: [^\n]*$"):
            coder.decode(stream[:size])
    for more in (b"\0", b"\xff", stream):
        with pytest.raises(ValueError, match="is damaged"):
            coder.decode(stream + more)
    with pytest.raises(ValueError, match="is damaged"):
        coder.decode(stream[1:])


@every
def test_a_flip_of_any_bit_is_refused(coder):
    stream = coder.encode(SMALL)
    for bit in range(8 * len(stream)):
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=rf"^stream of {len(stream)} bytes is damaged: [^\n]*$"):
            coder.decode(bytes(flipped))


@every
@settings(max_examples=50)
@given(stream=st.binary(max_size=60))
def test_random_bytes_are_refused(coder, stream):
    with pytest.raises(ValueError, match="is damaged"):
        coder.decode(stream)


@pytest.mark.parametrize("writer, reader", list(itertools.permutations([Huffman(), Ans(), Gzip(), Zstd(), Lzma()], 2)))
def test_another_coders_stream_is_refused_by_name(writer, reader):
    stream = writer.encode(SMALL)
    with pytest.raises(ValueError, match=f"was written by {writer.name}, expected {reader.name}"):
        reader.decode(stream)


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match="unknown coder with tag 121"):
        Ans().decode(bytes.fromhex("79") + zlib.crc32(b"y").to_bytes(4, "little"))


@every
@settings(max_examples=300)
@given(data=st.data())
def test_nonsense_with_a_right_checksum_is_refused_or_read_as_a_row(coder, data):
    stream = coder.encode(data.draw(rows_of_symbols()))
    body = bytearray(stream[1:-4])
    # the first two bytes stay small: what they say is how long the row is, or its type
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 127 if at < 2 else 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        found = coder.decode(seal(coder.name, bytes(body)))
    except ValueError as error:
        assert str(error).startswith(f"stream of {len(body) + 5} bytes is damaged: ")
    else:
        assert found.dtype == np.int32 and found.ndim == 1


@pytest.mark.parametrize("coder", [Huffman(), Ans()], ids=repr)
@settings(max_examples=300)
@given(body=st.binary(max_size=40), n=st.integers(0, 1000))
def test_random_bodies_are_refused_or_read_as_a_row(coder, body, n):
    try:
        found = coder.decode(seal(coder.name, varint(n) + body))
    except ValueError as error:
        assert "is damaged" in str(error)
    else:
        assert found.shape == (n,)


@every
@pytest.mark.parametrize(
    "symbols, said",
    [
        (np.zeros((2, 3), dtype=np.int32), r"int32 \(2, 3\)"),
        (np.zeros(3), "float64"),
        (np.zeros(3, dtype=bool), "bool"),
        ([1, 2], "list"),
        (np.array([2**31]), "2147483648"),
        (np.array([-(2**31) - 1]), "-2147483649"),
        (np.array([2**64 - 1], dtype=np.uint64), "18446744073709551615"),
    ],
)
def test_what_is_no_row_of_integers_is_refused(coder, symbols, said):
    with pytest.raises(ValueError, match=said):
        coder.encode(symbols)


@fast
@pytest.mark.parametrize("apart", [1, 5, 60_000])
def test_too_many_different_symbols_are_refused(coder, apart):
    with pytest.raises(ValueError, match="32769 different symbols, expected at most 2\\^15: pass wider words as bytes"):
        coder.encode(np.arange((1 << 15) + 1) * apart)


# --- the frame


@given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1))
def test_varints_are_read_back(value, signed):
    reader = Reader(memoryview(varint(value) + zigzag(signed)))
    assert reader.varint("a number", 2**32 - 1) == value and reader.zigzag("another") == signed
    reader.finish()
    assert len(varint(value)) == max(1, math.ceil(value.bit_length() / 7))


@pytest.mark.parametrize(
    "symbols, size",
    [
        ([], 1),
        ([0], 3),
        (range(16), 3),
        (range(-8, 8), 3),
        ([0, *range(2, 16)], 3 + 1 + 2),  # a bitmap of 14
        ([0, 1000, 1001, 5000], 2 + 2 + 1 + 2 + 1),  # and 2 gaps: 2 + 1 bytes
        (range(1 << 15), 3 + 1 + 3),
    ],
)
def test_an_alphabet_is_written_in_the_shortest_way(symbols, size):
    symbols = np.array(symbols, dtype=np.int32)
    data = Alphabet(symbols).to_bytes()
    assert (Alphabet.read(Reader(memoryview(data))).symbols == symbols).all()
    assert len(data) <= size + 1 if symbols.size else len(data) == size


@settings(max_examples=200)
@given(symbols=rows_of_symbols())
def test_the_alphabet_and_its_counts_are_those_of_unique(symbols):
    alphabet, counts = tally(symbols)
    different, expected = np.unique(symbols, return_counts=True)
    assert (alphabet.symbols == different).all() and (counts == expected).all()
    assert (alphabet.symbols[alphabet.places(symbols, np.uint16)] == symbols).all()
    reader = Reader(memoryview(alphabet.to_bytes()))
    assert (Alphabet.read(reader).symbols == different).all()
    reader.finish()


@pytest.mark.parametrize(
    "kind, lowest",
    [(np.int8, -128), (np.int8, -5), (np.uint8, 0), (np.uint8, 130), (np.int16, -129), (np.int64, 10**9)],
)
def test_pairs_are_counted_as_single_symbols_are(kind, lowest):
    symbols = random(lowest + 129).integers(lowest, lowest + 120, 1_200_001).astype(kind)
    alphabet, counts = tally(symbols)
    different, expected = np.unique(symbols, return_counts=True)
    assert (alphabet.symbols == different).all() and (counts == expected).all()


def test_every_coder_has_its_tag():
    assert [unseal(coder.name, coder.encode(SMALL)) and coder.encode(SMALL)[0] for coder in
            (Huffman(), Ans(), Gzip(), Zstd(), Lzma())] == [1, 2, 3, 4, 5]  # fmt: skip
    assert CODERS[:5] == ("huffman", "ans", "gzip", "zstd", "lzma")


# --- Huffman


def kraft(lengths):
    return sum(Fraction(1, 2 ** int(length)) for length in lengths if length)


def plain_huffman(counts):
    """The bits that Huffman's own algorithm takes for all symbols together."""
    heap, total = [int(c) for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        heapq.heappush(heap, both := heapq.heappop(heap) + heapq.heappop(heap))
        total += both
    return total


many_counts = st.lists(st.one_of(st.integers(1, 9), st.integers(1, 10**6), st.integers(0, 1)), min_size=2, max_size=300)


@settings(max_examples=200)
@given(counts=many_counts.filter(lambda counts: sum(map(bool, counts)) > 1))
def test_kraft_holds_with_equality_and_the_mean_length_is_within_a_bit_of_the_entropy(counts):
    counts = np.array(counts)
    lengths = code_lengths(counts)
    assert kraft(lengths) == 1 and ((lengths == 0) == (counts == 0)).all()
    mean, H = float((counts * lengths).sum() / counts.sum()), entropy(counts)
    assert H * (1 - 1e-12) <= mean < H + 1  # no count here is below 2^-16 of all: longer codes are not cut off by much
    if lengths.max() < 16:  # what was not limited is Huffman's
        assert (counts * lengths).sum() == plain_huffman(counts)


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=5), longest=st.integers(1, 4))
def test_no_code_within_the_limit_is_shorter(counts, longest):
    if len(counts) > 2**longest:
        with pytest.raises(ValueError, match=f"{len(counts)} symbols, codes of at most {longest} bits"):
            code_lengths(np.array(counts), longest)
        return
    every_code = itertools.product(range(1, longest + 1), repeat=len(counts))
    best = min(np.dot(code, counts) for code in every_code if kraft(code) <= 1)
    lengths = code_lengths(np.array(counts), longest)
    assert np.dot(lengths, counts) == best and lengths.max() <= longest and kraft(lengths) == 1


@pytest.mark.parametrize("m", [17, 25, 40])
def test_a_limit_costs_the_less_the_higher_it_is(m):
    counts = fibonacci(m)  # Huffman's own code has m - 1 bits
    bits = [int((counts * code_lengths(counts, longest)).sum()) for longest in range(6, 17)]
    assert bits == sorted(bits, reverse=True)
    assert (bits[-1] == plain_huffman(counts)) == (m == 17)
    assert code_lengths(counts).max() == 16


@pytest.mark.parametrize("longest", range(1, 17))
def test_a_full_alphabet_within_a_tight_limit_is_coded_at_fixed_width(longest):
    counts = random().integers(1, 1000, min(1 << longest, 1 << 15))
    lengths = code_lengths(counts, longest if longest < 16 else 15)
    assert (lengths == min(longest, 15)).all()


def test_two_symbols_take_a_bit_each_and_so_does_a_single_one():
    assert code_lengths(np.array([1, 10**9])).tolist() == [1, 1]
    assert code_lengths(np.array([0, 4, 0])).tolist() == [0, 1, 0]
    assert code_lengths(np.array([0, 0])).tolist() == [0, 0]


@settings(max_examples=200)
@given(counts=many_counts.filter(lambda counts: sum(map(bool, counts)) > 1))
def test_codes_are_the_one_canonical_code_and_no_code_begins_another(counts):
    lengths = code_lengths(np.array(counts))
    codes = canonical(lengths)
    order = sorted((int(n), i) for i, n in enumerate(lengths) if n)
    code, last = 0, order[0][0]  # RFC 1951, 3.2.2, in order
    texts = []
    for n, i in order:
        code <<= n - last
        assert codes[i] == code
        texts.append(f"{code:0{n}b}")
        code, last = code + 1, n
    assert texts == sorted(texts)  # so that a prefix would stand right before what it begins
    assert not any(b.startswith(a) for a, b in itertools.pairwise(texts))


@given(counts=st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_lengths_are_as_good_as_those_of_dahuffman(counts):
    # it adds an end-of-file symbol of frequency 1, and takes it at the bottom of the heap
    its = dahuffman.HuffmanCodec.from_frequencies(dict(enumerate(counts))).get_code_table()
    its_lengths = np.array([its[i][0] for i in range(len(counts))] + [its[dahuffman.huffmancodec._EOF][0]])
    with_end = np.array([*counts, 1])
    if its_lengths.max() <= 16:
        assert (code_lengths(with_end) * with_end).sum() == (its_lengths * with_end).sum()


@pytest.mark.parametrize("lengths", [[2, 2, 2], [1, 1, 1], [1, 2], [2], [17] * 2, [0, 0], [1, -1, 1]])
def test_lengths_that_are_no_complete_code_are_refused(lengths):
    with pytest.raises(ValueError, match="not those of a complete prefix code"):
        canonical(np.array(lengths))


def plain_bits(words, sizes, lengths, i):
    """The bits of chunk i as the header describes them, and the symbols they are, one bit at a time."""
    text = "".join(f"{int(word):032b}" for word in words)
    first = sum(int(size) + 1 for size in sizes[:i])
    text = text[first : first + int(sizes[i]) + 1]
    of_code = {
        f"{int(code):0{n}b}": s for s, (code, n) in enumerate(zip(canonical(lengths), lengths, strict=True)) if n
    }
    found, code = [], ""
    for bit in text:
        code += bit
        if code in of_code:
            found.append(of_code[code])
            code = ""
    assert not code
    return found


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), chunk=st.integers(1, 70), n=st.integers(1, 400), m=st.integers(1, 60))
def test_any_chunk_is_decoded_by_itself_from_the_documented_bits(seed, chunk, n, m):
    places = random(seed).geometric(0.2, n) % m
    lengths = code_lengths(np.bincount(places, minlength=m))
    words, sizes = write_bits(places, lengths, chunk)
    assert words.dtype == np.dtype("<u4") and sizes.dtype == np.dtype("<u2") and sizes.size == -(-n // chunk)
    for i in {0, sizes.size // 2, sizes.size - 1}:
        assert plain_bits(words, sizes, lengths, i) == places[i * chunk : (i + 1) * chunk].tolist()
    found = read_bits(words, sizes, lengths, n, chunk)
    assert found.dtype == np.uint16 and (found == places).all()


def test_many_lanes_are_decoded_as_few_are():
    places = random().geometric(0.4, 50_000) % 20
    lengths = code_lengths(np.bincount(places))
    for chunk in (1, 5, 333, 4096):  # 50,000 to 13 chunks, of which at most 4096 are decoded at once
        assert (read_bits(*write_bits(places, lengths, chunk), lengths, places.size, chunk) == places).all()


@pytest.mark.parametrize("chunk, longest", [(4096, 16), (1 << 16, 1), (32768, 2)])
def test_the_longest_chunk_fits_in_its_size(chunk, longest):
    lengths = np.array([*range(1, longest), longest, longest])
    places = np.full(chunk + 1, lengths.size - 1)
    words, sizes = write_bits(places, lengths, chunk)
    assert sizes.tolist() == [(1 << 16) - 1, longest - 1]
    assert (read_bits(words, sizes, lengths, places.size, chunk) == places).all()


def test_what_bits_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="symbol 1 has no code"):
        write_bits(np.array([0, 1, 2]), np.array([1, 0, 1]), 8)
    with pytest.raises(ValueError, match="at most 2\\^16 bits"):
        write_bits(np.array([0]), np.array([*range(1, 17), 16]), 4097)
    words, sizes = write_bits(np.array([0, 1, 1, 0, 1]), np.array([1, 1]), 2)
    for damaged in ((words[:0], sizes), (words, sizes[:2]), (words, sizes * 0), (np.append(words, words), sizes)):
        with pytest.raises(ValueError, match=r"chunks?|words"):
            read_bits(*damaged, np.array([1, 1]), 5, 2)
    with pytest.raises(ValueError, match="do not end where their sizes say"):
        read_bits(words, sizes, np.array([2, 1, 2]), 3, 1)


@pytest.mark.parametrize("options", [dict(longest=0), dict(longest=17), dict(chunk=0), dict(chunk=4097)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected 1 to 16 bits"):
        Huffman(**options)


def test_a_stream_says_its_own_options():
    symbols = random().geometric(0.3, 10_000)
    assert (Huffman().decode(Huffman(longest=9, chunk=100).encode(symbols)) == symbols).all()


def test_a_limit_below_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="257 symbols, codes of at most 8 bits"):
        Huffman(longest=8).encode(np.arange(257))


# --- ANS


def plain_ans(places, freqs):
    """The words of the state machine, in Python's integers: 64 bits of state, words of 32, frequencies of 24."""
    first = np.cumsum(freqs) - freqs
    state, words = 0, []
    for place in reversed(places.tolist()):
        f = int(freqs[place])
        if state >> 40 >= f:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // f << 24) + int(first[place]) + state % f
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.one_of(st.integers(2, 40), st.integers(2, 300)),
    n=st.integers(300, 1000),
    skew=st.floats(0, 4),
)
def test_the_words_are_those_of_the_textbook_with_our_frequencies(seed, m, n, skew):
    shares = np.arange(1, m + 1) ** -skew
    symbols = np.append(random(seed).choice(m, n, p=shares / shares.sum()), np.arange(m))
    _, counts = tally(symbols)
    stream = Ans().encode(symbols)
    freqs, places = frequencies(costs(counts)), symbols
    if m <= 32 and counts.max() / symbols.size < 2 ** (-1 / 16):  # two at a time
        last = [costs(counts).argmin()] * (symbols.size % 2)
        places = np.append(symbols, last).astype(int).reshape(-1, 2) @ [m, 1]
        freqs = scaled(np.outer(freqs, freqs).reshape(-1) >> 12)
        assert freqs.sum() == 1 << 24 and freqs.min() >= 1
    words = np.array(plain_ans(places, freqs), dtype="<u4").tobytes()
    assert stream.endswith(words + stream[-4:])
    assert len(stream) <= 1 + 2 + 5 + m + len(words) + 4


@given(st.lists(st.integers(0, 192), min_size=2, max_size=400))
def test_frequencies_are_positive_integers_of_sum_2_to_the_24(eighths):
    freqs = frequencies(np.array(eighths, dtype=np.uint8))
    assert freqs.dtype == np.int64 and freqs.min() >= 1 and freqs.sum() == 1 << 24
    exact = [Fraction(int(f) - 1) for f in freqs]
    # each but for the 1 it has anyway and at most 1 of rounding is its share of 2^24 - m, the weights cut at 2^-12
    weights = [2.0 ** (-k / 8) for k in eighths]
    for f, w in zip(exact, weights, strict=True):
        share = w / sum(weights) * ((1 << 24) - len(eighths))
        assert share * (1 - 2.0**-11) - 1 <= f <= share * (1 + 2.0**-11) + 1


def test_frequencies_are_the_same_on_every_machine():
    assert frequencies(np.arange(0, 193, 24, dtype=np.uint8)).tolist() == FREQUENCIES
    assert frequencies(np.zeros(1 << 15, dtype=np.uint8)).tolist() == [512] * (1 << 15)


FREQUENCIES = [14680058, 1835009, 229377, 28673, 3585, 449, 57, 7, 1]


def divergence(counts):
    shares, freqs = counts / counts.sum(), frequencies(costs(counts))
    return float((shares * np.log2(shares * 2.0**24 / freqs)).sum())


def test_what_the_eighths_cost():
    spread = [divergence(random(seed).integers(1000, 100_000, 200)) for seed in range(20)]
    assert np.mean(spread) == pytest.approx(math.log(2) / 2 / 12 / 64, rel=0.1)  # uniform errors: 0.00045 bit
    # two symbols whose errors are at both ends: -8 log2 p = 8 k + 1/2 and, for the rest, as near as it gets
    worst = max(divergence(np.array([a, 10_000 - a])) for a in range(1, 5001))
    assert worst <= math.log(2) / 2 / 4 / 64 * 1.05  # 0.00135 bit, to second order
    relative = [divergence(c) / entropy(c) for a in range(1, 5001) for c in [np.array([a, 10_000 - a])]]
    assert max(relative) <= math.log(2) / 2 / 64 * 1.05  # 0.54%


@settings(max_examples=200)
@given(counts=st.lists(st.integers(1, 200_000), min_size=2, max_size=4), order=st.randoms())
def test_runs_are_decoded_though_a_state_of_zero_codes_the_lowest_symbol_for_nothing(counts, order):
    places = list(range(len(counts)))
    order.shuffle(places)
    symbols = np.repeat(places, [counts[place] for place in places])
    assert (Ans().decode(Ans().encode(symbols)) == symbols).all()


def test_the_lowest_symbol_is_free_at_the_end():
    stream = Ans().encode(np.repeat([1, 0], [48_000, 52_000]))
    assert 8 * len(stream) == pytest.approx(48_000, abs=200)
    assert (Ans().decode(stream) == np.repeat([1, 0], [48_000, 52_000])).all()


@pytest.mark.parametrize("rows", [([0, 1], [1 << 20, 1]), ([1, 0], [1, 1 << 20]), ([0, 1, 0], [1 << 20, 5, 1 << 22])])
def test_long_runs_take_few_bytes(rows):
    symbols = np.repeat(*rows)
    stream = Ans().encode(symbols)
    assert len(stream) < 50 and (Ans().decode(stream) == symbols).all()


def test_few_bytes_do_not_expand_to_gigabytes():
    head = varint(2**31 - 1) + varint(2) + zigzag(0) + varint(1)  # two symbols of a bit each, and 64 bits
    with pytest.raises(ValueError, match="2147483647 symbols do not fit in 8 bytes"):
        Ans().decode(seal("ans", head + b"\x08\x08" + b"\x01" * 8))


def bound(symbols):
    """Bits that an ANS stream may take: 1% above the entropy, 64, the table and the header."""
    counts = np.unique(symbols, return_counts=True)[1]
    header = 1 + 4 + len(varint(symbols.size)) + len(tally(symbols)[0].to_bytes())
    return 1.01 * symbols.size * entropy(counts) + 64 + 8 * (counts.size + header)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(2, 400), n=st.integers(10_001, 60_000), skew=st.floats(0, 6)
)  # fmt: skip
def test_ans_is_within_a_percent_of_the_entropy(seed, m, n, skew):
    shares = np.arange(1, m + 1) ** -skew
    symbols = random(seed).choice(m, n, p=shares / shares.sum())
    size = 8 * len(Ans().encode(symbols))
    assert size <= bound(symbols)
    assert size >= symbols.size * entropy(np.bincount(symbols))  # order 0: nothing is below it


@pytest.mark.parametrize("name", ["signed bytes, many", "geometric", "uniform", "Fibonacci", "very skewed"])
def test_ans_is_within_a_percent_of_the_entropy_of_named_rows(name):
    assert 8 * len(Ans().encode(NAMED[name])) <= bound(NAMED[name])


def test_what_rare_symbols_of_a_large_alphabet_cost_beyond_that():
    rare = np.arange(1, 1 << 15)
    symbols = np.concatenate([rare, np.zeros(5_000_000, dtype=np.int64)])
    assert 8 * len(Ans().encode(symbols)) <= bound(symbols) + 1.45 * symbols.size * (1 << 15) / 2**24


# --- sizes that are known


def normal_share(x, sigma):
    return math.erf(x / sigma / math.sqrt(2))


def test_exponents_of_a_normal_variable():
    # P(exponent e) = P(2^e <= |x| < 2^(e+1)): 2.5453 bits; a code of these counts 2.5913
    law = np.array([normal_share(2.0 ** (e + 1), 0.02) - normal_share(2.0**e, 0.02) for e in range(-40, 3)])
    symbols = exponents(1 << 21)
    counts = tally(symbols)[1]
    deviation = math.sqrt((law[law > 0] * np.log2(law[law > 0]) ** 2).sum() - entropy(law) ** 2)
    assert entropy(law) == pytest.approx(2.5453, abs=5e-5)
    assert entropy(counts) == pytest.approx(entropy(law), abs=4 * deviation / math.sqrt(symbols.size))
    mean = float((code_lengths(counts) * counts).sum() / symbols.size)
    assert mean == pytest.approx(2.591, abs=0.004)
    assert 8 * len(Ans().encode(symbols)) / symbols.size == pytest.approx(entropy(counts), abs=0.001)
    # 16 bits for each chunk of 4096; header, table and the last word are below 100 bytes
    assert 0 <= 8 * len(Huffman().encode(symbols)) - symbols.size * (mean + 16 / 4096) <= 800


@pytest.mark.parametrize(
    "counts, huffman", [([900_000, 50_000, 50_000], 1.1), ([990_000, 10_000], 1.0), ([990_000, 5000, 5000], 1.01)]
)
def test_a_code_of_whole_bits_pays_for_likely_symbols(counts, huffman):
    symbols = np.repeat(np.arange(len(counts)), counts)
    chunks = 16 * -(-symbols.size // 4096)
    assert 8 * len(Huffman().encode(symbols)) == pytest.approx(1e6 * huffman + chunks, abs=400)
    assert 8 * len(Ans().encode(symbols)) == pytest.approx(1e6 * entropy(np.array(counts)), rel=0.006)


def test_streams_are_the_same_on_every_machine():
    symbols = np.array([2, 0, 1, 0, 0, 3, 0, 0, 1, 0, -1])
    assert {coder.name: coder.encode(symbols).hex() for coder in (Huffman(), Ans())} == STREAMS


STREAMS = {"huffman": "010b05010403a2028020140000a072cab7f5ac67", "ans": "020b0501041c07141c1c9ff8d7ad23000000560d1daa"}


# --- yardsticks


@pytest.mark.parametrize(
    "symbols, width",
    [([0, 255], 1), ([-1, 127], 1), ([-1, 128], 2), ([0, 65535], 2), ([-1, 65535], 4), ([2**31 - 1], 4), ([], 1)],
)
def test_general_compressors_see_the_smallest_type(symbols, width):
    symbols = np.array(symbols, dtype=np.int64)
    for coder, undo in ((Gzip(), gzip.decompress), (Zstd(), zstandard.decompress), (Lzma(), lzma.decompress)):
        stream = coder.encode(symbols)
        data = undo(stream[2 + len(varint(symbols.size)) : -4])
        assert np.dtype(TYPES[stream[1]]).itemsize == width
        assert data == symbols.astype(TYPES[stream[1]]).tobytes()


def test_no_time_is_in_a_gzip_stream():
    assert Gzip().encode(SMALL)[3:][4:8] == bytes(4)  # RFC 1952: MTIME


@pytest.mark.parametrize("coder", [Gzip, Zstd, Lzma])
def test_levels_out_of_range_are_refused(coder):
    field = "preset" if coder is Lzma else "level"
    for level in (-1, 23):
        with pytest.raises(ValueError, match=f"{field} {level}"):
            coder(**{field: level})


def test_the_library_is_the_one_that_was_measured():
    assert constriction.stream.stack.AnsCoder().pos() == (0, 0)  # the state machine starts at 0, as `plain_ans` does
