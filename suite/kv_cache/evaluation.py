"""A decoder block on whole rows at once, as if every row had been decoded token by token through a quantized cache."""

import copy
from typing import Any

import torch
from torch import nn

from suite.adaptation.straight_through import straight_through
from suite.kv_cache.attention import NAME, QUERIES
from suite.kv_cache.cache import Sides
from suite.kv_cache.codec import NO_TABLES, Tables
from suite.kv_cache.held import Side, Versions, entering
from suite.kv_cache.target import CacheTarget
from suite.transforms import Map


class OneShot:
    """Stands where a block looks for its cache, and takes whole rows; counts what a cache would hold of them."""

    def __init__(self, sides: Sides):
        self._sides = sides
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.rows, self._n_bytes = 0, 0

    @property
    def n_bytes(self) -> float:
        """The bytes that are held after a row, in the mean over rows; all are equal where no outliers are kept."""
        return self._n_bytes / self.rows

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any) -> tuple[Versions, Versions]:
        """Keys and values (rows, heads, n, d) of whole rows, as queries see them."""
        self.rows += len(key_states)
        return self._one(self._sides.keys, key_states), self._one(self._sides.values, value_states)

    def _one(self, side: Side, states: torch.Tensor) -> Versions:
        shown, n_bytes = entering(side, states.detach().transpose(1, 2))
        self._n_bytes += n_bytes
        rows, n = len(states), states.shape[2]
        rounded = _straight_through(states, shown.rounded.transpose(1, 2))
        exact = rounded
        if shown.exact is not shown.rounded:
            exact = _straight_through(states, shown.exact.transpose(1, 2))
        return Versions(exact, rounded, shown.since.expand(rows, n), torch.zeros(rows, dtype=torch.int64))


def _straight_through(states: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """What is held of `states`, with their gradient (Bengio, Leonard, Courville 2013, arXiv:1308.3432)."""
    return straight_through(states, held) if states.requires_grad else held


def evaluate_through(block: nn.Module, config: Any, target: CacheTarget, tables: Tables = NO_TABLES) -> OneShot:
    """Have a decoder block attend through a cache as `target` says, from now on; `config` is its model's.

    `tables` are the learned ones for keys and values where the target takes them. The block is then for whole rows that
    begin without padding.
    """
    shot, attention = OneShot(Sides.of(config, target, tables)), _ours(block, config)
    take_cache(attention, shot)
    attention.__dict__["one_shot"] = shot  # not a module, and no part of the block's state
    return shot


class _RotatedKeys:
    """Stands where a block looks for its cache, and hands keys on through a map; it holds nothing."""

    def __init__(self, m: Map):
        self._map = m

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
        return self._map.forward(key_states), value_states


def rotate_keys(block: nn.Module, config: Any, m: Map) -> None:
    """Have a decoder block's queries and keys go through `m`, a rotation of a head, after the rotary embedding.

    For whole rows without a cache: one that rotates keys (`CacheGrid.rotate`) does it itself, and back.
    """
    attention = _ours(block, config)
    attention.__dict__[QUERIES] = m
    take_cache(attention, _RotatedKeys(m))


def _ours(block: nn.Module, config: Any) -> nn.Module:
    """The block's attention, with a configuration of its own that names our attention function."""
    attention, own = block.get_submodule("self_attn"), copy.deepcopy(config)
    own._attn_implementation = NAME
    attention.config = own
    return attention


def one_shot_of(block: nn.Module) -> OneShot | None:
    """What stands for the block's cache, if anything does."""
    found = block.get_submodule("self_attn").__dict__.get("one_shot")
    return found if isinstance(found, OneShot) else None


def take_cache(attention: nn.Module, cache: Any) -> Any:
    """Have an attention module use this cache, whatever it is called with; returns a handle that ends it."""

    def put(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        return arguments, {**keywords, "past_key_values": cache}

    return attention.register_forward_pre_hook(put, with_kwargs=True)
