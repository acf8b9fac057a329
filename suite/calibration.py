"""Calibration: walk the unquantized model block by block and keep every layer's input statistics.

Computed once for a model and its calibration tokens, shared by all methods, kept on disk. At any time one block, its
statistics and one set of hidden states are in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suite.cache import keep
from suite.environment import code_version, environment_key
from suite.models.architecture import Site
from suite.models.checkpoint import Checkpoint
from suite.statistics import Accumulator, LayerStatistics
from suite.store import Spectrum
from suite.tokens import Tokens


class _Reached(Exception):  # noqa: N818 - not an error: the part of the block that was wanted has run
    pass


def gather(checkpoint: Checkpoint, i: int, block: nn.Module, hidden: torch.Tensor, site: Site) -> LayerStatistics:
    """Statistics of one site's input when `hidden` (rows, length, hidden) enters `block`; stops there."""
    layer = block.get_submodule(site.layers[0])
    accumulator = Accumulator(layer.weight.shape[1], hidden.shape[0] * hidden.shape[1])

    def look(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        accumulator.add(arguments[0])
        raise _Reached

    hook = layer.register_forward_pre_hook(look, prepend=True)
    for part in checkpoint.row_parts(hidden):
        try:
            checkpoint.run(i, block, part)
        except _Reached:
            continue
    hook.remove()
    return accumulator.finish()


@torch.no_grad()
def walk(checkpoint: Checkpoint, tokens: torch.Tensor, visit: Callable[[int, nn.Module], Callable[[], None]]) -> torch.Tensor:
    """Run `tokens` (rows, length) through the model and return the last block's output.

    `visit(i, block)` is called before a block runs, and what it returns after.
    """
    hidden = checkpoint.embed(tokens)
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        leave = visit(i, block)
        hidden = checkpoint.run(i, block, hidden)
        leave()
    return hidden


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
            values = {f.name: kept[f"{site.layers[0]}.{f.name}"] for f in fields(LayerStatistics)}
            found[site.layers[0]] = LayerStatistics(**{**values, "tokens": int(values["tokens"])})
        return found

    def spectra(self) -> list[Spectrum]:
        """What a rate-distortion floor needs, for every layer of the model."""
        found, prefix = [], self.checkpoint.architecture.blocks
        for i in range(self.checkpoint.n_blocks):
            kept = load_file(self.directory / f"block-{i:05d}.safetensors")
            for site in self.checkpoint.architecture.sites:
                for layer in site.layers:
                    n_out, variance, energy = kept[f"{layer}.spectrum"].tolist()
                    eigenvalues = kept[f"{site.layers[0]}.eigenvalues"].numpy()
                    found.append(Spectrum(layer=f"{prefix}.{i}.{layer}", n_out=int(n_out), variance=variance,
                                          energy=energy, eigenvalues=eigenvalues))  # fmt: skip
        return found


def _compute(checkpoint: Checkpoint, tokens: Tokens, directory: Path) -> None:
    count = tokens.rows.size

    def visit(i: int, block: nn.Module) -> Callable[[], None]:
        accumulators, hooks = {}, []
        for site in checkpoint.architecture.sites:
            layer = block.get_submodule(site.layers[0])
            accumulators[site] = accumulator = Accumulator(layer.weight.shape[1], count)
            hooks.append(layer.register_forward_pre_hook(lambda _, x, accumulator=accumulator: accumulator.add(x[0])))

        def leave() -> None:
            for hook in hooks:
                hook.remove()
            kept: dict[str, torch.Tensor] = {}
            for site, accumulator in accumulators.items():
                kept |= _site_tensors(block, site, accumulator.finish())
            save_file(kept, directory / f"block-{i:05d}.safetensors")

        return leave

    walk(checkpoint, tokens.tensor(), visit)


def _site_tensors(block: nn.Module, site: Site, statistics: LayerStatistics) -> dict[str, torch.Tensor]:
    kept = {f"{site.layers[0]}.{f.name}": torch.as_tensor(getattr(statistics, f.name)) for f in fields(LayerStatistics)}
    eigenvalues = torch.linalg.eigvalsh(statistics.gram).clamp(min=0)
    kept[f"{site.layers[0]}.eigenvalues"] = eigenvalues
    for layer in site.layers:
        W = block.get_submodule(layer).weight.double()
        energy = ((W @ statistics.gram) * W).sum()
        kept[f"{layer}.spectrum"] = torch.stack([torch.tensor(float(W.shape[0]), dtype=torch.float64), (W**2).mean(), energy])
    return kept


def last_hidden(checkpoint: Checkpoint, tokens: Tokens, threads: int) -> np.ndarray:
    """The unquantized model's last hidden states (rows, length, hidden) on these tokens, kept on disk."""
    about = f"last hidden {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
    key = f"{about} {code_version()} {environment_key(threads)}"

    def make(directory: Path) -> None:
        np.save(directory / "array.npy", walk(checkpoint, tokens.tensor(), lambda i, block: lambda: None).numpy())

    return np.load(keep(key, make) / "array.npy", mmap_mode="c")
