"""Quantizing and packing by others."""

from functools import partial
from typing import Any

import torch

from kernels.contender import Absent, Contender, n_copies
from kernels.peers.package import module
from kernels.peers.products import NF4_BLOCK
from kernels.table_product.packing import NF4


def bitsandbytes_pack(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """The operator behind bitsandbytes' `quantize_4bit`, to NF4 in blocks of 64 with float32 scales, from float16.

    `quantize_4bit` itself sends the table to the device each time, which a CUDA graph does not take.
    """
    if size.inputs % NF4_BLOCK:
        raise Absent(f"rows of {size.inputs} do not divide into blocks of {NF4_BLOCK}")
    module("bitsandbytes")
    draw = torch.Generator(device).manual_seed(seed)
    W = torch.randn(size.outputs, size.inputs, generator=draw, device=device).half()
    copies = [W] + [W.clone() for _ in range(n_copies(W.nbytes, rotated_bytes) - 1)]
    quantize = torch.ops.bitsandbytes.quantize_4bit.default
    written = W.numel() // 2 + 4 * (W.numel() // NF4_BLOCK)
    return Contender(
        name="bitsandbytes pack", kind="peer", dtype="float16",
        calls=tuple(partial(quantize, one, NF4_BLOCK, "nf4", torch.uint8) for one in copies),
        bytes_moved=W.nbytes + written, bytes_written=written, reference=W, excess=excess,
        tolerance=2.0**-20,  # of a quotient and a bound in float32
    )  # fmt: skip


def excess(result: tuple[torch.Tensor, torch.Tensor], W: torch.Tensor, tolerance: float) -> float:
    """Largest error of weights in units of half the widest gap between levels, for codes and scales of NF4."""
    packed, scale = (part.flatten() for part in result)
    levels = torch.tensor(NF4, device=W.device)
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().int()
    blocks = W.flatten().float().view(-1, NF4_BLOCK)
    error = (levels[codes].view_as(blocks) * scale[:, None] - blocks).abs()
    worst = (error / (scale[:, None] * levels.diff().max() / 2 * (1 + tolerance))).max().item()
    return worst if worst == worst else float("inf")
