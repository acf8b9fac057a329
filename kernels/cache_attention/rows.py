"""Rows of `KERNELS`: attention over caches of 4, 2 and 16 bits; the last is what the others are measured against."""

from functools import partial
from typing import NamedTuple

import torch

from kernels.cache_attention.packing import Cache, pack
from kernels.cache_attention.reference import cache_attention_reference
from kernels.cache_attention.triton import cache_attention, plan
from kernels.kernel import Kernel


class Decoding(NamedTuple):
    """One new token for each of `batch` sequences of up to `tokens`; the shortest has `fewest`, or as many (None)."""

    batch: int
    heads: int
    kv_heads: int
    channels: int
    tokens: int
    fewest: int | None = None

    def __str__(self) -> str:
        return f"{self.batch} x {self.heads} / {self.kv_heads} x {self.channels} x {self.tokens} tokens"

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, for sequences of full length."""
        return 4 * self.batch * self.heads * self.channels * self.tokens


def inputs(
    size: Decoding,
    seed: int,
    device: str = "cpu",
    *,
    bits: int,
    key_group: int = 32,
    value_group: int = 32,
    dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, Cache]:
    """Random queries and a cache of random keys and values; lengths of the sequences are spread evenly."""
    draw = torch.Generator(device).manual_seed(seed)
    shape = (size.batch, size.kv_heads, size.tokens, size.channels)
    keys, values = (torch.randn(shape, generator=draw, device=device).half() for _ in range(2))
    query = torch.randn(size.batch, size.heads, size.channels, generator=draw, device=device).to(dtype)
    fewest = size.tokens if size.fewest is None else size.fewest
    tokens = torch.linspace(size.tokens, fewest, size.batch, device=device).to(torch.int32)
    return query, pack(keys, values, tokens, bits=bits, key_group=key_group, value_group=value_group)


CHECK = (
    Decoding(1, 4, 1, 128, 1),
    Decoding(2, 3, 3, 64, 200, 7),
    Decoding(3, 8, 1, 128, 700, 384),
    Decoding(1, 16, 1, 64, 1500),
)
# Llama 3.1 8B: one sequence and eight at 32K, and a batch of short ones
BENCH = (Decoding(1, 32, 8, 128, 32768), Decoding(8, 32, 8, 128, 32768), Decoding(16, 32, 8, 128, 4096))
COMPILE = (Decoding(1, 32, 8, 128, 4096), Decoding(1, 32, 8, 64, 4096))


def _row(name: str, bits: int, key_group: int = 32, value_group: int = 32) -> Kernel:
    return Kernel(
        name=name, reference=cache_attention_reference, kernel=cache_attention, plan=plan,
        inputs=partial(inputs, bits=bits, key_group=key_group, value_group=value_group),
        # weights of the softmax are rounded to float16, 2^-11 of their size at most: independent, and 2^-12.8 on the
        # average, so that six standard deviations are below 1e-3 of the outputs
        check=CHECK, bench=BENCH, tolerance=1e-3, compile=COMPILE, operation="attention",
    )  # fmt: skip


CACHE_ATTENTION_KERNELS = (
    _row("attention-kv16", 16),
    _row("attention-kv4", 4),
    _row("attention-kv2", 2),
    _row("attention-kv2-wide", 2, key_group=64, value_group=64),
)
