"""The training loop: AdamW, linear warm-up and cosine decay, gradient clipping, checkpoints, exact resume.

The one loop of the project. What is learned is the caller's: `train` asks for the loss of a micro-batch, and a
micro-batch's data follows from its number alone, so a run that was killed and started again continues bit for bit.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


class DivergedError(RuntimeError):
    """The loss or a gradient is NaN or infinite. `step` is the update that was not made, counted from 1."""

    def __init__(self, step: int, loss_nats: float, checkpoint: Path | None):
        kept = "no checkpoint is kept" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        what = "a gradient is not finite" if math.isfinite(loss_nats) else f"the loss is {loss_nats}"
        super().__init__(f"training diverged at step {step}: {what}; {kept}")
        self.step = step


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: `steps` updates, a learning `rate` at its peak, `warmup` as a share of the steps.

    An update is the mean gradient of `accumulate` micro-batches. In two phases (BitNet b1.58) the share `second_from`
    of the steps and all after it have another peak rate and weight decay, on the same cosine.
    """

    steps: int
    rate: float = 2e-3
    warmup: float = 0.02
    final: float = 0.02  # the last rate over the peak rate
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # matrices only: norms and biases keep their size
    clip: float = 1.0
    accumulate: int = 1
    autocast: bool = False  # bfloat16: faster only where the processor multiplies bfloat16 natively
    second_from: float = 1.0
    second_rate: float | None = None
    second_decay: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(f"steps {self.steps}, accumulate {self.accumulate}: expected at least 1 of each")
        shares = (self.warmup, self.final, self.second_from)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"warmup, final, second_from {shares}: expected shares between 0 and 1")
        sizes = (self.rate, self.weight_decay, self.second_rate or 0.0, self.second_decay or 0.0)
        if not all(math.isfinite(size) and size >= 0 for size in sizes) or not self.clip > 0:
            raise ValueError(f"rates and decays {sizes}, clip {self.clip}: expected finite numbers, clip above 0")

    def rate_at(self, step: int) -> float:
        """The learning rate of update number `step`, counted from 0."""
        peak = self.second_rate if self._second(step) and self.second_rate is not None else self.rate
        rising = self.warmup * self.steps
        if step < rising:
            return peak * (step + 1) / rising
        done = (step - rising) / max(1.0, self.steps - rising)
        return peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))

    def decay_at(self, step: int) -> float:
        """The weight decay of update number `step`, counted from 0."""
        return self.second_decay if self._second(step) and self.second_decay is not None else self.weight_decay

    def _second(self, step: int) -> bool:
        return step >= self.second_from * self.steps


def train(
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    every: int = 200,
    decays: Callable[[str, nn.Parameter], bool] = lambda name, parameter: parameter.ndim >= 2,
    pace: Callable[[str], float] = lambda name: 1.0,
    after: Callable[[int, float], None] = lambda step, loss_nats: None,
) -> None:
    """Minimize the mean of `loss_of` over the parameters of `model`, in place.

    Update number `step` (from 0) takes the micro-batches `step * accumulate` and following. `checkpoint` names a file
    that is written every `every` updates and taken up again where it exists. `decays` says which parameters weight
    decay is for, by name, and `pace` by what a parameter's rate is multiplied. `after` is called with each finished
    update's number, counted from 1, and its loss in nats. Raises `DivergedError` before an update that would spoil the
    model.
    """
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(_groups(learned, decays, pace), lr=schedule.rate, betas=schedule.betas)
    first = _resume(checkpoint, model, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device.type
    model.train()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step) * group["pace"]
            group["weight_decay"] = schedule.decay_at(step) if group["decays"] else 0.0
        optimizer.zero_grad(set_to_none=True)
        loss_nats = 0.0
        for part in range(step * schedule.accumulate, (step + 1) * schedule.accumulate):
            with torch.autocast(device, torch.bfloat16, enabled=schedule.autocast):
                loss = loss_of(part) / schedule.accumulate
            loss.backward()
            loss_nats += float(loss.detach())
        size = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        if not (math.isfinite(loss_nats) and bool(torch.isfinite(size))):
            raise DivergedError(step + 1, loss_nats, checkpoint if checkpoint and checkpoint.exists() else None)
        optimizer.step()
        after(step + 1, loss_nats)
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            _save(checkpoint, model, optimizer, step + 1)
    model.eval()


def _groups(
    learned: dict[str, nn.Parameter], decays: Callable[[str, nn.Parameter], bool], pace: Callable[[str], float]
) -> list[dict]:
    """The optimizer's groups: parameters that share whether they decay and how fast they go, in a fixed order."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in learned.items():
        found.setdefault((not decays(name, parameter), pace(name)), []).append(parameter)
    return [{"params": found[key], "decays": not key[0], "pace": key[1]} for key in sorted(found)]


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
