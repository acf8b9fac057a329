"""Attention through a quantized cache, for runs of tokens: what each query would see decoding token by token.

    softmax over j of  q_t . (rounded_j if t >= since_j else exact_j) / sqrt(d),  and the same for values.

Registered with `transformers` under the name "bitfrontier". Softmax is in float32, or float64 where queries are.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from suite.kv_cache.held import Versions

NAME = "bitfrontier"
QUERIES = "queries_through"  # what an attention module calls the map that its queries go through
_SCORES = 1 << 24  # scores held at once


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Versions,
    value: torch.Tensor | Versions,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Queries (rows, heads, n, d) to outputs (rows, n, heads, d); plain attention where keys and values are tensors.

    `attention_mask` is True where a query may look, or is added to the scores; None is causal. Raises `ValueError` for
    dropout, and for padding that the cache was not told of.
    """
    if dropout:
        raise ValueError(f"dropout {dropout}: attention through a quantized cache is for inference")
    turned = module.__dict__.get(QUERIES)
    query = query if turned is None else turned.forward(query)
    keys, values = (x if isinstance(x, Versions) else _plain(x) for x in (key, value))
    rows, heads, n, d = query.shape
    columns = keys.exact.shape[2]
    if isinstance(key, Versions):
        _check_padding(attention_mask, keys.padding, columns, sliding_window)
    scaling = d**-0.5 if scaling is None else scaling
    output = torch.empty(rows, n, heads, values.exact.shape[3], dtype=query.dtype)
    step = max(1, _SCORES // (rows * heads * columns))
    for start in range(0, n, step):
        stop = min(n, start + step)
        steps = torch.arange(columns - n + start, columns - n + stop)
        mask = None if attention_mask is None else attention_mask[..., start:stop, :]
        output[:, start:stop] = _attend(query[:, :, start:stop] * scaling, keys, values, mask, steps)
    return output, None


def _attend(
    query: torch.Tensor, keys: Versions, values: Versions, mask: torch.Tensor | None, steps: torch.Tensor
) -> torch.Tensor:
    """Scaled queries (rows, heads, n, d) at `steps` (n,) to outputs (rows, n, heads, d)."""
    rows, heads, n, _ = query.shape
    shared, columns = keys.exact.shape[1:3]
    flat, wide = (rows, shared, heads // shared * n, -1), (rows, shared, heads // shared, n, columns)
    grouped = query.reshape(flat)
    scores = (grouped @ keys.exact.transpose(2, 3)).reshape(wide)
    if keys.rounded is not keys.exact:
        late = (grouped @ keys.rounded.transpose(2, 3)).reshape(wide)
        scores = torch.where(_is_late(keys, steps), late, scores)
    if mask is None:
        mask = steps[:, None] >= torch.arange(columns)
    mask = mask if mask.ndim == 2 else mask[:, :, None]
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    softmax_type = torch.float64 if query.dtype == torch.float64 else torch.float32
    weights = scores.softmax(-1, dtype=softmax_type).to(query.dtype)
    early = weights
    if values.rounded is not values.exact:
        early = weights.masked_fill(_is_late(values, steps), 0.0)
    found = early.reshape(flat) @ values.exact
    if early is not weights:
        found += (weights - early).reshape(flat) @ values.rounded
    return found.reshape(rows, heads, n, -1).transpose(1, 2)


def _is_late(versions: Versions, steps: torch.Tensor) -> torch.Tensor:
    """Whether queries at `steps` (n,) come late enough for what is rounded, (rows, 1, 1, n, columns)."""
    return steps[:, None] >= versions.since[:, None, None, None, :]


def _plain(x: torch.Tensor) -> Versions:
    return Versions(
        x, x, torch.zeros(x.shape[0], x.shape[2], dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64)
    )


def _check_padding(mask: torch.Tensor | None, padding: torch.Tensor, columns: int, window: int | None) -> None:
    """Raise `ValueError` where what the last query may see is not what the cache holds of the text."""
    last = torch.ones(len(padding), columns, dtype=torch.bool)
    if mask is not None:
        last = (mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] == 0).expand(len(padding), -1)
    hidden = (last.cumsum(1) == 0).sum(1)
    expected = (padding if window is None else padding.clamp(min=columns - window)).clamp(max=columns)
    if not torch.equal(hidden, expected) or not bool((last.sum(1) + hidden == columns).all()):
        raise ValueError(f"by the attention mask {hidden.tolist()} tokens of the rows are padding, the cache was told "
                         f"{padding.tolist()}: give it the attention_mask; padding is on the left")  # fmt: skip


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
