"""ATen's words of 4-bit codes to bfloat16, compiled. Imported when first needed.

The words are ATen's own affair: for every 64 outputs and every input 32 bytes, the low halves of which are outputs 0 to
31 and the high halves 32 to 63, where the processor has AVX512 (torch 2.6 to 2.13). So who uses this compares first
what comes out (`suite.runtime.packed_integers`); the plain twin is in tests/suite/test_runtime.py.

Decoding must be cheap beside 128 or fewer multiplications with each weight. What makes it so is that a group's scales
and offsets lie in arrays of their own: nothing then hides from the compiler that they are not written to, and 16
weights take about 11 instructions.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
from numba import njit

HALF = 32  # bytes of an input in a block, so 64 outputs


@njit(cache=True, nogil=True)
def decode(words, second, parameters, group, start, stop, first, out):
    """Blocks `start` to `stop` of weights (q - 8) s + z, rounded to bfloat16, half to even.

    `words` (blocks, in, 32), uint8. `second` has as many blocks, of what is to be added, or none. `parameters` (groups,
    rows, 2), the bits of bfloat16, are s and z of each output of `words`, and then of `second`. `out` (in,
    blocks, 64), the bits of bfloat16, is written: its blocks begin with block `first`.
    """
    scale, offset = np.empty(2 * HALF, np.float32), np.empty(2 * HALF, np.float32)
    more_scale, more_offset = np.zeros(2 * HALF, np.float32), np.zeros(2 * HALF, np.float32)
    n_in, rows, two = words.shape[1], 2 * HALF * len(words), len(second) > 0
    for block in range(start, stop):
        at = block - first
        for g in range((n_in + group - 1) // group):
            for j in range(2 * HALF):
                row = block * 2 * HALF + j
                scale[j] = _wide(parameters[g, row, 0])
                offset[j] = _wide(parameters[g, row, 1])
                if two:
                    more_scale[j] = _wide(parameters[g, rows + row, 0])
                    more_offset[j] = _wide(parameters[g, rows + row, 1])
            if two:
                for k in range(g * group, min(n_in, (g + 1) * group)):
                    for j in range(HALF):
                        a, b = words[block, k, j], second[block, k, j]
                        low = _term(a & 15, scale[j], offset[j]) + _term(b & 15, more_scale[j], more_offset[j])
                        out[k, at, j] = _rounded(low)
                        high = _term(a >> 4, scale[HALF + j], offset[HALF + j])
                        high += _term(b >> 4, more_scale[HALF + j], more_offset[HALF + j])
                        out[k, at, HALF + j] = _rounded(high)
            else:
                for k in range(g * group, min(n_in, (g + 1) * group)):
                    for j in range(HALF):
                        a = words[block, k, j]
                        out[k, at, j] = _rounded(_term(a & 15, scale[j], offset[j]))
                        out[k, at, HALF + j] = _rounded(_term(a >> 4, scale[HALF + j], offset[HALF + j]))


@njit
def _term(code, scale, offset):
    return (np.float32(code) - np.float32(8)) * scale + offset


@njit
def _wide(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit
def _rounded(x):
    bits = np.float32(x).view(np.uint32)
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def in_threads(call: Callable[[int, int], None], count: int, threads: int) -> None:
    """`call(start, stop)` for parts of `count`, one for each of `threads`, the first in this thread."""
    ends = [count * i // threads for i in range(threads + 1)]
    waiting = [_pool(threads - 1).submit(call, a, b) for a, b in pairwise(ends[1:])]
    call(ends[0], ends[1])
    for one in waiting:
        one.result()
