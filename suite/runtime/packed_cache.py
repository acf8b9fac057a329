"""A cache of `transformers` whose keys and values our kernel attends to, packed as it reads them: KIVI's, on a GPU.

Liu et al. 2024, arXiv:2402.02750; `kernels.cache_attention` has the layout. What it holds is what `suite.kv_cache` says
of the same target, but for two things. A group's least value is stored in float16 where that has it over the scale. And
tokens are rounded as soon as the newest is in, before its query looks and not after: it sees one value, and at the end
of a window all its keys, rounded one step early.

A prompt attends to keys and values as they come, which is right as long as it fits in the window; longer ones come
token by token behind that (`suite.runtime.generation`).
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kernels import cache_attention
from kernels.cache_attention.packing import HEAD_DIMS, PART, WIDTHS
from suite.grids import Integer
from suite.kv_cache.target import CacheTarget

NAME = "bitfrontier-kernel"


def unfit(target: CacheTarget, head_dim: int) -> str | None:
    """Why our kernel does not attend to such a cache, or None."""
    keys, values = target.keys.grid, target.values.grid
    if not (isinstance(keys, Integer) and isinstance(values, Integer) and keys.bits == values.bits in WIDTHS):
        return f"keys and values are {keys} and {values}: expected integers, both of {WIDTHS[0]} or {WIDTHS[1]} bits"
    if (target.keys.along, target.values.along) != ("tokens", "channels") or target.keys.rotate or target.values.rotate:
        return "expected keys in groups of tokens and values in groups of channels, not rotated"
    if target.sinks or target.rotary != "after" or not target.window or target.keys.group % PART:
        return f"{target}: expected no sinks, keys after the rotary embedding, a window, and groups of {PART} tokens"
    if head_dim not in HEAD_DIMS or (isinstance(values.group, int) and head_dim % min(values.group, head_dim)):
        return f"heads have {head_dim} channels, expected one of {HEAD_DIMS}, in whole groups of {values.group}"
    kinds = {keys.convention, values.convention}
    return None if kinds == {"real-zero"} else f"the integers are {sorted(kinds)}: expected real-zero"


class PackedLayer(CacheLayerMixin):
    """One layer of a `PackedCache`; batches without padding."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, target: CacheTarget):
        super().__init__()
        self._target, self._tokens = target, 0
        self.held: cache_attention.Cache | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Round the first tokens."""
        (keys, values), grid = (x.half().contiguous() for x in (key_states, value_states)), self._target.values.grid
        assert isinstance(grid, Integer)
        batch, _, n, width = keys.shape
        group = min(grid.group, width) if isinstance(grid.group, int) else width
        tokens = torch.full((batch,), n, dtype=torch.int32, device=keys.device)
        self.held = cache_attention.pack(keys, values, tokens, bits=grid.bits, window=self._target.window,
                                         key_group=self._target.keys.group, value_group=group)  # fmt: skip
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Take in tokens (rows, heads, n, d); what attention is to read: tensors at first, then what is held.

        Raises `ValueError` for more first tokens than the window, and later for more than one at a time.
        """
        n = key_states.shape[2]
        most = 1 if self.is_initialized else self._target.window
        if n > most:
            raise ValueError(f"{n} tokens behind {self._tokens}: a packed cache takes {most} at a time there")
        self._tokens += n
        if self.held is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        if self._tokens > self.held.capacity:
            self.held = _grown(self.held)
        cache_attention.append(self.held, *(x[:, :, 0].half().contiguous() for x in (key_states, value_states)))
        return self.held, self.held

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, of which about half may be room."""
        return 0 if self.held is None else sum(x.nbytes for x in _tensors(self.held).values())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns there will be, from the first on."""
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        """How many tokens came in."""
        return self._tokens

    def get_max_length(self) -> int:
        """None."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.held, self._tokens, self.is_initialized = None, 0, False


class PackedCache(Cache):
    """Keys and values of all layers of a model; `ValueError` for a target that the kernel does not attend to."""

    def __init__(self, config: Any, target: CacheTarget):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        reason = unfit(target, head_dim)
        if reason is not None:
            raise ValueError(f"no kernel attends to this cache: {reason}")
        super().__init__(layers=[PackedLayer(target) for _ in range(config.num_hidden_layers)])
        self.at_once = target.window

    @property
    def n_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.n_bytes for layer in self.layers if isinstance(layer, PackedLayer))


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | cache_attention.Cache,
    value: torch.Tensor | cache_attention.Cache,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """One query (rows, heads, 1, d) by the kernel, in float16; prompts by torch's own attention.

    Raises `ValueError` for a mask that hides anything, and for a sliding window.
    """
    if isinstance(key, torch.Tensor):
        assert isinstance(value, torch.Tensor)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    hidden = attention_mask is not None and not bool(
        attention_mask.all() if attention_mask.dtype == torch.bool else (attention_mask == 0).all()
    )
    if hidden or sliding_window is not None:
        raise ValueError("a packed cache is for texts without padding, and models without a sliding window")
    found = cache_attention.cache_attention(query[:, :, 0].half().contiguous(), key, scaling)
    return found.to(query.dtype)[:, None], None


def _tensors(cache: cache_attention.Cache) -> dict[str, torch.Tensor]:
    parts = {field.name: getattr(cache, field.name) for field in fields(cache)}
    return {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}


def _grown(cache: cache_attention.Cache) -> cache_attention.Cache:
    """The same with room for twice as many tokens: what is not the window's has tokens, or tiles of them, third."""
    names = ("keys", "values", "key_scale", "key_least", "value_scale", "value_least")
    held = _tensors(cache)
    parts: dict[str, Any] = {name: torch.cat([held[name], torch.zeros_like(held[name])], 2) for name in names}
    return replace(cache, **parts)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
