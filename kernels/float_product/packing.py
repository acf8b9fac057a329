"""Floating-point weights in MXFP4, MXFP6, MXFP8, NVFP4, FP8 and what lies between them, as the kernel reads them.

Three kinds of scales: powers of two (E8M0), one for 32 inputs, as in OCP Microscaling Formats (MX) 1.0; E4M3, one for
16 inputs, on a float32 scale of the matrix, as in NVFP4 (NVIDIA 2025, arXiv:2509.25149); and float32 for a channel, a
group, or a block of `block` outputs and `group` inputs (128 x 128: DeepSeek-V3, arXiv:2412.19437).

What is stored beside the codes is what the kernel need not compute. E8M0 scales are stored as exponents relative to the
largest, which is 127; E4M3 scales as bits 7 to 14 of 128 times them in half precision, where all of them are normal
numbers with three bits of fraction. Blocks whose weights are all zero are given a scale that is harmless.
"""

from dataclasses import dataclass

import torch

from kernels.float_product.formats import FORMATS, FloatFormat, layout_of, places
from kernels.inputs import require, require_multiple
from kernels.product.words import Layout, columns, per_group, to_words

GROUPS = {torch.float8_e8m0fnu: 32, torch.float8_e4m3fn: 16}  # inputs that share a scale of this type, by its standard
TOP = 127  # 2^0
SPREAD = 125  # 2^-125 times the smallest number, 1/2 or less in every format, is bfloat16's and float32's smallest


@dataclass(frozen=True, slots=True)
class FloatWeights:
    """Weights (outputs, inputs): codes of `format` in `words`, times a scale of `group` inputs, times `factor`.

    `scale` is, for E8M0, uint8 (groups, columns); with formats of 4 bits int32 (tiles, columns), one byte for each
    piece of a tile; for E4M3 int64 (tiles, columns), alike; otherwise float32 (groups, columns of blocks).
    `scales` is its type as the standards name it: "e8m0", "e4m3", "float32". E8M0 scales span 2^`spread`.
    """

    words: torch.Tensor
    scale: torch.Tensor
    factor: float
    scales: str
    format: FloatFormat
    outputs: int
    inputs: int
    group: int
    block: int = 1
    spread: int = 0

    @property
    def layout(self) -> Layout:
        """Where the codes lie."""
        return layout_of(self.format, self.group)


def pack(
    codes: torch.Tensor,
    scale: torch.Tensor,
    *,
    format: FloatFormat,
    group: int | None = None,
    block: int = 1,
    factor: float = 1.0,
) -> FloatWeights:
    """Lay out codes (outputs, inputs), uint8, with `scale` (ceil(outputs / block), ceil(inputs / group)).

    The type of `scale` says what it is: float8_e8m0fnu of 32 inputs, float8_e4m3fn of 16 inputs (for formats of 4
    bits), or float32 of `group` inputs, by default all of them, and `block` outputs, 1 or 128. `factor` is the scale of
    the whole matrix. Raises `ValueError` for other types and groups, for groups that are no multiple of 32, for
    shapes that do not match, for codes and scales that are infinite or NaN, for E4M3 scales below zero, and for E8M0
    scales that span more than 2^125, which no 16-bit weight could.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(known.name for known in FORMATS)}")
    require("codes", codes, shape=(None, None), dtypes=(torch.uint8,))
    outputs, inputs = codes.shape
    group = _group(scale, format, group, inputs)
    if block != 1 and not (block == 128 and scale.dtype == torch.float32):
        raise ValueError(f"block is {block} with {scale.dtype} scales, expected 1, or 128 with torch.float32")
    shape = (-(-outputs // block), -(-inputs // group))
    require("scale", scale, shape=shape, dtypes=(*GROUPS, torch.float32), device=codes.device)
    bad = int(((codes & (2 ** (format.bits - 1) - 1)) > format.top).sum())
    if bad:
        raise ValueError(f"{bad} codes of {codes.numel()} are infinity or NaN in {format.name}, expected numbers")
    if not bool(scale.float().isfinite().all()):
        raise ValueError("scale has infinity or NaN, expected numbers")
    layout, scales, spread = layout_of(format, group), "float32", 0
    if scale.dtype == torch.float8_e8m0fnu:
        scale, largest, spread = _relative(scale, codes, format, group)
        factor, scales = factor * 2.0**largest, "e8m0"
    elif scale.dtype == torch.float8_e4m3fn:
        codes, scale = _without_zero_scales(codes, scale, group)
        factor, scales = factor / 128, "e4m3"
    laid = per_group(scale, layout, inputs, group)
    if scales == "e8m0":
        laid = laid.masked_fill(laid == 0, TOP)  # what pads tiles: no scale is 0
    if format.bits == 4 and scales != "float32":
        laid = _side_by_side(laid, layout.pieces)
    return FloatWeights(
        words=to_words(codes, layout, places), scale=laid, factor=factor, scales=scales, format=format,
        outputs=outputs, inputs=inputs, group=group, block=block, spread=spread,
    )  # fmt: skip


def validate(weights: FloatWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    layout, padded = weights.layout, columns(weights.outputs)
    tiles = layout.tiles(weights.inputs)
    require("words", weights.words, shape=(tiles, layout.planes, layout.rows, padded), dtypes=(torch.int16,))
    groups = -(-tiles * layout.inputs // weights.group)
    wide = {"e8m0": torch.int32, "e4m3": torch.int64}
    if weights.format.bits == 4 and weights.scales in wide:
        groups, dtype = tiles, wide[weights.scales]
    else:
        dtype = torch.uint8 if weights.scales == "e8m0" else torch.float32
    across = columns(-(-weights.outputs // weights.block))
    require("scale", weights.scale, shape=(groups, across), dtypes=(dtype,), device=weights.words.device)


def _group(scale: torch.Tensor, format: FloatFormat, group: int | None, inputs: int) -> int:
    """The inputs that share a scale."""
    standard = GROUPS.get(scale.dtype)
    if standard == 16 and format.bits != 4:
        raise ValueError(f"scale is {scale.dtype} with {format.name}, expected a format of 4 bits")
    if standard is not None:
        if group not in (None, standard):
            raise ValueError(f"group is {group} with {scale.dtype} scales, expected {standard}")
        return standard
    layout = layout_of(format, 0)
    if group is None:
        return layout.tiles(inputs) * layout.inputs
    require_multiple("group", group, layout.rows)
    return group


def _relative(
    scale: torch.Tensor, codes: torch.Tensor, format: FloatFormat, group: int
) -> tuple[torch.Tensor, int, int]:
    """E8M0 scales as uint8 exponents, the largest `TOP`; log2 of the largest, and of its ratio to the smallest."""
    exponents = scale.view(torch.uint8).to(torch.int32)
    used = _used(codes, 2 ** (format.bits - 1) - 1, group)
    if not bool(used.any()):
        return torch.full_like(exponents, TOP, dtype=torch.uint8), 0, 0
    largest, smallest = int(exponents[used].max()), int(exponents[used].min())
    if largest - smallest > SPREAD:
        raise ValueError(f"scales span 2^{largest - smallest}, from 2^{smallest - 127} on, expected at most 2^{SPREAD}")
    stored = torch.where(used, exponents - largest + TOP, TOP).to(torch.uint8)
    return stored, largest - 127, largest - smallest


def _without_zero_scales(codes: torch.Tensor, scale: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes with zeros where the scale is zero, and E4M3 scales as bits 7 to 14 of 128 times them in half precision."""
    size = scale.float()
    if bool((size < 0).any()):
        raise ValueError(f"scale has {float(size.min())}, expected no scales below zero")
    zero = (size == 0).repeat_interleave(group, 1)[:, : codes.shape[1]]
    pattern = torch.where(size == 0, 1.0, size * 128).half().view(torch.int16)
    return codes.masked_fill(zero, 0), (pattern >> 7).to(torch.uint8)


def _used(codes: torch.Tensor, magnitude: int, group: int) -> torch.Tensor:
    """Whether a group has a weight that is not zero: (outputs, ceil(inputs / group))."""
    outputs, inputs = codes.shape
    full = codes.new_zeros(outputs, -(-inputs // group) * group)
    full[:, :inputs] = codes & magnitude
    return (full.view(outputs, -1, group) != 0).any(-1)


def _side_by_side(laid: torch.Tensor, pieces: int) -> torch.Tensor:
    """Bytes (groups, columns) as one integer for each tile and column: (tiles, columns), the first piece lowest."""
    bytes_last = laid.view(-1, pieces, laid.shape[1]).transpose(1, 2).contiguous()
    return bytes_last.view({4: torch.int32, 8: torch.int64}[pieces])[..., 0].contiguous()
