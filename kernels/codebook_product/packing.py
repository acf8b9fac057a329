"""Codes of AQLM as the kernels read them: two bytes for eight weights, of two codebooks or of one code of 16 bits.

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh 2024, "Extreme Compression of Large Language Models via
Additive Quantization", arXiv:2401.06118: a vector of eight consecutive inputs of an output is a sum of one entry of
each codebook, times a scale of the output. 2 x 8 are two codebooks of 256 entries, 1 x 16 is one of 65,536.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require

LENGTH = 8  # weights of an entry
OUTPUTS, BLOCKS = 128, 32  # outputs, and vectors of an output, in a tile
FORMATS = {(2, 256): 8, (1, 65536): 16}  # codebooks and their entries: bits of a code


@dataclass(frozen=True, slots=True)
class CodebookWeights:
    """Weights (outputs, inputs): the scale of the output times a sum of codebook entries of eight values.

    `codes` (tiles of inputs, groups of eight outputs, 32, 8, 2), uint8, in the order of `in_tiles`: two bytes for each
    vector, of the two codebooks, or the low and the high one of a code of 16 bits. `codebooks` (2, 256, 8) or
    (1, 65536, 8), float16. `scale` (outputs,) or, for all outputs, (1,), float16.
    """

    codes: torch.Tensor
    codebooks: torch.Tensor
    scale: torch.Tensor
    outputs: int
    inputs: int


def pack(codes: torch.Tensor, codebooks: torch.Tensor, scale: torch.Tensor, *, inputs: int) -> CodebookWeights:
    """Lay out codes (outputs, ceil(inputs / 8), codebooks), integers, with `codebooks` and `scale` as they stay.

    Raises `ValueError` for other numbers of codebooks and entries, shapes that do not match, and codes out of range.
    """
    count, entries = codebooks.shape[:2] if codebooks.dim() == 3 else (0, 0)
    if (count, entries) not in FORMATS:
        raise ValueError(f"codebooks have shape {tuple(codebooks.shape)}, expected (2, 256, 8) or (1, 65536, 8)")
    require("codes", codes, shape=(None, -(-inputs // LENGTH), count), dtypes=(torch.uint8, torch.int32, torch.int64))
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < entries):
        raise ValueError(f"codes lie in [{int(codes.min())}, {int(codes.max())}], expected [0, {entries - 1}]")
    octets = codes if count == 2 else torch.cat([codes & 255, codes.to(torch.int64) >> 8], -1)
    weights = CodebookWeights(
        codes=in_tiles(octets.to(torch.uint8)), codebooks=codebooks, scale=scale, outputs=codes.shape[0], inputs=inputs
    )
    validate(weights)
    return weights


def validate(weights: CodebookWeights) -> None:
    """Raise `ValueError` unless the parts of `weights` belong together."""
    device, books = weights.codes.device, weights.codebooks
    down, across = -(-weights.inputs // (LENGTH * BLOCKS)), -(-weights.outputs // OUTPUTS)
    require("codes", weights.codes, shape=(down, across * OUTPUTS // 8, BLOCKS, 8, 2), dtypes=(torch.uint8,))
    count = 2 if books.shape[0] == 2 else 1
    entries = 256 if count == 2 else 65536
    require("codebooks", books, shape=(count, entries, LENGTH), dtypes=(torch.float16,), device=device)
    if books.data_ptr() % 16:
        raise ValueError(f"codebooks begin at address {books.data_ptr():#x}, expected a multiple of 16")
    outputs = 1 if weights.scale.shape[:1] == (1,) else weights.outputs
    require("scale", weights.scale, shape=(outputs,), dtypes=(torch.float16,), device=device)


def in_tiles(octets: torch.Tensor) -> torch.Tensor:
    """Bytes (outputs, vectors, 2) as (tiles of inputs, groups of outputs, 32 vectors, 8, 2), filled up with zeros.

    Group 8 w + a of a tile of 128 outputs has outputs 32 j + 16 w + 8 h + a at 2 j + h: a thread's 16 bytes are codes
    for outputs that `kernels.vector_product` wants there, and those of a warp, of 32 vectors, lie together.
    """
    down, across = -(-octets.shape[1] // BLOCKS), -(-octets.shape[0] // OUTPUTS)
    full = octets.new_zeros(across * OUTPUTS, down * BLOCKS, 2)
    full[: octets.shape[0], : octets.shape[1]] = octets
    cut = full.view(across, 4, 2, 2, 8, down, BLOCKS, 2)  # outputs: j, w, h, a
    return cut.permute(5, 0, 2, 4, 6, 1, 3, 7).reshape(down, across * OUTPUTS // 8, BLOCKS, 8, 2)


def out_of_tiles(codes: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
    """The inverse of `in_tiles`: bytes (outputs, ceil(inputs / 8), 2)."""
    down, across = codes.shape[0], codes.shape[1] * 8 // OUTPUTS
    cut = codes.view(down, across, 2, 8, BLOCKS, 4, 2, 2).permute(1, 5, 2, 6, 3, 0, 4, 7)
    return cut.reshape(across * OUTPUTS, down * BLOCKS, 2)[:outputs, : -(-inputs // LENGTH)]
