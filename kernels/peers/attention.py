"""Attention of one new token for each sequence, by others: over caches of 16 bits, and of 8.

FlashInfer keeps caches in E4M3 everywhere; its packed ones of 4 bits (NVFP4) are for Blackwell and come with a layout
of pages, so they are not called here.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kernels.contender import Absent, Contender, n_copies
from kernels.peers.package import TOLERANCE, module


def sdpa(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`scaled_dot_product_attention` in float16, heads that share keys told so (`enable_gqa`)."""
    query, keys, values = _drawn(size, seed, device, torch.float16)
    call = partial(F.scaled_dot_product_attention, query[:, :, None], enable_gqa=True)
    return _contender("sdpa", query, keys, values, lambda held: call(*held)[:, :, 0], rotated_bytes)


def flashinfer(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """FlashInfer's `single_decode_with_kv_cache`, keys and values in E4M3; it compiles itself at the first call."""
    if size.batch != 1:
        raise Absent(f"{size.batch} sequences: it takes one, or pages of a cache")
    library = module("flashinfer")
    query, keys, values = _drawn(size, seed, device, torch.float8_e4m3fn)

    def call(held: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        one = (part[0] for part in held)
        return library.single_decode_with_kv_cache(query[0], *one, kv_layout="HND", use_tensor_cores=True)[None]

    return _contender("flashinfer e4m3", query, keys, values, call, rotated_bytes)


def _drawn(size: Any, seed: int, device: str, cached: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (batch, heads, D) in float16, and keys and values (batch, kv_heads, tokens, D) in type `cached`."""
    if size.fewest is not None:
        raise Absent(f"sequences of {size.fewest} to {size.tokens} tokens, expected equal ones")
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.batch, size.kv_heads, size.tokens, size.channels)
    keys, values = (torch.randn(shape, generator=draw, device=device).to(cached) for _ in range(2))
    return torch.randn(size.batch, size.heads, size.channels, generator=draw, device=device).half(), keys, values


def _contender(
    name: str, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: Any, rotated_bytes: int
) -> Contender:
    nbytes = keys.nbytes + values.nbytes
    held = [(keys, values)] + [(keys.clone(), values.clone()) for _ in range(n_copies(nbytes, rotated_bytes) - 1)]
    grouped = query.double().unflatten(1, (keys.shape[1], -1))
    weights = (grouped @ keys.double().transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
    return Contender(
        name=name, kind="peer", dtype="float16", calls=tuple(partial(call, one) for one in held),
        bytes_moved=nbytes + 2 * query.nbytes, bytes_written=query.nbytes,
        reference=(weights @ values.double()).flatten(1, 2), tolerance=TOLERANCE,
    )  # fmt: skip
