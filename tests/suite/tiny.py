"""Small checkpoints of random weights, made with `transformers` and saved in Hugging Face format."""

import string

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 101
CONTEXT = 64
WINDOW = 7  # shorter than any row, so that a wrong mask shows

_MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "bitnet": (BitNetConfig, BitNetForCausalLM),
}
ARCHITECTURES = {  # a name of the variant: (architecture, options)
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama long rope": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                                      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                      "original_max_position_embeddings": 16}}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mistral tied without window": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2 window from block 1": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW,
                                            "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 12}),  # heads that do not add up to the hidden size
    "qwen3 tied": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "bitnet": ("bitnet", {}),  # norms within attention and MLP
}  # fmt: skip

ROTATING = [name for name in ARCHITECTURES if name != "bitnet"]  # whose every norm stands on the residual stream


def model_of(architecture, seed=0, **options):
    """Weights drawn so that no norm, bias or projection is at a value that would hide a mistake."""
    config, kind = _MODELS[architecture]
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config(**{**shape, **options})).float()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
            else:
                parameter.data.normal_(0.0, 0.5 if "embed" in name else 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def save(model, path, **options):
    """Save in Hugging Face format; returns the directory."""
    model.save_pretrained(path, **options)
    return path


def save_tokenizer(path):
    """A tokenizer of single characters, beside the weights."""
    characters = ["<unk>", "<s>", "</s>", *string.ascii_letters, *string.digits, *" .,;:!?'\"()-\n"]
    vocabulary = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>").save_pretrained(path)


def save_tokens(path, rows, length, seed):
    """A `.npy` file of uniform token ids; returns it."""
    np.save(path, np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)))
    return path


@torch.no_grad()
def logits_of(checkpoint, rows, change=lambda i, block: None):
    """Logits (rows, length, vocabulary) of a `Checkpoint`, block by block; `change` may edit a block before it runs."""
    hidden = checkpoint.embed(rows)
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        change(i, block)
        hidden = checkpoint.run(i, block, hidden)
    return checkpoint.logits(hidden)
