"""Calibration: walk the unquantized model block by block and keep every layer's input statistics.

Computed once for a model and its calibration tokens, shared by all methods, kept on disk. At any time one block, its
statistics and one set of hidden states are in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suite.cache import keep, keep_array
from suite.environment import code_version, environment_key
from suite.models.architecture import Site, linear
from suite.models.checkpoint import Checkpoint
from suite.statistics import Accumulator, LayerStatistics, quadratic
from suite.store import Spectrum
from suite.tokens import Tokens


class _Reached(Exception):
    pass


Running = tuple[nn.Module, torch.Tensor]  # a block, and the hidden states (rows, length, hidden) that enter it


def gather(checkpoint: Checkpoint, i: int, block: nn.Module, hidden: torch.Tensor, site: Site) -> LayerStatistics:
    """Statistics of one site's input when `hidden` (rows, length, hidden) enters `block`; stops there."""
    accumulator = Accumulator(linear(block, site.layers[0]).in_features, hidden.shape[0] * hidden.shape[1])
    for X in _inputs_of(checkpoint, i, (block, hidden), site):
        accumulator.add(X)
    return accumulator.finish()


def gather_cross(
    checkpoint: Checkpoint,
    i: int,
    both: tuple[Running, Running],
    site: Site,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Xq^T Xq / n and X^T Xq / n (in, in), float64, of one site's inputs in the quantized and the unquantized model.

    `rounded` is what is still to be done to the quantized model's.
    """
    n_in = linear(both[0][0], site.layers[0]).in_features
    gram, cross = torch.zeros(n_in, n_in, dtype=torch.float64), torch.zeros(n_in, n_in, dtype=torch.float64)
    for parts in zip(*(_inputs_of(checkpoint, i, running, site) for running in both), strict=True):
        Xq, X = rounded(parts[0]).reshape(-1, n_in).double(), parts[1].reshape(-1, n_in).double()
        gram.addmm_(Xq.T, Xq)
        cross.addmm_(X.T, Xq)
    tokens = both[0][1].shape[0] * both[0][1].shape[1]
    return gram / tokens, cross / tokens


def _inputs_of(checkpoint: Checkpoint, i: int, running: Running, site: Site) -> Iterator[torch.Tensor]:
    """A site's inputs (rows, length, in), some rows at a time; the block is run no further."""
    block, hidden = running
    reached: list[torch.Tensor] = []

    def look(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        reached.append(arguments[0])
        raise _Reached

    for part in checkpoint.row_parts(hidden):
        hook = linear(block, site.layers[0]).register_forward_pre_hook(look)  # behind the maps that are there already
        try:
            checkpoint.run(i, block, part)
        except _Reached:
            yield reached.pop()
        finally:
            hook.remove()


def gather_head(checkpoint: Checkpoint, hidden: torch.Tensor) -> torch.Tensor:
    """H (hidden, hidden), float64, of the head's input when the last block leaves `hidden` (rows, length, hidden)."""
    accumulator = Accumulator(hidden.shape[-1], hidden.shape[0] * hidden.shape[1])
    for part in checkpoint.row_parts(hidden):
        accumulator.add(checkpoint.normed(part))
    return accumulator.finish().gram


@dataclass(frozen=True)
class Calibration:
    """The kept statistics of a model on its calibration tokens."""

    directory: Path
    checkpoint: Checkpoint

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokens: Tokens, threads: int) -> "Calibration":
        """Load from the cache, or compute."""
        about = f"statistics {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
        key = f"{about} {code_version()} {environment_key(threads)}"
        return cls(keep(key, lambda path: _compute(checkpoint, tokens, path)), checkpoint)

    def statistics(self, i: int) -> dict[str, LayerStatistics]:
        """Block `i`'s statistics, by the first layer of each site."""
        kept = load_file(self.directory / f"block-{i:05d}.safetensors")
        found = {}
        for site in self.checkpoint.architecture.sites:
            values: dict[str, Any] = {f.name: kept[f"{site.layers[0]}.{f.name}"] for f in fields(LayerStatistics)}
            values["tokens"] = int(values["tokens"])
            found[site.layers[0]] = LayerStatistics(**values)
        return found

    def head_gram(self) -> torch.Tensor:
        """H (hidden, hidden), float64, of the head's input: what leaves the final norm."""
        return load_file(self.directory / "head.safetensors")["gram"]

    def spectra(self) -> list[Spectrum]:
        """What a rate-distortion floor needs, for every layer of the model."""
        found, architecture = [], self.checkpoint.architecture
        for i in range(self.checkpoint.n_blocks):
            kept = load_file(self.directory / f"block-{i:05d}.safetensors")
            for site in architecture.sites:
                for layer in site.layers:
                    n_out, variance, energy = kept[f"{layer}.spectrum"].tolist()
                    eigenvalues = kept[f"{site.layers[0]}.eigenvalues"].numpy()
                    found.append(Spectrum(layer=architecture.full_name(i, layer), n_out=int(n_out), variance=variance,
                                          energy=energy, eigenvalues=eigenvalues))  # fmt: skip
        return found


@torch.no_grad()
def _compute(checkpoint: Checkpoint, tokens: Tokens, directory: Path) -> None:
    hidden = checkpoint.embed(tokens.tensor())
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        accumulators = {}
        for site in checkpoint.architecture.sites:
            layer = linear(block, site.layers[0])
            accumulators[site] = accumulator = Accumulator(layer.in_features, tokens.rows.size)
            layer.register_forward_pre_hook(lambda _, x, accumulator=accumulator: accumulator.add(x[0]))
        hidden = checkpoint.run(i, block, hidden)
        kept: dict[str, torch.Tensor] = {}
        for site, accumulator in accumulators.items():
            kept |= _site_tensors(block, site, accumulator.finish())
        save_file(kept, directory / f"block-{i:05d}.safetensors")
    save_file({"gram": gather_head(checkpoint, hidden)}, directory / "head.safetensors")


def _site_tensors(block: nn.Module, site: Site, statistics: LayerStatistics) -> dict[str, torch.Tensor]:
    kept = {f"{site.layers[0]}.{f.name}": torch.as_tensor(getattr(statistics, f.name)) for f in fields(LayerStatistics)}
    kept[f"{site.layers[0]}.eigenvalues"] = torch.linalg.eigvalsh(statistics.gram).clamp(min=0)
    for layer in site.layers:
        W = linear(block, layer).weight.double()
        spectrum = [W.shape[0], float((W**2).mean()), quadratic(W, statistics.gram)]
        kept[f"{layer}.spectrum"] = torch.tensor(spectrum, dtype=torch.float64)
    return kept


@torch.no_grad()
def last_hidden(checkpoint: Checkpoint, tokens: Tokens, threads: int) -> np.ndarray:
    """The unquantized model's last hidden states (rows, length, hidden) on these tokens, kept on disk."""

    def make() -> np.ndarray:
        hidden = checkpoint.embed(tokens.tensor())
        for i in range(checkpoint.n_blocks):
            hidden = checkpoint.run(i, checkpoint.block(i), hidden)
        return hidden.numpy()

    about = f"last hidden {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
    return keep_array(f"{about} {code_version()} {environment_key(threads)}", make)
