"""The training loop: AdamW, linear warm-up and cosine decay, gradient clipping, checkpoints, exact resume.

The one loop of the project. What is learned is the caller's: `train` asks for the loss of a step, and a step's data
follows from its number alone, so a run that was killed and started again continues bit for bit.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: `steps` updates, a learning `rate` at its peak, `warmup` as a share of the steps."""

    steps: int
    rate: float = 2e-3
    warmup: float = 0.02
    final: float = 0.02  # the last rate over the peak rate
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # matrices only: norms and biases keep their size
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """The learning rate of update number `step`, counted from 0."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.rate * (step + 1) / rising
        done = (step - rising) / max(1.0, self.steps - rising)
        return self.rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    every: int = 200,
    after: Callable[[int, float], None] = lambda step, loss_nats: None,
) -> None:
    """Minimize `loss_of(step)` over the parameters of `model`, in place.

    `checkpoint` names a file that is written every `every` updates and taken up again where it exists. `after` is
    called with each finished update's number, counted from 1, and its loss in nats.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=schedule.betas)
    first = _resume(checkpoint, model, optimizer)
    model.train()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(matrices + others, schedule.clip)
        optimizer.step()
        after(step + 1, float(loss.detach()))
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            _save(checkpoint, model, optimizer, step + 1)
    model.eval()


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    beside = path.with_suffix(".new")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, beside)
    os.replace(beside, path)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if path is None or not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
