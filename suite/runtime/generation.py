"""Greedy generation, timed: a prompt at once, then token after token through `transformers`' cache."""

import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers.cache_utils import Cache

from suite.runtime.model import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Tokens (n,) that followed a prompt, the logits (n, vocabulary), float32, that each was the largest of, seconds.

    `prefill_seconds` run to the first token, `step_seconds` are those of each further one. `cache_bytes` are what keys
    and values took in the end.
    """

    tokens: torch.Tensor
    logits: torch.Tensor | None
    prefill_seconds: float
    step_seconds: tuple[float, ...]
    cache_bytes: int


@torch.no_grad()
def generate(
    runtime: Runtime, prompt: torch.Tensor, tokens: int, *, forced: torch.Tensor | None = None, keep: bool = False
) -> Generated:
    """The `tokens` most likely tokens, one after the other, behind `prompt` (n,); equal logits: the lowest token.

    With `forced` (tokens,) the model is fed these instead of its own picks, which are still what comes back. `keep`
    keeps logits. Raises `ValueError` for an empty prompt, and for more than the model's context.
    """
    context = int(runtime.model.config.max_position_embeddings)
    if not (1 <= len(prompt) and 1 <= tokens and len(prompt) + tokens - 1 <= context):
        raise ValueError(f"{tokens} tokens behind a prompt of {len(prompt)}: expected 1 or more of both, "
                         f"{context + 1} or less together")  # fmt: skip
    cache, fed = runtime.new_cache(), prompt[None].to(runtime.device)
    at_once = getattr(cache, "at_once", len(prompt))  # tokens of a prompt that a cache takes in one run
    picks, kept, times = [], [], []
    for i in range(tokens):
        begun = time.perf_counter()
        if i == 0 and at_once < len(prompt):
            ends = [0, *range(at_once, len(prompt))]
            for start, end in pairwise(ends):
                runtime.model(fed[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
            fed = fed[:, -1:]
        logits = runtime.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
        pick = int((logits == logits.max()).nonzero()[0])
        times.append(time.perf_counter() - begun)
        picks.append(pick)
        if keep:
            kept.append(logits)
        following = pick if forced is None else int(forced[i])
        fed = torch.tensor([[following]], device=runtime.device)
    return Generated(tokens=torch.tensor(picks), logits=torch.stack(kept) if keep else None,
                     prefill_seconds=times[0], step_seconds=tuple(times[1:]), cache_bytes=_held(cache))  # fmt: skip


def _held(cache: Cache) -> int:
    if hasattr(cache, "n_bytes"):  # ours
        return int(cache.n_bytes)
    return sum(getattr(layer, name).nbytes for layer in cache.layers for name in ("keys", "values"))
