"""What attention over a packed cache computes, in float64."""

import torch

from kernels.cache_attention.packing import Cache, from_words


def dequantize(cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (batch, heads, capacity, D) in float64, zeros where there is no token.

    What is packed is s c + m rounded to float16, the type that a cache holds and a matrix unit takes.
    """
    n = torch.arange(cache.capacity, device=cache.tokens.device)
    there = (n < cache.tokens[:, None])[:, None, :, None]
    if cache.bits == 16:
        return cache.window_keys.double() * there, cache.window_values.double() * there
    assert cache.keys is not None and cache.values is not None and cache.packed is not None
    assert cache.key_scale is not None and cache.key_least is not None
    assert cache.value_scale is not None and cache.value_least is not None
    group = n // cache.key_group
    keys = from_words(cache.keys, cache.bits) * cache.key_scale.double()[:, :, group]
    keys += cache.key_least.double()[:, :, group]
    group = torch.arange(keys.shape[3], device=n.device) // cache.value_group
    scale, least = (
        x.double().transpose(3, 4).flatten(2, 3)[..., group] for x in (cache.value_scale, cache.value_least)
    )
    values = from_words(cache.values, cache.bits) * scale + least
    packed = (n < cache.packed[:, None])[:, None, :, None]
    row = n % cache.window_keys.shape[2]
    read = (torch.where(packed, codes.half(), window[:, :, row])
            for codes, window in ((keys, cache.window_keys), (values, cache.window_values)))  # fmt: skip
    first, second = (x.double().masked_fill(~there, 0.0) for x in read)
    return first, second


def cache_attention_reference(query: torch.Tensor, cache: Cache, scaling: float | None = None) -> torch.Tensor:
    """Attention of queries (batch, heads, D): (batch, heads, D), float64."""
    batch, heads, width = query.shape
    keys, values = dequantize(cache)
    grouped = query.double().reshape(batch, keys.shape[1], -1, width)
    scores = grouped @ keys.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    n = torch.arange(cache.capacity, device=query.device)
    scores = scores.masked_fill(~(n < cache.tokens[:, None])[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ values).reshape(batch, heads, width)
