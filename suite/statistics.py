"""Layer statistics: what a linear layer's inputs look like, accumulated in float64 over calibration tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLE = 512  # input rows kept as they are, for searches that quantize activations


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """Of the inputs X (n, in) of the layers that share them: H = X^T X / n, mean |x| and max |x| per channel.

    `sample` (<= 512, in), float32, are input rows spread evenly over the tokens; the other figures are float64.
    """

    gram: torch.Tensor
    mean_abs: torch.Tensor
    max_abs: torch.Tensor
    sample: torch.Tensor
    tokens: int

    def scaled(self, s: torch.Tensor) -> "LayerStatistics":
        """The statistics after channel j was divided by `s[j]`."""
        s = s.double()
        return LayerStatistics(gram=self.gram / s / s[:, None], mean_abs=self.mean_abs / s, max_abs=self.max_abs / s,
                               sample=self.sample / s.to(self.sample.dtype), tokens=self.tokens)  # fmt: skip

    def mapped(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> "LayerStatistics":
        """The statistics after a linear map of the channels, given on rows (n, in): H exactly, the rest by the sample.

        The largest and the mean absolute values are those of the (<= 512) sampled rows.
        """
        sample = forward(self.sample)
        size = sample.double().abs()
        return LayerStatistics(gram=forward(forward(self.gram).T.contiguous()).contiguous(), mean_abs=size.mean(0),
                               max_abs=size.amax(0), sample=sample, tokens=self.tokens)  # fmt: skip


class Accumulator:
    """Collects `LayerStatistics` from batches of inputs, in the order they are added."""

    def __init__(self, n_in: int, tokens: int):
        self._gram = torch.zeros(n_in, n_in, dtype=torch.float64)
        self._sum = torch.zeros(n_in, dtype=torch.float64)
        self._max = torch.zeros(n_in, dtype=torch.float64)
        self._wanted = torch.linspace(0, tokens - 1, min(SAMPLE, tokens)).round().to(torch.int64)
        self._sample: list[torch.Tensor] = []
        self._seen = 0

    def add(self, x: torch.Tensor) -> None:
        """Take in a batch of inputs, (..., in)."""
        x = x.detach().reshape(-1, x.shape[-1])
        wanted = self._wanted[(self._wanted >= self._seen) & (self._wanted < self._seen + len(x))] - self._seen
        self._sample.append(x[wanted].float())
        wide = x.double()
        self._gram.addmm_(wide.T, wide)
        size = wide.abs()
        self._sum += size.sum(0)
        self._max = torch.maximum(self._max, size.amax(0))
        self._seen += len(x)

    def finish(self) -> LayerStatistics:
        """The statistics of everything added."""
        return LayerStatistics(gram=self._gram / self._seen, mean_abs=self._sum / self._seen, max_abs=self._max,
                               sample=torch.cat(self._sample), tokens=self._seen)  # fmt: skip


def statistics_of(X: torch.Tensor) -> LayerStatistics:
    """The statistics of one matrix of inputs (tokens, in)."""
    accumulator = Accumulator(X.shape[1], X.shape[0])
    accumulator.add(X)
    return accumulator.finish()


def quadratic(E: torch.Tensor, H: torch.Tensor) -> float:
    """tr(E H E^T) in float64 for E (out, in)."""
    E = E.double()
    return float(((E @ H) * E).sum())
