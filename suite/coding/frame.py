"""What every coded stream is made of: a tag, a body, a checksum; and the alphabet that a body begins with.

    byte 0          which coder wrote it: 1 + its place in `CODERS`
    bytes 1..-4     the body, the coder's own
    last 4 bytes    CRC-32 (zlib's, little-endian) of everything before them

The checksum is looked at before anything is parsed: it catches every flip of one bit and every burst of up to 32 bits,
and any other damage but one in 2^32. Numbers in a body are varints: 7 bits a byte, low ones first, the high bit set on
all but the last byte; signed ones are zigzagged (0, -1, 1, -2 as 0, 1, 2, 3).

An alphabet is the different symbols of a stream, in order. Small matrices pay for every byte of it, so that what lies
between the lowest and the highest symbol is written in the shortest of three ways:

    varint          m, how many symbols there are; nothing follows if there are none
    zigzag varint   the lowest symbol
    varint          highest - lowest; all between them are used if it is m - 1, and nothing follows
    byte            0: a bitmap follows, a bit for each value strictly between, least significant bit first
                    1: m - 2 varints follow, the gaps (difference - 1) from each symbol to the next but the highest
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CODERS = ("huffman", "ans", "gzip", "zstd", "lzma", "exponents")  # the order is part of the format

MOST_SYMBOLS = 1 << 15  # different ones: a place among them takes 15 bits, and tables stay small beside matrices
SLAB = 1 << 15  # symbols converted at a time: they stay in the cache

_SPANS_COUNTED = 1 << 16  # ranges up to here are counted in a table whatever the number of symbols
_SPANS_MAPPED = 1 << 24  # and up to here if the symbols are as many
_PAIRS_COUNTED = 1 << 17  # more symbols than this of a range of bytes are counted two at a time


def seal(coder: str, *body: bytes | memoryview) -> bytes:
    """The stream of a coder's body, given in parts: its tag, the parts, the checksum."""
    tagged = (bytes([1 + CODERS.index(coder)]), *body)
    checksum = 0
    for part in tagged:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*tagged, checksum.to_bytes(4, "little")])


def unseal(coder: str, stream: bytes) -> "Reader":
    """A reader at the start of the body. Raises `ValueError` for a damaged stream and for another coder's."""
    size = len(stream)
    if size < 5:
        raise ValueError(f"stream of {size} bytes is damaged: a tag and a checksum take 5")
    found, expected = zlib.crc32(memoryview(stream)[:-4]), int.from_bytes(stream[-4:], "little")
    if found != expected:
        raise ValueError(f"stream of {size} bytes is damaged: its checksum is {found:08x}, it says {expected:08x}")
    tag = stream[0]
    if tag != 1 + CODERS.index(coder):
        writer = CODERS[tag - 1] if 1 <= tag <= len(CODERS) else f"an unknown coder with tag {tag}"
        raise ValueError(f"stream of {size} bytes was written by {writer}, expected {coder}")
    return Reader(memoryview(stream)[1:-4])


def varint(value: int) -> bytes:
    """A non-negative integer, 7 bits a byte.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    """An integer of any sign as a varint."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


class Reader:
    """Takes a body apart from its start; raises `ValueError` where it does not hold what it should."""

    def __init__(self, body: memoryview) -> None:
        self._body, self._at = body, 0

    def damaged(self, why: str) -> ValueError:
        """The error that says so; to be raised by the caller."""
        return ValueError(f"stream of {len(self._body) + 5} bytes is damaged: {why}")

    def take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        if count > len(self._body) - self._at:
            raise self.damaged(f"{what} should take {count} bytes, {len(self._body) - self._at} are left")
        self._at += count
        return self._body[self._at - count : self._at]

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self.take(len(self._body) - self._at, "the rest")

    def varint(self, what: str, most: int = (1 << 31) - 1) -> int:
        """A non-negative integer of at most `most`."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1, what)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        if byte > 127 or value > most:
            raise self.damaged(f"{what} is above {most}")
        return value

    def zigzag(self, what: str) -> int:
        """An integer of any sign, of 32 bits."""
        value = self.varint(what, (1 << 32) - 1)
        return value >> 1 if value % 2 == 0 else -(value + 1 >> 1)

    def finish(self) -> None:
        """Raise `ValueError` if anything is left."""
        if self._at < len(self._body):
            raise self.damaged(f"{len(self._body) - self._at} bytes are left after its end")


@dataclass(frozen=True, slots=True, eq=False)
class Alphabet:
    """The different symbols of a stream: `symbols` int32 (m,), increasing, m at most 2^15."""

    symbols: np.ndarray

    @property
    def span(self) -> int:
        """How many values there are from the lowest to the highest."""
        return int(self.symbols[-1]) - int(self.symbols[0]) + 1 if self.symbols.size else 0

    @property
    def is_its_places(self) -> bool:
        """Whether every symbol is its own place: 0, 1, .., m - 1."""
        return self.symbols.size == 0 or (int(self.symbols[0]) == 0 and self.span == self.symbols.size)

    def places(self, symbols: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
        """The places in the alphabet, in `dtype`, of `symbols` (n,), all of them in it."""
        if self.is_its_places:
            return symbols.astype(dtype, copy=False)
        found = np.empty(symbols.size, dtype=dtype)
        for start, slab in self.slabs(symbols, dtype):
            found[start : start + slab.size] = slab
        return found

    def slabs(
        self, symbols: np.ndarray, dtype: type[np.generic], size: int = SLAB, backward: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """What `places` gives, `size` symbols at a time and where they start, the last ones first if `backward`.

        A slab is good until the next one is asked for: they share their memory.
        """
        lowest = int(self.symbols[0])
        mapped = self.symbols.size < self.span <= _SPANS_MAPPED
        if mapped:
            table = np.zeros(self.span, dtype=dtype)
            table[self.symbols - lowest] = np.arange(self.symbols.size)
        buffer = np.empty(min(size, symbols.size), dtype=dtype)
        starts = range(0, symbols.size, size)
        for start in reversed(starts) if backward else starts:
            slab = symbols[start : start + size]
            out = buffer[: slab.size]
            if mapped:
                table.take(np.subtract(slab, lowest, dtype=np.int32, casting="unsafe"), out=out, mode="clip")
            elif self.span > _SPANS_MAPPED:
                out[:] = np.searchsorted(self.symbols, slab)
            else:
                np.copyto(out, slab, casting="unsafe")
                if lowest:
                    np.subtract(out, np.array(lowest).astype(dtype), out=out)  # modulo 2^bits, as the copy was
            yield start, out

    def symbols_at(self, places: np.ndarray, out: np.ndarray) -> None:
        """Write the symbols at `places` (n,) to `out` (n,) int32."""
        if self.span == self.symbols.size:
            np.add(places, self.symbols[0], out=out)
        else:
            self.symbols.take(places, out=out, mode="clip")

    def to_bytes(self) -> bytes:
        """As the module's header says."""
        m = self.symbols.size
        if m == 0:
            return varint(0)
        head = varint(m) + zigzag(int(self.symbols[0])) + varint(self.span - 1)
        if self.span == m:
            return head
        between = self.symbols[1:-1].astype(np.int64)
        steps = np.diff(self.symbols[:-1].astype(np.int64)) - 1
        gaps = b"".join(varint(int(step)) for step in steps)
        if self.span - 2 > 8 * len(gaps):
            return head + b"\1" + gaps
        used = np.zeros(self.span - 2, dtype=bool)
        used[between - int(self.symbols[0]) - 1] = True
        return head + b"\0" + np.packbits(used, bitorder="little").tobytes()

    @classmethod
    def read(cls, reader: Reader) -> "Alphabet":
        """The inverse of `to_bytes`."""
        m = reader.varint("the size of its alphabet", MOST_SYMBOLS)
        if m == 0:
            return cls(np.zeros(0, dtype=np.int32))
        lowest, width = reader.zigzag("its lowest symbol"), reader.varint("its range", (1 << 32) - 1)
        if width == m - 1:
            inner = np.arange(1, width, dtype=np.int64)
        elif m < 2 or width < m:
            raise reader.damaged(f"{m} symbols cannot have a range of {width}")
        elif reader.take(1, "its alphabet")[0]:
            gaps = [reader.varint("a gap of its alphabet", 1 << 32) for _ in range(m - 2)]
            inner = np.cumsum(np.array(gaps, dtype=np.int64) + 1)
        else:
            bitmap = np.frombuffer(reader.take((width + 6) // 8, "its alphabet"), dtype=np.uint8)
            inner = 1 + np.flatnonzero(np.unpackbits(bitmap, count=width - 1, bitorder="little"))
        offsets = np.concatenate([[0], inner, [width][: m - 1]]).astype(np.int64)
        if offsets.size != m or (np.diff(offsets) <= 0).any() or lowest + width >= 1 << 31 or lowest < -(1 << 31):
            raise reader.damaged("its alphabet is not increasing, not of the size it says or wider than int32")
        return cls((lowest + offsets).astype(np.int32))


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """Values uint8 (n,) of `width` 0 to 8 bits each, least significant bit first: eight of them make `width` bytes.

    >>> pack_bits(np.array([1, 2, 3], dtype=np.uint8), 4).hex()
    '2103'
    """
    if width == 8:
        return values.tobytes()
    eights = np.zeros(-(-values.size // 8) * 8, dtype=np.uint64)
    eights[: values.size] = values
    joined = (eights.reshape(-1, 8) << (width * np.arange(8, dtype=np.uint64))).sum(1, dtype=np.uint64)
    octets = joined.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
    return octets.tobytes()[: (values.size * width + 7) // 8]


def unpack_bits(packed: memoryview, n: int, width: int) -> np.ndarray:
    """The inverse of `pack_bits`: uint8 (n,), from exactly as many bytes as it takes."""
    octets = np.frombuffer(packed, dtype=np.uint8)
    if width == 8:
        return octets
    whole = np.zeros((-(-n // 8), 8), dtype=np.uint8)
    padded = np.zeros((len(whole), width), dtype=np.uint8)
    padded.reshape(-1)[: octets.size] = octets
    whole[:, :width] = padded
    joined = whole.view("<u8").astype(np.uint64)
    values = joined >> (width * np.arange(8, dtype=np.uint64)) & np.uint64((1 << width) - 1)
    return values.astype(np.uint8).reshape(-1)[:n]


def bounds(symbols: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest of `symbols` (n,), any integer type; two zeros if there are none.

    Raises `ValueError` for what is not a row of fewer than 2^31 integers that fit in int32.
    """
    if not isinstance(symbols, np.ndarray) or symbols.ndim != 1 or symbols.dtype.kind not in "iu":
        found = f"{symbols.dtype} {symbols.shape}" if isinstance(symbols, np.ndarray) else type(symbols).__name__
        raise ValueError(f"symbols are {found}, expected a one-dimensional array of integers")
    if symbols.size >= 1 << 31:
        raise ValueError(f"{symbols.size} symbols, a stream holds fewer than 2^31")
    lowest, highest = (int(symbols.min()), int(symbols.max())) if symbols.size else (0, 0)
    if lowest < -(1 << 31) or highest >= 1 << 31:
        raise ValueError(f"symbols lie between {lowest} and {highest}, expected integers that fit in int32")
    return lowest, highest


def tally(symbols: np.ndarray) -> tuple[Alphabet, np.ndarray]:
    """The alphabet of `symbols` (n,), any integer type, and how often each of it occurs, int64 (m,).

    Raises `ValueError` as `bounds` does, and for more than 2^15 different symbols.
    """
    lowest, highest = bounds(symbols)
    if symbols.size == 0:
        return Alphabet(np.zeros(0, dtype=np.int32)), np.zeros(0, dtype=np.int64)
    span = highest - lowest + 1
    if span <= _SPANS_COUNTED or span <= min(_SPANS_MAPPED, symbols.size):
        all_counts = _count(symbols, lowest, span)
        used = np.flatnonzero(all_counts)
        different, counts = used + lowest, all_counts[used]
    else:
        different, counts = np.unique(symbols, return_counts=True)
    if different.size > MOST_SYMBOLS:
        raise ValueError(f"{different.size} different symbols, expected at most 2^15: pass wider words as bytes")
    return Alphabet(different.astype(np.int32)), counts.astype(np.int64)


def _count(symbols: np.ndarray, lowest: int, span: int) -> np.ndarray:
    """How often each of `lowest` .. `lowest + span - 1` occurs, int64 (span,)."""
    if span <= 256 and symbols.size > _PAIRS_COUNTED:
        return _count_pairs(symbols, lowest)[:span]
    total = np.zeros(span, dtype=np.int64)
    for start in range(0, symbols.size, SLAB):
        above = np.subtract(symbols[start : start + SLAB], lowest, dtype=np.int64, casting="unsafe")
        total += np.bincount(above, minlength=span)
    return total


def _count_pairs(symbols: np.ndarray, lowest: int) -> np.ndarray:
    """The counts of a range of bytes, int64 (256,): two neighbors are one uint16, which halves what is counted."""
    pairs, odd = np.zeros(1 << 16, dtype=np.int64), np.zeros(256, dtype=np.int64)
    step = min(16 * SLAB, symbols.size)  # the more, the rarer the sum over all pairs
    octets, keys = np.empty(step, dtype=np.uint8), np.empty(step // 2, dtype=np.intp)
    for start in range(0, symbols.size, step):
        slab = symbols[start : start + step]
        n, whole = slab.size, slab.size // 2 * 2
        np.copyto(octets[:n], slab, casting="unsafe")  # modulo 256
        np.copyto(keys[: whole // 2], octets[:whole].view(np.uint16))
        pairs += np.bincount(keys[: whole // 2], minlength=1 << 16)
        odd += np.bincount(octets[whole:n], minlength=256)
    grid = pairs.reshape(256, 256)
    return np.roll(grid.sum(0) + grid.sum(1) + odd, -(lowest % 256))  # from `lowest` on, whatever its sign
