"""Points of QuIP#'s codebooks as the kernel reads them: a byte to look up, and the signs of four codes in a word.

Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks", arXiv:2402.04396, section 4. A point of E8P is one of 256 patterns of 1/2, 3/2 and 5/2, with signs, and 1/4
added to or taken from all eight values. Codes are those of the release: the pattern in the high byte; in the low one a
bit for each sign, of values 0 to 7 at bits 0, 4, 1, 5, 2, 6, 3, 7; an odd number of bits means -1/4, and bit 0 is to be
flipped then; value 7 of a pattern of odd sum is negated.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require

LENGTH = 8  # weights that a code covers
OUTPUTS, BLOCKS = 64, 16  # outputs, and codes of an output, in a tile: sixteen for each of 64 threads
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of values 0 to 7: bits of a low byte, nibbles of a word
POINTS = {2: 1, 3: 2, 4: 2}  # by bits: points whose sum a weight is
SIGNED = {2: 1, 3: 1, 4: 2}  # by bits: points of E8P among them


@dataclass(frozen=True, slots=True)
class LatticeWeights:
    """Weights (outputs, inputs): scale p, or scale (p + f / residual), with points p and f of eight values.

    `codes` (tiles of inputs, tiles of outputs, points, 64, 16), uint8: the pattern of p, then that of f or its number.
    `signs` (.., .., points of E8P, 64, 4), int32: the low bytes of four codes, bit i of the c-th at bit 4 i + c. Their
    order is that of `in_tiles`. `table` (points, 256), int32: a nibble 2 v + 8 for each value v of a point, of E8P
    before 1/4 is added or taken. `scale` (1,), float16 or float32. A weight takes 2 bits; 3 with f of the 256 points of
    one bit; 4 with f of E8P.
    """

    codes: torch.Tensor
    signs: torch.Tensor
    table: torch.Tensor
    scale: torch.Tensor
    outputs: int
    inputs: int
    bits: int
    residual: float


def pack(
    codes: torch.Tensor,
    patterns: torch.Tensor,
    scale: torch.Tensor,
    *,
    inputs: int,
    points: torch.Tensor | None = None,
    residual: float = 1.0,
) -> LatticeWeights:
    """Lay out codes (outputs, ceil(inputs / 8), bits), uint8: low and high byte of p, then, if any, the bytes of f.

    `patterns` (256, 8) are the absolute values, by code; `points` (256, 8) are those of f at 3 bits, multiples of 1/2
    in [-4, 7/2]. Raises `ValueError` for other widths, types, shapes and values.
    """
    require("codes", codes, shape=(None, -(-inputs // LENGTH), None), dtypes=(torch.uint8,))
    outputs, _, bits = codes.shape
    if bits not in POINTS:
        raise ValueError(f"codes have {bits} bytes for eight weights, expected 2, 3 or 4")
    if (points is None) != (bits != 3):
        raise ValueError(f"points are {'missing' if points is None else 'given'} at {bits} bits; they belong to 3")
    if not (0 < residual < float("inf")):
        raise ValueError(f"residual is {residual}, expected a positive number")
    device = codes.device
    require("scale", scale, shape=(1,), dtypes=(torch.float16, torch.float32), device=device)
    tables = [_e8p_table(patterns, device)] * SIGNED[bits] + ([] if points is None else [_table(points, device)])
    looked_up = codes[..., 1::2] if bits != 3 else codes[..., 1:]
    return LatticeWeights(
        codes=torch.stack([in_tiles(plane) for plane in looked_up.unbind(-1)], 2),
        signs=torch.stack([_four_at_once(in_tiles(plane)) for plane in codes[..., :3:2].unbind(-1)[: SIGNED[bits]]], 2),
        table=torch.stack(tables), scale=scale, outputs=outputs, inputs=inputs, bits=bits, residual=residual,
    )  # fmt: skip


def validate(weights: LatticeWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    if weights.bits not in POINTS:
        raise ValueError(f"weights of {weights.bits} bits, expected 2, 3 or 4")
    device, shape = weights.codes.device, tiles(weights.outputs, weights.inputs)
    n = POINTS[weights.bits]
    require("codes", weights.codes, shape=(*shape, n, 64, 16), dtypes=(torch.uint8,))
    require("signs", weights.signs, shape=(*shape, SIGNED[weights.bits], 64, 4), dtypes=(torch.int32,), device=device)
    require("table", weights.table, shape=(n, 256), dtypes=(torch.int32,), device=device)
    require("scale", weights.scale, shape=(1,), dtypes=(torch.float16, torch.float32), device=device)


def tiles(outputs: int, inputs: int) -> tuple[int, int]:
    """Tiles of inputs and of outputs."""
    return -(-inputs // (LENGTH * BLOCKS)), -(-outputs // OUTPUTS)


def in_tiles(codes: torch.Tensor) -> torch.Tensor:
    """Codes (outputs, blocks of inputs) as (tiles of inputs, tiles of outputs, 64 threads, 16), filled up with zeros.

    Thread 32 w + 4 a + b has outputs 32 j + 16 w + 8 h + a of its tile and blocks 4 i + b, the code of (i, j, h) at
    4 i + 2 j + h: where `kernels.vector_product` wants them.
    """
    down, across = -(-codes.shape[1] // BLOCKS), -(-codes.shape[0] // OUTPUTS)
    full = codes.new_zeros(across * OUTPUTS, down * BLOCKS)
    full[: codes.shape[0], : codes.shape[1]] = codes
    cut = full.view(across, 2, 2, 2, 8, down, 4, 4)  # outputs: j, w, h, a; blocks: i, b
    return cut.permute(5, 0, 2, 4, 7, 6, 1, 3).reshape(down, across, 64, 16)


def out_of_tiles(codes: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
    """The inverse of `in_tiles`: codes (outputs, ceil(inputs / 8))."""
    down, across = codes.shape[:2]
    cut = codes.reshape(down, across, 2, 8, 4, 4, 2, 2).permute(1, 6, 2, 7, 3, 0, 5, 4)
    return cut.reshape(across * OUTPUTS, down * BLOCKS)[:outputs, : -(-inputs // LENGTH)]


def _four_at_once(octets: torch.Tensor) -> torch.Tensor:
    """Bytes (.., 16) as int32 words (.., 4): bit i of byte 4 q + c at bit 4 i + c of word q."""
    place = torch.arange(4, device=octets.device)
    four = octets.to(torch.int64).unflatten(-1, (4, 4)) << place
    spread = torch.zeros_like(four)
    for bit in range(8):
        spread |= (four << 3 * bit) & (1 << place << 4 * bit)
    return _int32(spread.sum(-1))


def _e8p_table(patterns: torch.Tensor, device: torch.device) -> torch.Tensor:
    require("patterns", patterns, shape=(256, LENGTH), dtypes=(torch.float32, torch.float64))
    if not torch.isin(patterns, torch.tensor([0.5, 1.5, 2.5], dtype=patterns.dtype, device=patterns.device)).all():
        raise ValueError("patterns have other values than 0.5, 1.5 and 2.5")
    values = patterns.clone()
    values[:, 7] *= 1 - 2 * (patterns.sum(1) % 2)  # odd sums
    return _table(values, device)


def _table(points: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Words (256,), int32, of nibbles 2 v + 8, value i's at nibble `PLACES[i]`."""
    require("points", points, shape=(256, LENGTH), dtypes=(torch.float32, torch.float64))
    nibbles = 2 * points.double() + 8
    if not ((nibbles == nibbles.round()) & (0 <= nibbles) & (nibbles <= 15)).all():
        raise ValueError("points have values that are no multiples of 1/2 in [-4, 7/2]")
    shifts = 4 * torch.tensor(PLACES, device=points.device)
    return _int32((nibbles.long() << shifts).sum(1)).to(device)


def _int32(words: torch.Tensor) -> torch.Tensor:
    """Words in [0, 2^32), int64, as the int32 of the same bits."""
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
