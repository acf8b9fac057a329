"""Gradients from forward passes alone: simultaneous perturbation along a random direction that a seed draws anew.

With z of independent standard normal numbers,

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps) z

is the gradient, in expectation, of L smoothed by noise of size eps; of a quadratic L it is exactly (z . dL) z (Spall
1992). As z follows from its seed it is never held as a whole, and memory is that of the forward pass (Malladi, Gao,
Nichani, Damian, Lee, Chen, Arora 2023, "Fine-Tuning Language Models with Just Forward Passes", arXiv:2305.17333,
algorithm 1). L may be the loss of a model with quantized weights, which has no gradient worth the name: what descends
is the smoothed loss ("ZeroQAT", arXiv:2509.00031).

Their releases move the parameters themselves, by +eps z, -2 eps z and +eps z, after which they are not quite what they
were. Here a parametrization adds the noise where a parameter is read, so nothing has to be undone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from suite.adaptation.training import Loss


class Shifted(nn.Module):
    """A parametrization: the parameter plus `size` z, where z (like the parameter) follows from `seed` and `place`."""

    def __init__(self, place: int):
        super().__init__()
        self.place, self.seed, self.size = place, 0, 0.0

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """z: standard normal numbers of the shape, type and device of `like`."""
        draw = torch.Generator(like.device).manual_seed((self.seed << 24) + self.place)
        return torch.randn(like.shape, generator=draw, device=like.device, dtype=like.dtype)

    def forward(self, parameter: torch.Tensor) -> torch.Tensor:
        """The parameter as it is read: itself where it is not shifted."""
        return parameter if self.size == 0 else parameter.add(self.noise(parameter), alpha=self.size)


class ZerothOrder:
    """Plain descent along slopes in `directions` random directions for each update, of `noise` times normal numbers.

    Takes every parameter of `model` that requires a gradient, which it registers a parametrization for; other
    parametrizations of the same (fake quantization) come after the noise where they are registered later. Weight decay
    is for matrices. State: the number of updates, from which all noise follows.
    """

    def __init__(self, model: nn.Module, *, noise: float, seed: int, directions: int = 1):
        if not noise > 0 or directions < 1:
            raise ValueError(f"noise {noise}, directions {directions}: expected above 0, and at least 1")
        self.noise, self.seed, self.directions, self.done = noise, seed, directions, 0
        self._slopes: list[tuple[int, float]] = []
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._shifts = [_shift(model, name, place) for place, name in enumerate(names)]

    @torch.no_grad()
    def gradient(self, loss_of: Loss, parts: Sequence[int]) -> tuple[float, bool]:
        """Two forward passes for every direction and micro-batch; both of a pair see the same micro-batch."""
        self._slopes, losses = [], []
        for nth in range(self.directions):
            seed = (self.seed << 16) + self.done * self.directions + nth
            pair = []
            for size in (self.noise, -self.noise):
                with self._shifted(seed, size):
                    pair.append(sum(float(loss_of(part)) for part in parts) / len(parts))
            self._slopes.append((seed, (pair[0] - pair[1]) / (2 * self.noise) / self.directions))
            losses.append((pair[0] + pair[1]) / 2)
        loss_nats = sum(losses) / len(losses)
        return loss_nats, all(torch.isfinite(torch.tensor(slope)) for _, slope in self._slopes)

    @torch.no_grad()
    def descend(self, rate: float, decay: float) -> None:
        """Draw the directions again, one parameter at a time, and move against their slopes."""
        for parameter, shift in self._shifts:
            if decay and parameter.ndim >= 2:
                parameter.mul_(1 - rate * decay)
            for seed, slope in self._slopes:
                shift.seed = seed
                parameter.add_(shift.noise(parameter), alpha=-rate * slope)
        self.done += 1

    @contextmanager
    def _shifted(self, seed: int, size: float) -> Iterator[None]:
        for _, shift in self._shifts:
            shift.seed, shift.size = seed, size
        try:
            yield
        finally:
            for _, shift in self._shifts:
                shift.size = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The number of updates that were made."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after as many."""
        self.done = int(state["done"])


def _shift(model: nn.Module, name: str, place: int) -> tuple[nn.Parameter, Shifted]:
    """The parameter of that name, which from now on is read through a `Shifted`, and that."""
    owner, _, own = name.rpartition(".")
    module, shift = model.get_submodule(owner), Shifted(place)
    parametrize.register_parametrization(module, own, shift)
    original = module.parametrizations[own].original  # type: ignore[union-attr, index]
    return original, shift
