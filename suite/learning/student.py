"""A whole model in training: quantized wherever its weights are read, and the loss that it is trained by.

Beside rotation learning the one place where a whole model is in memory.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint as checkpoint_of
from transformers import AutoModelForCausalLM

from suite.adaptation.clipping import clipped
from suite.adaptation.oscillation import Disorder, Flips
from suite.adaptation.quantization_aware import Adapter, FakeInputs, FakeQuantize, QuantizationAware
from suite.adaptation.training import AdamW, Loss, Update, train
from suite.adaptation.zeroth_order import ZerothOrder
from suite.calibration import Calibration
from suite.learning.objective import objective
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.outside import supported
from suite.quantize import generator_for
from suite.recipe import Recipe

KEPT = 100  # updates between checkpoints
FOLLOWED = 1 << 14  # codes of a matrix whose oscillation is followed
Report = Callable[[int, float], None]


def how_of(recipe: Recipe) -> QuantizationAware:
    """How a recipe trains; `ValueError` for one that does not."""
    if not isinstance(recipe.adaptation, QuantizationAware):
        raise ValueError(f"expected a recipe with QuantizationAware, found {recipe}")
    return recipe.adaptation


@dataclass(frozen=True, slots=True)
class Unrest:
    """How restless the last `window` updates of a training were.

    `turning` is the share of codes that turned, `disorder` that of successive gradients of learned scales whose signs
    differ; NaN where nothing is quantized, or nothing is learned by gradients.
    """

    turning: float
    disorder: float
    window: int


@dataclass(frozen=True)
class Student:
    """A whole model whose layers are quantized as they are read, and the teacher that it learns from, if any."""

    checkpoint: Checkpoint
    recipe: Recipe
    model: nn.Module
    weighed: dict[str, FakeQuantize]
    entered: dict[str, FakeInputs]
    update: Update
    teacher: nn.Module | None

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, recipe: Recipe, seed: int, calibration: Calibration | None = None,
        pages: Path | None = None,
    ) -> "Student":  # fmt: skip
        """The model with its weights, or with random ones, and quantization where the recipe wants it.

        Optimizer states lie in the directory `pages`, if there is one, instead of in memory.
        Raises `ValueError` where the recipe clips weights and there is no `calibration` of the checkpoint to do it by.
        """
        how, names = how_of(recipe), checkpoint.architecture
        model = whole_model(checkpoint, seed if how.scratch else None)
        teacher = copy.deepcopy(model).eval().requires_grad_(False) if how.distills else None
        if how.clipping is not None:
            if calibration is None:
                raise ValueError("weights are clipped by their outputs: expected a calibration")
            clip(model, recipe, calibration)
        weighed: dict[str, FakeQuantize] = {}
        entered: dict[str, FakeInputs] = {}
        for name in (names.full_name(i, layer) for i in range(checkpoint.n_blocks) for layer in names.layers):
            module, target = linear(model, name), recipe.target_of(name)
            if how.adapters is not None:
                adapter = Adapter(module.weight, how.adapters, generator_for(seed, f"{name}/adapter"))
                parametrize.register_parametrization(module, "weight", adapter)
            if target is not None:
                weighed[name] = supported(partial(FakeQuantize, module.weight, target.grid, how))
                with torch.no_grad():
                    parametrize.register_parametrization(module, "weight", weighed[name])
            if recipe.activations is not None:
                entered[name] = supported(partial(FakeInputs, recipe.activations.grid))
                module.add_module("inputs", entered[name])
                module.register_forward_pre_hook(entered[name])
        if how.adapters is not None:
            _freeze(model)
        update: Update
        if how.perturbation is None:
            update = AdamW(model, how.schedule, decays=_decays, pages=pages)
        else:
            update = ZerothOrder(model, noise=how.perturbation.noise, seed=seed, directions=how.perturbation.directions)
        return cls(checkpoint, recipe, model, weighed, entered, update, teacher)

    def train(self, rows: torch.Tensor, seed: int, state: Path | None, report: Report) -> tuple[torch.Tensor, Unrest]:
        """Go through the schedule on rows (n, length), dealt out by `seed`, taking up what `state` holds, if anything.

        The loss of every update, float64, and how restless the last ones were. Of each matrix at most `FOLLOWED` codes
        are followed.
        """
        schedule, flips, signs = how_of(self.recipe).schedule, dict[str, Flips](), dict[str, Disorder]()

        def after(step: int, loss_nats: float) -> None:
            if step >= schedule.steps - self.window:
                for name, codes in self._codes():
                    if name in flips:
                        flips[name].see(codes)
                    else:
                        flips[name] = Flips.of(codes)
                for name, gradients in self._scale_gradients():
                    if name in signs:
                        signs[name].see(gradients)
                    else:
                        signs[name] = Disorder.of(gradients)
            report(step, loss_nats)

        loss = self.loss(rows, seed)
        if any(inputs.static for inputs in self.entered.values()):
            with torch.no_grad():
                loss(0)  # static scales begin at what they see, before anything shifts them
        losses = train(self.model, loss, schedule, update=self.update, checkpoint=state, every=KEPT,
                       after=after)  # fmt: skip
        turning = [found.share(self.window) for found in flips.values()]
        disorder = [float(found.shares.mean()) for found in signs.values() if found.pairs]
        unrest = Unrest(_mean(turning), _mean(disorder), self.window)
        return torch.tensor(losses, dtype=torch.float64), unrest

    @property
    def window(self) -> int:
        """The updates since the last checkpoint before the end: a run that is taken up makes all of them."""
        return (how_of(self.recipe).schedule.steps - 1) % KEPT

    def _codes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every quantized layer's codes, of large matrices some spread evenly."""
        for name, fake in self.weighed.items():
            W = latent(linear(self.model, name))
            codes = fake.fitted(W.detach()).nearest(W.detach()).flatten()
            yield name, codes[:: -(-len(codes) // FOLLOWED)]

    def _scale_gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The last gradients of every quantized layer's learned scales, where there are any."""
        for layer, fake in self.weighed.items():
            for name, x in fake.learned.items():
                if name.startswith("scale") and x.grad is not None:
                    yield f"{layer}/{name}", x.grad.flatten()

    def loss(self, rows: torch.Tensor, seed: int) -> Loss:
        """The loss of a micro-batch of `rows` (n, length), by its number."""
        return objective(self.model, self.teacher, how_of(self.recipe), rows, seed)

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by the tensor's name, unrounded, in the type that they were trained in."""
        found = {}
        for name in self.checkpoint.skeleton.state_dict():
            owner, _, own = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if own == "weight" and parametrize.is_parametrized(module, own):
                x = latent(module)
            else:
                x = getattr(module, own)
            found[name] = x.detach().contiguous()
        if self.checkpoint.tied:
            found.pop(f"{self.checkpoint.architecture.head}.weight", None)
        return found

    def learned(self) -> dict[str, torch.Tensor]:
        """Learned parameters of grids and ranges of inputs, as "layer/name"."""
        found = {f"{layer}/{name}": x.detach().clone().contiguous()
                 for layer, fake in self.weighed.items() for name, x in fake.values().items()}  # fmt: skip
        for layer, inputs in self.entered.items():
            if inputs.span:
                found[f"{layer}/range"] = torch.tensor(inputs.span, dtype=torch.float64)
        return found


@torch.no_grad()
def clip(model: nn.Module, recipe: Recipe, calibration: Calibration) -> None:
    """Clamp the weights of a whole model, in place, as its training's recipe says, by its inputs' Gram matrices."""
    how, names = how_of(recipe).clipping, calibration.checkpoint.architecture
    assert how is not None
    for i in range(calibration.checkpoint.n_blocks):
        statistics = calibration.statistics(i)
        for site in names.sites:
            gram = statistics[site.layers[0]].gram
            for name in (names.full_name(i, layer) for layer in site.layers):
                W, target = linear(model, name).weight, recipe.target_of(name)
                if target is not None and how.takes(name):
                    W.copy_(supported(partial(clipped, W.detach(), target.grid, gram, how)))


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else float("nan")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices of weights, not for scales, of which there may be a matrix, too."""
    return parameter.ndim >= 2 and ".learned." not in name and not name.endswith(("inputs.step", "inputs.zero"))


def latent(module: nn.Module) -> torch.Tensor:
    """The weights of a layer that is read quantized, as they are trained: before they are rounded."""
    parts = cast(Any, module).parametrizations.weight
    found: torch.Tensor = parts.original
    for part in parts:
        found = part(found) if isinstance(part, Adapter) else found
    return found


def _adapts(name: str) -> bool:
    return ".learned." in name or name.endswith((".A", ".B", "inputs.step", "inputs.zero"))


def _freeze(model: nn.Module) -> None:
    """Leave only adapters and what is learned of grids to be trained, and keep nothing of large weights for backward.

    What makes a layer's weights is computed once more when gradients need it.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_adapts(name))
    for module in model.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            module.forward = partial(checkpoint_of, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def whole_model(checkpoint: Checkpoint, seed: int | None = None) -> nn.Module:
    """All of a checkpoint in memory, ready to be trained; with random weights that `seed` draws, if one is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        model: nn.Module = AutoModelForCausalLM.from_config(checkpoint.config).to(checkpoint.dtype)
    if seed is None:
        names = checkpoint.architecture
        for i in range(checkpoint.n_blocks):  # one after the other: the model is in memory once
            model.get_submodule(f"{names.blocks}.{i}").load_state_dict(checkpoint.block(i).state_dict())
        for name in (names.embedding, names.norm, *(() if checkpoint.tied else (names.head,))):
            model.get_submodule(name).load_state_dict(checkpoint.module(name).state_dict())
    return model.requires_grad_(True)
