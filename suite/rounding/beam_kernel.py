"""What beam search does to a run of groups of one row after the other, compiled. Imported when first needed.

The plain twin is in tests/suite/test_beam_search.py. Arrays are of the type of the matrix, but for losses, which are
float64: they are sums of what a few thousand steps have changed.
"""

import numpy as np
from numba import njit


@njit(cache=True)
def settle(wanted, scale, H, entries, by_value, norms, stages, first, live, errors, products, codes, losses):
    """Beam search over the groups of w columns from group `first` on, for every row; returns how many are held then.

    `wanted` (rows, in), `scale` (rows,), `H` (w, w) of these columns; `entries` (M, K, g) and `by_value` (M, g, K) are
    the codebooks, `norms` (w / g, M, K) the c H_gg c^T of their entries; `stages` (w / g, M) the order of codebooks.
    Of each row `live` combinations are held, the best first: `errors` (rows, beam, in), their `products` (rows, beam,
    w) with H, `codes` (rows, beam, groups, M) and `losses` (rows, beam), changed in place.
    """
    n_rows, beam, _ = errors.shape
    width, (n_books, n_codes, g) = products.shape[2], entries.shape
    groups = width // g
    cost, pull = np.empty(n_codes, errors.dtype), np.empty(g, errors.dtype)
    best, source, entry = np.empty(beam), np.empty(beam, np.int64), np.empty(beam, np.int64)
    held, ancestor, chosen = _state(beam, width, groups, n_books, errors.dtype)
    new_held, new_ancestor, new_chosen = _state(beam, width, groups, n_books, errors.dtype)
    loss, found = np.empty(beam), live
    for row in range(n_rows):
        s, found = scale[row], live
        for h in range(found):
            held[h], ancestor[h], loss[h] = products[row, h], h, losses[row, h]
            chosen[h] = codes[row, h, first : first + groups]
        for group in range(groups):
            a = group * g
            for m in stages[group]:
                count, found = found, 0
                for h in range(count):
                    old = chosen[h, group, m]
                    for d in range(g):  # what the error would be without this entry, times H
                        pull[d] = held[h, a + d]
                        for e in range(g):
                            pull[d] += s * entries[m, old, e] * H[a + e, a + d]
                    for k in range(n_codes):
                        cost[k] = s * s * norms[group, m, k]
                    for d in range(g):
                        slope = 2 * s * pull[d]
                        for k in range(n_codes):
                            cost[k] -= slope * by_value[m, d, k]
                    base = loss[h] - cost[old]
                    found = _offer(best, source, entry, found, loss[h], h, old)
                    cost[old] = np.inf
                    for k in range(n_codes):
                        if found < beam or base + cost[k] < best[found - 1]:
                            if cost[k] < np.inf:
                                found = _offer(best, source, entry, found, base + cost[k], h, k)
                for q in range(found):
                    h = source[q]
                    old = chosen[h, group, m]
                    new_held[q], new_chosen[q], new_ancestor[q] = held[h], chosen[h], ancestor[h]
                    new_chosen[q, group, m] = entry[q]
                    if entry[q] != old:
                        for d in range(g):
                            x = s * (entries[m, old, d] - entries[m, entry[q], d])
                            for j in range(width):
                                new_held[q, j] += x * H[a + d, j]
                held, new_held = new_held, held
                chosen, new_chosen = new_chosen, chosen
                ancestor, new_ancestor = new_ancestor, ancestor
                loss[:found] = best[:found]
        before, words = errors[row].copy(), codes[row].copy()
        for q in range(found):
            errors[row, q], codes[row, q] = before[ancestor[q]], words[ancestor[q]]
            codes[row, q, first : first + groups] = chosen[q]
            losses[row, q] = loss[q]
            for group in range(groups):
                for d in range(g):
                    j = (first + group) * g + d
                    x = wanted[row, j]
                    for m in range(n_books):
                        x -= s * entries[m, chosen[q, group, m], d]
                    errors[row, q, j] = x
    return found


@njit(cache=True)
def _state(beam, width, groups, n_books, kind):
    """Room for what is held of a row: products with H, where it came from, codes."""
    return np.empty((beam, width), kind), np.empty(beam, np.int64), np.empty((beam, groups, n_books), np.int32)


@njit(cache=True)
def _offer(best, source, entry, found, loss, h, k):
    """Put a combination in its place among the `found` best, behind its equals; the last one falls out of a full list.

    Only for one that is better than the last, or while there is room.
    """
    q = min(found, len(best) - 1)
    if found == len(best) and loss >= best[q]:
        return found
    while q > 0 and best[q - 1] > loss:
        best[q], source[q], entry[q] = best[q - 1], source[q - 1], entry[q - 1]
        q -= 1
    best[q], source[q], entry[q] = loss, h, k
    return min(found + 1, len(best))
