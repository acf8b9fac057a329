"""What the kernels compute, in plain torch: every operation in float32, rounded once, in the order given here."""

import math

import torch
import torch.nn.functional as F

from kernels.cache_attention.packing import TILE, to_words
from kernels.float_product.formats import FloatFormat, layout_of, places
from kernels.float_product.reference import values
from kernels.integer_product.packing import pack
from kernels.product.words import Layout, Places, fields, per_group
from kernels.product.words import to_words as matrix_words
from kernels.table_product.packing import LAYOUT
from kernels.ternary_product.packing import pack as pack_trits

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


def table_reference(
    W: torch.Tensor, table: torch.Tensor, group: int | None, scales: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Words and scales of W (outputs, inputs), laid out by `table_product.pack`: the nearest level each."""
    scale, usable = _absmax(W.float(), group, float(table.abs().max()), scales)
    y = W.float() * _spread(_inverse(scale), group, W.shape[1])
    levels = table.double()
    middle, place = (levels[1:] + levels[:-1]) / 2, torch.arange(15, device=W.device)
    above = y.double()[..., None] > middle
    above |= (y.double()[..., None] == middle) & (place % 2 == 1)  # a tie goes up where the upper place is even
    codes = above.sum(-1).where(_spread(usable, group, W.shape[1]), 0)
    return _laid(codes, scale.where(usable, math.nan).to(scales), LAYOUT, group)


def floats_reference(
    W: torch.Tensor, format: FloatFormat, scales: str, group: int | None, block: int = 1
) -> tuple[torch.Tensor, ...]:
    """Words and scales of W (outputs, inputs) by the definition of the format: the nearest of all its numbers.

    Scales are as `floats.plan` leaves them: bytes of E8M0 plus 1, zeros for groups of zeros, bytes of E4M3 plus 120.
    """
    known, levels = W.float(), values(torch.arange(format.top + 1, device=W.device), format)
    reach, group = float(levels[-1]), {"e8m0": 32, "e4m3": 16}.get(scales, group)
    if scales == "e8m0":
        most, usable = _largest(known, group, 1)
        exponent = torch.frexp(most).exponent - torch.frexp(levels[-1]).exponent + 127
        exponent = exponent.where(most > 0, 0).clamp(min=0)
        inverse = torch.ldexp(torch.ones_like(most), 127 - exponent)
        stored = (exponent + 1).where(most.double() * inverse > levels[1] / 2, 0).where(usable, 255).to(torch.uint8)
    elif scales == "e4m3":
        most, usable = _largest(known, group, 1)
        g = _over(known.abs().amax(), 448.0 * reach)
        g = torch.where(g == 0, 1.0, g.clamp(min=torch.finfo(torch.float32).tiny))
        scale = (_over(most, reach) / g).nan_to_num(0).clamp(2.0**-6, 448).to(torch.float8_e4m3fn)
        inverse = (1 / g) / scale.float()
        stored = (scale.view(torch.uint8) + 120).where(usable, 255)
    else:
        stored, usable = _absmax(known, group, reach, getattr(torch, scales), block)
        inverse = _inverse(stored)
        stored = stored.where(usable, math.nan)
    each, fine = (_spread(x.repeat_interleave(block, 0)[: W.shape[0]], group, W.shape[1]) for x in (inverse, usable))
    y = known * each
    middle, place = (levels[1:] + levels[:-1]) / 2, torch.arange(format.top, device=W.device)
    size = y.double().abs()[..., None]
    codes = ((size > middle) | ((size == middle) & (place % 2 == 1))).sum(-1)
    codes = (codes + (y.signbit().int() << (format.bits - 1))).where(fine, 0)
    return _laid(codes, stored, layout_of(format, group or 0), group, places)


def ternary_reference(W: torch.Tensor, scale: torch.Tensor, per_byte: int) -> tuple[torch.Tensor, ...]:
    """Words of W (outputs, inputs), as `ternary_product.pack` lays out trits."""
    y = W.float() * (1 / scale)[:, None]
    trits = (y >= 0.5).to(torch.int8) - (y <= -0.5).to(torch.int8)
    return (pack_trits(trits, scale, per_byte=per_byte).words,)


def _largest(W: torch.Tensor, group: int | None, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest magnitude of every group, 0 where it is not finite, and whether it is: (outputs / block, groups)."""
    most = _grouped(W.abs(), group, 0.0).amax(-1)
    most = F.pad(most, (0, 0, 0, -most.shape[0] % block)).unflatten(0, (-1, block)).amax(1)
    return most.where(most.isfinite(), 0), most.isfinite()


def _absmax(
    W: torch.Tensor, group: int | None, reach: float, kind: torch.dtype, block: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales with the digits of `kind`, and whether groups are finite."""
    most, usable = _largest(W, group, block)
    scale = _over(most, reach)
    stored = scale.clamp(max=torch.finfo(kind).max).to(kind).float()
    least = torch.finfo(kind).smallest_normal * torch.finfo(kind).eps
    return torch.where(scale == 0, 1.0, stored.clamp(min=least)), usable


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return 1 / scale.clamp(min=2.0**-127)


def _laid(
    codes: torch.Tensor, scale: torch.Tensor, layout: Layout, group: int | None, where: Places = fields
) -> tuple[torch.Tensor, ...]:
    """Words, and scales in their places; bytes for every piece of a tile together where formats of 4 bits want that."""
    inputs = codes.shape[1]
    whole = layout.tiles(inputs) * layout.inputs
    laid = per_group(scale, layout, inputs, whole if group is None or scale.shape[1] == 1 else group)
    if scale.dtype == torch.uint8 and layout.bits == 4:
        wide = torch.int64 if layout.pieces == 8 else torch.int32
        laid = laid.view(-1, layout.pieces, laid.shape[1]).transpose(1, 2).contiguous().view(wide)[..., 0].contiguous()
    return matrix_words(codes, layout, where), laid


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
