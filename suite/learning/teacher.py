"""Text that a model writes itself: what a model of few bits may learn from, as BitDistiller's does.

Every token is drawn from the model's own distribution, not the most likely one, so that what is written is as varied as
what the model knows.
"""

from itertools import pairwise

import torch

from suite.models.checkpoint import Checkpoint
from suite.runtime.model import plain_runtime
from suite.tokens import Tokens

BATCH = 128  # rows at once


@torch.no_grad()
def written(checkpoint: Checkpoint, tokens: Tokens, prompt: int, seed: int, batch: int = BATCH) -> Tokens:
    """Rows of the same length and clusters as `tokens`, whose first `prompt` tokens are kept and the rest written.

    Raises `ValueError` where a prompt is no part of a row. The same rows for the same seed and batch.
    """
    count, length = tokens.rows.shape
    if not 1 <= prompt < length:
        raise ValueError(f"prompt {prompt}: of rows of {length} tokens, expected 1 to {length - 1}")
    runtime, generator = plain_runtime(checkpoint, torch.float32), torch.Generator().manual_seed(seed)
    rows = tokens.tensor().clone()
    for start, stop in pairwise([*range(0, count, batch), count]):
        cache, fed = runtime.new_cache(), rows[start:stop, :prompt]
        for place in range(prompt, length):
            logits = runtime.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            fed = torch.multinomial(logits.double().softmax(-1), 1, generator=generator)
            rows[start:stop, place] = fed[:, 0]
    return Tokens(rows.numpy(), tokens.clusters)
