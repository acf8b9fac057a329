"""Viterbi's recursion compiled: what `suite.grids.viterbi.reference` does, bit for bit. Imported when first needed.

`m` holds the least cost of all paths so far by the L - k bits that they leave to the next step, n = 2^(L-k) numbers.
The states a n + j of all a leave the bits j; they came from the bits (a n + j) >> k. With R = 2^k and q = n / R this is
a q + u for j = u R + b: the inner loop runs over u, where both are consecutive, or over b where there are few u. It is
compiled for every (L, k, V), since a compiler vectorizes what it knows the size of. No products are fused with sums, so
that the same codes come out on every machine.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

_VECTOR = 16  # consecutive numbers below which the other loop is the inner one


def loops(L: int, k: int) -> tuple[int, int, int, int, int]:
    """(outer, inner) sizes of the loops over j, strides (so, si) of what is read per turn, and that per a."""
    n, q = 1 << (L - k), 1 << max(L - 2 * k, 0)
    if q >= _VECTOR:
        return n // q, q, 0, 1, q
    return q, n // q, 1, 0, q


def arranged(table: np.ndarray, L: int, k: int) -> np.ndarray:
    """Values (2^L, V) of the states a n + j in the order they are read in: (outer, a, V, inner), flattened."""
    outer, inner, _, si, _ = loops(L, k)
    if si == 0:
        by_turns = table.reshape(1 << k, outer, inner, -1).transpose(1, 0, 3, 2)
    else:
        by_turns = table.reshape(1 << k, inner, outer, -1).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(by_turns).reshape(-1)


@cache
def compiled(L: int, k: int, V: int) -> Callable[..., None]:
    """The search for this trellis: `search(x, tables, which, start, states, costs)`.

    `x` (sequences, steps, V) float32; `tables` (patterns, 2^L V) as `arranged`; `which` (steps,) of them; `start`
    (sequences,) the bits to begin and end with, -1 where they are free. Fills `states` (sequences, steps) int32 and
    `costs` (sequences,) float32.
    """
    R, n = 1 << k, 1 << (L - k)
    outer, inner, so, si, sa = loops(L, k)
    few = min(R, 4)  # candidates compared at a time: what is unrolled
    wide = max(2 * k - L, 0)  # bits of a that a predecessor does not depend on

    @njit(nogil=True, error_model="numpy")
    def step(m: Any, new: Any, back: Any, y: Any, x: Any) -> None:
        for o in range(outer):
            for i in range(inner):
                new[o * inner + i] = np.inf
                back[o * inner + i] = 0
            for first in range(0, R, few):
                for i in range(inner):
                    best = new[o * inner + i]
                    arg = np.int32(back[o * inner + i])
                    for d in range(few):
                        a = first + d
                        c = m[(a >> wide) * sa + o * so + i * si]
                        for v in range(V):
                            e = y[((o * R + a) * V + v) * inner + i] - x[v]
                            c += e * e
                        arg = np.int32(a) if c < best else arg
                        best = c if c < best else best
                    new[o * inner + i] = best
                    back[o * inner + i] = arg
        for i in range(inner):
            for o in range(outer):
                m[i * outer + o if si else o * inner + i] = new[o * inner + i]

    @njit(nogil=True, error_model="numpy", cache=True)
    def search(x: Any, tables: Any, which: Any, start: Any, states: Any, costs: Any) -> None:
        steps = x.shape[1]
        m, new = np.empty(n, np.float32), np.empty(n, np.float32)
        back = np.empty((steps, n), np.uint8)
        for s in range(x.shape[0]):
            m[:] = 0 if start[s] < 0 else np.inf
            if start[s] >= 0:
                m[start[s]] = 0
            for t in range(steps):
                step(m, new, back[t], tables[which[t]], x[s, t])
            j = start[s]
            if j < 0:
                j = np.argmin(m)
            costs[s] = m[j]
            for t in range(steps - 1, -1, -1):
                place = (j % outer) * inner + j // outer if si else j
                state = back[t, place] * n + j
                states[s, t] = state
                j = state >> k

    found: Callable[..., None] = search
    return found
