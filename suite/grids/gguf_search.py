"""How llama.cpp chooses the scales of GGUF blocks, over many blocks at once and to the last bit.

Kawrakow 2023, "k-quants" (ggml-org/llama.cpp, pull request 1684) and the importance matrix (pull request 4861); the
numbers below are those of ggml-quants.c. A sub-block first gets a real scale, and real minimum, by itself: some trial
scales fix codes, weighted least squares fixes scale and minimum for these codes, and the least weighted error wins.
The scales of a block are then rounded to integers on a common float16 scale. `affine` is make_qkx2_quants and
make_qkx3_quants, `symmetric` make_qx_quants, `descend` the loop of make_q3_quants and make_qp_quants.

All arithmetic is float32 in the order of the C code as compiled without fused multiply-add, so the bytes are the same.
Sums run over the first dimension one row after the other; the members of a sub-block lie down, sub-blocks across.
Rounding to integers is half to even.
"""

from dataclasses import dataclass

import numpy as np
import torch

from suite.grids.gguf_blocks import FORMATS, Format

_AT_ONCE = 1 << 17  # values whose search is in working memory at a time: ten buffers of this size, 5 MiB
_ZERO = 1e-15  # GROUP_MAX_EPS: a sub-block of smaller values is one of zeros
_NARROW = 2.0**-100  # so is a range whose inverse could overflow; both are far below the smallest float16
LARGEST = 2.0**30  # no format reaches values as large; beyond, squares of squares overflow
_LARGEST_SCALE = 65504.0  # of float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Codes 0 .. `top`; trial scales range / (top + start + i step), i <= `last`; scales stored as 0 .. `levels`."""

    top: int
    start: float
    step: float
    last: int
    levels: int

    def steps(self) -> torch.Tensor:
        """How many steps the range has in each trial, (last + 1,)."""
        i = torch.arange(self.last + 1, dtype=torch.float32)
        return torch.tensor(self.start) + torch.tensor(self.step) * i + self.top


_AFFINE = {
    "q2_k": Trials(top=3, start=-0.5, step=0.1, last=15, levels=15),
    "q4_k": Trials(top=15, start=-1.0, step=0.1, last=20, levels=63),
    "q5_k": Trials(top=31, start=-0.5, step=0.1, last=15, levels=63),
}
_AFFINE_BY_IMPORTANCE = {
    "q2_k": Trials(top=3, start=-0.9, step=0.05, last=36, levels=15),
    "q4_k": Trials(top=15, start=-0.9, step=0.05, last=36, levels=63),
    "q5_k": Trials(top=31, start=-0.9, step=0.05, last=36, levels=63),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Of n blocks: float16 scales `d` and `dmin` (n,) in float32, and the integers of sub-blocks (n, count), uint8.

    `inverse` (n,) is what llama.cpp multiplies values by to choose codes, where that is not 1/d: in Q4_0 and Q8_0 it is
    1/d from before d was rounded to float16.
    """

    d: torch.Tensor
    dmin: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    inverse: torch.Tensor | None = None


def search(kind: str, rows: torch.Tensor, importance: torch.Tensor | None) -> Scales:
    """The scales of `rows` (n, blocks, block), float32, by the search of `kind`; `importance` is (blocks, block)."""
    x, form = rows.reshape(-1, rows.shape[2]), FORMATS[kind]
    if importance is None and not form.has_scales:
        return _from_peak(kind, x)
    found, count = [], _AT_ONCE // form.block
    each = None if importance is None else importance.expand(len(rows), -1, -1).reshape(x.shape)
    if kind == "q4_0" and each is not None:
        power = in_order((rows * rows).reshape(len(rows), -1).T.contiguous()) / rows[0].numel()
        each = each * _root(power.repeat_interleave(rows.shape[1])[:, None] + x * x)
    for start in range(0, len(x), count):
        part = slice(start, start + count)
        found.append(_searched(kind, form, x[part], None if each is None else each[part]))
    return _joined(found)


def _joined(found: list[Scales]) -> Scales:
    dmin = [part.dmin for part in found if part.dmin is not None]
    scales = [part.scales for part in found if part.scales is not None]
    return Scales(
        d=torch.cat([part.d for part in found]),
        dmin=torch.cat(dmin) if dmin else None,
        scales=torch.cat(scales) if scales else None,
    )


def _from_peak(kind: str, x: torch.Tensor) -> Scales:
    """Q4_0: the value of largest magnitude, the first of several, becomes -8. Q8_0: it becomes +-127."""
    low, high = x.amin(1), x.amax(1)
    peak = torch.maximum(-low, high)
    if kind == "q8_0":
        exact = peak / 127
    else:
        tied = (-low == high).nonzero()[:, 0]
        peak = torch.where(-low > high, low, high)
        peak[tied] = _peak(x[tied].T)
        exact = peak / -8
    exact = exact.clamp(-_LARGEST_SCALE, _LARGEST_SCALE)
    inverse = torch.ones(()) / exact
    return Scales(d=_half(exact), inverse=torch.where(inverse.isfinite(), inverse, 0.0))


def _searched(kind: str, form: Format, x: torch.Tensor, importance: torch.Tensor | None) -> Scales:
    """Blocks (n, block): the real scales of sub-blocks, then integers on a common scale."""
    down = _members(x, form.group)
    if kind == "q4_0":
        assert importance is not None
        return Scales(d=_half(symmetric(down, _members(importance, form.group), 8)[0]))
    weights = _weights(kind, form, x, down, importance)
    if form.has_mins:
        trials = (_AFFINE if importance is None else _AFFINE_BY_IMPORTANCE)[kind]
        real = affine(down, weights, trials, absolute=kind == "q2_k" and importance is None)
        power = None if importance is None else _by_block(in_order(weights), x)
        (d, s), (dmin, m) = (_unsigned_levels(_by_block(r, x), trials.levels, power) for r in real)
        return Scales(d=d, dmin=dmin, scales=torch.cat([s, m]).T.to(torch.uint8))
    if kind == "q3_k" and importance is not None:
        scale, _ = symmetric(down, weights, 4)
        d, inverse = symmetric(_by_block(scale, x), _by_block(in_order(weights), x), 32)
        levels = (inverse * _by_block(scale, x)).round_().clamp_(-32, 31).add_(32) * (d != 0)
        return Scales(d=_half(d), scales=levels.T.to(torch.uint8))
    scale = _descended(down, weights) if kind == "q3_k" else symmetric(down, weights, 32)[0]
    return _signed_levels(_by_block(scale, x), 32 if kind == "q3_k" else 128, form.scale_zero)


def _weights(
    kind: str, form: Format, x: torch.Tensor, down: torch.Tensor, importance: torch.Tensor | None
) -> torch.Tensor:
    """The weight of each value's squared error, as `down`."""
    if importance is not None:
        given = _members(importance, form.group)
        if kind == "q6_k":
            return given
        power = in_order((x * x).T.contiguous()) / 256 * (1 if kind == "q2_k" else 2)
        return given * _root(power.repeat_interleave(256 // form.group) + down * down)
    if kind == "q2_k":
        return down.abs()
    if form.has_mins:
        return down.abs().add_(_root(in_order(down * down) / form.group))
    return down * down


def _members(x: torch.Tensor, group: int) -> torch.Tensor:
    """Blocks (n, block) as (group, sub-blocks)."""
    return x.reshape(-1, group).T.contiguous()


def _by_block(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of sub-blocks, in order, as (sub-blocks of a block, n)."""
    return values.reshape(len(x), -1).T.contiguous()


def in_order(x: torch.Tensor) -> torch.Tensor:
    """Sums over the first dimension of a contiguous `x`, one row added after the other.

    torch adds in an order of its own; numpy's reduction over the slow of two dimensions does not.
    """
    if x.shape[1] == 1:  # then there is but one dimension
        return in_order(x.expand(-1, 2).contiguous())[:1]
    return torch.from_numpy(np.add.reduce(x.numpy(), axis=0))


def _root(x: torch.Tensor) -> torch.Tensor:
    """The correctly rounded square root; torch's may be a unit in the last place away."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def _peak(x: torch.Tensor) -> torch.Tensor:
    """The value of largest magnitude in every column, with its sign; the first of several."""
    return x.gather(0, x.abs().argmax(0, keepdim=True))[0]


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-_LARGEST_SCALE, _LARGEST_SCALE).half().float()


def affine(x: torch.Tensor, weights: torch.Tensor, trials: Trials, absolute: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s and minimum m >= 0 with x ~ s l - m, codes l in 0 .. top: (n,) each for the columns of `x` (group, n).

    Keeps the least sum of weights times squared error, or `absolute` error. A better minimum is also where the trials
    to come count from. A column without a range has scale 0.
    """
    low, high = x.amin(0).clamp_(max=0), x.amax(0)
    flat = high - low <= _NARROW
    levels, weighted, product = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    sum_w, sum_x = in_order(weights), in_order(torch.mul(weights, x, out=product))

    def inverse_of(steps: torch.Tensor) -> torch.Tensor:
        return steps / torch.where(flat, 1.0, high - low)

    def rounded(inverse: torch.Tensor) -> None:
        torch.sub(x, low, out=levels).mul_(inverse).round_().clamp_(0, trials.top)

    def error(scale: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
        missed = torch.mul(levels, scale, out=product).add_(least).sub_(x)
        return in_order((missed.abs_() if absolute else missed.square_()).mul_(weights))

    inverse = inverse_of(torch.tensor(float(trials.top)))
    rounded(inverse)
    scale = torch.ones(()) / inverse
    best = error(scale, low)
    for steps in trials.steps():
        rounded(inverse_of(steps))
        sum_l = in_order(torch.mul(weights, levels, out=weighted))
        sum_ll = in_order(torch.mul(weighted, levels, out=product))
        sum_xl = in_order(torch.mul(weighted, x, out=product))
        D = sum_w * sum_ll - sum_l * sum_l
        least = (sum_ll * sum_x - sum_l * sum_xl) / D
        positive = least > 0
        slope = torch.where(positive, sum_xl / sum_ll, (sum_w * sum_xl - sum_x * sum_l) / D)
        least = torch.where(positive, 0.0, least)
        now = error(slope, least)
        better = (D > 0) & (now < best)
        best, scale, low = (torch.where(better, *pair) for pair in ((now, best), (slope, scale), (least, low)))
    return torch.where(flat, 0.0, scale), -low


def symmetric(x: torch.Tensor, weights: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s with x ~ s l, codes l in -top .. top - 1, (n,) for the columns of `x` (group, n), and the trial's 1/s.

    The value of largest magnitude is met at -top + i/10, |i| < 10; the least squared error by `weights` wins.
    """
    peak = _peak(x)
    empty = peak.abs() < _ZERO
    peak = torch.where(empty, 1.0, peak)
    weighted, levels, product = weights * x, torch.empty_like(x), torch.empty_like(x)

    def sums(inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.mul(x, inverse, out=levels).round_().clamp_(-top, top - 1)
        sum_xl = in_order(torch.mul(weighted, levels, out=product))
        return sum_xl, in_order(torch.mul(weights, levels, out=product).mul_(levels))

    inverse = torch.tensor(-float(top)) / peak
    sum_xl, sum_ll = sums(inverse)
    scale = torch.where(sum_ll > 0, sum_xl / sum_ll, 0.0)
    best = scale * sum_xl
    for i in [*range(-9, 0), *range(1, 10)]:
        trial = -(torch.tensor(0.1) * i + top) / peak
        sum_xl, sum_ll = sums(trial)
        better = (sum_ll > 0) & (sum_xl * sum_xl > best * sum_ll)
        scale = torch.where(better, sum_xl / sum_ll, scale)
        best = torch.where(better, scale * sum_xl, best)
        inverse = torch.where(better, trial, inverse)
    return torch.where(empty, 0.0, scale), inverse


def descend(
    x: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor, ends: tuple[int, int], strict: bool
) -> torch.Tensor:
    """The least-squares scale (n,) after at most 5 rounds in which one code after the other moves where that helps.

    `levels` (group, n) are changed in place. `strict`: a code stays unless the others alone have a positive norm. Codes
    move only where sum x l > 0. Q3_K starts with its peak at code -4, so that only sub-blocks with a negative peak are
    ever improved: so does the C code.
    """
    weighted = weights * x
    sum_xl, sum_ll = in_order(weighted * levels), in_order(weights * levels * levels)
    for _ in range(5):
        moved = False
        for i, level in enumerate(levels):
            xl, ll = sum_xl - weighted[i] * level, sum_ll - weights[i] * level * level
            new = (x[i] * ll / xl).round_().clamp_(*ends)
            possible = (xl > 0) & (ll > 0) if strict else xl > 0
            xl, ll = xl + weighted[i] * new, ll + weights[i] * new * new
            better = possible & (new != level) & (ll > 0) & (xl * xl * sum_ll > sum_xl * sum_xl * ll)
            if bool(better.any()):
                moved = True
                sum_xl, sum_ll = torch.where(better, xl, sum_xl), torch.where(better, ll, sum_ll)
                level.copy_(torch.where(better, new, level))
        if not moved:
            break
    return torch.where(sum_ll > 0, sum_xl / sum_ll, 0.0)


def _descended(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Q3_K's scales (n,): codes -4 .. 3 from the value of largest magnitude, then improved one by one."""
    peak = _peak(x)
    empty = peak.abs() < _ZERO
    levels = (x * (torch.tensor(-4.0) / torch.where(empty, 1.0, peak))).round_().clamp_(-4, 3)
    return torch.where(empty, 0.0, descend(x, weights, levels, (-4, 3), strict=False))


def _unsigned_levels(x: torch.Tensor, top: int, power: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales or minima (count, n) >= 0 as float16 d (n,) and integers 0 .. top (count, n); `power` weights errors."""
    largest = x.amax(0) + 0.0  # no negative zero is stored
    if power is None:
        inverse = torch.where(largest > 0, torch.tensor(float(top)) / largest, 0.0)
        return _half(largest / top), _levels(x, inverse, top)
    empty = largest < _ZERO
    largest = torch.where(empty, 1.0, largest)
    inverse = torch.tensor(float(top)) / largest
    best = torch.full_like(largest, torch.inf)
    for i in [0, *range(-4, 0), *range(1, 5)]:  # the plain scale first: the others have to be better
        trial = (torch.tensor(0.1) * i + top) / largest
        missed = x - torch.ones(()) / trial * _levels(x, trial, top)
        now = in_order(power * missed * missed)
        inverse, best = torch.where(now < best, trial, inverse), torch.where(now < best, now, best)
    levels = _levels(x, inverse, top)
    d = descend(x, power, levels, (0, top), strict=True)
    return _half(torch.where(empty, 0.0, d)), torch.where(empty, 0.0, levels)


def _levels(x: torch.Tensor, inverse: torch.Tensor, top: int) -> torch.Tensor:
    return (x * inverse).nan_to_num_(nan=0.0).round_().clamp_(0, top)


def _signed_levels(x: torch.Tensor, top: int, zero: int) -> Scales:
    """Scales (count, n) of both signs on a common one that takes the largest, with its sign, to -top."""
    peak = _peak(x)
    empty = peak.abs() < _ZERO
    inverse = torch.tensor(-float(top)) / torch.where(empty, 1.0, peak)
    levels = (x * inverse).round_().clamp_(-top, top - 1).add_(zero)
    of_zeros = 0.0 if top == 32 else float(zero)
    d = torch.where(empty, 0.0, torch.ones(()) / inverse)
    return Scales(d=_half(d), scales=torch.where(empty, of_zeros, levels).T.to(torch.uint8))
