"""Learned rotations: the residual stream and the heads turned so that the network bears its quantization best.

Liu, Zhao, Fedorov, Soran, Choudhary, Krishnamoorthi, Chandra, Tian, Blankevoort 2024, "SpinQuant: LLM Quantization with
Learned Rotations", arXiv:2405.16406, section 3.2. R1 and one R2 per block start as random rotations and descend by
Cayley SGD on the network's own next-token cross-entropy, with quantization in the forward pass: 100 steps of 8 rows, at
a rate that falls to 0 along a cosine. Weights whose rounding pushes errors about (error feedback) are left alone and
only activations quantized, as in the paper.

The one place of the project where a whole model is in memory, and with it the activations of `ROWS` rows. Embedding and
head are not quantized here, so that R1 need not touch them: hidden states are turned after one and before the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from suite.activations import quantize_activations
from suite.adaptation.straight_through import straight_through
from suite.cache import keep
from suite.environment import code_version, environment_key
from suite.grids import Integer, OutputSearch, ShrinkSearch
from suite.grids.grid import Grid
from suite.models.architecture import Site, linear
from suite.models.checkpoint import Checkpoint
from suite.models.turn import Turn, turn_state
from suite.quantize import generator_for
from suite.recipe import Recipe, Target
from suite.rounding import HalfQuadratic, Nearest, Stochastic
from suite.tokens import Tokens
from suite.transforms.cayley import descend, fixed_point, polar
from suite.transforms.learned import LearnedRotations
from suite.transforms.maps import Map
from suite.transforms.rotation import RotateHeads, RotateInputs, RotateResidual

ROWS = 8  # of a step: the release's 8 processes with a row each (scripts/10_optimize_rotation.sh)


def learn_rotations(checkpoint: Checkpoint, recipe: Recipe, tokens: Tokens, *, seed: int, threads: int) -> Turn:
    """R1 and, if they are learned, R2 by block, for a recipe with `LearnedRotations`; float64, orthogonal.

    Learned once for everything that they depend on, and kept on disk with the loss of every step.
    """
    basis = learned_on(recipe)
    about = f"rotations {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype} {basis} seed {seed}"

    def make(path: Path) -> None:
        how = transform_of(basis)
        network = Network.of(checkpoint, basis, ranges=how.gradient == "ranges")
        turn, losses_nats = learn(network, tokens.tensor(), how, seed)
        heads = {f"heads.{i:05d}": R for i, R in enumerate(turn.heads or ())}
        save_file({"matrix": turn.matrix, "losses_nats": losses_nats, **heads}, path / "rotations.safetensors")

    directory = keep(f"{about} {code_version()} {environment_key(threads)}", make)
    kept = load_file(directory / "rotations.safetensors")
    heads = tuple(kept[name] for name in sorted(kept) if name.startswith("heads."))
    return Turn(kept["matrix"], heads or None)


def learned_on(recipe: Recipe) -> Recipe:
    """What of a recipe the rotations depend on: recipes that share it share their rotations.

    Weights take part rounded to nearest on their own grids, without a search of their ranges; where anything but that
    rounds them and activations are quantized, activations alone.
    """
    targets = [target for target in (recipe.weights, *(target for _, target in recipe.layers)) if target]
    plain = all(isinstance(target.rounding, Nearest | Stochastic | HalfQuadratic) for target in targets)
    weights, layers = recipe.weights, recipe.layers
    if recipe.activations is not None and not plain:
        weights, layers = None, ()
    weights = None if weights is None else _nearest(weights)
    layers = tuple((pattern, _nearest(target)) for pattern, target in layers)
    transforms = tuple(t for t in recipe.transforms if isinstance(t, LearnedRotations | RotateInputs | RotateHeads))
    return Recipe(transforms=transforms, weights=weights, layers=layers, activations=recipe.activations)


def transform_of(recipe: Recipe) -> LearnedRotations:
    """The recipe's one `LearnedRotations`; `ValueError` if there is none, or more."""
    found = [transform for transform in recipe.transforms if isinstance(transform, LearnedRotations)]
    if len(found) != 1:
        raise ValueError(f"expected one LearnedRotations among the transforms, found {len(found)}")
    return found[0]


def _nearest(target: Target) -> Target:
    grid = target.grid
    if isinstance(grid, Integer) and isinstance(grid.clip, ShrinkSearch | OutputSearch):
        return Target(replace(grid, clip=None))
    return Target(grid)


def learn(network: "Network", rows: torch.Tensor, how: LearnedRotations, seed: int) -> tuple[Turn, torch.Tensor]:
    """The turn after `how.steps` from a random one, and the loss of every step in nats (steps,), float64.

    `rows` (n, length) are dealt out by `seed`, all of them before any comes again.
    """
    Rs, losses_nats = start(network.checkpoint, how, seed), list[float]()
    step = descend if how.solver == "exact" else fixed_point
    for number, batch in enumerate(batches(rows, how.steps, generator_for(seed, "rows"))):
        leaves = [R.to(network.checkpoint.dtype, copy=True).requires_grad_(True) for R in Rs]
        with torch.enable_grad():
            loss = network.nll(batch, leaves[0], leaves[1:])
            gradients = torch.autograd.grad(loss, leaves)
        rate = how.rate * 0.5 * (1 + cos(pi * number / how.steps))
        Rs = [step(R, G.double(), rate) for R, G in zip(Rs, gradients, strict=True)]
        losses_nats.append(float(loss.detach()))
    if how.solver != "exact":
        Rs = [polar(R) for R in Rs]
    return Turn(Rs[0], tuple(Rs[1:]) or None), torch.tensor(losses_nats, dtype=torch.float64)


def batches(rows: torch.Tensor, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """`steps` batches (<= ROWS, length) of rows (n, length), in an order that is drawn anew for each pass."""
    size = min(ROWS, len(rows))
    passes = [torch.randperm(len(rows), generator=generator) for _ in range(-(-steps * size // len(rows)))]
    return [rows[part] for part in torch.cat(passes).split(size)[:steps]] if steps else []


def start(checkpoint: Checkpoint, how: LearnedRotations, seed: int) -> list[torch.Tensor]:
    """R1 and, with `how.heads`, R2 by block, as they are before the first step; float64."""
    sizes = {"residual": int(checkpoint.config.hidden_size)}
    if how.heads:
        sizes |= {
            checkpoint.architecture.full_name(i, "values"): checkpoint.head_dim for i in range(checkpoint.n_blocks)
        }
    random = RotateResidual(kind=how.kind)
    return [random.fit(n, generator_for(seed, f"{name}/learned")) for name, n in sizes.items()]


@dataclass(frozen=True)
class Network:
    """A model in memory, whose blocks are in the coordinates of given rotations and quantized as `recipe` says.

    `maps` are those of the recipe's rotations at run time, by the first layer of a site, the same in every block.
    `ranges` says whether gradients pass through the ranges of what is rounded.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    blocks: list[nn.Module]
    maps: dict[str, tuple[Map, ...]]
    ranges: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, recipe: Recipe, ranges: bool = True) -> "Network":
        """Read all blocks, and have the inputs of their linear layers mapped and quantized from now on."""
        blocks = [checkpoint.unturned_block(i) for i in range(checkpoint.n_blocks)]
        maps = {site.layers[0]: _maps(checkpoint, recipe, blocks[0], site) for site in checkpoint.architecture.sites}
        network = cls(checkpoint, recipe, blocks, maps, ranges)
        for block in blocks:
            for site in checkpoint.architecture.sites:
                hook = network._inputs(site)
                for layer in site.layers:
                    linear(block, layer).register_forward_pre_hook(hook)
        return network

    def nll(self, rows: torch.Tensor, R1: torch.Tensor, R2: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean negative log-likelihood in nats of all tokens of `rows` (n, length) but the first."""
        logits = self.logits(rows, R1, R2)[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def logits(self, rows: torch.Tensor, R1: torch.Tensor, R2: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits (n, length, vocabulary), differentiable in R1 (hidden, hidden) and R2 of every block, or none."""
        hidden = self.checkpoint.embed(rows) @ R1
        for i, block in enumerate(self.blocks):
            state = turn_state(block.state_dict(), self.checkpoint.architecture, R1, R2[i] if R2 else None)
            for site in self.checkpoint.architecture.sites:
                for layer in site.layers:
                    target = self.recipe.target_of(self.checkpoint.architecture.full_name(i, layer))
                    state[f"{layer}.weight"] = self._weights(state[f"{layer}.weight"], site, target)
            hidden = functional_call(block, state, (hidden,), self.checkpoint.arguments(i, hidden))
        return self.checkpoint.logits(hidden @ R1.T)

    def _weights(self, W: torch.Tensor, site: Site, target: Target | None) -> torch.Tensor:
        for m in self.maps[site.layers[0]]:
            W = m.to_weights(W)
        return W if target is None else self._passed(W, _rounded(W.detach(), target.grid), target.grid)

    def _passed(self, x: torch.Tensor, rounded: torch.Tensor, grid: Grid) -> torch.Tensor:
        return through_ranges(x, rounded, grid) if self.ranges else straight_through(x, rounded)

    def _inputs(self, site: Site) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        """A hook that maps and quantizes the input of a site's layers, once for all that share it."""
        seen: list[torch.Tensor] = []

        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            if not seen or seen[0] is not arguments[0]:
                x = arguments[0]
                for m in self.maps[site.layers[0]]:
                    x = m.forward(x)
                if self.recipe.activations is not None:
                    largest = float(x.detach().abs().max())  # static scales are made for the rows of the step
                    grid = self.recipe.activations.grid
                    x = self._passed(x, quantize_activations(x, grid, largest), grid)
                seen[:] = [arguments[0], x]
            return (seen[1], *arguments[1:])

        return hook


def through_ranges(x: torch.Tensor, rounded: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The values of `rounded`, with the gradient of x + r e for errors e in units of the range r of each group of `x`.

    Straight through, rotations learn to put errors where they do little harm; this way also to make them smaller. Grids
    of fixed blocks, which do not say what shares a scale, are passed straight through.
    """
    found = ranges(x, grid)
    if found is None:
        return straight_through(x, rounded)
    now = found.detach()
    errors = torch.where(now == 0, 0.0, (rounded - x.detach()) / now)
    return straight_through(x, rounded) + errors * (found - now)


def ranges(x: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """The range of the values that share a scale with each of `x` (.., in), or None where the grid does not say."""
    group = getattr(grid, "group", None)
    if group is None or getattr(grid, "axis", 1) != 1:
        return None
    if group == "tensor":
        return _range(x.flatten(), grid).expand_as(x)
    n = x.shape[-1]
    width = group if isinstance(group, int) else n
    grouped = nn.functional.pad(x, (0, -n % width)).unflatten(-1, (-1, width))
    return _range(grouped, grid).expand_as(grouped).flatten(-2)[..., :n]


def _range(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The range along the last axis, kept: max - min, zero among them, where levels are not symmetric, else max |x|."""
    if isinstance(grid, Integer) and grid.convention in ("asymmetric", "real-zero"):
        return x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, keepdim=True).clamp(max=0)
    return x.abs().amax(-1, keepdim=True)


def _rounded(W: torch.Tensor, grid: Grid) -> torch.Tensor:
    fitted = grid.fit(W)
    return fitted.decode(fitted.nearest(W)).to(W.dtype)


def _maps(checkpoint: Checkpoint, recipe: Recipe, block: nn.Module, site: Site) -> tuple[Map, ...]:
    """What a site's input passes through at run time, of the rotations that look at nothing but sizes."""
    weights = [linear(block, layer).weight for layer in site.layers]
    found: list[Map] = []
    for transform in recipe.transforms:
        if isinstance(transform, RotateInputs) and any(layer.endswith(transform.sites) for layer in site.layers):
            found += transform.fit(weights, None, torch.Generator())  # type: ignore[arg-type]  # sizes are all it reads
        elif isinstance(transform, RotateHeads) and site.grouped:
            found += transform.fit(weights[0].shape[1] // checkpoint.head_dim, checkpoint.head_dim)
    return tuple(found)
