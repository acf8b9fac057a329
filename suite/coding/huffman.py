"""Canonical Huffman codes of limited length, in chunks that can be decoded in parallel.

Optimal lengths under a limit by package-merge: Larmore and Hirschberg, "A fast algorithm for optimal length-limited
Huffman codes", JACM 37(3), 1990. Canonical: codes of one length are consecutive numbers in the order of the symbols,
shorter codes first, so that the lengths alone say the code (Schwartz and Kallick, 1964).

The body of a stream:

    varint              n, how many symbols
    alphabet            as in `suite.coding.frame`; nothing follows if n is 0
    varint              the longest code's bits
    ceil(m w / 8) B     code length - 1 of each of the m symbols in w bits, least significant first; w holds the longest
    varint              chunk
    ceil(n / chunk) H   bits of each chunk, minus 1, uint16 little-endian
    ceil(bits / 32) I   the codes, uint32 little-endian, the last word filled up with zeros

Chunk i is symbols i * chunk .. (i + 1) * chunk - 1 (the last one may be short) and starts at the bit where chunk i - 1
ends: a prefix sum over the uint16s finds all starts. Bit j of the stream is bit 31 - j % 32 of word j // 32, so the
code that starts at bit j is on top of `((word[j // 32] << 32) | word[j // 32 + 1]) << j % 32`: words are loaded whole
and aligned, as a GPU loads them, and because codes lie there with their first bit on top, a decoder may either look the
top bits up in a table or, canonical codes being ordered as numbers, count which lengths' limits they reach.

A code has at most `longest` <= 16 bits and a chunk at most 2^16. A single symbol gets a code of 1 bit, since a decoder
should move on and since it bounds what a short stream may expand to; it is the one case with a redundancy of 1 bit.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from suite.coding.frame import Alphabet, pack_bits, seal, tally, unpack_bits, unseal, varint

LONGEST = 16  # bits of a code: two of them fit in a word, and a table of all beginnings in a cache
_SLAB = 1 << 17  # symbols encoded at a time
_LANES = 4096  # chunks decoded side by side: what a step touches stays in the cache, and its overhead is spread
_STEPS = 128  # symbols of each of them before they are put in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Huffman:
    """Codes of at most `longest` bits, `chunk` symbols to a part that can be decoded by itself.

    A stream says its own `longest` and `chunk`: any `Huffman` decodes what another one encoded.
    """

    longest: int = 16
    chunk: int = 4096

    name = "huffman"

    def __post_init__(self) -> None:
        if not 1 <= self.longest <= 16 or self.chunk < 1 or self.chunk * self.longest > 1 << 16:
            raise ValueError(
                f"longest {self.longest}, chunk {self.chunk}: expected 1 to 16 bits and a chunk of at most 2^16 in all"
            )

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of `symbols` (n,), any integer type, at most min(2^15, 2^longest) different ones."""
        alphabet, counts = tally(symbols)
        head = varint(symbols.size) + alphabet.to_bytes()
        if symbols.size == 0:
            return seal(self.name, head)
        lengths = code_lengths(counts, self.longest)
        words, sizes = write_bits(alphabet.places(symbols, np.uint16), lengths, self.chunk)
        longest = int(lengths.max())
        code = varint(longest) + pack_bits(lengths - 1, _width(longest)) + varint(self.chunk)
        return seal(self.name, head, code, sizes.data, words.data)

    def decode(self, stream: bytes) -> np.ndarray:
        """The symbols, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        reader = unseal(self.name, stream)
        n, alphabet = reader.varint("its number of symbols"), Alphabet.read(reader)
        if (n == 0) != (alphabet.symbols.size == 0):
            raise reader.damaged(f"{n} symbols cannot be of an alphabet of {alphabet.symbols.size}")
        if n == 0:
            reader.finish()
            return np.zeros(0, dtype=np.int32)
        m, longest = alphabet.symbols.size, reader.varint("its longest code", LONGEST)
        packed = reader.take((m * _width(longest) + 7) // 8, "its code lengths")
        chunk = reader.varint("its chunk", 1 << LONGEST)
        sizes = np.frombuffer(reader.take(2 * -(-n // max(chunk, 1)), "the sizes of its chunks"), dtype="<u2")
        rest = reader.rest()
        if len(rest) % 4:
            raise reader.damaged(f"{len(rest)} bytes of codes are no 32-bit words")
        try:
            lengths = unpack_bits(packed, m, _width(longest)) + np.uint8(1)
            return read_bits(np.frombuffer(rest, dtype="<u4"), sizes, lengths, n, chunk, alphabet.symbols)
        except ValueError as error:
            raise reader.damaged(str(error)) from error


def code_lengths(counts: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """Lengths uint8 (m,) of an optimal prefix code for symbols that occur `counts` (m,) times, none above `longest`.

    A symbol that does not occur has length 0 and no code; a single one that does has length 1. Raises `ValueError` for
    more symbols than 2^longest, and for negative counts.

    >>> code_lengths(np.array([5, 1, 0, 2])).tolist()
    [1, 2, 0, 2]
    """
    counts = np.asarray(counts, dtype=np.int64)
    used = np.flatnonzero(counts)
    if counts.ndim != 1 or (counts < 0).any():
        raise ValueError(f"counts {counts.shape}, expected (m,) integers from 0 up")
    if not 1 <= longest <= LONGEST or used.size > 1 << longest:
        raise ValueError(
            f"{used.size} symbols, codes of at most {longest} bits: expected 1 to {LONGEST}, 2^bits symbols"
        )
    lengths = np.zeros(counts.size, dtype=np.uint8)
    if used.size == 1:
        lengths[used] = 1
    if used.size < 2:
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    for number in _chosen(counts[order], longest):
        lengths[order[:number]] += 1
    return lengths


def _chosen(weights: np.ndarray, longest: int) -> list[int]:
    """How many of the lightest symbols (weights ascending) each level of package-merge takes; ties take symbols first.

    The list of a level merges the symbols with the packages, which are sums of two neighbors, of the level below. The
    first 2 m - 2 entries of the last list are the code: a symbol's length is how often it is in them, directly or in
    a package, and on every level those are a run of the lightest symbols.
    """
    is_symbol, merged = [], weights[:0]
    for _ in range(longest):
        packages = merged[: merged.size // 2 * 2].reshape(-1, 2).sum(1)
        both = np.concatenate([weights, packages])
        order = np.argsort(both, kind="stable")
        is_symbol.append(order < weights.size)
        merged = both[order]
    chosen, take = [], 2 * weights.size - 2
    for level in reversed(is_symbol):
        chosen.append(int(level[:take].sum()))
        take = 2 * (take - chosen[-1])
    return chosen


def canonical(lengths: np.ndarray) -> np.ndarray:
    """Codes uint32 (m,) as numbers of `lengths` bits, in order of length, then of symbol; 0 where the length is 0.

    Raises `ValueError` unless the code is complete (Kraft's sum is exactly 1) or a single code of 1 bit.

    >>> [f"{code:0{n}b}" for code, n in zip(canonical(np.array([2, 1, 2])), (2, 1, 2))]
    ['10', '0', '11']
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order, longest = _order(lengths), int(lengths.max(initial=0))
    shares = 1 << (longest - lengths[order])  # of 2^longest, what the codes that begin with this one take
    if (
        lengths.min(initial=0) < 0
        or longest > LONGEST
        or (int(shares.sum()) != 1 << longest and lengths[order].tolist() != [1])
    ):
        raise ValueError(f"{order.size} code lengths of up to {longest} bits are not those of a complete prefix code")
    codes = np.zeros(lengths.size, dtype=np.uint32)
    codes[order] = (np.cumsum(shares) - shares) >> (longest - lengths[order])
    return codes


def _order(lengths: np.ndarray) -> np.ndarray:
    """The symbols that have a code, in canonical order."""
    order = np.argsort(lengths, kind="stable")
    return order[lengths[order] > 0]


def write_bits(places: np.ndarray, lengths: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and sizes, both as in the module's header, of `places` (n,), any integer type, each below lengths.size.

    `lengths` (m,) is that of each symbol's canonical code. Gives uint32 (ceil(bits / 32),) and uint16
    (ceil(n / chunk),), little-endian. Raises `ValueError` for a symbol without a code and a chunk above 2^16 bits.
    """
    lengths = np.asarray(lengths, dtype=np.uint8)
    if not 1 <= chunk or chunk * int(lengths.max(initial=0)) > 1 << 16:
        raise ValueError(f"chunk {chunk} of codes of up to {lengths.max(initial=0)} bits: expected at most 2^16 bits")
    codes = canonical(lengths)
    words, sizes = [], []
    carry, offset = 0, 0  # the last word so far and how many bits of it are taken
    step = max(1, _SLAB // chunk) * chunk
    for start in range(0, places.size, step):
        slab = places[start : start + step]
        taken = lengths.take(slab)
        if not taken.all():
            raise ValueError(f"symbol {slab[taken.argmin()]} has no code")
        sizes.append(np.add.reduceat(taken, np.arange(0, taken.size, chunk), dtype=np.int64))
        found = _words(codes.take(slab), taken, offset)
        found[0] |= np.uint64(carry)
        whole, offset = divmod(offset + int(sizes[-1].sum()), 32)
        carry = int(found[whole])
        words.append(found[:whole].astype("<u4"))
    words.append(np.array([carry] if offset else [], dtype="<u4"))
    return np.concatenate(words), (np.concatenate(sizes or [np.zeros(0, np.int64)]) - (1 if sizes else 0)).astype("<u2")


def _words(codes: np.ndarray, lengths: np.ndarray, offset: int) -> np.ndarray:
    """32-bit words, in uint64 and one more than are needed, of codes that follow each other from bit `offset` on."""
    if codes.size % 2:
        codes, lengths = np.append(codes, np.uint32(0)), np.append(lengths, np.uint8(0))
    codes = codes[0::2] << lengths[1::2] | codes[1::2]  # two codes are one of at most 32 bits: half the work
    lengths = lengths[0::2] + lengths[1::2]
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths + offset
    shifted = codes.astype(np.uint64) << (64 - (starts & 31) - lengths).astype(np.uint64)
    word = starts >> 5
    first = np.concatenate([[0], np.flatnonzero(word[1:] != word[:-1]) + 1])
    # codes share no bit, so their sum is their union; and none is longer than a word, so that one starts in every word
    sums = np.add.reduceat(shifted, first)
    words = np.zeros(sums.size + 1, dtype=np.uint64)
    words[:-1] = sums >> np.uint64(32)
    words[1:] |= sums & np.uint64(0xFFFFFFFF)
    return words


def read_bits(
    words: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, n: int, chunk: int, symbols: np.ndarray | None = None
) -> np.ndarray:
    """The inverse of `write_bits`: places uint16 (n,), or `symbols` (m,) at these places, in their type.

    Chunks are decoded side by side, a symbol of each at a time, by a table of 2^longest entries. Raises `ValueError`
    if `lengths` are no code, or if any chunk does not end where its size says.
    """
    if chunk < 1 or sizes.size != -(-n // chunk):
        raise ValueError(f"{n} symbols in {sizes.size} chunks of {chunk}")
    ends = np.cumsum(sizes.astype(np.int64) + 1)
    if words.size != (-(-int(ends[-1]) // 32) if n else 0):
        raise ValueError(f"chunks of {ends[-1] if n else 0} bits in all in {words.size} words of 32")
    if (sizes[:-1] < chunk - 1).any() or (n and int(sizes[-1]) + 1 < n - (sizes.size - 1) * chunk):
        raise ValueError(f"chunks of fewer bits than their {chunk} symbols")
    symbols = np.arange(lengths.size, dtype=np.uint16) if symbols is None else symbols
    table = _table(lengths, symbols)
    out = np.empty(n, dtype=symbols.dtype)
    for start in range(0, sizes.size, _LANES):
        begun, theirs = int(ends[start - 1]) if start else 0, ends[start : start + _LANES]
        first = begun // 32
        near = np.zeros(int(theirs[-1]) // 32 + 2 - first, dtype=np.uint64)
        some = words[first : first + near.size]
        near[: some.size] = some
        doubles = near[:-1] << np.uint64(32) | near[1:]  # word i is followed by what lies after it
        starts = np.concatenate([[begun], theirs[:-1]]) - 32 * first
        _lockstep(doubles, starts, theirs - 32 * first, table, chunk, out[start * chunk : (start + _LANES) * chunk])
    return out


def _table(lengths: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """For each number of `longest` bits the code it begins with: length * 2^32 + symbol modulo 2^32, int64, or 0."""
    canonical(lengths)  # refuses what is no code
    order, longest = _order(lengths), int(lengths.max(initial=0))
    own = lengths[order].astype(np.int64)
    filled = np.repeat(own << 32 | symbols[order].astype(np.int64) & 0xFFFFFFFF, 1 << (longest - own))
    table = np.zeros(1 << longest, dtype=np.int64)
    table[: filled.size] = filled
    return table


def _lockstep(
    doubles: np.ndarray, starts: np.ndarray, ends: np.ndarray, table: np.ndarray, chunk: int, out: np.ndarray
) -> None:
    """Fill `out` with the chunks from bits `starts` (lanes,) on, a symbol of every chunk at a step."""
    lanes = starts.size
    short = out.size - (lanes - 1) * chunk  # symbols of the last chunk: beyond them it decodes what nobody reads
    at = starts.copy()
    steps = chunk if lanes > 1 else short
    edges = sorted({*range(0, steps, _STEPS), short, steps})
    whole = out[: (lanes - 1) * chunk].reshape(lanes - 1, chunk)
    for a, b in itertools.pairwise(edges):
        found = _steps(doubles, at, table, np.empty((b - a, lanes), dtype=out.dtype))
        whole[:, a:b] = found[:, :-1].T
        if b <= short:
            out[(lanes - 1) * chunk + a : (lanes - 1) * chunk + b] = found[:, -1]
        if b == short:
            last = int(at[-1])
    at[-1] = last
    if (at != ends).any():
        raise ValueError(f"{(at != ends).sum()} of {lanes} chunks do not end where their sizes say")


def _steps(doubles: np.ndarray, at: np.ndarray, table: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Fill `found` (steps, lanes) with the next symbols of the lanes at bits `at` (lanes,), and move these on."""
    unread = np.uint64(65 - table.size.bit_length())  # 64 - longest
    several = 33 // (64 - int(unread))  # at least 33 bits of a double word are to come: that many codes
    top, entry, index = np.empty(at.size, np.uint64), np.empty(at.size, np.int64), np.empty(at.size, np.int64)
    for step, row in enumerate(found):
        if step % several == 0:
            np.right_shift(at, 5, out=index)
            doubles.take(index, out=top, mode="clip")  # what is damaged may lead beyond the end
            np.bitwise_and(at, 31, out=index)
        np.left_shift(top, index.view(np.uint64), out=top)
        np.right_shift(top, unread, out=entry.view(np.uint64))
        table.take(entry, out=index, mode="clip")
        np.copyto(row, index, casting="unsafe")  # the symbol: what is above its bits is left out
        np.right_shift(index, 32, out=index)
        np.add(at, index, out=at)
    return found


def _width(longest: int) -> int:
    """Bits that a code length takes in the stream, 1 less than itself."""
    return max(longest - 1, 0).bit_length()
