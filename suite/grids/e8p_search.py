"""The nearest points of QuIP#'s codebooks without looking at all of them, compiled. Imported when first needed.

With |x| sorted, largest first, the best pattern of each of the seven shapes that are complete under permutation has its
largest values where |x| has its own: its product with |x| is a few sums. Signs are those of x; where their number is of
the wrong parity the smallest |x|, whose pattern value is 1/2, is flipped, which costs as much as flipping may at least.
Only the 29 patterns of squared norm 12 are looked at one by one, and only where a complete set could win. The plain
twin is `suite.grids.lattice_codebooks.nearest_code`.

Ties: +1/4 before -1/4, a smaller pattern before a larger one, a complete shape before the 29, the first of those; zero
counts as positive, and the first of equal |x| as the larger. All sums are in float64.
"""

import numpy as np
from numba import njit

from suite.grids.lattice_codebooks import DIGITS, SIGN_BITS, e8_points, odd_patterns, pattern_of, patterns

_DIGITS, _SIGN_BITS = DIGITS.astype(np.int64), np.array(SIGN_BITS, dtype=np.int64)
_PATTERNS, _ODD, _PATTERN_OF = patterns(), odd_patterns().astype(np.int64), pattern_of().astype(np.int64)
_FIRST_OF_NORM_12 = 227
# shape -> squared norm, parity of its sum; shapes 0 to 4 are that many 3/2, then 5/2, then 5/2 and 3/2; the rest is 1/2
_NORM = np.array([2.0, 4.0, 6.0, 8.0, 10.0, 8.0, 10.0])
_PARITY = np.array([0, 1, 0, 1, 0, 0, 1])
_FIRST_OF_NORM_4 = 241


def _codes_of_e8() -> tuple[np.ndarray, np.ndarray]:
    """Codes of the one-bit codebook: of integers by the digits of v + 1 (3^8,), of halves by their signs (256,)."""
    whole, half = np.full(3**8, -1, dtype=np.int64), np.full(256, -1, dtype=np.int64)
    for code, point in enumerate(e8_points().numpy()[:_FIRST_OF_NORM_4]):
        if abs(point[0]) == 0.5:
            half[int((point < 0) @ 2 ** np.arange(8))] = code
        else:
            whole[int((point + 1) @ DIGITS)] = code
    return whole, half


_WHOLE_OF, _HALF_OF = _codes_of_e8()


@njit(cache=True)
def _sort(a, order):
    """Write into `order` the places of `a` (8,), the largest first, the first of equals first."""
    for i in range(8):
        j = i
        while j > 0 and a[order[j - 1]] < a[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i


@njit(cache=True)
def _score(y, a, order, score, flipped):
    """Fill `score` and `flipped` (8,) for y (8,), |y| in `a` and sorted: the best of each shape, the 29 being the last.

    The squared distance is |y|^2 - score; `flipped` is the value with a sign other than y's, or -1. Returns the best of
    the 29 patterns; they are left at -inf where they cannot win.
    """
    minus, total = 0, 0.0
    for i in range(8):
        a[i] = abs(y[i])
        total += a[i]
        minus += y[i] < 0
    _sort(a, order)
    top = 0.0
    for k in range(7):
        score[k] = total - _NORM[k]
        if k < 5:  # so many 3/2: a value of 1/2 + 1 counts once more
            score[k] += 2.0 * top
            top += a[order[k]]
        else:
            score[k] += 4.0 * a[order[0]] + (2.0 * a[order[1]] if k == 6 else 0.0)
        flipped[k] = -1
        if (minus - _PARITY[k]) % 2 != 0:
            score[k] -= 2.0 * a[order[7]]
            flipped[k] = order[7]
    score[7], pattern = -np.inf, -1
    if total + 2.0 * top - 12.0 > score[:7].max():  # top is now the sum of the five largest
        for n in range(_FIRST_OF_NORM_12, 256):
            product, least, at = 0.0, np.inf, -1
            for i in range(8):
                part = a[i] * _PATTERNS[n, i]
                product += part
                if part < least:
                    least, at = part, i
            gain = 2.0 * product - 12.0
            if minus % 2 == 0:
                gain -= 4.0 * least
            else:
                at = -1
            if gain > score[7]:
                score[7], flipped[7], pattern = gain, at, n
    return pattern


@njit(cache=True)
def _code(y, order, shape, pattern, flipped, below):
    """The 16 bits of a pattern of this shape, its values in the order of |y|, with the signs of y but for `flipped`."""
    if shape < 5:
        number = 0
        for k in range(shape):
            number += _DIGITS[order[k]]
        pattern = _PATTERN_OF[number]
    elif shape < 7:
        pattern = _PATTERN_OF[2 * _DIGITS[order[0]] + (shape - 5) * _DIGITS[order[1]]]
    signs = 0
    for i in range(8):
        if (y[i] < 0) != (i == flipped):
            signs |= 1 << _SIGN_BITS[i]
    return pattern << 8 | signs ^ (_ODD[pattern] << 7) ^ below


@njit(cache=True)
def _shift(x, y, below):
    """X -+ 1/4 into `y`, for points with +-1/4, and its squared norm."""
    square = 0.0
    for i in range(8):
        y[i] = x[i] + (0.25 if below else -0.25)
        square += y[i] * y[i]
    return square


@njit(cache=True)
def _e8p(x, y, a, order, score, flipped):
    """The code of the point of E8P nearest to x (8,); the others are scratch."""
    least, code = np.inf, 0
    for below in range(2):
        square = _shift(x, y, below)
        pattern = _score(y, a, order, score, flipped)
        shape = score.argmax()
        if square - score[shape] < least:
            least = square - score[shape]
            code = _code(y, order, shape, pattern, flipped[shape], below)
    return code


@njit(cache=True)
def _e8(x, a, order):
    """The code of the nearest of the 256 points of the one-bit codebook to x (8,); the others are scratch."""
    minus, total = 0, 0.0
    for i in range(8):
        a[i] = abs(x[i])
        total += a[i]
        minus += x[i] < 0
    _sort(a, order)
    first, second = order[0], order[1]
    best, code = 0.0, _WHOLE_OF[(3**8 - 1) // 2]
    score = 2.0 * (a[first] + a[second]) - 2.0
    if score > best:
        best = score
        number = (3**8 - 1) // 2
        for i in (first, second):
            number += -_DIGITS[i] if x[i] < 0 else _DIGITS[i]
        code = _WHOLE_OF[number]
    score = total - 2.0 - (2.0 * a[order[7]] if minus % 2 else 0.0)
    if score > best:
        best = score
        signs = 0
        for i in range(8):
            if (x[i] < 0) != (minus % 2 == 1 and i == order[7]):
                signs |= 1 << i
        code = _HALF_OF[signs]
    if first == 7 and x[7] < 0:  # -2 at the last value is the one that is not there
        first = second
    if 4.0 * a[first] - 4.0 > best:
        code = _FIRST_OF_NORM_4 + first + (8 if x[first] < 0 else 0)
    return code


@njit(cache=True, nogil=True)
def nearest_e8p(x):
    """Codes (n,), int32, of the points of E8P nearest to `x` (n, 8)."""
    codes = np.empty(len(x), dtype=np.int32)
    y, a, order = np.empty(8), np.empty(8), np.empty(8, dtype=np.int64)
    score, flipped = np.empty(8), np.empty(8, dtype=np.int64)
    for n in range(len(x)):
        codes[n] = _e8p(x[n], y, a, order, score, flipped)
    return codes


@njit(cache=True, nogil=True)
def nearest_e8(x):
    """Codes (n,), int32, of the points of the one-bit codebook nearest to `x` (n, 8)."""
    codes = np.empty(len(x), dtype=np.int32)
    a, order = np.empty(8), np.empty(8, dtype=np.int64)
    for n in range(len(x)):
        codes[n] = _e8(x[n], a, order)
    return codes


@njit(cache=True, nogil=True)
def nearest_sum(x, scale, tries, points, fine):
    """Codes (n, 2), int32, of p + f / scale near `x` (n, 8): p of E8P and f nearest to (x - p) scale, both as points.

    `points` (65536, 8) is E8P, `fine` that or the one-bit codebook (256, 8). Tried for p are the `tries` nearest to x
    of sixteen points: those that are the best of their shape in their coset. One try is the greedy choice.
    """
    codes = np.empty((len(x), 2), dtype=np.int32)
    y, order = np.empty((2, 8)), np.empty((2, 8), dtype=np.int64)
    distance, flipped = np.empty((2, 8)), np.empty((2, 8), dtype=np.int64)
    pattern, a, left = np.empty(2, dtype=np.int64), np.empty(8), np.empty(8)
    z, places, score, flips = np.empty(8), np.empty(8, dtype=np.int64), np.empty(8), np.empty(8, dtype=np.int64)
    for n in range(len(x)):
        for coset in range(2):
            square = _shift(x[n], y[coset], coset)
            pattern[coset] = _score(y[coset], a, order[coset], distance[coset], flipped[coset])
            distance[coset] = square - distance[coset]
        least = np.inf
        for _ in range(tries):
            least_at = distance.argmin()
            below, shape = least_at // 8, least_at % 8
            distance[below, shape] = np.inf
            coarse = _code(y[below], order[below], shape, pattern[below], flipped[below, shape], below)
            for i in range(8):
                left[i] = (x[n, i] - points[coarse, i]) * scale
            second = _e8(left, a, places) if len(fine) == 256 else _e8p(left, z, a, places, score, flips)
            missed = 0.0
            for i in range(8):
                missed += (left[i] - fine[second, i]) ** 2
            if missed < least:
                least, codes[n, 0], codes[n, 1] = missed, coarse, second
    return codes
