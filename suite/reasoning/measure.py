"""A model at problems: what it writes of them by itself, and what it picks with the truth before it, in batches.

The whole vocabulary is to be picked from, and nothing is told of the format. A prompt is a line break and what is
asked, as in training. All goes through the model's own cache, quantized or not.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from suite.reasoning.letters import Letters
from suite.reasoning.problems import Problem
from suite.reasoning.scores import Marks
from suite.runtime.model import Runtime

BATCH = 128  # problems at once


@torch.no_grad()
def written(runtime: Runtime, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` (1 or more) most likely tokens behind each of `prompts` (n, length), one after the other: (n, count).

    Of equal logits the lowest token is taken.
    """
    cache, fed, picks = runtime.new_cache(), prompts.to(runtime.device), []
    for _ in range(count):
        logits = runtime.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        fed = logits.float().argmax(-1, keepdim=True)
        picks.append(fed)
    return torch.cat(picks, 1).cpu()


@torch.no_grad()
def forced(runtime: Runtime, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model picks at the last `count` places of `rows` (n, length), with the true tokens before each.

    Returns picks (n, count), and the negative log-likelihoods of the true tokens (n, count), float64, in nats.
    """
    cache, fed = runtime.new_cache(), rows.to(runtime.device)
    logits = runtime.model(fed[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=count).logits.float()
    truth = fed[:, -count:, None]
    nats = -logits.log_softmax(-1).gather(-1, truth)[..., 0]
    return logits.argmax(-1).cpu(), nats.double().cpu()


def marks(runtime: Runtime, letters: Letters, problems: Sequence[Problem], batch: int = BATCH) -> Marks:
    """Have a model solve `problems`, all of as many steps, `batch` at once.

    Raises `ValueError` for problems of different lengths, and for one that is longer than the model's context.
    """
    if len({len(problem.steps) for problem in problems}) != 1:
        raise ValueError("expected problems of one length")
    prompts = torch.from_numpy(letters.rows([f"\n{problem.asked}" for problem in problems]))
    truth = torch.from_numpy(letters.rows([problem.written for problem in problems]))
    count, length = truth.shape[1], prompts.shape[1] + truth.shape[1]
    context = int(runtime.model.config.max_position_embeddings)
    if length > context:
        raise ValueError(f"problems of {len(problems[0].steps)} steps have {length} characters, "
                         f"expected no more than the model's context of {context}")  # fmt: skip
    free, picked, nats = [], [], []
    for start, stop in pairwise([*range(0, len(problems), batch), len(problems)]):
        part = slice(start, stop)
        free.append(written(runtime, prompts[part], count) == truth[part])
        picks, likelihoods = forced(runtime, torch.cat([prompts[part], truth[part]], 1), count)
        picked.append(picks == truth[part])
        nats.append(likelihoods)
    columns: list[np.ndarray] = [torch.cat(parts).numpy() for parts in (free, picked, nats)]
    return Marks(free=columns[0], forced=columns[1], nats=columns[2])


def solved(runtime: Runtime, letters: Letters, problems: Sequence[Problem]) -> np.ndarray:
    """Which of `problems`, all of as many steps, the model writes right throughout (n,), found without writing them.

    What it writes is the truth as long as each character is its pick behind the true ones.
    """
    rows = torch.from_numpy(letters.rows([f"\n{problem.asked}{problem.written}" for problem in problems]))
    count = len(problems[0].written)
    return (forced(runtime, rows, count)[0] == rows[:, -count:]).all(1).numpy()


def text_nats(runtime: Runtime, rows: torch.Tensor, batch: int = 16) -> np.ndarray:
    """Negative log-likelihoods of all tokens but the first of `rows` (n, length) of text: (n, length - 1), float64."""
    count = rows.shape[1] - 1
    return torch.cat([forced(runtime, part, count)[1] for part in rows.split(batch)]).numpy()
