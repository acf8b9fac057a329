"""Tables of 16 ascending levels, NF4 above all, with the largest magnitude of a group for its scale (`table_product`).

A scale is stored in float32 or float16; one of a group of zeros is 1, none is below the smallest that can be stored.
Values are multiplied by 1 / scale, which is rounded to float32, and so is the product; it gets the nearest level, and
halfway between two that of even place. Ties are told apart before, by `bounds`, so that a code is the number of bounds
below a value: one comparison for each of its four bits. (Source of NF4: Dettmers et al. 2023, QLoRA, arXiv:2305.14314,
section 3, which takes each block's absmax in float32. Where absmax are quantized in turn, that is done to what comes
out of here, 1/64 of the matrix.)
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import require
from kernels.launch import Launch
from kernels.quantize_pack import triton as shared
from kernels.rounding import times
from kernels.table_product.packing import LAYOUT, NF4, TableWeights, octets_of

SCALES = (torch.float16, torch.float32)


@triton.jit
def absmax(
    low, high, usable, factor, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):
    """`SCALE` by the largest magnitude, which becomes `REACH`: stored in float32, or where RULE says so in float16.

    `side` is what values are multiplied by, and whether they are finite.
    """
    most = tl.where(usable, tl.maximum(0.0 - low, high), 0.0)
    scale = tl.div_rn(most, tl.full(most.shape, REACH, tl.float32))
    zero = scale == 0
    if RULE == "float16":
        scale = tl.maximum(tl.minimum(scale, 65504.0).to(tl.float16).to(tl.float32), 5.9604644775390625e-8)  # 2^-24
    scale = tl.where(zero, 1.0, scale)
    # below 2^-127 a reciprocal would be infinite
    inverse = tl.div_rn(tl.full(most.shape, 1.0, tl.float32), tl.maximum(scale, 5.877471754111438e-39))
    return tl.where(usable, scale, float("nan")), scale, (inverse, usable)


@triton.jit
def level(
    x, side, table, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):  # fmt: skip
    """`ENCODE` by 15 ascending bounds in `table`, float32 as int32: how many are below x times the inverse."""
    inverse, usable = side
    y = times(x, inverse[:, None])
    a = over(y, tl.load(table + 7))
    b = over(y, either(a, tl.load(table + 11), tl.load(table + 3)))
    high = either(a, tl.load(table + 13), tl.load(table + 5))
    c = over(y, either(b, high, either(a, tl.load(table + 9), tl.load(table + 1))))
    high = either(
        c, either(a, tl.load(table + 14), tl.load(table + 6)), either(a, tl.load(table + 12), tl.load(table + 4))
    )
    low = either(c, either(a, tl.load(table + 10), tl.load(table + 2)), either(a, tl.load(table + 8), tl.load(table)))
    d = over(y, either(b, high, low))
    return tl.where(usable[:, None], (a & 8) | (b & 4) | (c & 2) | (d & 1), 0)


@triton.jit
def over(y, bound):
    """All bits where y is above a bound, float32 as int32: the sign of a difference, which is never rounded to 0."""
    return (bound.to(tl.float32, bitcast=True) - y).to(tl.int32, bitcast=True) >> 31


@triton.jit
def either(mask, yes, no):
    """Give `yes` where all bits of the mask are set, else `no`: one operation, and no predicates to keep."""
    return no ^ ((no ^ yes) & mask)


def bounds(table: torch.Tensor) -> torch.Tensor:
    """The largest float32 that still belongs to each of 16 ascending levels but the last: (15,).

    Halfway between two levels belongs to the one of even place.
    """
    levels = table.double()
    middle = (levels[1:] + levels[:-1]) / 2
    found = middle.float()
    place = torch.arange(15, device=table.device)
    stays = (found.double() < middle) | ((found.double() == middle) & (place % 2 == 0))
    return torch.where(stays, found, found.nextafter(torch.full_like(found, -torch.inf)))


def plan(W: torch.Tensor, table: torch.Tensor, group: int | None = 64, scales: torch.dtype = torch.float32) -> Launch:
    """The launch of `quantize_table`: it fills words and scales."""
    require("table", table, shape=(16,), dtypes=(torch.float16, torch.float32), device=W.device)
    if not bool((table[1:] > table[:-1]).all()) or not bool(table.isfinite().all()):
        raise ValueError(f"table has entries {table.tolist()}, expected finite ones in ascending order")
    if scales not in SCALES:
        raise ValueError(f"scales are {scales}, expected {' or '.join(map(str, SCALES))}")
    return shared.plan(
        W, layout=LAYOUT, group=group, scale_type=scales, scale=absmax, encode=level,
        rule=str(scales).removeprefix("torch."), reach=float(table.abs().max()), table=bounds(table).view(torch.int32),
        values=32,
    )  # fmt: skip


def quantize_table(
    W: torch.Tensor, table: torch.Tensor, *, group: int | None = 64, scales: torch.dtype = torch.float32
) -> TableWeights:
    """Round W (outputs, inputs), float16, bfloat16 or float32, to scales times the 16 levels of `table`, and pack it.

    Each group of `group` inputs, a multiple of 16, or of all of an output (None), has the scale that puts its largest
    magnitude on the table's; `scales` is the type it is stored in. A group with NaN or infinity has the scale NaN.
    Raises `ValueError` for what does not fit and for tables whose levels do not ascend.
    """
    launch = plan(W, table, group=group, scales=scales)
    words, scale = launch.run()
    return TableWeights(
        words=words, scale=scale, second=None, table=table.float(), octets=octets_of(table), outputs=W.shape[0],
        inputs=W.shape[1], group=launch.constants["GROUP"],
    )  # fmt: skip


def quantize_nf4(W: torch.Tensor, *, group: int = 64) -> TableWeights:
    """`quantize_table` with the levels of NF4."""
    return quantize_table(W, torch.tensor(NF4, device=W.device), group=group)
