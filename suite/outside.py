"""The embedding and the head: the two matrices outside the blocks that a recipe may name.

A lookup's inputs are one-hot, so the Gram matrix of the embedding is diagonal (counts of tokens) along the vocabulary
and says nothing along the hidden dimension, where the groups lie. The embedding is therefore quantized without one,
and a rounding or a grid that asks for it is unsupported: error feedback with H = I would be rounding to nearest. The
head's H is that of the final norm's output. In a tied model the quantized embedding is also the head.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for, quantize_layer
from suite.quantized import Quantized
from suite.recipe import Recipe

T = TypeVar("T")


class UnsupportedError(Exception):
    """A combination that makes no sense on this model; its text is the reason of a skipped record."""


def supported(make: Callable[..., T], *arguments: Any) -> T:
    """What `make` gives; its `ValueError`, for sizes that this model has, as an `UnsupportedError`."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def quantize_embedding(checkpoint: Checkpoint, recipe: Recipe, seed: int) -> dict[str, Quantized]:
    """The quantized embedding by its name, or nothing where the recipe does not name it.

    Raises `UnsupportedError` for what needs a Gram matrix, and for a tied model whose head is to be another matrix.
    """
    name, head = checkpoint.architecture.embedding, checkpoint.architecture.head
    target, other = recipe.target_outside(name), recipe.target_outside(head)
    if checkpoint.tied and other not in (None, target):
        raise UnsupportedError(f"{head} is {name} again in this model, and takes no target of its own")
    if target is None:
        return {}
    try:
        return {name: quantize_layer(checkpoint.weight(name), target, None, generator_for(seed, name), recipe.coding)}
    except ValueError as error:
        raise UnsupportedError(f"{name}: {error} (a lookup's inputs are one-hot and give none)") from error


def quantize_head(
    checkpoint: Checkpoint, recipe: Recipe, gram: Callable[[], torch.Tensor], seed: int
) -> dict[str, Quantized]:
    """The quantized head by its name, or nothing where the recipe does not name it or it is the embedding.

    `gram` gives H (hidden, hidden) of the final norm's output, and is called only for a head that is quantized.
    """
    name = checkpoint.architecture.head
    target = recipe.target_outside(name)
    if target is None or checkpoint.tied:
        return {}
    return {name: quantize_layer(checkpoint.weight(name), target, gram(), generator_for(seed, name), recipe.coding)}


def weights_of(quantized: dict[str, Quantized]) -> dict[str, torch.Tensor]:
    """Dequantized weights (out, in), float32, by the tensor's name."""
    return {f"{name}.weight": found.dequantize() for name, found in quantized.items()}
