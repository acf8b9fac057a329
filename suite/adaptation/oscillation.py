"""Oscillation: weights that training throws back and forth across a threshold, and scales whose gradients disagree.

A latent weight near a threshold is pushed to it from both sides by straight-through gradients, and its code flips with
every few updates (Nagel, Fournarakis, Bondarenko, Blankevoort 2022, "Overcoming Oscillations in Quantization-Aware
Training", arXiv:2203.11086, section 2.2). Gradients of a scale that change sign from one update to the next say the
same of the scale (Jiang et al. 2024, "Gradient-Adaptive Quantization-Aware Training", arXiv:2412.05551, section 3.3).
"""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Flips:
    """Follows a tensor of codes from update to update. A turn is a change against the direction of the one before it.

    `last` codes, the `direction` of each one's last change (0 for none yet), and the update of its last turn.
    """

    last: torch.Tensor
    direction: torch.Tensor
    turned: torch.Tensor
    step: int = 0

    @classmethod
    def of(cls, codes: torch.Tensor) -> "Flips":
        """Nothing has changed yet."""
        never = torch.full(codes.shape, -(1 << 30), dtype=torch.int32)
        return cls(codes.to(torch.int16), torch.zeros(codes.shape, dtype=torch.int8), never)

    def see(self, codes: torch.Tensor) -> None:
        """The codes after one more update; `ValueError` for codes of another shape."""
        if codes.shape != self.last.shape:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: expected {tuple(self.last.shape)}")
        self.step += 1
        change = (codes.to(torch.int16) - self.last).sign().to(torch.int8)
        self.turned[change * self.direction < 0] = self.step
        self.direction = torch.where(change == 0, self.direction, change)
        self.last = codes.to(torch.int16)

    def share(self, window: int) -> float:
        """The share of codes that turned within the last `window` updates."""
        return float((self.step - self.turned < window).float().mean())


@dataclass(slots=True)
class Disorder:
    """Follows gradients from update to update: how often their signs differ from those of the update before.

    `last` gradients, in how many `pairs` of updates they were compared, and how many of each `differed`.
    """

    last: torch.Tensor
    differed: torch.Tensor
    pairs: int = 0

    @classmethod
    def of(cls, gradients: torch.Tensor) -> "Disorder":
        """Nothing has been compared yet."""
        return cls(gradients.clone(), torch.zeros(gradients.shape, dtype=torch.int32))

    def see(self, gradients: torch.Tensor) -> None:
        """The gradients of one more update; `ValueError` for gradients of another shape."""
        if gradients.shape != self.last.shape:
            raise ValueError(f"gradients of shape {tuple(gradients.shape)}: expected {tuple(self.last.shape)}")
        self.differed += gradients.sign() * self.last.sign() < 0
        self.last, self.pairs = gradients.clone(), self.pairs + 1

    @property
    def shares(self) -> torch.Tensor:
        """The share of successive pairs whose signs differ, neither being 0; `ValueError` before there is a pair."""
        if not self.pairs:
            raise ValueError("gradients of 1 update: expected at least 2")
        return self.differed.double() / self.pairs
