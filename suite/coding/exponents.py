"""Lossless coding of floating-point bit patterns: exponents Huffman coded, signs and mantissas as they are.

Zhang et al. 2025, DFloat11, arXiv:2504.11651 (BF16), and Yang et al. 2025, ECF8, arXiv:2510.02676 (FP8 E4M3): trained
weights fill their mantissas almost evenly, but use a dozen or two of the exponents, most of them rarely. Differences:

- Code lengths are optimal under the limit (package-merge). DFloat11 lowers the counts of the rarest exponents until
  no code is longer than 32 bits, and hops through tables of 256 entries, where an entry from 240 up is a pointer, so
  that a weight of 2^113 or more, an infinity or a NaN is taken for one. Here one look-up of 2^longest entries decodes
  every pattern there is.
- A thread's place in the stream costs 16 bits for `chunk` symbols, 0.004 bits a weight at 4096. DFloat11 gives each
  thread 8 bytes of codes: 5 bits for the first code's offset in them and 32 for every block of threads, 5/64 of what
  is coded, or 0.21 bits a weight, for over a hundred times as many threads.
- `section` chunks share a table. One table for a tensor, or for all of a transformer block as DFloat11 has it, ignores
  that rows and layers differ in scale: for the reference model's matrices in one row it takes 0.013 bits a weight more
  than tables for 2^17 weights each, which themselves take 0.001.

The body of a stream, numbers and alphabets as in `suite.coding.frame`, codes as in `suite.coding.huffman`:

    varint                  n, how many patterns
    byte                    16 * exponent bits + mantissa bits
    byte                    longest
    varint, varint          chunk, section; nothing follows if n is 0
    tables                  for each section in turn
        alphabet              its m different exponents; nothing follows if m is 1
        (m + 1) // 2 B        code length - 1 of each, 4 bits, the first one in the lower half of a byte
    uint16 ...              bits of each chunk, minus 1, little-endian, for sections with m > 1
    planes                  sign * 2^mantissa bits + mantissa of all n, w bits each: 8 bits of them a plane, lowest
                            first, then a last plane of the v = w % 8 bits left, if any
        n B                   a plane of 8 bits: byte i is of pattern i
        (n v + 7) // 8 B      one of v bits: bit j of pattern i is bit (i v + j) % 8 of byte (i v + j) // 8
    uint32 ...              the codes of each section with m > 1, little-endian, filled up to a whole word with zeros

Section k is patterns k * section * chunk and on, chunk i those of i * chunk and on; only the last ones may be short. A
section begins with a new word and its chunks follow each other bit by bit, so that a prefix sum over the uint16s finds
where every chunk starts. For BF16 (w = 8) a pattern is put together from byte i of the plane and one exponent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from suite.coding.frame import SLAB, Alphabet, Reader, bounds, pack_bits, seal, unpack_bits, unseal, varint
from suite.coding.huffman import canonical, code_lengths, write_bits

_LANES = 1024  # chunks decoded side by side
_AT_ONCE = 4  # exponents that a look-up gives at most: a machine word of them is written
_STEPS = 8  # look-ups between two looks at which chunks are done


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponents:
    """Patterns of 1 sign, `exponent_bits` and `mantissa_bits`, with codes of at most `longest` bits for exponents.

    The larger `chunk`, the fewer the bits that say where chunks begin (16 / chunk a weight), and the fewer the threads
    that can decode at once (weights / chunk). The larger `section` (in chunks), the less the tables cost, about
    120 / (section * chunk) bits a weight for BF16, and the less they follow weights whose scale changes. A stream says
    all of it: any `Exponents` decodes what another one encoded.
    """

    exponent_bits: int = 8
    mantissa_bits: int = 7
    chunk: int = 4096
    longest: int = 13
    section: int = 32

    name = "exponents"

    def __post_init__(self) -> None:
        if self._refused:
            raise ValueError(self._refused)

    @property
    def _refused(self) -> str | None:
        if not (1 <= self.exponent_bits <= 8 and 0 <= self.mantissa_bits <= 15 - self.exponent_bits):
            return (
                f"exponent_bits {self.exponent_bits}, mantissa_bits {self.mantissa_bits}: expected 1 to 8 bits of "
                f"exponent and at most 16 in all, with the sign"
            )
        if not self.exponent_bits <= self.longest <= 16 or not 1 <= self.chunk <= (1 << 16) // self.longest:
            return (
                f"longest {self.longest}, chunk {self.chunk}: expected {self.exponent_bits} (the exponent's bits) to "
                f"16 bits and a chunk of at most 2^16 bits in all"
            )
        return None if 1 <= self.section < 1 << 31 else f"section {self.section}: expected 1 to 2^31 - 1 chunks"

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of bit patterns `symbols` (n,), any integer type. Raises `ValueError` for what is none."""
        _check(symbols, 1 + self.exponent_bits + self.mantissa_bits)
        head = [varint(symbols.size), bytes([16 * self.exponent_bits + self.mantissa_bits, self.longest]),
                varint(self.chunk), varint(self.section)]  # fmt: skip
        tables, sizes, words = [], [], []
        for start in range(0, symbols.size, self.section * self.chunk):
            some = symbols[start : start + self.section * self.chunk].astype(np.int32)
            exponents = (some >> self.mantissa_bits & (1 << self.exponent_bits) - 1).astype(np.uint8)
            counts = np.bincount(exponents, minlength=1 << self.exponent_bits)
            used, lengths = np.flatnonzero(counts), code_lengths(counts, self.longest)
            tables.append(Alphabet(used.astype(np.int32)).to_bytes())
            if used.size > 1:
                tables.append(pack_bits(lengths[used] - 1, 4))
                coded, bits = write_bits(exponents, lengths, self.chunk)
                sizes.append(bits.tobytes())
                words.append(coded.tobytes())
        return seal(self.name, b"".join([*head, *tables, *sizes, *self._planes(symbols), *words]))

    def _planes(self, symbols: np.ndarray) -> Iterator[bytes]:
        for low in range(0, 1 + self.mantissa_bits, 8):
            for start in range(0, symbols.size, SLAB):
                some = symbols[start : start + SLAB].astype(np.int32)
                raw = some >> self.exponent_bits & 1 << self.mantissa_bits | some & (1 << self.mantissa_bits) - 1
                yield pack_bits((raw >> low & 255).astype(np.uint8), min(8, 1 + self.mantissa_bits - low))

    def decode(self, stream: bytes) -> np.ndarray:
        """The patterns, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        reader = unseal(self.name, stream)
        n = reader.varint("its number of patterns")
        (fields, longest), chunk = reader.take(2, "its format"), reader.varint("its chunk")
        section = reader.varint("its section")
        try:
            found = Exponents(exponent_bits=fields >> 4, mantissa_bits=fields & 15, longest=longest, chunk=chunk,
                              section=section)  # fmt: skip
        except ValueError as error:
            raise reader.damaged(str(error)) from error
        return found._patterns(reader, n)

    def _patterns(self, reader: Reader, n: int) -> np.ndarray:
        size, width = self.section * self.chunk, 1 + self.mantissa_bits
        sections = [_Section.read(reader, self, min(size, n - start)) for start in range(0, n, size)]
        for one in sections:
            one.read_sizes(reader, self.chunk)
        widths = [(low, min(8, width - low)) for low in range(0, width, 8)]
        planes = [(low, wide, reader.take((n * wide + 7) // 8, "a plane")) for low, wide in widths]
        for one in sections:
            one.words = np.frombuffer(reader.take(4 * one.n_words, "the codes of a section"), dtype="<u4")
        reader.finish()
        patterns = np.zeros(n, dtype=np.int32)
        for low, wide, plane in planes:
            for start, some in _slabs_of(plane, n, wide):
                patterns[start : start + some.size] |= some.astype(np.int32) << low
        above = (1 << self.exponent_bits) - 1 << self.mantissa_bits  # what moves a sign to its place
        together = max(1, _LANES // self.section)
        for first in range(0, len(sections), together):
            found = _side_by_side(sections[first : first + together], self, reader)
            for place, exponents in enumerate(found, first):
                some = patterns[place * size : (place + 1) * size]
                some += (some >> self.mantissa_bits) * above
                some |= exponents.astype(np.int32) << self.mantissa_bits
        return patterns


def _nothing() -> np.ndarray:
    return np.zeros(0, dtype=np.uint8)


@dataclass(slots=True, eq=False)
class _Section:
    """What a stream says of `n` patterns: one `exponent` for all, or a code, the sizes of chunks, and words."""

    n: int
    exponent: int = 0
    lengths: np.ndarray = field(default_factory=_nothing)  # of each exponent's code, uint8 (256,)
    sizes: np.ndarray = field(default_factory=_nothing)  # of its chunks, in bits, int64
    words: np.ndarray = field(default_factory=_nothing)

    @classmethod
    def read(cls, reader: Reader, coder: Exponents, n: int) -> "_Section":
        """The alphabet and the code."""
        exponents = Alphabet.read(reader).symbols
        if exponents.size == 0 or exponents[0] < 0 or exponents[-1] >> coder.exponent_bits:
            raise reader.damaged(f"the exponents of a section are not of {coder.exponent_bits} bits")
        if exponents.size == 1:
            return cls(n, int(exponents[0]))
        packed = reader.take((exponents.size + 1) // 2, "code lengths")
        lengths = np.zeros(256, dtype=np.uint8)
        lengths[exponents] = unpack_bits(packed, exponents.size, 4) + np.uint8(1)
        if lengths.max() > coder.longest:
            raise reader.damaged(f"a code of {lengths.max()} bits, at most {coder.longest} are allowed")
        try:
            canonical(lengths)
        except ValueError as error:
            raise reader.damaged(str(error)) from error
        return cls(n, lengths=lengths)

    def read_sizes(self, reader: Reader, chunk: int) -> None:
        """The sizes of its chunks."""
        if self.lengths.size:
            sizes = reader.take(2 * -(-self.n // chunk), "the sizes of chunks")
            self.sizes = np.frombuffer(sizes, dtype="<u2").astype(np.int64) + 1

    @property
    def n_words(self) -> int:
        """How many words its codes take."""
        return -(-int(self.sizes.sum()) // 32)


def _table(lengths: np.ndarray, longest: int) -> np.ndarray:
    """What each number of `longest` bits begins with: up to 4 whole codes, int64 (2^longest,).

    The first exponent is in the lowest byte, the next in the one above; the codes take bits 32 to 39, and how many they
    are is above.
    """
    used = np.flatnonzero(lengths)
    spare = longest - lengths[used].astype(np.int64)
    order = np.argsort(canonical(lengths)[used].astype(np.int64) << spare)
    first = np.repeat(used[order], 1 << spare[order])
    bits = np.repeat(longest - spare[order], 1 << spare[order])
    exponents, taken, count = first.copy(), bits.copy(), np.ones(first.size, dtype=np.int64)
    numbers, whole = np.arange(first.size), np.ones(first.size, dtype=bool)
    for k in range(1, _AT_ONCE):
        rest = numbers << taken & (1 << longest) - 1
        whole &= taken + bits.take(rest) <= longest
        exponents |= np.where(whole, first.take(rest) << 8 * k, 0)
        taken += np.where(whole, bits.take(rest), 0)
        count += whole
    return count << 40 | taken << 32 | exponents


def _side_by_side(sections: list[_Section], coder: Exponents, reader: Reader) -> Iterator[np.ndarray]:
    """The exponents of each section, uint8; the chunks of all are decoded together."""
    coded = [one for one in sections if one.lengths.size]
    found = _lockstep(coded, coder) if coded else np.zeros((0, 0), dtype=np.uint8)
    lane = 0
    for one in sections:
        if not one.lengths.size:
            yield np.full(one.n, one.exponent, dtype=np.uint8)
            continue
        exponents = found[lane : lane + one.sizes.size].reshape(-1)[: one.n]
        lane += one.sizes.size
        bits = np.add.reduceat(one.lengths.take(exponents), np.arange(0, one.n, coder.chunk), dtype=np.int64)
        if (bits != one.sizes).any():
            raise reader.damaged(f"{(bits != one.sizes).sum()} of {bits.size} chunks do not end where their sizes say")
        yield exponents


def _lockstep(coded: list[_Section], coder: Exponents) -> np.ndarray:
    """Exponents uint8 (chunks, chunk), a table look-up of every chunk at each step; they may run over the last one."""
    words = np.concatenate([one.words for one in coded] + [np.zeros(2, dtype=np.uint32)]).astype(np.uint64)
    doubles = words[:-1] << np.uint64(32) | words[1:]  # word i is followed by what lies after it
    firsts = 32 * np.cumsum([0] + [one.n_words for one in coded[:-1]])
    at = np.concatenate([first + np.cumsum(one.sizes) - one.sizes for first, one in zip(firsts, coded, strict=True)])
    base = np.repeat(np.arange(len(coded)) << coder.longest, [one.sizes.size for one in coded])
    table = np.concatenate([_table(one.lengths, coder.longest) for one in coded])
    slot = coder.chunk + _AT_ONCE * (_STEPS + 1)  # beyond its end a chunk writes what nobody reads
    out = np.zeros(at.size * slot, dtype=np.uint8)
    fours = np.ndarray((out.size - 3,), dtype="<u4", buffer=out, strides=(1,))  # four exponents from each place on
    place = np.arange(at.size) * slot
    ends = place + coder.chunk
    ends[-1] += coded[-1].n - coded[-1].sizes.size * coder.chunk  # the last chunk may be short
    lanes = np.stack([at, base, place])
    while ends.size:
        steps = max(int((ends - lanes[2]).min()) // _AT_ONCE, _STEPS)
        _steps(doubles, table, fours, lanes, coder.longest, steps)
        left = lanes[2] < ends
        if not left.all():
            lanes, ends = lanes[:, left], ends[left]
    return out.reshape(-1, slot)[:, : coder.chunk]


def _steps(
    doubles: np.ndarray, table: np.ndarray, fours: np.ndarray, lanes: np.ndarray, longest: int, steps: int
) -> None:
    """`steps` look-ups of each lane, from bit `at` and in the table at `base`, are written to `fours` at `place`.

    These three are the rows of `lanes` int64 (3, n); the first and the last one move on.
    """
    at, base, place = lanes
    unread, several = np.uint64(64 - longest), 33 // longest  # at least 33 bits of a double word are to come
    top, entry, index = np.empty(at.size, np.uint64), np.empty(at.size, np.int64), np.empty(at.size, np.int64)
    exponents = np.empty(at.size, np.uint32)
    for step in range(steps):
        if step % several == 0:
            np.right_shift(at, 5, out=index)
            doubles.take(index, out=top, mode="clip")  # what is damaged may lead beyond the end
            np.bitwise_and(at, 31, out=index)
        np.left_shift(top, index.view(np.uint64), out=top)
        np.right_shift(top, unread, out=index.view(np.uint64))
        np.add(index, base, out=index)
        table.take(index, out=entry, mode="clip")
        np.copyto(exponents, entry, casting="unsafe")  # the lower 32 bits
        fours[place] = exponents
        np.right_shift(entry, 40, out=index)
        np.add(place, index, out=place)
        np.right_shift(entry, 32, out=index)
        np.bitwise_and(index, 255, out=index)
        np.add(at, index, out=at)


def _check(symbols: np.ndarray, bits: int) -> None:
    """Raise `ValueError` unless `symbols` is a row of fewer than 2^31 patterns of so many bits."""
    lowest, highest = bounds(symbols)
    if lowest < 0 or highest >> bits:
        raise ValueError(f"symbols lie between {lowest} and {highest}, expected patterns of {bits} bits")


def _slabs_of(plane: memoryview, n: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """A plane of `n` values of `width` bits in slabs: where each begins, and its values uint8."""
    for start in range(0, n, SLAB):  # a multiple of 8: whole bytes
        count = min(SLAB, n - start)
        yield start, unpack_bits(plane[start * width // 8 : ((start + count) * width + 7) // 8], count, width)
