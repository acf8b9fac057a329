"""DFloat11 (Zhang et al. 2025, arXiv:2504.11651), package `dfloat11`: decoding, and the product behind it.

The package decodes a layer's weights before its product, by a hook on the layer. It writes codes a weight at a time in
Python, a quarter of an hour for the largest matrix here, so they are written in bulk: the same Huffman codes (its own
tables, by its own functions) in the same stream. A thread of the decoder reads 8 bytes; *gaps*, 5 bits each, say where
in them the first code begins, *positions* which weight that is for the first of every 512 threads.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernels.coded_product.rows import gaussian
from kernels.contender import Contender, copied, n_bytes, n_copies
from kernels.peers.package import TOLERANCE, module

THREAD_BYTES, BLOCK = 8, 512  # of the decoder: bytes of a thread, threads of a block
GAP_BITS = 5  # codes take 32 bits at most
CHUNK = 1 << 24  # weights at a time


def dfloat11_decode(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """Weights (outputs, inputs) decoded as its hook does."""
    weights = gaussian(size.outputs, size.inputs, torch.Generator(device).manual_seed(seed), torch.bfloat16)
    layers = _layers(weights, rotated_bytes)

    def call(layer: nn.Module) -> torch.Tensor:
        return _decoded(layer).view(torch.int16)

    return Contender(
        name="dfloat11", kind="peer", dtype="bfloat16", calls=tuple(partial(call, layer) for layer in layers),
        bytes_moved=_stored(layers[0]) + weights.nbytes, bytes_written=weights.nbytes,
        reference=weights.view(torch.int16),
    )  # fmt: skip


def dfloat11_product(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """The product of a layer in bfloat16: its hook, then `F.linear`."""
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).bfloat16()
    weights = gaussian(size.outputs, size.inputs, draw, torch.bfloat16)
    layers, written = _layers(weights, rotated_bytes), 2 * size.rows * size.outputs

    def call(layer: nn.Module) -> torch.Tensor:
        return F.linear(x, _decoded(layer))

    return Contender(
        name="dfloat11", kind="peer", dtype="bfloat16", calls=tuple(partial(call, layer) for layer in layers),
        bytes_moved=_stored(layers[0]) + x.nbytes + written, bytes_written=written,
        reference=x.double() @ weights.double().T, tolerance=TOLERANCE,
    )  # fmt: skip


def _layers(weights: torch.Tensor, rotated_bytes: int) -> list[nn.Module]:
    """As many coded layers as make `rotated_bytes`, as the package's loader leaves them, but for the model around."""
    library, tables = module("dfloat11.dfloat11"), module("dfloat11.dfloat11_utils")
    flat = weights.flatten().view(torch.int16)
    with redirect_stdout(io.StringIO()):  # its functions print what they do
        codec, counter = tables.get_codec(weights)
        table = codec.get_code_table()
        if max(length for length, _ in table.values()) > 32:
            _, _, table = tables.get_32bit_codec(counter)
        luts = tables.get_luts(table).to(weights.device)
    codes, lengths = (torch.zeros(256, dtype=torch.int64) for _ in range(2))
    for symbol, (length, code) in table.items():
        if isinstance(symbol, int):
            codes[symbol], lengths[symbol] = code, length
    end = next(pair for symbol, pair in table.items() if not isinstance(symbol, int))
    exponents = ((flat >> 7) & 255).to(torch.uint8)
    coded = stream(exponents, codes.to(weights.device), lengths.to(weights.device), end)
    parts = {field.name: getattr(coded, field.name) for field in fields(Stream)}
    parts |= {"sign_mantissa": ((flat >> 8 & 128) | (flat & 127)).to(torch.uint8), "luts": luts}
    longest = int(coded.output_positions.diff().max())
    copies = n_copies(sum(map(n_bytes, parts.values())), rotated_bytes)
    hook = library.get_hook((BLOCK,), THREAD_BYTES)
    return [_layer(weights.shape, parts if k == 0 else {name: copied(parts[name]) for name in parts}, longest, hook)
            for k in range(copies)]  # fmt: skip


def _layer(shape: torch.Size, parts: dict[str, torch.Tensor], longest: int, hook: Callable[..., None]) -> nn.Module:
    outputs, inputs = shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    del layer.weight  # the hook sets it
    for name, part in parts.items():
        layer.register_buffer(name, part)
    layer.__dict__["shared_mem_size"] = 4 * BLOCK + 4 + 2 * longest
    layer.register_forward_pre_hook(hook)
    return layer


def _decoded(layer: nn.Module) -> torch.Tensor:
    """What the layer's hook makes of it, on torch's stream: the package launches on its own library's."""
    (hook,) = layer._forward_pre_hooks.values()
    if layer.luts.device.type == "cuda":
        with module("cupy").cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            hook(layer, ())
    else:
        hook(layer, ())
    return layer.weight


def _stored(layer: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in layer.buffers())


@dataclass(frozen=True, slots=True)
class Stream:
    """What the decoder reads: codes' bytes, packed gaps, and positions of blocks with the number of weights behind."""

    encoded_exponent: torch.Tensor  # uint8
    gaps: torch.Tensor  # uint8
    output_positions: torch.Tensor  # int32


def stream(symbols: torch.Tensor, codes: torch.Tensor, lengths: torch.Tensor, end: tuple[int, int]) -> Stream:
    """Write the Huffman codes of `symbols` (n,), uint8, one behind the other, highest bit first.

    `codes` and `lengths` (256,) are int64; `end`, the length of the code that ends a stream and that code, fills up
    the last byte.
    """
    device, thread_bits = symbols.device, 8 * THREAD_BYTES
    counts = torch.bincount(symbols, minlength=256)
    total = int((counts * lengths).sum())
    blocks = -(-total // (thread_bits * BLOCK))
    held = torch.zeros(-(-total // 8) + 4, dtype=torch.int32, device=device)  # codes touch up to 5 bytes
    gaps = torch.zeros(blocks * BLOCK, dtype=torch.int64, device=device)
    positions = torch.full((blocks + 1,), symbols.numel(), dtype=torch.int32, device=device)
    at, thread = 0, -1
    for first in range(0, symbols.numel(), CHUNK):
        part = symbols[first : first + CHUNK].long()
        ends = lengths[part].cumsum(0) + at
        begins = ends - lengths[part]
        shifted = codes[part] << (40 - begins % 8 - lengths[part])
        for byte in range(5):
            held.index_add_(0, begins // 8 + byte, ((shifted >> (32 - 8 * byte)) & 255).int())
        threads = begins // thread_bits
        new = threads.diff(prepend=threads.new_tensor([thread])) > 0
        gaps[threads[new]] = begins[new] % thread_bits
        leading = new & (threads % BLOCK == 0)
        positions[threads[leading] // BLOCK] = first + leading.nonzero()[:, 0].int()
        at, thread = int(ends[-1]), int(threads[-1])
    if total % 8:
        missing, (length, code) = 8 - total % 8, end
        held[total // 8] |= code >> (length - missing) if length >= missing else code << (missing - length)
        if total // thread_bits > thread:
            gaps[total // thread_bits] = total % thread_bits
    bits = (gaps[:, None] >> torch.arange(GAP_BITS - 1, -1, -1, device=device)) & 1
    packed = (bits.view(-1, 8) << torch.arange(7, -1, -1, device=device)).sum(1).to(torch.uint8)
    return Stream(held[: -(-total // 8)].to(torch.uint8), packed, positions)
