"""The spectra of a model, layer by layer and block by block, while it streams: one block in memory and some behind it.

For every layer three matrices of its weights (out, in), each (out in, out in), in units that do not compare:

- "inputs": I (x) X^T X / n, the curvature of the layer's own squared output error; every eigenvalue `out` times;
- "gauss-newton": G of the mean token loss, in nats, which for the softmax is the Fisher information;
- "hessian": the loss's full Hessian, G and how the maps themselves bend; it has negative eigenvalues.

For a block the same of all its layers together. The first is known whole; of the two others `theory.spectra` has
densities, traces and extreme eigenvalues by products alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from suite.calibration import gather
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for
from suite.tokens import Tokens
from theory.spectra.pearlmutter_1994_curvature import Curvature
from theory.spectra.ubaru_2017_quadrature import Density, Estimate, SpectralMeasure, density

Kind = Literal["inputs", "gauss-newton", "hessian"]
KINDS: tuple[Kind, ...] = ("inputs", "gauss-newton", "hessian")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Of one of the three matrices of a layer or of a block, by its name in the checkpoint.

    `smallest` and `largest` are exact for the inputs. For the others they are eigenvalues to a relative 1e-3 where
    `How.extremes` asks for them, but for the smallest of G; else the quadrature's outermost nodes, which lie within.
    """

    name: str
    kind: Kind
    density: Density
    smallest: float
    largest: float

    @property
    def trace(self) -> Estimate:
        """Exact for the inputs, of error zero; else with the standard error over starts."""
        found = self.density.trace()
        return Estimate(found.value, 0.0) if self.kind == "inputs" else found


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """`starts` random starts of `steps` products each, and of which matrices extreme eigenvalues are looked for."""

    starts: int = 2
    steps: int = 7
    extremes: Literal["none", "blocks", "all"] = "blocks"
    seed: int = 0


def spectra_of(
    checkpoint: Checkpoint,
    tokens: Tokens,
    how: How = How(),
    blocks: tuple[int, ...] | None = None,
    layers: bool = True,
) -> Iterator[Spectrum]:
    """The three spectra of every layer of these `blocks`, all by default, then of the block; nothing is kept.

    Without `layers` those of blocks alone. All are of the mean over `tokens`. A layer costs `2 starts steps` products,
    each through all blocks behind it.
    """
    names, ids = checkpoint.architecture, tokens.tensor()
    for i, hidden, grams in fronts(checkpoint, tokens, blocks):
        rows = {layer: linear(checkpoint.block(i), layer).out_features for layer in names.layers}
        for group in (*((layer,) for layer in names.layers if layers), names.layers):
            whole = len(group) > 1
            name = f"{names.blocks}.{i}" if whole else names.full_name(i, group[0])
            yield _of_inputs(name, [(grams[layer], rows[layer]) for layer in group])
            curvature = Curvature(checkpoint, i, group, hidden, ids)
            matrices: dict[Kind, LinearOperator] = {"gauss-newton": curvature.gauss_newton(),
                                                    "hessian": curvature.hessian()}  # fmt: skip
            for kind, A in matrices.items():
                wanted = how.extremes == "all" or (how.extremes == "blocks" and whole)
                yield _of_products(name, kind, A, how, wanted)


def fronts(
    checkpoint: Checkpoint, tokens: Tokens, blocks: tuple[int, ...] | None = None
) -> Iterator[tuple[int, torch.Tensor, dict[str, torch.Tensor]]]:
    """Of each of these blocks the states that enter it (rows, length, hidden), and H (in, in) by layer, float64."""
    wanted = range(checkpoint.n_blocks) if blocks is None else blocks
    hidden = checkpoint.embed(tokens.tensor())
    for i in range(max(wanted) + 1):
        block = checkpoint.block(i)
        if i in wanted:
            sites = checkpoint.architecture.sites
            grams = {site: gather(checkpoint, i, block, hidden, site).gram for site in sites}
            yield i, hidden, {layer: grams[site] for site in sites for layer in site.layers}
        hidden = checkpoint.run(i, block, hidden)


def _of_inputs(name: str, parts: list[tuple[torch.Tensor, int]]) -> Spectrum:
    """All eigenvalues of blockdiag(I (x) H) as a measure, exact; `parts` are (H, out)."""
    values = np.concatenate([torch.linalg.eigvalsh(H).clamp(min=0).numpy() for H, _ in parts])
    times = np.repeat([out for _, out in parts], [len(H) for H, _ in parts])
    order, n = np.argsort(values), int(times.sum())
    exact = SpectralMeasure(values[order], times[order] / n, np.zeros(len(values)))
    return Spectrum(name=name, kind="inputs", density=Density(n, [exact]), smallest=float(values.min()),
                    largest=float(values.max()))  # fmt: skip


def _of_products(name: str, kind: Kind, A: LinearOperator, how: How, wanted: bool) -> Spectrum:
    rng = np.random.default_rng(generator_for(how.seed, f"{name} {kind}").initial_seed())
    found = density(A, starts=how.starts, steps=how.steps, rng=rng)
    low, high = found.ends
    if wanted:
        high = extreme(A, "LA", rng)
        low = low if kind == "gauss-newton" else extreme(A, "SA", rng)  # near 0, where eigenvalues crowd
    return Spectrum(name=name, kind=kind, density=found, smallest=low, largest=high)


def extreme(A: LinearOperator, which: Literal["LA", "SA"], rng: np.random.Generator, tolerance: float = 1e-3) -> float:
    """The largest or the smallest eigenvalue of A (n, n), n > 1, by `eigsh`, to a relative `tolerance`."""
    start = rng.normal(size=A.shape[0]).astype(A.dtype)
    found = eigsh(A, k=1, which=which, v0=start, tol=tolerance, ncv=min(12, A.shape[0]), return_eigenvectors=False)
    return float(found[0])
