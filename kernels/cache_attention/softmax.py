"""A softmax in parts: what a stretch of tokens leaves, and how programs that share a sequence are added up."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)  # below any score, and finite: differences of two are numbers


@triton.jit
def exponentials(score, factor, top, weight):
    """The largest score so far, the sum so far, 2^(score - largest) in float16, and what earlier sums are less.

    Scores are (PARTS, PART, heads), the others (PARTS, 1, heads); `factor` brings scores to powers of two.
    """
    highest = tl.maximum(top, tl.max(score, 1, keep_dims=True) * factor)
    less = tl.exp2(top - highest)
    p = tl.exp2(score * factor - highest)
    return highest, weight * less + tl.sum(p, 1, keep_dims=True), p.to(tl.float16), less


@triton.jit
def finish(out, partial, tops, sums, head, h, D: tl.constexpr, SHARED: tl.constexpr, SPLITS: tl.constexpr):
    """Add up what the programs of the query heads `h` (BLOCK_H,) of `head` have left, first to last."""
    WHOLE: tl.constexpr = triton.next_power_of_2(D)
    taken = h < SHARED
    spot = head * SPLITS * SHARED + h
    highest = tl.load(tops + spot, mask=taken, other=0.0, cache_modifier=".cg")
    for split in tl.range(1, SPLITS):
        one = tl.load(tops + spot + split * SHARED, mask=taken, other=0.0, cache_modifier=".cg")
        highest = tl.maximum(highest, one)
    weight = tl.where(taken, 0.0, 1.0)
    total = tl.zeros([h.shape[0], WHOLE], tl.float32)
    c = tl.arange(0, WHOLE)[None, :]
    whole = taken[:, None] & (c < D)
    for split in tl.range(SPLITS):
        at = spot + split * SHARED
        less = tl.exp2(tl.load(tops + at, mask=taken, other=0.0, cache_modifier=".cg") - highest)
        weight += less * tl.load(sums + at, mask=taken, other=0.0, cache_modifier=".cg")
        one = tl.load(partial + at[:, None] * D + c, mask=whole, other=0.0, cache_modifier=".cg")
        total += less[:, None] * one
    at = (head * SHARED + h)[:, None] * D + c
    tl.store(out + at, (total / weight[:, None]).to(out.dtype.element_ty), mask=whole)
