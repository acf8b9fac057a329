"""A cache of `transformers` that holds keys and values as a `CacheTarget` says, packed.

    cache = QuantizedCache(model.config, target)
    model.generate(tokens, past_key_values=cache)

With `model.set_attn_implementation("bitfrontier")` tokens may come in runs of any length, with the same result as one
by one. Other attention functions see keys and values as the last token of a run does; where an earlier one would see
others, as a long prompt on a window of exact tokens does, the run is refused.

Supported: batches, with padding on the left when the cache is given the `attention_mask`; padding is not held. Beam
search (rows are exchanged), `crop` where it leaves what the cache would hold had the tokens never come, `reset`. Models
with a sliding window keep, and pay for, the tokens beyond it. Not supported: padding on the right, moving to another
device, rotary embeddings that change with the length where keys are rounded before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from suite.kv_cache.attention import NAME
from suite.kv_cache.codec import NO_TABLES, Tables
from suite.kv_cache.held import Held, Shown, Side, Versions
from suite.kv_cache.rotary import Rotary
from suite.kv_cache.target import CacheTarget


@dataclass(frozen=True, slots=True)
class Sides:
    """How keys and values of one layer are rounded."""

    keys: Side
    values: Side

    @classmethod
    def of(cls, config: Any, target: CacheTarget, tables: Tables) -> "Sides":
        """For a model's configuration, with learned tables where the target takes them."""
        if target.unsupported:
            raise ValueError(target.unsupported)
        heads = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotary = Rotary(config) if target.rotary == "before" else None
        return cls(Side.of(target, target.keys, tables[0], heads, head_dim, rotary),
                   Side.of(target, target.values, tables[1], heads, head_dim, None))  # fmt: skip


@dataclass
class _Rows:
    """Rows of a batch whose texts begin at the same column."""

    rows: torch.Tensor
    padding: int
    keys: Held | None = None
    values: Held | None = None


class QuantizedLayer(CacheLayerMixin):
    """One layer of a `QuantizedCache`."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, sides: Sides, config: Any, padding: torch.Tensor | None):
        super().__init__()
        self._sides, self._config, self._padding = sides, config, padding
        self._groups: list[_Rows] = []
        self._columns = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Sort the rows of the first tokens by their padding."""
        rows = key_states.shape[0]
        padding = torch.zeros(rows, dtype=torch.int64) if self._padding is None else self._padding
        if rows % len(padding):
            raise ValueError(f"the attention mask that the cache was given has {len(padding)} rows, the batch {rows}")
        padding = padding.repeat_interleave(rows // len(padding))  # as `generate` does for beams
        self._groups = [_Rows((padding == n).nonzero()[:, 0], int(n)) for n in padding.unique()]
        self._rows, self.is_initialized = rows, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Take in tokens (rows, heads, n, d); what attention is to read: tensors, or `Versions` for our own."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, self._columns = self._columns, self._columns + key_states.shape[2]
        shown: list[tuple[_Rows, Shown, Shown]] = []
        for group in self._groups:
            new = [states[group.rows, :, max(0, group.padding - before) :].transpose(1, 2)
                   for states in (key_states, value_states)]  # fmt: skip
            bits = self._sides.keys.target.exact_bits
            keys, values = (
                held or Held.nothing(x, bits) for held, x in zip((group.keys, group.values), new, strict=True)
            )
            group.keys, keys_shown = keys.entered(self._sides.keys, new[0])
            group.values, values_shown = values.entered(self._sides.values, new[1])
            shown.append((group, keys_shown, values_shown))
        found = [self._versions([(group, sides[i]) for group, *sides in shown], key_states) for i in (0, 1)]
        if self._config._attn_implementation == NAME:
            return found[0], found[1]
        if any(versions.changes(before) for versions in found):
            raise ValueError(
                f"{key_states.shape[2]} tokens at once, of which the first ones would see others exactly that the last "
                f'sees rounded: call model.set_attn_implementation("{NAME}"), or feed them one by one'
            )
        return found[0].at_last(), found[1].at_last()

    def _versions(self, shown: list[tuple[_Rows, Shown]], like: torch.Tensor) -> Versions:
        """All rows side by side, zeros where there is padding."""
        _, heads, _, d = like.shape
        rounded = like.new_zeros(self._rows, self._columns, heads, d)
        exact = rounded if all(one.exact is one.rounded for _, one in shown) else torch.zeros_like(rounded)
        since = torch.zeros(self._rows, self._columns, dtype=torch.int64)
        padding = torch.zeros(self._rows, dtype=torch.int64)
        for group, one in shown:
            columns = slice(group.padding, group.padding + len(one.since))
            exact[group.rows, columns], rounded[group.rows, columns] = one.exact, one.rounded
            since[group.rows, columns] = one.since + group.padding
            padding[group.rows] = group.padding
        seen = rounded.transpose(1, 2)
        return Versions(seen if exact is rounded else exact.transpose(1, 2), seen, since, padding)

    def _each(self) -> list[Held]:
        return [held for group in self._groups for held in (group.keys, group.values) if held is not None]

    @property
    def n_bytes(self) -> int:
        """The bytes of everything held for all rows."""
        return sum(held.n_bytes for held in self._each())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns there will be, from the first on."""
        return self._columns + query_length, 0

    def get_seq_length(self) -> int:
        """How many columns came in, padding included."""
        return self._columns

    def get_max_length(self) -> int:
        """None."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self._groups, self._columns, self.is_initialized = [], 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` columns; `ValueError` where that needs exact values that are gone."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop {tokens_to_remove}: expected a negative number of tokens to remove")
        columns = max(0, self._columns + tokens_to_remove)
        cut = []
        for group in self._groups:
            assert group.keys is not None and group.values is not None
            tokens = max(0, columns - group.padding)
            keys, values = group.keys.cut(self._sides.keys, tokens), group.values.cut(self._sides.values, tokens)
            cut.append(_Rows(group.rows, group.padding, keys, values))
        self._groups = cut
        self._columns = columns

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self._rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """The rows `indices` alone, in that order."""
        if not self.is_initialized:
            return
        groups = []
        for group in self._groups:
            place = torch.full((self._rows,), -1)
            place[group.rows] = torch.arange(len(group.rows))
            chosen = place[indices]
            there = chosen >= 0
            if bool(there.any()):
                keys, values = (held and held.rows(chosen[there]) for held in (group.keys, group.values))
                groups.append(_Rows(there.nonzero()[:, 0], group.padding, keys, values))
        self._groups, self._rows = groups, len(indices)

    def offload(self) -> None:
        """Refused: the cache stays where it is."""
        raise ValueError("a quantized cache is not moved between devices")


class QuantizedCache(Cache):
    """Keys and values of all layers of a model as `target` says.

    `learned` are the tables from calibration, for the keys and the values of each layer, where the target takes them
    (`suite.kv_cache.fisher.learn`). `attention_mask` (rows, n) is that of a batch with padding on its left. Raises
    `ValueError` for a target that cannot be had for this model.
    """

    def __init__(
        self,
        config: Any,
        target: CacheTarget,
        learned: Sequence[Tables] | None = None,
        attention_mask: torch.Tensor | None = None,
    ):
        padding = None if attention_mask is None else _padding(attention_mask)
        each = learned if learned is not None else [NO_TABLES] * config.num_hidden_layers
        sides = [Sides.of(config, target, tables) for tables in each]
        super().__init__(layers=[QuantizedLayer(one, config, padding) for one in sides])

    @property
    def n_bytes(self) -> int:
        """The bytes of everything held, over all layers and rows."""
        return sum(layer.n_bytes for layer in self.layers if isinstance(layer, QuantizedLayer))


def _padding(mask: torch.Tensor) -> torch.Tensor:
    """How many tokens of each row (rows, n) are padding on its left; `ValueError` for any elsewhere."""
    seen = mask.to(torch.bool)
    padding = (seen.cumsum(1) == 0).sum(1)
    if not bool((seen.sum(1) + padding == seen.shape[1]).all()):
        raise ValueError("an attention mask with padding elsewhere than on the left of a row")
    return padding
