"""Where the norms and linears of a decoder block are: one adapter for each architecture."""

from dataclasses import dataclass

from torch import nn

from suite.transforms.scale import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Linear layers that share an input, and what makes it.

    `source` is the norm whose gain, or the linear whose rows, a channel scale can be folded into. `grouped` says that
    with grouped-query attention several channels of the input come from one row of the source.
    """

    layers: tuple[str, ...]
    source: str
    kind: Source
    grouped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Names of modules and tensors in a checkpoint; sites in the order in which a block evaluates them."""

    name: str
    sites: tuple[Site, ...]
    writers: tuple[str, ...]  # the layers whose output is added to the residual stream
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"

    @property
    def layers(self) -> tuple[str, ...]:
        """The linear layers of a block that are quantized."""
        return tuple(layer for site in self.sites for layer in site.layers)

    @property
    def rotates(self) -> bool:
        """Whether every norm stands on the residual stream, where its gain can be folded and the stream rotated."""
        return not any(site.kind == "norm" and "." in site.source for site in self.sites)

    def full_name(self, i: int, layer: str) -> str:
        """A layer of block `i` as the checkpoint names it."""
        return f"{self.blocks}.{i}.{layer}"


_LLAMA_SITES = (
    Site(layers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="input_layernorm", kind="norm"),
    Site(layers=("self_attn.o_proj",), source="self_attn.v_proj", kind="linear", grouped=True),
    Site(layers=("mlp.gate_proj", "mlp.up_proj"), source="post_attention_layernorm", kind="norm"),
    Site(layers=("mlp.down_proj",), source="mlp.up_proj", kind="linear"),
)

# BitNet's, with a norm of its own before each layer that writes to the residual stream (SubLN)
_BITNET_SITES = (
    _LLAMA_SITES[0],
    Site(layers=("self_attn.o_proj",), source="self_attn.attn_sub_norm", kind="norm"),
    _LLAMA_SITES[2],
    Site(layers=("mlp.down_proj",), source="mlp.ffn_sub_norm", kind="norm"),
)

# Llama's block, four times: Qwen2 adds biases to queries, keys and values, Qwen3 norms on queries and keys, Mistral a
# sliding window. None of them moves a norm or a linear.
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
ARCHITECTURES = (
    *(Architecture(name=name, sites=_LLAMA_SITES, writers=_WRITERS) for name in ("llama", "mistral", "qwen2", "qwen3")),
    Architecture(name="bitnet", sites=_BITNET_SITES, writers=_WRITERS),
)


def architecture_of(model_type: str) -> Architecture:
    """The adapter for a `model_type`; `ValueError` that lists the supported ones."""
    for architecture in ARCHITECTURES:
        if architecture.name == model_type:
            return architecture
    supported = ", ".join(a.name for a in ARCHITECTURES)
    raise ValueError(f"unsupported architecture {model_type!r}: expected one of {supported}")


def weight_of(block: nn.Module, name: str) -> nn.Parameter:
    """The weight of a norm or a linear within a block."""
    found = block.get_submodule(name).weight
    assert isinstance(found, nn.Parameter)
    return found


def linear(block: nn.Module, layer: str) -> nn.Linear:
    """The linear layer of this name within a block."""
    found = block.get_submodule(layer)
    assert isinstance(found, nn.Linear), f"{layer} is a {type(found).__name__}"
    return found
