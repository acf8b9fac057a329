"""Mixed widths: from a model, a budget and sensitivities to a recipe that names every layer's target.

Every candidate (a method's recipe at a width and a group, or a target given) is really rounded, layer by layer, with
the unquantized model's statistics; its bytes are those that it is stored in. What it is predicted to lose, in nats of
KL per token:

- `output`: alpha tr(E H E^T) / (||W||^2 tr(H) / in), E = W - Q: the slope alpha from noise
  (`suite.allocation.sensitivity`) times the layer's output error over that of undirected noise of unit relative size.
  It gives error feedback its due: on the reference model at 3.5 bits it predicts 0.90 of GPTQ's KL, and the other two
  kinds 3.8 times as much as there is.
- `linearity`: alpha ||E||^2 / ||W||^2, the linearity theorem's own. The same for errors without direction.
- `fisher`: 1/2 sum F E^2 with the diagonal Fisher information: by far the quickest, and without direction too. In the
  checkpoint's coordinates, so that recipes with transforms are refused.
- `uniform`: nothing; one candidate for all layers, the one that fills the budget most.

The budget counts whole bytes of every layer that is allocated: the blocks' linear weights, and with `ends` embedding
and head (a tied head once), over as many weights as these have. It is kept exactly wherever the stored size follows
from a layer's shape, as it does for every grid of fixed width.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch

from suite.allocation.budget import Option, choose, choose_uniform
from suite.allocation.sensitivity import Ends, Fisher, Labels, Noise, Slope, layer_names, linearity
from suite.blockwise import quantize_block
from suite.cache import keep_array
from suite.calibration import Calibration
from suite.coding import Coding
from suite.environment import code_version, environment_key
from suite.grids import Integer
from suite.methods import method_named
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for, quantize_layer
from suite.recipe import Recipe, Target
from suite.tokens import Tokens
from suite.turning import turned_for

By = Literal["output", "linearity", "fisher", "uniform"]
KINDS: tuple[By, ...] = ("output", "linearity", "fisher", "uniform")
SENSITIVITY_TOKENS = 1 << 13  # of the calibration tokens, in rows spread over them; slopes then know 5 to 10% of error
_BITS, _NMSE, _OUTPUT, _FISHER, _GROUP = range(5)  # columns of what is measured of a candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """What became of a layer. `slope` is None where none was measured, `predicted_nats` with `uniform`."""

    layer: str
    shape: tuple[int, int]
    target: Target
    n_bits: int
    group_size: int
    nmse: float
    slope: Slope | None = None
    predicted_nats: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A recipe within its budget. `predicted_nats` is the sum over layers, None with `uniform`."""

    recipe: Recipe
    by: By
    budget: float
    layers: tuple[LayerChoice, ...]

    @property
    def bpw(self) -> float:
        """Exact stored bits over the number of weights of all layers here."""
        return sum(x.n_bits for x in self.layers) / sum(math.prod(x.shape) for x in self.layers)

    @property
    def n_bytes(self) -> int:
        """Whole bytes of all payloads, which is what the budget counts."""
        return sum(-(-x.n_bits // 8) for x in self.layers)

    @property
    def predicted_nats(self) -> float | None:
        """The predicted KL per token."""
        parts = [x.predicted_nats for x in self.layers]
        return None if None in parts else sum(x for x in parts if x is not None)


def allocate(
    checkpoint: Checkpoint,
    calibration: Tokens,
    *,
    budget: float,
    method: str = "gptq",
    bits: Sequence[float] = (2, 3, 4, 5, 6, 8),
    groups: Sequence[int | str] = (32, 64, 128),
    by: By = "output",
    targets: Sequence[Target] = (),
    ends: Sequence[int] = (),
    seed: int = 0,
    threads: int = 1,
    noise: Noise | None = None,
    labels: Labels = "sampled",
    **options: Any,
) -> Allocation:
    """Choose every layer's target for at most `budget` bits per weight.

    Candidates are `method` at every one of `bits` and `groups` (in its own groups without any; a method of one width
    has itself only), with `options` for its recipe, and `targets` beside them. `ends`, widths, makes embedding and
    head part of it, rounded to nearest in the same groups. Everything else of the method's recipe (transforms,
    activations, `inputs`) is kept; what quantized activations lose is not in the prediction. Raises `ValueError` for a
    budget below the smallest choice, which it names, and for candidates that make no sense.
    """
    if by not in KINDS:
        raise ValueError(f"by {by!r}: expected one of {', '.join(KINDS)}")
    if not (isinstance(budget, (int, float)) and 0 < budget < math.inf):
        raise ValueError(f"budget {budget!r}: expected a positive number of bits per weight")
    recipes = candidates(method, bits, groups, targets, **options)
    outer = [Target(Integer(bits=b, **layout)) for b in ends for layout in _layouts(groups)]
    if by == "fisher" and recipes[0].transforms:
        raise ValueError(f"fisher information is in the checkpoint's coordinates, which {method} leaves: use output")
    if outer and any(transform.place == "residual" for transform in recipes[0].transforms):
        raise ValueError(f"{method} turns embedding and head, which have no slopes in its coordinates: leave them out")
    few, with_ends = calibration.spread(SENSITIVITY_TOKENS), bool(outer)
    fisher = None
    if by == "fisher":
        fisher = Fisher.of(checkpoint, few, seed=seed, threads=threads, labels=labels, ends=with_ends)
    measured = _Measured.of(checkpoint, calibration, recipes, outer, fisher, seed, threads)
    budget_bytes = measured.budget_bytes(budget, by)  # refused before the slopes, which take longest
    slopes: dict[str, Slope] = {}
    if fisher is not None:
        slopes = fisher.slopes(with_ends)
    elif by != "uniform":
        slopes = linearity(checkpoint, few, seed=seed, threads=threads, noise=noise, ends=with_ends)
    recipe, layers = measured.choose(budget_bytes, by, slopes)
    return Allocation(recipe=recipe, by=by, budget=budget, layers=layers)


def candidates(
    method: str, bits: Sequence[float], groups: Sequence[int | str], targets: Sequence[Target] = (), **options: Any
) -> list[Recipe]:
    """The method's recipe at every width and group, then with each of `targets` for the weights.

    Raises `ValueError` for none, an unsupported one, and recipes that differ in more than the weights' targets.
    """
    chosen = method_named(method)
    if chosen.fixed:
        own = [chosen.recipe(**options)]
    else:
        own = [chosen.recipe(bits=b, **layout, **options) for b in bits
               for layout in (_layouts(groups) if chosen.grouped else [{}])]  # fmt: skip
    base = own[0] if own else chosen.recipe(bits=chosen.bits[-1], **options)
    found = list(dict.fromkeys([*own, *(replace(base, weights=target, layers=()) for target in targets)]))
    if not found:
        raise ValueError(f"{method}: no widths to choose from")
    for recipe in found:
        if recipe.unsupported:
            raise ValueError(f"{recipe}: {recipe.unsupported}")
        if recipe.weights is None:
            raise ValueError(f"{method} does not quantize weights")
    if len({replace(recipe, weights=None, layers=()) for recipe in found}) > 1:
        raise ValueError(f"{method}: its recipes differ in more than the weights' targets: {found[0]} and {found[-1]}")
    return found


def _layouts(groups: Sequence[int | str]) -> list[dict[str, Any]]:
    return [{"group": group} for group in groups] or [{}]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Every layer's candidate targets, and the figures of each: (layers, candidates, columns), NaN where there is none.

    The last `n_ends` layers are embedding and head, with targets of their own.
    """

    base: Recipe
    names: list[str]
    shapes: list[tuple[int, int]]
    targets: list[list[Target]]
    figures: np.ndarray
    n_ends: int

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, calibration: Tokens, recipes: list[Recipe], outer: list[Target],
        fisher: Fisher | None, seed: int, threads: int,
    ) -> "_Measured":  # fmt: skip
        """Round every layer in every way, or read what came of it from the cache."""
        names = layer_names(checkpoint, bool(outer))
        source = None if fisher is None else fisher.directory.name
        about = f"candidates {[str(r) for r in recipes]} {[str(t) for t in outer]} {source} {seed}"
        key = f"{about} {checkpoint.sha256} {calibration.sha256} {code_version()} {environment_key(threads)}"

        def make() -> np.ndarray:
            turned = turned_for(checkpoint, recipes[0], calibration, seed=seed, threads=threads)
            kept = Calibration.of(turned, calibration, threads)
            blocks = [_measure_block(turned, i, recipes, kept, fisher, seed) for i in range(checkpoint.n_blocks)]
            ends = _measure_ends(checkpoint, outer, fisher, seed, recipes[0].coding)
            return _padded([*(row for rows in blocks for row in rows), *ends])

        tensors = {name: f"{name}.weight" for name in names}
        shapes = [checkpoint.files[tensors[name]].shape for name in names]
        n_ends = len(names) - checkpoint.n_blocks * len(checkpoint.architecture.layers)
        inner = [[_target(recipe, name) for recipe in recipes] for name in names[: len(names) - n_ends]]
        return cls(base=recipes[0], names=names, shapes=[(s[0], s[1]) for s in shapes],
                   targets=inner + [outer] * n_ends, figures=keep_array(key, make), n_ends=n_ends)  # fmt: skip

    def budget_bytes(self, budget: float, by: By) -> int:
        """The budget in whole bytes; `ValueError` where even the smallest choice is above it."""
        weights = sum(math.prod(shape) for shape in self.shapes)
        whole = math.floor(Fraction(budget) * weights / 8)
        least = sum(map(min, self._by_class() if by == "uniform" else self._sizes()))
        if least > whole:
            named = math.ceil(8e4 * least / weights) / 1e4
            raise ValueError(
                f"budget {budget:g}: the smallest choice takes {named:.4f} bits per weight, scales included"
            )
        return whole

    def choose(self, budget_bytes: int, by: By, slopes: dict[str, Slope]) -> tuple[Recipe, tuple[LayerChoice, ...]]:
        """The best choice within the budget, as a recipe and layer by layer."""
        losses = None if by == "uniform" else [self._losses(k, by, slopes) for k in range(len(self.names))]
        if losses is None:
            first, *last = choose_uniform(self._by_class(), budget_bytes)
            picked = [first] * self._inner + last * self.n_ends
        else:
            options = [[Option(n_bytes=n, loss_nats=loss) for n, loss in zip(*pair, strict=True)]
                       for pair in zip(self._sizes(), losses, strict=True)]  # fmt: skip
            picked = list(choose(options, budget_bytes))
        layers = tuple(self._choice(k, i, slopes, losses) for k, i in enumerate(picked))
        named = tuple((x.layer, x.target) for x in layers)
        most_common = Counter(x.target for x in layers[: self._inner]).most_common(1)[0][0]
        return replace(self.base, weights=most_common, layers=named), layers  # `weights`: a nominal width for records

    @property
    def _inner(self) -> int:
        return len(self.names) - self.n_ends

    def _rows(self, k: int) -> np.ndarray:
        return self.figures[k, : len(self.targets[k])]

    def _sizes(self) -> list[list[int]]:
        """Whole bytes of every candidate of every layer."""
        return [[-(-int(n_bits) // 8) for n_bits in self._rows(k)[:, _BITS]] for k in range(len(self.names))]

    def _by_class(self) -> list[list[int]]:
        """Whole bytes of every candidate over all layers of the blocks, and over embedding and head if they count."""
        sizes = self._sizes()
        classes = [sizes[: self._inner], *([sizes[self._inner :]] if self.n_ends else [])]
        return [np.sum(layers, axis=0).tolist() for layers in classes]

    def _losses(self, k: int, by: By, slopes: dict[str, Slope]) -> list[float]:
        rows = self._rows(k)
        if by == "fisher":
            return rows[:, _FISHER].tolist()
        errors = rows[:, _OUTPUT if by == "output" and k < self._inner else _NMSE]  # a lookup has no Gram matrix
        return (slopes[self.names[k]].nats * errors).tolist()

    def _choice(self, k: int, i: int, slopes: dict[str, Slope], losses: list[list[float]] | None) -> LayerChoice:
        name, row = self.names[k], self._rows(k)[i]
        return LayerChoice(layer=name, shape=self.shapes[k], target=self.targets[k][i], n_bits=int(row[_BITS]),
                           group_size=int(row[_GROUP]), nmse=float(row[_NMSE]), slope=slopes.get(name),
                           predicted_nats=None if losses is None else losses[k][i])  # fmt: skip


def _target(recipe: Recipe, name: str) -> Target:
    target = recipe.target_of(name)
    assert target is not None  # `candidates` has seen to it
    return target


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    whole = np.full((len(rows), max(len(row) for row in rows), 5), np.nan)
    for into, row in zip(whole, rows, strict=True):
        into[: len(row)] = row
    return whole


def _measure_block(
    checkpoint: Checkpoint, i: int, recipes: list[Recipe], kept: Calibration, fisher: Fisher | None, seed: int
) -> list[np.ndarray]:
    """For every layer of block `i` what every candidate is (candidates, columns), before a block is tuned."""
    statistics, information = kept.statistics(i), {} if fisher is None else fisher.block(i)
    mean_power = {layer: float(statistics[site.layers[0]].gram.diagonal().mean())
                  for site in checkpoint.architecture.sites for layer in site.layers}  # fmt: skip
    original, rows = checkpoint.block(i), []
    for recipe in recipes:
        block = checkpoint.block(i)
        done = quantize_block(checkpoint, i, block, replace(recipe, adaptation=None), statistics, seed, None)
        for layer, record in zip(checkpoint.architecture.layers, done.records, strict=True):
            noise = record.weight_energy * mean_power[layer]  # E tr(E H E^T) of undirected noise as large as W
            output = record.hnmse * record.output_energy / noise if noise else 0.0
            lost = math.nan
            if fisher is not None:
                E = linear(original, layer).weight - linear(block, layer).weight
                lost = _weighted(E, information[record.layer])
            rows.append([record.n_bits, record.nmse, output, lost, record.group_size])
    by_recipe = np.array(rows).reshape(len(recipes), -1, 5)
    return list(by_recipe.transpose(1, 0, 2))


def _measure_ends(
    checkpoint: Checkpoint, targets: list[Target], fisher: Fisher | None, seed: int, coding: Coding
) -> list[np.ndarray]:  # fmt: skip
    """The same for embedding and head."""
    if not targets:
        return []
    found, information = [], {} if fisher is None else fisher.ends()
    for name, W in Ends.of(checkpoint).weights(checkpoint).items():
        rows = []
        for target in targets:
            quantized = quantize_layer(W.detach(), target, None, generator_for(seed, name), coding)
            E = W.detach() - quantized.dequantize()
            nmse = float((E.double() ** 2).sum() / (W.detach().double() ** 2).sum())
            lost = math.nan if fisher is None else _weighted(E, information[name])
            rows.append([quantized.n_bits, nmse, math.nan, lost, quantized.grid.group_size])
        found.append(np.array(rows))
    return found


def _weighted(E: torch.Tensor, F: torch.Tensor) -> float:
    """1/2 sum F E^2."""
    return 0.5 * float((F.double() * E.double() ** 2).sum())
