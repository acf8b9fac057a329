"""Asymmetric numeral systems: the bits that a model says, within 64 a stream (Duda 2009, 0902.0271).

The coder is `constriction` (Bamler 2022, 2201.01741), 64 bits of state, 32-bit words and frequencies of 24 bits. The
model is ours and is part of the stream, so that every machine has the same integers: a symbol of share p is stored as
the byte k = round(-8 log2 p), half to even, at most 192; its frequency is 2^(-k/8), rescaled so that all m sum to 2^24
with none below 1. What is left by rounding down goes to the most frequent symbols in turn, lowest place first.

If there are at most 32 symbols and no share rounds to 1 (every k > 0), the library is given pairs of neighbors: half
the divisions. Pair (a, b) is a m + b, its frequency is that of a times that of b, floored at 2^-36 of the whole and
rescaled as above; a last symbol that is alone goes with the most frequent one, the lowest of these if several.

What the eighths cost. With e = log2 p + k/8, |e| <= 1/16, the model's divergence is ln(2)/2 Var_p(e) bits a symbol to
second order (rescaling removes the mean of e): 0.00045 for e uniform, at most 0.00135, two equally likely symbols at
the two ends. Relative to the entropy H: if the largest share is p1 >= 1/2 then Var_p(e) <= (1 - p1) / 8^2 while
H >= 1 - p1, else H >= 1: never above 0.54%, usually 0.02% at the 2.5 bits of bfloat16's exponents. A step of half the
size would save 0.0003 bit and cost a bit an entry: it pays above some 3000 symbols for each one in the alphabet, by 1
part in 8000; the byte is kept. What no frequency below 2^-24 costs: at most 1.45 m / 2^24 bits a symbol, half a bit
for each entry in a stream of 5 million symbols, next to the 8 it takes in the table.

The body of a stream:

    varint              n, how many symbols
    alphabet            as in `suite.coding.frame`; nothing follows if it has fewer than two symbols
    m bytes             k of each symbol
    the rest            constriction's words, uint32 little-endian; the decoder starts with the last one
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import constriction
import numpy as np

from suite.coding.frame import SLAB, Alphabet, seal, tally, unseal, varint

_PRECISION = 24  # bits of constriction's frequencies
_CALL = 1 << 18  # symbols for each call of the library's encoder
_MOST_PAIRED = 32  # symbols: their pairs cost at most 1.45 * 32^2 / 2^24 = 0.00009 bits a pair
_MOST = 8 * _PRECISION  # in eighths of a bit: rarer symbols have the least frequency there is
# floor(2^(36 - k/8)) for k = 0 .. 7, by integer square roots, which are the same everywhere
_POWERS = np.array([isqrt(isqrt(isqrt(1 << (288 - k)))) for k in range(8)], dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ans:
    """Asymmetric numeral systems with one static model for each stream, stored in it."""

    name = "ans"

    def encode(self, symbols: np.ndarray) -> bytes:
        """The stream of `symbols` (n,), any integer type, at most 2^15 different ones."""
        alphabet, counts = tally(symbols)
        head = varint(symbols.size) + alphabet.to_bytes()
        if counts.size < 2:
            return seal(self.name, head)
        eighths = costs(counts)
        coder, model = constriction.stream.stack.AnsCoder(), _model(frequencies(eighths), is_paired(eighths))
        # a stack: what is pushed last comes out first
        for _, slab in alphabet.slabs(symbols, np.int32, _CALL, backward=True):
            coder.encode_reverse(_pairs(slab, eighths) if is_paired(eighths) else slab, model)
        words = coder.get_compressed().astype("<u4", copy=False)
        return seal(self.name, head, eighths.data, words.data)

    def decode(self, stream: bytes) -> np.ndarray:
        """The symbols, int32 (n,). Raises `ValueError` for a stream that is damaged or another coder's."""
        reader = unseal(self.name, stream)
        n, alphabet = reader.varint("its number of symbols"), Alphabet.read(reader)
        m = alphabet.symbols.size
        if m > n or (m == 0) != (n == 0):
            raise reader.damaged(f"{n} symbols cannot be of an alphabet of {m}")
        if m < 2:
            reader.finish()
            return np.full(n, alphabet.symbols[0] if m else 0, dtype=np.int32)
        eighths, rest = np.frombuffer(reader.take(m, "its model"), dtype=np.uint8), reader.rest()
        if eighths.max() > _MOST or len(rest) % 4:
            raise reader.damaged(f"costs of up to {eighths.max()} eighths of a bit, {len(rest)} bytes of 32-bit words")
        freqs = frequencies(eighths)
        if _is_too_long(n, 8 * len(rest), freqs):
            raise reader.damaged(f"{n} symbols do not fit in {len(rest)} bytes")
        words, model = np.frombuffer(rest, dtype="<u4").astype(np.uint32), _model(freqs, is_paired(eighths))
        try:
            coder = constriction.stream.stack.AnsCoder(words)
        except ValueError as error:  # the last word is zero
            raise reader.damaged(str(error)) from error
        out = np.empty(n, dtype=np.int32)
        read = _read_pairs if is_paired(eighths) else _read
        read(coder, model, alphabet, out)
        if not coder.is_empty():
            raise reader.damaged(f"bits are left after its {n} symbols")
        return out


def costs(counts: np.ndarray) -> np.ndarray:
    """-log2 of the shares of positive `counts` (m,), in eighths of a bit, half to even, at most 24 bits; uint8 (m,).

    >>> costs(np.array([1, 2, 1])).tolist()
    [16, 8, 16]
    """
    return np.rint(8 * np.log2(counts.sum() / counts)).clip(0, _MOST).astype(np.uint8)


def frequencies(eighths: np.ndarray) -> np.ndarray:
    """Integers int64 (m,), all at least 1, that sum to 2^24 and are as 2^(-k/8) for k = `eighths` (m,), 2 <= m <= 2^15.

    >>> frequencies(np.array([16, 8, 16], dtype=np.uint8)).tolist()
    [4194304, 8388608, 4194304]
    """
    k = eighths.astype(np.int64)
    return scaled(_POWERS[k % 8] >> k // 8)


def scaled(weights: np.ndarray) -> np.ndarray:
    """Integers int64 (m,), all at least 1, that sum to 2^24 and are as `weights` (m,), below 2^37; 2 <= m <= 2^15.

    Each has 1 and its share of the rest rounded down; what that leaves goes to the largest, one each, first ones first.
    """
    found = 1 + weights * ((1 << _PRECISION) - weights.size) // int(weights.sum())
    found[np.argsort(-weights, kind="stable")[: (1 << _PRECISION) - int(found.sum())]] += 1
    return found


def is_paired(eighths: np.ndarray) -> bool:
    """Whether the library is given pairs of symbols."""
    return eighths.size <= _MOST_PAIRED and int(eighths.min()) > 0


def _is_too_long(n: int, bits: int, freqs: np.ndarray) -> bool:
    """Whether no encoder's stream of `bits` holds n symbols: a few bytes must not expand to gigabytes.

    With q the largest share, n (1 - q) is the number of all other symbols up to the rounding of shares: by 2^(1/8), and
    by m / 2^24 for what may not be below 2^-24. Either these take a bit each or, if they are at place 0, which is free
    at the end of a row where the state is 0, the most frequent ones take -log2 q > 1 - q each. 4 bits' room for 1, and
    the state's 64, are more than that all.
    """
    return n * ((1 << _PRECISION) - int(freqs.max()) - freqs.size) > 4 * (bits + 64) << _PRECISION


def _model(freqs: np.ndarray, paired: bool) -> constriction.stream.model.Categorical:
    """The library's model with exactly these frequencies, or with those of all pairs.

    It gives each symbol 1 of the 2^24 and divides the rest in proportion to the numbers it gets: handed one less each,
    which sum to that rest, it scales them by exactly 1.
    """
    if paired:
        freqs = scaled((freqs[:, None] * freqs >> 12).reshape(-1))
    return constriction.stream.model.Categorical((freqs - 1).astype(np.float64), perfect=False)


def _pairs(places: np.ndarray, eighths: np.ndarray) -> np.ndarray:
    """The place of each pair of neighbors among the m^2 pairs; one that is alone goes with the most frequent symbol."""
    if places.size % 2:
        places = np.append(places, np.int32(eighths.argmin()))
    return places[0::2] * np.int32(eighths.size) + places[1::2]


def _read(coder: Any, model: Any, alphabet: Alphabet, out: np.ndarray) -> None:
    for start in range(0, out.size, SLAB):
        slab = out[start : start + SLAB]
        alphabet.symbols_at(coder.decode(model, slab.size), slab)


def _read_pairs(coder: Any, model: Any, alphabet: Alphabet, out: np.ndarray) -> None:
    m = alphabet.symbols.size
    both = np.stack([np.repeat(alphabet.symbols, m), np.tile(alphabet.symbols, m)], axis=1)
    table = np.ascontiguousarray(both).view(np.int64).reshape(-1)  # the two symbols of a pair in one number
    for start in range(0, out.size, SLAB):
        slab = out[start : start + SLAB]
        slab[:] = table.take(coder.decode(model, (slab.size + 1) // 2), mode="clip").view(np.int32)[: slab.size]
