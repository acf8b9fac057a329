"""Coordinates in which keys and values are rounded: before the rotary embedding, or turned by a Hadamard matrix."""

from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

_STATIC = ("default", "linear", "llama3", "yarn")  # tables that do not change with the length of the text


class Rotary:
    """The rotary embedding of a model, applied and taken back; `ValueError` for one that changes as the text grows.

    Llama's module serves all four architectures, whose embeddings differ in parameters alone.
    """

    def __init__(self, config: Any):
        kind = config.rope_parameters["rope_type"]
        if kind not in _STATIC:
            raise ValueError(f"keys before a rotary embedding of type {kind!r}: expected one of {', '.join(_STATIC)}")
        self._tables = LlamaRotaryEmbedding(config)

    def apply(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Keys (..., n, heads, d) of the tokens at `places` (n,) as attention sees them."""
        cos, sin = self._of(x, places)
        return x * cos + _half_turned(x) * sin

    def undo(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The inverse of `apply`, whatever the tables' own scale."""
        cos, sin = self._of(x, places)
        return (x * cos - _half_turned(x) * sin) / (cos**2 + sin**2)

    def _of(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._tables(x, places[None])
        return cos[0, :, None], sin[0, :, None]


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    """(-x2, x1) for the halves of each head."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)
