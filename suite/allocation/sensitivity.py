"""Sensitivities: how much a model's divergence from itself grows with the error of each layer.

**Slopes** (`linearity`). The linearity theorem (Malinovskii, Panferov, Ilin, Guo, Richtarik, Alistarh 2024, "Pushing
the Limits of Large Language Model Quantization via the Linearity Theorem", arXiv:2411.17525, NAACL 2025 as "HIGGS")
says that the expected increase of the perplexity is sum_l alpha_l t_l^2 with t_l^2 = ||W - Q||^2 / ||W||^2, for errors
that are small, of zero mean and without a direction. Here the increase is that of KL(unquantized || perturbed), in nats
per token: it vanishes with its gradient at t = 0, so that the statement needs no trained model, and alpha_l = 1/2
||W_l||^2 mean(F_l) with the Fisher information F below. As in the paper alpha_l is measured by Gaussian noise on one
layer at a time; here the noise is scaled to ||E|| = t ||W|| exactly, and the slope comes with a standard error.

**Fisher information** (`fisher`). F = sum_r g_r^2 / (number of predicted tokens), g_r the gradient of the summed
log-likelihood of row r: an estimate of the diagonal of the Fisher information per token, whose quadratic form
1/2 sum F (W - Q)^2 is KL's to second order, off-diagonal terms left out. With `labels="observed"` the likelihood is
that of the text, the "empirical Fisher"; it is the Fisher information only where the model is right, and Kunstner,
Balles, Hennig 2019 (arXiv:1905.12558) show how far off it can be. `labels="sampled"` draws every next token from the
model's own prediction, which is unbiased: gradients at different tokens are then uncorrelated.

Both walk the model block by block. Noise on a layer runs only the blocks from its own on. Gradients go from the last
block to the first, one block and the hidden states in front of every block (rows x length x hidden x blocks) in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suite.cache import keep, keep_array
from suite.environment import code_version, environment_key
from suite.evaluation import clustered_se
from suite.models.architecture import linear, weight_of
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for
from suite.tokens import Tokens

Labels = Literal["observed", "sampled"]
_LOGITS = 1 << 23  # logits held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Relative sizes t = ||E|| / ||W|| of the noise, and how many draws of each.

    The default sizes are about the errors of rounding to 5, 4 and 3 bits in groups of 128.
    """

    sizes: tuple[float, ...] = (0.05, 0.1, 0.2)
    draws: int = 2

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) <= 0 or self.draws < 1:
            raise ValueError(f"{self}: expected positive sizes and at least one draw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Nats of KL per token for each unit of ||W - Q||^2 / ||W||^2, and its standard error."""

    nats: float
    se: float


@dataclass(frozen=True, slots=True)
class Ends:
    """What lies around the blocks: embedding, last norm and head, copies of their own. A tied head is the embedding."""

    embedding: nn.Module
    norm: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Ends":
        """Read them from the checkpoint."""
        names = checkpoint.architecture
        embedding = checkpoint.module(names.embedding)
        head = embedding if checkpoint.tied else checkpoint.module(names.head)
        return cls(embedding, checkpoint.module(names.norm), head)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output (..., hidden) to logits (..., vocabulary)."""
        return nn.functional.linear(self.norm(hidden), weight_of(self.head, ""), getattr(self.head, "bias", None))

    def weights(self, checkpoint: Checkpoint) -> dict[str, nn.Parameter]:
        """The matrices here that can be quantized, by the checkpoint's name."""
        found = {checkpoint.architecture.embedding: weight_of(self.embedding, "")}
        return found if checkpoint.tied else found | {checkpoint.architecture.head: weight_of(self.head, "")}


def linearity(
    checkpoint: Checkpoint, tokens: Tokens, *, seed: int, threads: int, noise: Noise | None = None, ends: bool = False
) -> dict[str, Slope]:
    """The slope alpha of every linear layer of the blocks by full name, and of embedding and head with `ends`.

    KL rises as t^2 and so does its scatter, so that the best fit through the origin is the mean of KL / t^2. The
    variance is the sum of two: over rows (clustered by file), and over draws; noise common to both counts twice.
    Kept on disk. A layer of zeros alone gets no noise, and the slope 0.
    """
    noise = noise or Noise()
    about = f"slopes {noise} {ends} {seed} {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
    key = f"{about} {code_version()} {environment_key(threads)}"
    found = keep_array(key, lambda: np.stack(list(_all_divergences(checkpoint, tokens, noise, seed, ends))))
    t = np.repeat(noise.sizes, noise.draws)
    return {name: _slope(kl / t[:, None] ** 2, tokens.clusters)
            for name, kl in zip(layer_names(checkpoint, ends), found, strict=True)}  # fmt: skip


def layer_names(checkpoint: Checkpoint, ends: bool) -> list[str]:
    """All linear layers of the blocks in order; with `ends`, embedding and head (if it is not tied) after them."""
    architecture = checkpoint.architecture
    names = [architecture.full_name(i, x) for i in range(checkpoint.n_blocks) for x in architecture.layers]
    return names + [architecture.embedding, *([] if checkpoint.tied else [architecture.head])] * ends


def _slope(ratios: np.ndarray, clusters: np.ndarray) -> Slope:
    """From KL / t^2 by draw and row (draws, rows)."""
    draws = len(ratios)
    over_rows = clustered_se(ratios.mean(axis=0)[:, None], clusters)
    over_draws = float(ratios.mean(axis=1).std(ddof=1)) / draws**0.5 if draws > 1 else 0.0
    return Slope(nats=float(ratios.mean()), se=float(np.hypot(over_rows, over_draws)))


@torch.no_grad()
def _all_divergences(
    checkpoint: Checkpoint, tokens: Tokens, noise: Noise, seed: int, with_ends: bool
) -> Iterator[np.ndarray]:
    """For every layer, in order, KL by draw and row (draws, rows), in nats per token."""
    ends, ids = Ends.of(checkpoint), tokens.tensor()
    fronts = checkpoint.embed(ids)
    base = _through(checkpoint, 0, fronts)
    for i in range(checkpoint.n_blocks):
        for layer in checkpoint.architecture.layers:
            after = _through(checkpoint, i + 1, _noisy_outputs(checkpoint, i, layer, fronts, noise, seed))
            yield np.stack([_divergence(ends, base, ends, x) for x in after.split(len(ids))])
        fronts = checkpoint.run(i, checkpoint.block(i), fronts)
    if with_ends:
        noisy = Ends.of(checkpoint)
        for name, weight in noisy.weights(checkpoint).items():
            rows = []
            for _ in _perturbed(weight, name, noise, seed):
                moved = name == checkpoint.architecture.embedding
                hidden = _through(checkpoint, 0, noisy.embedding(ids)) if moved else base
                rows.append(_divergence(ends, base, noisy, hidden))
            yield np.stack(rows)


def _noisy_outputs(
    checkpoint: Checkpoint, i: int, layer: str, fronts: torch.Tensor, noise: Noise, seed: int
) -> torch.Tensor:
    """What block `i` makes of `fronts` with noise on one layer, draw after draw (draws * rows, length, hidden)."""
    block = checkpoint.block(i)
    weight, name = linear(block, layer).weight, checkpoint.architecture.full_name(i, layer)
    return torch.cat([checkpoint.run(i, block, fronts) for _ in _perturbed(weight, name, noise, seed)])


def _perturbed(weight: torch.Tensor, name: str, noise: Noise, seed: int) -> Iterator[None]:
    """Put W + E in the weight's place for every size and draw in turn, and W back in the end."""
    original, generator = weight.detach().clone(), generator_for(seed, name)
    size = original.double().norm()
    for t in noise.sizes:
        for _ in range(noise.draws):
            E = torch.randn(original.shape, generator=generator, dtype=torch.float64)
            weight.copy_(original + (E * (t * size / E.norm())).to(original.dtype))
            yield
    weight.copy_(original)


def _through(checkpoint: Checkpoint, first: int, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states in front of block `first` to the last block's output."""
    for i in range(first, checkpoint.n_blocks):
        hidden = checkpoint.run(i, checkpoint.block(i), hidden)
    return hidden


def _divergence(ends0: Ends, hidden0: torch.Tensor, ends1: Ends, hidden1: torch.Tensor) -> np.ndarray:
    """KL(0 || 1) in nats per predicted token, the mean over each row (rows,)."""
    vocabulary = weight_of(ends0.head, "").shape[0]
    rows = max(1, _LOGITS // (hidden0.shape[1] * vocabulary))
    found = []
    for x0, x1 in zip(hidden0.split(rows), hidden1.split(rows), strict=True):
        log_p, log_q = (e.logits(x[:, :-1]).log_softmax(-1) for e, x in ((ends0, x0), (ends1, x1)))
        found.append((log_p.exp() * (log_p - log_q)).sum(-1).double().mean(-1))
    return torch.cat(found).numpy()


@dataclass(frozen=True)
class Fisher:
    """The diagonal of the Fisher information of every weight, as a file for each block, float32."""

    directory: Path
    checkpoint: Checkpoint

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, tokens: Tokens, *, seed: int, threads: int, labels: Labels = "sampled",
        ends: bool = False,
    ) -> "Fisher":  # fmt: skip
        """Load from the cache, or compute from all rows of `tokens`; `seed` draws the sampled labels."""
        drawn = f"sampled {seed}" if labels == "sampled" else labels
        about = f"fisher {drawn} {ends} {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
        key = f"{about} {code_version()} {environment_key(threads)}"
        kept = keep(key, lambda path: _Backward(checkpoint, tokens, seed, labels, ends).write(path))
        return cls(kept, checkpoint)

    def block(self, i: int) -> dict[str, torch.Tensor]:
        """F (out, in) of the layers of block `i`, by full name, in squared nats per token."""
        return self._file(f"block-{i:05d}")

    def ends(self) -> dict[str, torch.Tensor]:
        """F of embedding and head, by full name."""
        return self._file("ends")

    def _file(self, name: str) -> dict[str, torch.Tensor]:
        return {key: F for key, F in load_file(self.directory / f"{name}.safetensors").items() if "/" not in key}

    def slopes(self, ends: bool = False) -> dict[str, Slope]:
        """1/2 ||W||^2 mean(F) by layer: the slope of noise without a direction; the standard error is over rows."""
        found: dict[str, Slope] = {}
        blocks = [f"block-{i:05d}" for i in range(self.checkpoint.n_blocks)]
        for file in blocks + ["ends"] * ends:
            for key, values in load_file(self.directory / f"{file}.safetensors").items():
                if key.endswith("/slope"):
                    found[key.removesuffix("/slope")] = Slope(nats=float(values[0]), se=float(values[1]))
        return {name: found[name] for name in layer_names(self.checkpoint, ends)}


class _Pullback(nn.Module):
    """Stands in a block's place for one row: hands back the gradient of its input, keeps those of its weights."""

    def __init__(self, block: nn.Module, weights: list[torch.Tensor], cotangent: torch.Tensor):
        super().__init__()
        self.block, self._weights, self._cotangent = block, weights, cotangent
        self.gradients: tuple[torch.Tensor, ...] = ()

    def forward(self, hidden: torch.Tensor, **arguments: object) -> torch.Tensor:
        with torch.enable_grad():
            front = hidden.detach().requires_grad_(True)
            found = torch.autograd.grad(self.block(front, **arguments), [front, *self._weights], self._cotangent)
        self.gradients = found[1:]
        return found[0]


@dataclass
class _Squares:
    """Sums over rows of one weight's squared gradient, elementwise, and the sum over elements row by row."""

    weight: torch.Tensor
    total: torch.Tensor = field(init=False)
    by_row: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.weight, requires_grad=False)

    def add(self, gradient: torch.Tensor) -> None:
        square = gradient**2
        self.total += square
        self.by_row.append(float(square.double().sum()))

    def finish(self, name: str, tokens: Tokens) -> dict[str, torch.Tensor]:
        predicted = tokens.rows.shape[1] - 1
        half = 0.5 * float((self.weight.double() ** 2).mean())  # 1/2 ||W||^2 / numel
        slopes = half * np.array(self.by_row)[:, None] / predicted
        slope = torch.tensor([float(slopes.mean()), clustered_se(slopes, tokens.clusters)], dtype=torch.float64)
        return {name: self.total / (predicted * len(tokens.rows)), f"{name}/slope": slope}


@dataclass(frozen=True)
class _Backward:
    """From the last block to the first, one at a time."""

    checkpoint: Checkpoint
    tokens: Tokens
    seed: int
    labels: Labels
    with_ends: bool

    def write(self, directory: Path) -> None:
        checkpoint, ends, ids = self.checkpoint, Ends.of(self.checkpoint), self.tokens.tensor()
        fronts = self._fronts(ids)
        last = fronts.pop()
        cotangents = torch.stack([self._from_labels(ends, r, last, [])[0] for r in range(len(ids))])
        for i in reversed(range(checkpoint.n_blocks)):
            cotangents = self._block(i, fronts.pop(), cotangents, directory)
        kept = self._outer(ends, last, cotangents) if self.with_ends else {}
        save_file(kept, directory / "ends.safetensors")

    @torch.no_grad()
    def _fronts(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states in front of every block, and the last one's output."""
        fronts = [self.checkpoint.embed(ids).detach()]
        for i in range(self.checkpoint.n_blocks):
            fronts.append(self.checkpoint.run(i, self.checkpoint.block(i), fronts[-1]))
        return fronts

    def _from_labels(
        self, ends: Ends, r: int, last: torch.Tensor, head: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Gradients of row `r`'s log-likelihood by the last hidden states, and by the head if asked for."""
        hidden = last[r].detach().requires_grad_(True)
        log_p = ends.logits(hidden[:-1]).log_softmax(-1)
        labels = self.tokens.tensor()[r, 1:, None]
        if self.labels == "sampled":
            generator = generator_for(self.seed, f"labels of row {r}")
            labels = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        return torch.autograd.grad(log_p.gather(-1, labels).sum(), [hidden, *head])

    def _block(self, i: int, fronts: torch.Tensor, cotangents: torch.Tensor, directory: Path) -> torch.Tensor:
        """Take all rows through block `i`, write its Fisher information, hand back the cotangents in front of it."""
        architecture, block = self.checkpoint.architecture, self.checkpoint.block(i)
        weights = [linear(block, layer).weight.requires_grad_(True) for layer in architecture.layers]
        squares = [_Squares(weight.detach()) for weight in weights]
        before = torch.empty_like(cotangents)
        for r in range(len(fronts)):
            pullback = _Pullback(block, weights, cotangents[r : r + 1])
            before[r : r + 1] = self.checkpoint.run(i, pullback, fronts[r : r + 1])
            for found, gradient in zip(squares, pullback.gradients, strict=True):
                found.add(gradient)
        kept: dict[str, torch.Tensor] = {}
        for layer, found in zip(architecture.layers, squares, strict=True):
            kept |= found.finish(architecture.full_name(i, layer), self.tokens)
        save_file(kept, directory / f"block-{i:05d}.safetensors")
        return before

    def _outer(self, ends: Ends, last: torch.Tensor, cotangents: torch.Tensor) -> dict[str, torch.Tensor]:
        """The Fisher information of embedding and head; a tied one has the gradients of both uses in a sum."""
        weights = ends.weights(self.checkpoint)
        squares = {name: _Squares(weight.detach()) for name, weight in weights.items()}
        embedding, head = next(iter(squares.values())), list(squares.values())[-1]
        at_head = list(weights.values())[-1].requires_grad_(True)
        for r, row in enumerate(self.tokens.tensor()):
            gradient = torch.zeros_like(embedding.total).index_add_(0, row, cotangents[r])
            by_head = self._from_labels(ends, r, last, [at_head])[1]
            if head is embedding:
                gradient += by_head
            else:
                head.add(by_head)
            embedding.add(gradient)
        kept: dict[str, torch.Tensor] = {}
        for name, found in squares.items():
            kept |= found.finish(name, self.tokens)
        return kept
