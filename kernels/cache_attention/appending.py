"""One new token for each sequence of a cache, in place.

It enters the ring of the newest as it is. Then, as KIVI has it (Liu et al. 2024, arXiv:2402.02750), the keys of a full
window leave together, and the value that is older than a window by itself: they are rounded and packed, and what their
codes stand for takes their place in the ring, where it is read until the whole tile is read from codes. The cache is
bit for bit what `pack` makes of all its tokens. Plain torch: of the sequences' tokens, one in a window rounds keys.
"""

import torch

from kernels.cache_attention.packing import TILE, Cache, read, rounded, to_words, validate
from kernels.inputs import require


def append(cache: Cache, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Take in keys and values (batch, heads, D), float16, of the next token of every sequence; `cache` is changed.

    Waits for the device once, to see which windows are full. Raises `ValueError` for what does not fit, for values that
    are not finite and for a sequence with no room left, and leaves the cache as it was.
    """
    validate(cache)
    batch, heads, rows, width = cache.window_keys.shape
    for name, new in (("keys", keys), ("values", values)):
        require(name, new, shape=(batch, heads, width), dtypes=(torch.float16,), device=cache.tokens.device)
    if not bool(keys.isfinite().all() and values.isfinite().all()):
        raise ValueError("keys or values are not all finite")
    longest = int(cache.tokens.max())
    if longest >= cache.capacity:
        raise ValueError(f"a sequence has {longest} tokens, expected fewer than the capacity, {cache.capacity}")
    sequence, row = torch.arange(batch, device=keys.device), cache.tokens.long() % rows
    cache.window_keys[sequence, :, row], cache.window_values[sequence, :, row] = keys, values
    cache.tokens.add_(1)
    if cache.packed is None:
        return
    window = rows - TILE
    for one, tokens in enumerate(cache.tokens.tolist()):
        if tokens % window == 0:
            _round_keys(cache, one, torch.arange(tokens - window, tokens, device=keys.device))
    leaving = (cache.tokens > window).nonzero()[:, 0]
    _round_values(cache, leaving, cache.tokens[leaving].long() - window - 1)
    read_from_codes = torch.minimum(cache.tokens // window * window, (cache.tokens - window).clamp(min=0))
    cache.packed.copy_(read_from_codes // TILE * TILE)


def _round_keys(cache: Cache, one: int, token: torch.Tensor) -> None:
    """Round the keys of sequence `one` at `token` (n,), whole groups that follow each other."""
    assert cache.keys is not None and cache.key_scale is not None and cache.key_least is not None
    row = token % cache.window_keys.shape[2]
    codes, scale, least = rounded(cache.window_keys[one][:, row].transpose(1, 2), cache.bits, cache.key_group)
    group = token[:: cache.key_group] // cache.key_group
    cache.keys[one][:, token] = to_words(codes.transpose(1, 2), cache.bits)
    cache.key_scale[one][:, group], cache.key_least[one][:, group] = scale.transpose(1, 2), least.transpose(1, 2)
    cache.window_keys[one][:, row] = read(codes, scale, least).transpose(1, 2)


def _round_values(cache: Cache, sequence: torch.Tensor, token: torch.Tensor) -> None:
    """Round a value of each `sequence` (n,), that at `token` (n,)."""
    assert cache.values is not None and cache.value_scale is not None and cache.value_least is not None
    row = token % cache.window_values.shape[2]
    codes, scale, least = rounded(cache.window_values[sequence, :, row], cache.bits, cache.value_group)
    cache.values[sequence, :, token] = to_words(codes, cache.bits)
    for held, found in ((cache.value_scale, scale), (cache.value_least, least)):
        held[sequence, :, token // TILE, :, token % TILE] = found
    cache.window_values[sequence, :, row] = read(codes, scale, least)
