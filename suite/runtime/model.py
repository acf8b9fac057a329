"""Whole models that generate: `transformers`' own, with `PackedLinear` where weights are packed.

The runtime computes in bfloat16, as the unquantized model beside it does. A recipe that rounds activations or the
cache, or maps inputs at run time, is defined by what float32 gives there; its model computes in float32, and its
products round at their edges what they round. Keys that a transform rotates for no cache's sake are left as they are:
queries are rotated with them, and scores do not change. On a GPU our kernel attends to caches of KIVI's kind
(`suite.runtime.packed_cache`), and others are refused; on a CPU all are `suite.kv_cache`'s.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from suite.kv_cache.attention import NAME
from suite.kv_cache.cache import QuantizedCache
from suite.models.checkpoint import Checkpoint
from suite.readback import PackedModel
from suite.runtime.choice import AUTO, Chooser
from suite.runtime.linear import PackedLinear, through_products

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A model of `transformers`, and what makes an empty cache for it; `chooser` knows why which product was taken."""

    model: PreTrainedModel
    new_cache: Callable[[], Cache]
    chooser: Chooser | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    @property
    def packed_layers(self) -> dict[str, PackedLinear]:
        """The packed linear layers by name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, PackedLinear)}

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: all but the embedding, of which it reads a row.

        A head that shares the embedding's weights is read whole.
        """
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        own = {name: p for name, p in self.model.named_parameters() if p is not embedding.weight}
        packed = self.packed_layers
        dense = sum(p.nbytes for name, p in own.items() if name.rpartition(".")[0] not in packed)
        tied = embedding.weight.nbytes if self._head_is_embedding else 0
        return dense + tied + sum(layer.n_bytes for layer in packed.values())

    @property
    def _head_is_embedding(self) -> bool:
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        return getattr(head, "weight", None) is getattr(embedding, "weight", None)


def device_named(name: str) -> torch.device:
    """The device; `ValueError` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: there is no GPU that torch can use")
    return torch.device(name)


def chooser_for(packed: PackedModel, asked: str = AUTO, device: torch.device = CPU) -> Chooser:
    """A chooser for a packed model: bfloat16, or float32 where its recipe does more than round weights."""
    recipe = packed.recipe
    plain = recipe.activations is None and recipe.cache is None and not packed.maps
    dtype = torch.bfloat16 if plain else torch.float32
    return Chooser(asked, recipe.activations is not None, dtype, device)


@torch.no_grad()
def packed_runtime(packed: PackedModel, chooser: Chooser | None) -> Runtime:
    """The packed model by the products of `chooser`, in its type and on its device, one block after the other.

    Without a chooser its weights are dequantized, and all is float32 on the CPU: the model that is evaluated.
    """
    checkpoint, names = packed.checkpoint, packed.checkpoint.architecture
    dtype, device = (torch.float32, CPU) if chooser is None else (chooser.dtype, chooser.device)
    model = _copy_of(checkpoint)
    for i in range(checkpoint.n_blocks):
        block, layers = packed.block_without_cache(i)
        if chooser is not None:
            through_products(block, layers, chooser.prepare, device, names.full_name(i, ""))
        _put(model, checkpoint, i, block)
    _finish(model, checkpoint, dtype, device)
    outside = packed.layers_outside() if chooser is not None else {}
    found = outside.get(names.embedding if checkpoint.tied else names.head)
    if found is not None and chooser is not None:
        through_products(model, {names.head: found}, chooser.prepare, device)
    target = packed.recipe.held_cache
    if target is None:
        return Runtime(model, lambda: DynamicCache(config=checkpoint.config), chooser)
    if chooser is not None and (device.type == "cuda" or chooser.asked == "kernel"):
        from suite.runtime import packed_cache  # Triton is imported for those alone who ask for it

        packed_cache.PackedCache(model.config, target)  # refuses here what it does not take
        model.set_attn_implementation(packed_cache.NAME)
        return Runtime(model, lambda: packed_cache.PackedCache(model.config, target), chooser)
    model.set_attn_implementation(NAME)
    tables = [packed.cache_tables(i) for i in range(checkpoint.n_blocks)]
    return Runtime(model, lambda: QuantizedCache(model.config, target, tables), chooser)


@torch.no_grad()
def plain_runtime(checkpoint: Checkpoint, dtype: torch.dtype = torch.bfloat16, device: torch.device = CPU) -> Runtime:
    """An unquantized model."""
    model = _copy_of(checkpoint)
    for i in range(checkpoint.n_blocks):
        _put(model, checkpoint, i, checkpoint.block(i).to(dtype))
    _finish(model, checkpoint, dtype, device)
    return Runtime(model, lambda: DynamicCache(config=checkpoint.config))


def _copy_of(checkpoint: Checkpoint) -> PreTrainedModel:
    model = copy.deepcopy(checkpoint.skeleton)
    assert isinstance(model, PreTrainedModel)
    return model


def _put(model: PreTrainedModel, checkpoint: Checkpoint, i: int, block: nn.Module) -> None:
    """Put block `i` in its place; a block that was read alone has a copy of the configuration for its own."""
    for module in block.modules():
        if "config" in module.__dict__:
            module.__dict__["config"] = model.config
    model.set_submodule(f"{checkpoint.architecture.blocks}.{i}", block)


def _finish(model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Put in what is around the blocks, and give everything its type and place; rotary tables stay float32."""
    names = checkpoint.architecture
    for name in (names.embedding, names.norm, *(() if checkpoint.tied else (names.head,))):
        model.set_submodule(name, checkpoint.module(name))
    if checkpoint.tied:
        model.tie_weights()
    whole: nn.Module = model
    whole.to(dtype)
    rotary = model.get_submodule("model.rotary_emb")
    model.set_submodule("model.rotary_emb", type(rotary)(checkpoint.config))
    whole.to(device).eval().requires_grad_(False)
