"""Keys and values of a decoding model in 2, 4 or 16 bits, as the kernel reads them and as they can be appended.

Keys are rounded by channel in groups of tokens, values by token in groups of channels, both to s c + m with a float16
scale and the group's least value m in float16; the newest tokens wait in float16 (KIVI: Liu et al. 2024,
arXiv:2402.02750). A token's codes lie together: word i of its D / PIECES words of 16 bits carries channels i,
i + D / PIECES, i + 2 D / PIECES, ... from the lowest bit on. So a token is appended by writing its own words and
nothing else, and a group of keys by writing the words of its tokens and one row of scales.

The newest tokens are in a ring besides, as attention sees them, token t in row t mod rows: exactly, or, once they are
rounded, as the float16 numbers that their codes stand for. Keys are rounded when their groups are full and values as
they leave KIVI's window one by one, so the two differ; but whole tiles that both have left are read from their codes,
and everything after them from the ring, so that whoever reads need not know which is which. The ring has a tile more
rows than KIVI's window for that.
"""

from dataclasses import dataclass

import torch

from kernels.inputs import require, require_multiple

TILE = 128  # tokens that the kernel reads at once: a capacity is a multiple of it
PART = 32  # of them share a scale for sure, so groups of keys are multiples of it
HEAD_DIMS = (64, 80, 96, 112, 128, 256)
BLOCK = 128  # channels that the kernel takes at once of a token, or all where it has fewer
WIDTHS = (2, 4)


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of a batch for one layer, room for `capacity` tokens of each sequence.

    `keys` and `values` (batch, heads, capacity, D bits / 16) are int16 words; the scales and least values of keys
    (batch, heads, capacity / key_group, D) and those of values (batch, heads, tiles, D / value_group, TILE) float16;
    `window_keys` and `window_values` (batch, heads, rows, D) float16. Sequence i has `tokens[i]` tokens; the first
    `packed[i]`, whole tiles, are read from words, the others, `rows` at most, from the window. A cache of 16 bits is
    all window: the rest is None, and `rows` is its capacity.
    """

    keys: torch.Tensor | None
    key_scale: torch.Tensor | None
    key_least: torch.Tensor | None
    values: torch.Tensor | None
    value_scale: torch.Tensor | None
    value_least: torch.Tensor | None
    window_keys: torch.Tensor
    window_values: torch.Tensor
    tokens: torch.Tensor
    packed: torch.Tensor | None
    bits: int
    key_group: int
    value_group: int

    @property
    def capacity(self) -> int:
        """Tokens of a sequence that there is room for."""
        return self.window_keys.shape[2] if self.keys is None else self.keys.shape[2]


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    tokens: torch.Tensor,
    *,
    bits: int,
    window: int = 128,
    key_group: int = 32,
    value_group: int = 32,
    capacity: int | None = None,
) -> Cache:
    """Round keys and values (batch, heads, n, D), float16, of `tokens` (batch,), int32, 1 to n for each sequence.

    As KIVI does token by token: keys leave the window when it is full, all at once, values when it is more than full.
    `window` is a multiple of `key_group`, which is one of 32, and `value_group` a multiple of the channels that the
    kernel takes at once (D bits / 16, at most 128 bits / 16). `capacity` is n, or more, in whole tiles. With 16 bits
    nothing is rounded.
    A group of equal values has scale 0. Raises `ValueError` for what does not fit, and for values that are not finite.
    """
    require("keys", keys, shape=(None, None, None, None), dtypes=(torch.float16,))
    batch, _, length, width = keys.shape
    require("values", values, shape=keys.shape, dtypes=(torch.float16,), device=keys.device)
    require("tokens", tokens, shape=(batch,), dtypes=(torch.int32,), device=keys.device)
    if not keys.numel():
        raise ValueError(f"keys has shape {tuple(keys.shape)}, expected at least one token")
    if not (1 <= int(tokens.min()) and int(tokens.max()) <= length):
        raise ValueError(f"tokens lie in [{int(tokens.min())}, {int(tokens.max())}], expected [1, {length}]")
    if not bool(keys.isfinite().all() and values.isfinite().all()):
        raise ValueError("keys or values are not all finite")
    capacity = -(-(length if capacity is None else capacity) // TILE) * TILE
    if capacity < length:
        raise ValueError(f"capacity is {capacity}, keys has {length} tokens")
    if bits == 16:
        whole = _grown(keys, capacity), _grown(values, capacity)
        return _checked(Cache(None, None, None, None, None, None, whole[0], whole[1], tokens, None, 16, TILE, width))
    _check_groups(bits, width, capacity, key_group, value_group)
    require_multiple("window", window, key_group)
    codes, key_scale, key_least = rounded(_grown(keys, capacity).transpose(2, 3), bits, key_group)
    key_codes, read_keys = codes.transpose(2, 3), read(codes, key_scale, key_least).transpose(2, 3)[:, :, :length]
    value_codes, value_scale, value_least = rounded(_grown(values, capacity), bits, value_group)
    read_values = read(value_codes, value_scale, value_least)[:, :, :length]
    n = torch.arange(length, device=keys.device)
    rounded_keys, rounded_values = tokens // window * window, (tokens - window).clamp(min=0)
    packed = (torch.minimum(rounded_keys, rounded_values) // TILE * TILE).to(torch.int32)
    seen_keys = torch.where((n < rounded_keys[:, None])[:, None, :, None], read_keys, keys)
    seen_values = torch.where((n < rounded_values[:, None])[:, None, :, None], read_values, values)
    return _checked(Cache(
        to_words(key_codes, bits), key_scale.transpose(2, 3).contiguous(), key_least.transpose(2, 3).contiguous(),
        to_words(value_codes, bits),
        _by_tile(value_scale), _by_tile(value_least),
        _ring(seen_keys, packed, tokens, window + TILE), _ring(seen_values, packed, tokens, window + TILE),
        tokens, packed, bits, key_group, value_group,
    ))  # fmt: skip


def validate(cache: Cache) -> None:
    """Raise `ValueError` unless the parts of `cache` belong together. Counts of tokens are not looked at."""
    require("window_keys", cache.window_keys, shape=(None, None, None, None), dtypes=(torch.float16,))
    device, (batch, heads, rows, width) = cache.window_keys.device, cache.window_keys.shape
    if width not in HEAD_DIMS:
        raise ValueError(f"heads have {width} channels, expected one of {HEAD_DIMS}")
    floats: dict[str, tuple[int, ...]] = {"window_values": (batch, heads, rows, width)}
    words: dict[str, tuple[int, ...]] = {}
    counts = ["tokens"]
    if cache.bits == 16:
        require_multiple("capacity", rows, TILE)
    else:
        capacity = cache.capacity
        _check_groups(cache.bits, width, capacity, cache.key_group, cache.value_group)
        words = dict.fromkeys(("keys", "values"), (batch, heads, capacity, width * cache.bits // 16))
        by_key = (batch, heads, capacity // cache.key_group, width)
        by_value = (batch, heads, capacity // TILE, width // cache.value_group, TILE)
        floats |= {"key_scale": by_key, "key_least": by_key, "value_scale": by_value, "value_least": by_value}
        counts += ["packed"]
    for names, dtype in ((words, torch.int16), (floats, torch.float16), (dict.fromkeys(counts, (batch,)), torch.int32)):
        for name, shape in names.items():
            require(name, getattr(cache, name), shape=shape, dtypes=(dtype,), device=device)


def run_of(width: int, bits: int) -> int:
    """Channels that the kernel takes at once of a head of `width`: they lie at the same place of neighboring words."""
    return min(width, BLOCK) * bits // 16


def to_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (..., D), integers in [0, 2^bits), as int16 words (..., D bits / 16)."""
    pieces = codes.to(torch.int32).unflatten(-1, (16 // bits, -1)).unbind(-2)
    return sum((piece << (j * bits) for j, piece in enumerate(pieces)), start=torch.zeros_like(pieces[0])).to(
        torch.int16
    )


def from_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `to_words`: int32 codes."""
    wide = words.to(torch.int32)
    return torch.cat([(wide >> (j * bits)) & (2**bits - 1) for j in range(16 // bits)], -1)


def _check_groups(bits: int, width: int, capacity: int, key_group: int, value_group: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"codes of {bits} bits, expected one of {(*WIDTHS, 16)}")
    if width not in HEAD_DIMS:
        raise ValueError(f"heads have {width} channels, expected one of {HEAD_DIMS}")
    require_multiple("capacity", capacity, TILE)
    require_multiple("key_group", key_group, PART)
    require_multiple("capacity", capacity, key_group)
    require_multiple("value_group", value_group, run_of(width, bits))
    require_multiple("channels", width, value_group)


def rounded(x: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of x (..., n) in groups along the last axis, and their scales and least values (..., n / group)."""
    grouped = x.unflatten(-1, (-1, group)).double()
    least = grouped.amin(-1)
    scale = ((grouped.amax(-1) - least) / (2**bits - 1)).half()
    steps = (grouped - least[..., None]) / scale.double()[..., None]
    codes = steps.nan_to_num(0, 0, 0).round().clamp(0, 2**bits - 1).to(torch.int32)  # half to even; 0 / 0 is 0
    return codes.flatten(-2), scale, least.half()


def _grown(x: torch.Tensor, capacity: int) -> torch.Tensor:
    """The same with zeros up to `capacity` tokens."""
    return torch.cat([x, x.new_zeros(*x.shape[:2], capacity - x.shape[2], x.shape[3])], 2)


def read(codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Scale times codes (..., n) plus the least value of each group along the last axis, as float16."""
    shape = scale.shape[-1], codes.shape[-1] // scale.shape[-1]
    exact = codes.unflatten(-1, shape).double() * scale.double()[..., None] + least.double()[..., None]
    return exact.half().flatten(-2)


def _by_tile(x: torch.Tensor) -> torch.Tensor:
    """Parameters (batch, heads, tokens, groups) as (batch, heads, tiles, groups, TILE)."""
    return x.unflatten(2, (-1, TILE)).transpose(3, 4).contiguous()


def _ring(x: torch.Tensor, first: torch.Tensor, tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Tokens from `first` (batch,) on, in rows t mod `rows`."""
    ring = x.new_zeros(*x.shape[:2], rows, x.shape[3])
    for one, held, start, end in zip(x, ring, first.tolist(), tokens.tolist(), strict=True):
        places = torch.arange(start, end, device=x.device)
        held[:, places % rows] = one[:, places]
    return ring


def _checked(cache: Cache) -> Cache:
    validate(cache)
    return cache
