"""Integer weights `s (q - z)` of 2, 3, 4 or 8 bits as the kernel reads them."""

from dataclasses import dataclass

import torch

from kernels.inputs import require, require_multiple
from kernels.product.words import Layout, columns, per_group, to_words

WIDTHS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Weights (outputs, inputs): codes in `words`, `scale` and `zero` (groups, columns) in float16.

    Without `zero` the zero point is the middle of the range, 2^(bits - 1). One scale serves `group` inputs of an
    output; zero points need not be integers.
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    outputs: int
    inputs: int
    bits: int
    group: int

    @property
    def layout(self) -> Layout:
        """Where the codes lie."""
        return layout_of(self.bits)


def layout_of(bits: int) -> Layout:
    """Tiles of 32 rows; of 16 at 3 bits, whose three planes would otherwise fill registers and shared memory."""
    return Layout(bits, 16 if bits == 3 else 32)


def pack(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None, *, bits: int, group: int | None = None
) -> IntegerWeights:
    """Lay out codes (outputs, inputs) in [0, 2^bits) with `scale` and `zero` (outputs, ceil(inputs / group)).

    `group` None means one scale for all inputs of an output, as any group does that holds them. Raises `ValueError` for
    other widths, for smaller groups that are no multiple of 32 (of 16 at 3 bits), for shapes that do not match, and for
    codes out of range.
    """
    if bits not in WIDTHS:
        raise ValueError(f"weights of {bits} bits, expected one of {WIDTHS}")
    require("codes", codes, shape=(None, None), dtypes=(torch.uint8, torch.int32, torch.int64))
    if not codes.numel():
        raise ValueError(f"codes has shape {tuple(codes.shape)}, expected at least one weight")
    outputs, inputs = codes.shape
    layout = layout_of(bits)
    whole = layout.tiles(inputs) * layout.inputs
    shape = (outputs, 1 if group is None else -(-inputs // max(group, 1)))
    group = whole if group is None or group >= inputs else group
    require_multiple("group", group, layout.rows)
    require("scale", scale, shape=shape, dtypes=(torch.float16,), device=codes.device)
    if zero is not None:
        require("zero", zero, shape=shape, dtypes=(torch.float16,), device=codes.device)
    return IntegerWeights(
        words=to_words(codes, layout),
        scale=per_group(scale, layout, inputs, group),
        zero=None if zero is None else per_group(zero, layout, inputs, group),
        outputs=outputs, inputs=inputs, bits=bits, group=group,
    )  # fmt: skip


def validate(weights: IntegerWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    if weights.bits not in WIDTHS:
        raise ValueError(f"weights of {weights.bits} bits, expected one of {WIDTHS}")
    layout, padded = weights.layout, columns(weights.outputs)
    require_multiple("group", weights.group, layout.rows)
    tiles = layout.tiles(weights.inputs)
    require(
        "words", weights.words, dtypes=(torch.int16,), shape=(tiles, layout.planes, layout.rows, padded)
    )  # fmt: skip
    groups = -(-tiles * layout.inputs // weights.group)
    for name in ("scale", "zero"):
        tensor = getattr(weights, name)
        if tensor is not None:
            require(name, tensor, shape=(groups, padded), dtypes=(torch.float16,), device=weights.words.device)
