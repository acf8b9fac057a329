"""General compressors as yardsticks: what is won by knowing that codes are symbols of a known alphabet, and what not.

They see the symbols as bytes, in the smallest integer type that holds all of them, and find repetitions that a coder of
order 0 cannot. The body of a stream: a byte for the type (its place in `TYPES`), a varint for the number of symbols,
and what the compressor made of them, little-endian. Levels are the compressors' own; every stream is a function of the
symbols and of the compressor's version, no time or name is in it.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard

from suite.coding.frame import Reader, bounds, seal, unseal, varint

TYPES = ("u1", "i1", "<u2", "<i2", "<i4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gzip:
    """DEFLATE at `level` 0 to 9: repetitions within 32 KiB and a Huffman code that adapts (RFC 1951, 1952)."""

    level: int = 9

    name = "gzip"

    def __post_init__(self) -> None:
        _check_level("level", self.level, 0, 9)

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of `symbols` (n,), any integer type, that fit in int32."""
        return _sealed(self.name, symbols, lambda data: gzip.compress(data, self.level, mtime=0))

    def decode(self, stream: bytes) -> np.ndarray:
        """The symbols, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        # 31: DEFLATE's largest window, in gzip's own frame
        return _unsealed(self.name, stream, lambda data, size: _all_of(zlib.decompressobj(31), data, size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Zstd:
    """Zstandard at `level` 1 to 22: repetitions in a large window, then Huffman and ANS codes (RFC 8878)."""

    level: int = 19

    name = "zstd"

    def __post_init__(self) -> None:
        _check_level("level", self.level, 1, 22)

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of `symbols` (n,), any integer type, that fit in int32."""
        return _sealed(self.name, symbols, zstandard.ZstdCompressor(level=self.level).compress)

    def decode(self, stream: bytes) -> np.ndarray:
        """The symbols, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        return _unsealed(self.name, stream, _from_zstd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lzma:
    """LZMA2 in an xz container at `preset` 0 to 9: repetitions, and bits coded by their context with a range coder."""

    preset: int = 6

    name = "lzma"

    def __post_init__(self) -> None:
        _check_level("preset", self.preset, 0, 9)

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of `symbols` (n,), any integer type, that fit in int32."""
        return _sealed(self.name, symbols, lambda data: lzma.compress(data, preset=self.preset))

    def decode(self, stream: bytes) -> np.ndarray:
        """The symbols, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        return _unsealed(self.name, stream, lambda data, size: _all_of(lzma.LZMADecompressor(), data, size))


def _check_level(what: str, level: int, lowest: int, highest: int) -> None:
    if not lowest <= level <= highest:
        raise ValueError(f"{what} {level}: expected {lowest} to {highest}")


def _sealed(coder: str, symbols: np.ndarray, compress: Callable[[bytes], bytes]) -> bytes:
    lowest, highest = bounds(symbols)
    held = [np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max for kind in TYPES]
    kind = held.index(True)
    data = symbols.astype(TYPES[kind]).tobytes()
    return seal(coder, bytes([kind]) + varint(symbols.size), compress(data))


def _unsealed(coder: str, stream: bytes, decompress: Callable[[memoryview, int], bytes]) -> np.ndarray:
    reader = unseal(coder, stream)
    kind, n = reader.take(1, "its type")[0], reader.varint("its number of symbols")
    if kind >= len(TYPES):
        raise reader.damaged(f"its type is {kind}, expected 0 to {len(TYPES) - 1}")
    return np.frombuffer(_expand(reader, n * np.dtype(TYPES[kind]).itemsize, decompress), TYPES[kind]).astype(np.int32)


def _expand(reader: Reader, size: int, decompress: Callable[[memoryview, int], bytes]) -> bytes:
    """Exactly `size` bytes, or the damage."""
    try:
        data = decompress(reader.rest(), size)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise reader.damaged(str(error)) from error
    if len(data) != size:
        raise reader.damaged(f"it holds {len(data)} bytes of symbols or more, it says {size}")
    return data


def _all_of(decompressor: "zlib._Decompress | lzma.LZMADecompressor", data: memoryview, size: int) -> bytes:
    """What `data` expands to if that is `size` bytes; never more than one byte above that."""
    found = decompressor.decompress(bytes(data), size + 1)
    if len(found) == size and (not decompressor.eof or decompressor.unused_data):
        raise EOFError("it does not end where it should")
    return found


def _from_zstd(data: memoryview, size: int) -> bytes:
    frame = zstandard.get_frame_parameters(data)
    if frame.content_size != size:
        raise EOFError(f"it holds {frame.content_size} bytes")
    return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
