"""The divergence of a model with some weights replaced, on a few rows of validation text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from suite.evaluation import Ended
    from suite.models.checkpoint import Checkpoint
    from suite.tokens import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """An unchanged model, rows of text that a seed drew, and its last hidden states on them."""

    checkpoint: "Checkpoint"
    tokens: "Tokens"
    ended: "Ended"

    def nats(self, weights: "Mapping[str, torch.Tensor]") -> float:
        """Mean KL(unchanged || changed) of a token in nats; `weights` (out, in) by the layer's full name."""
        from suite.evaluation import Ended, compare

        changed = Ended(self.checkpoint, _through(self.checkpoint, self.tokens, weights))
        found = compare(changed, self.ended, self.tokens.tensor())
        assert found.paired is not None
        return float(found.paired.kl.mean())


@lru_cache(maxsize=8)
def base_of(model: str, tokens: int, seed: int) -> Base:
    """A model and about so many `tokens` of validation text that follow from `seed`, in rows of 256 or its context."""
    from suite.evaluation import Ended
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(model)
    drawn = load_tokens(None, "validation", checkpoint, min(256, checkpoint.context)).draw(tokens, seed)
    return Base(checkpoint, drawn, Ended(checkpoint, _through(checkpoint, drawn, {})))


def _through(checkpoint: "Checkpoint", tokens: "Tokens", weights: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    from suite.models.architecture import linear

    hidden = checkpoint.embed(tokens.tensor())
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        for layer in checkpoint.architecture.layers:
            name = checkpoint.architecture.full_name(i, layer)
            if name in weights:
                linear(block, layer).weight.copy_(weights[name])
        hidden = checkpoint.run(i, block, hidden)
    return hidden


@lru_cache(maxsize=10)
def rounded(model: str, bits: int, group: int = 128) -> "Mapping[str, torch.Tensor]":
    """All linear layers by RTN in groups; of 1 bit on two levels, half a step on each side of zero."""
    import torch

    from suite.quantize import quantize_matrix
    from theory.entropy.weights import trained

    how: dict[str, Any] = {"convention": "half-integer"} if bits == 1 else {}
    return {name: quantize_matrix(torch.from_numpy(W), method="rtn", bits=bits, group=group, **how).dequantize()
            for name, W in trained(model).items()}  # fmt: skip
