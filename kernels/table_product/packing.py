"""Weights `scale * table[code]` with 16 table entries, as the kernel reads them: NF4, a Lloyd-Max table, any other.

bitsandbytes stores NF4 otherwise: codes of the flattened matrix, two to a byte, the first in the high bits, and one
absmax for a block of 64 of them. `pack_flat` takes that. Where the blocks' absmax are quantized in turn (double
quantization, Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3), they stay in 8 bits: `SecondScale`.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require, require_multiple
from kernels.product.words import Layout, columns, per_group, to_words

LAYOUT = Layout(4, 16)  # with 32 rows, products of 32 and 64 tokens need more registers than there are
SECOND_BLOCK = 256  # scales of blocks that share a scale of their own, in bitsandbytes and in QLoRA, section 3
HEADER = 2 + 256  # what stands before the scales of the scales in `TableWeights.second`
LARGEST = torch.finfo(torch.float16).max

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip  # QLoRA, appendix E


@dataclass(frozen=True, slots=True)
class SecondScale:
    """Scales in 8 bits: `values[code] * scale[block // 256] + offset`, all in float32.

    `values` (256,); block counts the groups of all outputs, those of an output after each other; `offset` has shape ().
    """

    values: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class TableWeights:
    """Weights (outputs, inputs): codes in `words`, each group's `scale` (groups, columns), `table` (16,) in float32.

    Scales are float16 or float32, or codes in uint8 of what `second` says: in float32 an offset, the number of groups
    of an output (an int32 by its bits), 256 values, then the scales of 256 scales each. `octets` (2, 8) is the table as
    the kernel takes it, rounded to float16 and to bfloat16: an int32 holds the low bytes of four entries, the last four
    hold the high bytes.
    """

    words: torch.Tensor
    scale: torch.Tensor
    second: torch.Tensor | None
    table: torch.Tensor
    octets: torch.Tensor
    outputs: int
    inputs: int
    group: int


def pack(
    codes: torch.Tensor,
    scale: torch.Tensor,
    table: torch.Tensor,
    *,
    group: int | None = None,
    second: SecondScale | None = None,
) -> TableWeights:
    """Lay out codes (outputs, inputs) in [0, 16) with `scale` (outputs, ceil(inputs / group)) and `table` (16,).

    `group` None means one scale for all inputs of an output, as any group does that holds them. Scales are float16 or
    float32, with `second` codes in uint8. The table's entries, float16 or float32, are rounded to the type of the
    activations that they will meet (half to even). Raises `ValueError` for smaller groups that are no multiple of 16,
    for shapes and types that do not match, codes out of range and entries that float16 cannot hold.
    """
    require("codes", codes, shape=(None, None), dtypes=(torch.uint8, torch.int32, torch.int64))
    if not codes.numel():
        raise ValueError(f"codes has shape {tuple(codes.shape)}, expected at least one weight")
    outputs, inputs = codes.shape
    shape = (outputs, 1 if group is None else -(-inputs // max(group, 1)))
    group = LAYOUT.tiles(inputs) * LAYOUT.inputs if group is None or group >= inputs else group
    require_multiple("group", group, LAYOUT.rows)
    kinds = (torch.float16, torch.float32) if second is None else (torch.uint8,)
    require("scale", scale, shape=shape, dtypes=kinds, device=codes.device)
    require("table", table, shape=(16,), dtypes=(torch.float16, torch.float32), device=codes.device)
    if not bool((table.abs() <= LARGEST).all()):
        raise ValueError(f"table has entries {table.tolist()}, expected finite ones up to {LARGEST:g} in magnitude")
    return TableWeights(
        words=to_words(codes, LAYOUT),
        scale=per_group(scale, LAYOUT, inputs, group),
        second=None if second is None else _flat(second, outputs, inputs, group, codes.device),
        table=table.float(),
        octets=octets_of(table),
        outputs=outputs, inputs=inputs, group=group,
    )  # fmt: skip


def pack_flat(
    packed: torch.Tensor,
    scale: torch.Tensor,
    table: torch.Tensor,
    *,
    outputs: int,
    inputs: int,
    block: int = 64,
    second: SecondScale | None = None,
) -> TableWeights:
    """`pack` for what bitsandbytes' `quantize_4bit` returns of a matrix (outputs, inputs).

    `packed` are its bytes, `scale` (outputs * inputs / block,) its absmax (with double quantization, their codes),
    `table` its code. Raises `ValueError` unless `block` divides `inputs`: blocks that reach from one output into the
    next have no place among scales per output.
    """
    require_multiple("inputs", inputs, block)
    require("packed", packed.reshape(-1), shape=(outputs * inputs // 2,), dtypes=(torch.uint8,))
    require("scale", scale, shape=(outputs * inputs // block,), dtypes=(torch.uint8, torch.float16, torch.float32))
    pairs = packed.reshape(-1, 1)
    codes = torch.cat([pairs >> 4, pairs & 15], 1).reshape(outputs, inputs)
    return pack(codes, scale.reshape(outputs, -1), table, group=block, second=second)


def validate(weights: TableWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    padded, tiles, device = columns(weights.outputs), LAYOUT.tiles(weights.inputs), weights.words.device
    require("words", weights.words, shape=(tiles, 1, LAYOUT.rows, padded), dtypes=(torch.int16,))
    kinds = (torch.float16, torch.float32) if weights.second is None else (torch.uint8,)
    groups = -(-tiles * LAYOUT.inputs // weights.group)
    require("scale", weights.scale, shape=(groups, padded), dtypes=kinds, device=device)
    require("octets", weights.octets, shape=(2, 8), dtypes=(torch.int32,), device=device)
    if weights.second is not None:
        size = HEADER + _second_scales(weights.outputs, weights.inputs, weights.group)
        require("second", weights.second, shape=(size,), dtypes=(torch.float32,), device=device)


def octets_of(table: torch.Tensor) -> torch.Tensor:
    """The table (16,) as the kernel takes it, in float16 and in bfloat16: see `TableWeights`."""
    return torch.stack([_octets(table.to(dtype)) for dtype in (torch.float16, torch.bfloat16)])


def _octets(table: torch.Tensor) -> torch.Tensor:
    """The low bytes of the 16 entries, four to an int32, then the high bytes."""
    return table.view(torch.uint8).view(16, 2).T.contiguous().view(torch.int32).reshape(8)


def _second_scales(outputs: int, inputs: int, group: int) -> int:
    """Scales of scales with their padding: the kernel also looks up those of padded outputs and inputs."""
    last = (columns(outputs) - 1) * -(-inputs // group) + -(-LAYOUT.tiles(inputs) * LAYOUT.inputs // group) - 1
    return last // SECOND_BLOCK + 1


def _flat(second: SecondScale, outputs: int, inputs: int, group: int, device: torch.device) -> torch.Tensor:
    groups = -(-inputs // group)
    stored = -(-outputs * groups // SECOND_BLOCK)
    for name, shape in (("values", (256,)), ("scale", (stored,)), ("offset", ())):
        require(f"second.{name}", getattr(second, name), shape=shape, dtypes=(torch.float32,), device=device)
    flat = torch.zeros(HEADER + _second_scales(outputs, inputs, group), device=device)
    flat[0] = second.offset
    flat.view(torch.int32)[1] = groups
    flat[2:HEADER] = second.values
    flat[HEADER : HEADER + stored] = second.scale
    return flat
