"""The codebooks of QuIP#: E8P, 65,536 points of E8 + 1/4 in 16 bits, and 256 points of E8 for what it leaves.

Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks", arXiv:2402.04396, section 4. A point of E8P is a pattern of 256, with signs, and 1/4 added to or taken from
all eight values:

- patterns: the 227 absolute values of D8 + 1/2 of squared norm up to 10, in the order of their values, and 29 of the 56
  of squared norm 12 that have five 3/2;
- signs: an even sum is asked for, so that seven are free and the eighth follows: an even number of minus signs on a
  pattern of even sum, an odd number on others.

A code has 16 bits as in the release: the pattern in the high byte, in the low one a bit for each sign. Values 0 to 7
have bits 0, 4, 1, 5, 2, 6, 3, 7. A byte of an odd number of bits means -1/4, and its bit 0 is to be flipped before it
is read; value 7 of a pattern of odd sum is negated, which makes the number of bits that are left even. All that a
decoder has to know are the patterns at four bits a value: 1 KiB.
"""

from functools import cache
from itertools import product

import numpy as np
import torch

# QuIP#'s choice, no rule is known for it: where the three values of 1/2 are
_HALVES_OF_NORM_12 = (
    "123 023 013 012 367 357 347 356 346 345 267 257 247 256 246 245 "
    "167 157 147 156 146 045 067 057 047 056 046 014 237"
).split()
SIGN_BITS = (0, 4, 1, 5, 2, 6, 3, 7)  # of values 0 to 7 in the low byte
DIGITS = 3 ** np.arange(8)  # a pattern's number: the sum over its values of (value - 1/2) 3^i


@cache
def patterns() -> np.ndarray:
    """The 256 patterns (256, 8), float64, in the order of their codes."""
    values = np.array(list(product((0.5, 1.5, 2.5), repeat=8)))
    short = values[(values**2).sum(1) <= 10]
    halves = [[0.5 if str(i) in rows else 1.5 for i in range(8)] for rows in _HALVES_OF_NORM_12]
    return np.concatenate([short, np.array(halves)])


@cache
def odd_patterns() -> np.ndarray:
    """Whether the sum of a pattern is odd (256,), bool."""
    return patterns().sum(1) % 2 == 1


@cache
def pattern_of() -> np.ndarray:
    """The pattern (3^8,), int16, that has a number of `DIGITS`; -1 where none has."""
    found = np.full(3**8, -1, dtype=np.int16)
    found[((patterns() - 0.5) @ DIGITS).astype(int)] = np.arange(256)
    return found


def packed_patterns() -> np.ndarray:
    """The table as the release keeps it, 1 KiB: (256,), uint32, a nibble 2 v + 8 for each value at its sign's place."""
    values = patterns().copy()
    values[odd_patterns(), 7] *= -1
    nibbles = (2 * values + 8).astype(np.uint32)
    return (nibbles << (4 * np.array(SIGN_BITS, dtype=np.uint32))).sum(1).astype(np.uint32)


@cache
def e8p_points() -> torch.Tensor:
    """All points (65536, 8) of E8P by code, float32 and exact."""
    codes = np.arange(1 << 16)
    signs = codes & 255
    bits = signs[:, None] >> np.array(SIGN_BITS) & 1
    below = bits.sum(1) % 2 == 1
    bits[:, 0] ^= below
    bits[:, 7] ^= odd_patterns()[codes >> 8]
    points = patterns()[codes >> 8] * (1 - 2 * bits) + np.where(below, -0.25, 0.25)[:, None]
    return torch.from_numpy(points).float()


@cache
def e8_points() -> torch.Tensor:
    """The 256 points (256, 8) of the one-bit codebook, float32: E8 of squared norm up to 2, then 15 of 16 (+-2, 0, ..).

    Integers first, then halves, each in the order of their values; then 2 at values 0 to 7, then -2 at values 0 to 6.
    """
    whole = np.array(list(product((-1.0, 0.0, 1.0), repeat=8)))
    half = np.array(list(product((-0.5, 0.5), repeat=8)))
    points = np.concatenate([whole, half])
    points = points[(points.sum(1) % 2 == 0) & ((points**2).sum(1) <= 2)]
    return torch.from_numpy(np.concatenate([points, 2 * np.eye(8), -2 * np.eye(8)[:7]])).float()


def nearest_code(x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The first of the `points` (n, d) nearest to each `x` (m, d), by looking at all: codes (m,), int64.

    The plain twin of `suite.grids.e8p_search`.
    """
    table = points.to(x.dtype)
    norms = (table**2).sum(1)
    return torch.cat([(norms - 2 * part @ table.T).argmin(1) for part in x.split(1 << 8)])


@cache
def beginnings(k: int, one_bit: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `k` values (n, k) that points have, each once, in their order; and the first code of each (n,), int32.

    Of the one-bit codebook, or of E8P.
    """
    points = (e8_points() if one_bit else e8p_points()).numpy()
    values, codes = np.unique(points[:, :k], axis=0, return_index=True)
    return torch.from_numpy(values), torch.from_numpy(codes).to(torch.int32)
