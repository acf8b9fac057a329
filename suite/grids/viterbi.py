"""Viterbi's search in a bitshift trellis: the path of states whose values are nearest to a sequence.

Viterbi 1967; Forney 1973, "The Viterbi algorithm"; the trellis: Mao and Gray 2010, "Rate-constrained trellis source
coding"; Tseng, Sun, Hou, De Sa 2024, "QTIP", arXiv:2406.11235, section 3. A state is a window of L bits of a string;
each step shifts it by k = K V bits and puts out the V values that a table has for the state. So states s and s' may
follow each other where s mod 2^(L-k) = s' >> k, and a step compares the 2^k states that leave the same L - k bits.

A path that ends with the bits it begins with is a string closed to a ring, which needs no bits for its first state
(tail-biting). The best ring is found approximately, as in QTIP, section 3.2: the bits at the seam are those that the
best free path over the sequence around the seam has there; then the best path that begins and ends with them.

Costs are float32, sums of squares in order; of equal costs the lowest predecessor, and the lowest last bits, win.
"""

from collections.abc import Callable

import numpy as np
import torch

from suite.grids.threads import in_threads

Search = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def states_of(codes: torch.Tensor, L: int, k: int) -> torch.Tensor:
    """States (.., steps), int64, of the ring of bits that `codes` (.., steps) of `k` bits are: windows of L bits."""
    wide, states, have = codes.to(torch.int64), torch.zeros_like(codes, dtype=torch.int64), 0
    while have < L:
        states = (states << k) + wide
        wide, have = wide.roll(-1, -1), have + k
    return states >> (have - L)


def codes_of(states: torch.Tensor, L: int, k: int) -> torch.Tensor:
    """The first `k` bits (.., steps) of each state: all there is to know of a ring of states."""
    return states >> (L - k)


def reference(
    x: torch.Tensor, table: torch.Tensor, k: int, start: torch.Tensor | None = None, known: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """States (n, steps), int64, of the best path for every sequence of `x` (n, steps, V), and its cost (n,).

    `table` (2^L, V) are the values of states. `start` (n,) are L - k bits that a path has to begin and end with;
    without it both ends are free. `known` (steps, V) says which values count; without it all do. Memory: 2^(L-k)
    backpointers for every step of every sequence.
    """
    n, steps, _ = x.shape
    S, R = len(table), 1 << k
    came_from = torch.arange(S) >> k
    m = x.new_zeros((n, S // R), dtype=torch.float32)
    if start is not None:
        m = torch.full_like(m, torch.inf).scatter_(1, start[:, None].to(torch.int64), 0)
    back = torch.empty(steps, n, S // R, dtype=torch.uint8)
    for t in range(steps):
        cost = m[:, came_from]
        for v in range(x.shape[2]):
            if known is None or known[t, v]:
                cost = cost + (table[:, v].float() - x[:, t, v, None].float()).square()
        m, back[t] = _first_least(cost.reshape(n, R, -1))
    last = m.argmin(1) if start is None else start.to(torch.int64)
    total, path, j = m.gather(1, last[:, None])[:, 0], [], last
    for t in range(steps - 1, -1, -1):
        state = back[t].gather(1, j[:, None])[:, 0].to(torch.int64) * (S // R) + j
        path.append(state)
        j = state >> k
    return torch.stack(path[::-1], 1), total


def _first_least(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least (n, j) of `cost` (n, a, j) over a, and the first a that has it."""
    best, arg = cost[:, 0].clone(), torch.zeros_like(cost[:, 0], dtype=torch.uint8)
    for a in range(1, cost.shape[1]):
        better = cost[:, a] < best
        best[better], arg[better] = cost[:, a][better], a
    return best, arg


def viterbi(
    x: torch.Tensor, table: torch.Tensor, k: int, start: torch.Tensor | None = None, known: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `reference` gives, compiled: sequence after sequence, in as many threads as torch has."""
    from suite.grids import viterbi_kernel as kernel

    n, steps, V = x.shape
    L = len(table).bit_length() - 1
    counts = torch.ones(steps, V, dtype=torch.bool) if known is None else known
    bits = torch.arange(V)
    names, which = torch.unique((counts << bits).sum(1), return_inverse=True)
    patterns = names[:, None] >> bits & 1
    tables = np.stack([kernel.arranged((table * pattern).float().numpy(), L, k) for pattern in patterns])
    values = (x * counts).float().contiguous().numpy()  # what does not count is 0, and so is what it is compared with
    begin = (torch.full((n,), -1) if start is None else start).to(torch.int64).numpy()
    states, costs = np.empty((n, steps), np.int32), np.empty(n, np.float32)
    search = kernel.compiled(L, k, V)

    def some(part: slice) -> None:
        search(values[part], tables, which.numpy(), begin[part], states[part], costs[part])

    in_threads(some, n, few=1)
    return torch.from_numpy(states).to(torch.int64), torch.from_numpy(costs)


def tail_biting(
    x: torch.Tensor,
    table: torch.Tensor,
    k: int,
    known: torch.Tensor | None = None,
    around: int | None = None,
    search: Search = viterbi,
) -> torch.Tensor:
    """States (n, steps), int64, of a ring for every sequence of `x` (n, steps, V): `reference` says what the rest is.

    The bits at the seam come from a free path over `around` steps on each side of it; by default half of all, as in the
    release: the whole sequence, begun in the middle.
    """
    L, steps = len(table).bit_length() - 1, x.shape[1]
    if steps * k < L:
        raise ValueError(f"a ring of {steps} steps of {k} bits is shorter than a state of {L} bits")
    half = steps // 2 if around is None else around
    turn = torch.arange(-half, steps - half if around is None else half) % steps
    free, _ = search(x[:, turn], table, k, known=None if known is None else known[turn])
    return search(x, table, k, free[:, half] >> k, known)[0]
