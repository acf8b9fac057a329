"""BitNet's architecture in another model's sizes: a norm more before every layer that writes to the residual stream."""

from dataclasses import replace

from transformers import BitNetConfig

from suite.models.architecture import architecture_of
from suite.models.checkpoint import Checkpoint
from suite.outside import UnsupportedError


def with_sub_norms(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint's sizes in BitNet's architecture, which has no weights yet; `UnsupportedError` for biased layers."""
    had = checkpoint.config
    if getattr(had, "attention_bias", False) or checkpoint.head_dim * had.num_attention_heads != had.hidden_size:
        raise UnsupportedError(f"{checkpoint.name}: BitNet's layers have no biases, and heads as wide as the stream")
    config = BitNetConfig(
        vocab_size=had.vocab_size, hidden_size=had.hidden_size, intermediate_size=had.intermediate_size,
        num_hidden_layers=had.num_hidden_layers, num_attention_heads=had.num_attention_heads,
        num_key_value_heads=had.num_key_value_heads, hidden_act=had.hidden_act,
        max_position_embeddings=had.max_position_embeddings, rms_norm_eps=had.rms_norm_eps,
        tie_word_embeddings=had.tie_word_embeddings, rope_parameters=had.rope_parameters,
        bos_token_id=had.bos_token_id, eos_token_id=had.eos_token_id,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    found = replace(checkpoint, config=config, architecture=architecture_of("bitnet"))
    like = checkpoint.files[f"{checkpoint.architecture.norm}.weight"]  # new norms are stored as those there are
    shapes = {name: tuple(x.shape) for name, x in found.skeleton.state_dict().items() if "sub_norm" in name}
    more = {name: replace(like, shape=shape) for name, shape in shapes.items()}
    return replace(found, files=checkpoint.files | more)
