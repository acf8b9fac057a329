"""What the kernels compute, in plain torch: every operation in float32, rounded once, in the order given here."""

import math

import torch
import torch.nn.functional as F

from kernels.cache_attention.packing import TILE, to_words
from kernels.integer_product.packing import pack

LARGEST = torch.finfo(torch.float16).max


def integers_reference(W: torch.Tensor, bits: int, group: int | None, convention: str) -> tuple[torch.Tensor, ...]:
    """Words, scales and any zero points of W (outputs, inputs), laid out by `integer_product.pack`."""
    known = W.float()
    low, high = _bounds(known, group)
    usable = low.isfinite() & high.isfinite()
    scale, zero = _affine(low.where(usable, 0), high.where(usable, 0), bits, convention)
    each = _spread(scale, group, W.shape[1]), _spread(zero, group, W.shape[1])
    lowest, top = int(convention == "narrow"), 2**bits - 1
    if convention == "real-zero":
        codes = (known / each[0] + each[1]).round().clamp(lowest, top)
    else:
        codes = ((known / each[0]).round() + each[1]).clamp(lowest, top)
    codes = codes.where(_spread(usable, group, W.shape[1]), lowest)
    scale, zero = (x.where(usable, math.nan).half() for x in (scale, zero))
    stored = zero if convention in ("asymmetric", "real-zero") else None
    weights = pack(codes.to(torch.int32), scale, stored, bits=bits, group=group)
    return (weights.words, weights.scale) if weights.zero is None else (weights.words, weights.scale, weights.zero)


def tokens_reference(
    x: torch.Tensor, what: str, bits: int, group: int = 32, capacity: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Words, scales and least values of keys or values (batch, heads, n, D), as `cache_attention.pack` has them.

    In float64, where differences of float16 numbers are exact.
    """
    length = x.shape[2]
    capacity = -(-(length if capacity is None else capacity) // TILE) * TILE
    full = F.pad(x, (0, 0, 0, capacity - length)).double()
    grouped = (full.transpose(2, 3) if what == "keys" else full).unflatten(-1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    low = low.where(low.isfinite() & high.isfinite(), math.nan)
    scale = ((high - low) / (2**bits - 1)).half()
    steps = (grouped - low[..., None]) / scale.double()[..., None]
    codes = steps.nan_to_num(0, 0, 0).round().clamp(0, 2**bits - 1).to(torch.int32).flatten(-2)  # 0 / 0 is 0
    if what == "keys":
        stored = (scale.transpose(2, 3), low.half().transpose(2, 3))
        return to_words(codes.transpose(2, 3), bits), *(part.contiguous() for part in stored)
    by_tile = (part.unflatten(2, (-1, TILE)).transpose(3, 4).contiguous() for part in (scale, low.half()))
    return to_words(codes, bits), *by_tile


def _affine(low: torch.Tensor, high: torch.Tensor, bits: int, convention: str) -> tuple[torch.Tensor, torch.Tensor]:
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if convention == "asymmetric":
        low, high = low.clamp(max=0), high.clamp(min=0)
    most = torch.maximum(0 - low, high)
    if convention in ("asymmetric", "real-zero"):
        wanted = _over(high - low, top)
    else:
        divisor = {"span": top / 2, "signed-max": middle, "full-range": middle - 1, "narrow": middle - 1}[convention]
        wanted = _over(most, divisor)
    if convention == "real-zero":
        least = most * 2.0**-15
        wanted = torch.where(wanted == 0, least.clamp(min=1), torch.maximum(wanted, least))
    scale = torch.where(wanted == 0, 1.0, _half(wanted).clamp(min=2.0**-24))
    if convention == "signed-max":
        scale = torch.where(high >= 0 - low, -scale, scale)
    if convention == "asymmetric":
        return scale, ((0 - low) / scale).clamp(max=top).round()
    if convention == "real-zero":
        return scale, _half((0 - low) / scale)
    return scale, torch.full_like(scale, middle)


def _half(x: torch.Tensor) -> torch.Tensor:
    """Rounded to float16, back in float32; beyond its range to the end of it."""
    return x.clamp(-LARGEST, LARGEST).half().float()


def _over(x: torch.Tensor, by: float) -> torch.Tensor:
    """The quotient x / by; by a number torch may multiply with the reciprocal instead."""
    return x / torch.full_like(x, by)


def _grouped(W: torch.Tensor, group: int | None, fill: float) -> torch.Tensor:
    """Weights as (outputs, groups, inputs of a group), short groups filled up."""
    group = W.shape[1] if group is None else min(group, W.shape[1])
    return F.pad(W, (0, -W.shape[1] % group), value=fill).unflatten(1, (-1, group))


def _bounds(W: torch.Tensor, group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and largest value of every group, NaN where one is: (outputs, groups)."""
    return _grouped(W, group, math.inf).amin(-1), _grouped(W, group, -math.inf).amax(-1)


def _spread(x: torch.Tensor, group: int | None, inputs: int) -> torch.Tensor:
    """What groups have (outputs, groups) for each of their inputs: (outputs, inputs)."""
    return x.expand(-1, inputs) if group is None else x.repeat_interleave(min(group, inputs), 1)[:, :inputs]
