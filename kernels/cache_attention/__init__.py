"""Attention of one new token over a key-value cache of 2, 4 or 16 bits (decode attention)."""

from kernels.cache_attention.appending import append
from kernels.cache_attention.packing import Cache, pack
from kernels.cache_attention.reference import cache_attention_reference
from kernels.cache_attention.triton import cache_attention, plan

__all__ = ["Cache", "append", "cache_attention", "cache_attention_reference", "pack", "plan"]
