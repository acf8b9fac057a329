"""The training loop: warm-up and cosine decay, accumulated gradients, checkpoints, exact resume.

The one loop of the project. What is learned is the caller's: `train` asks for the loss of a micro-batch, and a
micro-batch's data follows from its number alone, so a run that was killed and started again continues bit for bit. How
parameters descend is an `Update`'s: by backpropagation and AdamW here, by forward passes alone in
`suite.adaptation.zeroth_order`.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from suite.adaptation.paging import PagedStates

Loss = Callable[[int], torch.Tensor]  # of a micro-batch, by its number: a scalar in nats


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

    An update takes the mean of `accumulate` micro-batches. In two phases (BitNet b1.58) the share `second_from` of the
    steps and all after it have another peak rate and weight decay, on the same cosine.
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


class Update(Protocol):
    """How parameters descend: something with a state that a checkpoint keeps."""

    def gradient(self, loss_of: Loss, parts: Sequence[int]) -> tuple[float, bool]:
        """Find the gradient of the mean loss of micro-batches; the loss in nats, and whether all of it is finite."""

    def descend(self, rate: float, decay: float) -> None:
        """Move along the gradient that was found."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on beside the parameters."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class AdamW:
    """Backpropagation, gradient clipping and AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101).

    `decays` says which parameters weight decay is for, by name, and `pace` by what a parameter's rate is multiplied.
    With `pages`, a directory, optimizer states are not resident (`suite.adaptation.paging`), which changes no number.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        decays: Callable[[str, nn.Parameter], bool] = lambda name, parameter: parameter.ndim >= 2,
        pace: Callable[[str], float] = lambda name: 1.0,
        pages: Path | None = None,
    ):
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((not decays(name, parameter), pace(name)), []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": groups[key], "decays": not key[0], "pace": key[1]} for key in sorted(groups)],
            lr=schedule.rate, betas=schedule.betas,
        )  # fmt: skip
        self._parameters = [parameter for key in sorted(groups) for parameter in groups[key]]
        self._schedule = schedule
        self._pages = None if pages is None else PagedStates(self._optimizer, pages)
        stepping = self._pages or self._optimizer
        self._step, self.state_dict = stepping.step, self._optimizer.state_dict
        self.load_state_dict = stepping.load_state_dict

    @torch.enable_grad()
    def gradient(self, loss_of: Loss, parts: Sequence[int]) -> tuple[float, bool]:
        """Backpropagate through every micro-batch, and clip."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._pages is not None:
            self._pages.leave()  # a checkpoint may have been written, which reads all of them
        loss_nats = 0.0
        for part in parts:
            with torch.autocast(self._parameters[0].device.type, torch.bfloat16, enabled=self._schedule.autocast):
                loss = loss_of(part) / len(parts)
            loss.backward()
            loss_nats += float(loss.detach())
        size = nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip)
        return loss_nats, bool(torch.isfinite(size))

    def descend(self, rate: float, decay: float) -> None:
        """One step of AdamW."""
        for group in self._optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate * group["pace"], decay if group["decays"] else 0.0
        self._step()


def train(
    model: nn.Module,
    loss_of: Loss,
    schedule: Schedule,
    *,
    update: Update | None = None,
    checkpoint: Path | None = None,
    every: int = 200,
    after: Callable[[int, float], None] = lambda step, loss_nats: None,
) -> list[float]:
    """Minimize the mean of `loss_of` over the parameters of `model`, in place, by `update` (`AdamW` by default).

    Update number `step` (from 0) takes the micro-batches `step * accumulate` and following. `checkpoint` names a file
    that is written every `every` updates and taken up again where it exists. `after` is called with each finished
    update's number, counted from 1, and its loss in nats; returned are the losses of all updates, those before a resume
    among them. Raises `DivergedError` before an update that would spoil the model.
    """
    update = AdamW(model, schedule) if update is None else update
    losses = _resume(checkpoint, model, update)
    model.train()
    for step in range(len(losses), schedule.steps):
        parts = range(step * schedule.accumulate, (step + 1) * schedule.accumulate)
        loss_nats, finite = update.gradient(loss_of, parts)
        if not (finite and math.isfinite(loss_nats)):
            raise DivergedError(step + 1, loss_nats, checkpoint if checkpoint and checkpoint.exists() else None)
        update.descend(schedule.rate_at(step), schedule.decay_at(step))
        losses.append(loss_nats)
        after(step + 1, loss_nats)
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == schedule.steps):
            _save(checkpoint, model, update, losses)
    model.eval()
    return losses


def _save(path: Path, model: nn.Module, update: Update, losses: list[float]) -> None:
    beside = path.with_suffix(".new")
    torch.save({"losses": losses, "model": model.state_dict(), "update": update.state_dict()}, beside)
    os.replace(beside, path)


def _resume(path: Path | None, model: nn.Module, update: Update) -> list[float]:
    """The losses of the updates that were made before, whose state is taken up."""
    if path is None or not path.exists():
        return []
    state = torch.load(path, weights_only=True, mmap=True)
    model.load_state_dict(state["model"])
    update.load_state_dict(state["update"])
    return list(state["losses"])
