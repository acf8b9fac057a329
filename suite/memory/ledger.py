"""The ledger of memory: what a training of a model holds, measured part by part and as a whole.

Parts are counted from what is there: parameters, gradients and optimizer states after an update, and for activations
what autograd keeps between the forward and the backward pass, storages once and parameters left out. The peak is of the
process, while it makes updates, above what it took before the model was there. Opening and rounding a model, which goes
before, is not counted. Plans for the formula that predicts the same (`suite.memory.formula`) are made of recipes here.
"""

import gc
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import nn

from suite.adaptation.low_rank import LowRank
from suite.adaptation.quantization_aware import QuantizationAware
from suite.adaptation.training import Loss, Update
from suite.cache import cache_root
from suite.grids import DoubleQuantized, Integer, RealScale, Scaled
from suite.grids.shifted import Shifted
from suite.learning.adapters import Adapted
from suite.learning.quantization_aware import control_of
from suite.learning.student import Student
from suite.memory.formula import Branch, Fake, Groups, Packed, Parts, Plan, Shape
from suite.methods import method_named
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint, load_model
from suite.processes import mapped_memory, peak_mib, reset_peak, resident_bytes
from suite.quantized import Quantized
from suite.recipe import Recipe, canonical, trains

UPDATES = 2  # states are made in the first, and are there from the start in the second
CONTROLS = {"full": "lsq", "lora": "qlora"}  # unquantized trainings, and a method that they are the control of


class Trainable(Protocol):
    """A whole model with its update: `Student`, or `Adapted`."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def teacher(self) -> nn.Module | None:
        """What it learns from."""

    @property
    def update(self) -> Update:
        """How it descends."""

    def loss(self, rows: torch.Tensor, seed: int) -> Loss:
        """The loss of a micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of the ledger: a model by its name, a recipe that trains, `rows` of `length` tokens."""

    model: str
    recipe: Recipe
    rows: int
    length: int
    paged: bool = False
    threads: int = 1


def recipe_for(name: str, bits: float, rank: int | None = None) -> Recipe:
    """The recipe of a method that trains, or of "full" and "lora", which round nothing; `ValueError` for others.

    `rank` is of adapters, where there are any.
    """
    method = method_named(CONTROLS.get(name, name))
    if method.needs != "training":
        raise ValueError(f"{name} does not train: there is no memory of training to measure")
    widths = {} if method.fixed else {"bits": method.bits[-1] if name in CONTROLS else bits}
    recipe = method.recipe(**widths)
    how = recipe.adaptation
    assert isinstance(how, QuantizationAware | LowRank)
    if rank is not None and how.adapters is not None:
        recipe = replace(recipe, adaptation=replace(how, adapters=replace(how.adapters, rank=rank)))
    return control_of(recipe) if name in CONTROLS else recipe


def measured(task: Task) -> Parts:
    """Measure in a process of its own; `ValueError` where that process dies, for want of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measured_here, task).result()
        except BrokenProcessPool as error:
            raise ValueError(f"{task.model}: the process that trained it died, likely for want of memory") from error


def _measured_here(task: Task) -> Parts:
    torch.set_num_threads(task.threads)
    checkpoint = load_model(task.model)
    recipe = with_rows(task.recipe, task.rows)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, checkpoint.config.vocab_size, (task.rows, task.length), generator=draw)
    with mapped_memory(), TemporaryDirectory(prefix="new-", dir=cache_root()) as directory:  # on a disk, as in a run
        begin = partial(begun, checkpoint, recipe, Path(directory) if task.paged else None)
        _warm(begin, rows)
        return parts_of(begin, checkpoint, rows)


def with_rows(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with micro-batches of so many rows."""
    how = recipe.adaptation
    assert isinstance(how, QuantizationAware | LowRank)
    return replace(recipe, adaptation=replace(how, rows=rows))


def begun(checkpoint: Checkpoint, recipe: Recipe, pages: Path | None) -> Trainable:
    """A training before its first update. Weights that stay are rounded to nearest: it takes as much memory."""
    if not trains(recipe):
        raise ValueError(f"expected a recipe that trains, found {recipe}")
    if isinstance(recipe.adaptation, LowRank):
        return Adapted.of(checkpoint, recipe, 0, _rounded(checkpoint, recipe), pages)
    return Student.of(checkpoint, recipe, 0, pages=pages)


@torch.no_grad()
def _rounded(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Quantized]:
    found = {}
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        for layer in checkpoint.architecture.layers:
            name = checkpoint.architecture.full_name(i, layer)
            W, target = linear(block, layer).weight, recipe.target_of(name)
            if target is not None:
                grid = target.grid.fit(W)
                found[name] = Quantized(codes=grid.nearest(W), grid=grid)
    return found


def parts_of(begin: Callable[[], Trainable], checkpoint: Checkpoint, rows: torch.Tensor) -> Parts:
    """Measure a training that `begin` makes, on one micro-batch of `rows` (n, length), in this process."""
    gc.collect()
    before = resident_bytes()
    training = begin()
    loss_of = training.loss(rows, 0)
    gc.collect()
    reset_peak()
    for _ in range(UPDATES):
        training.update.gradient(loss_of, [0])
        training.update.descend(1e-5, 0.0)
    peak = int(peak_mib() * 2**20) - before
    weights, adapters = _held(training, checkpoint)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    states = list(_tensors(training.update.state_dict().get("state", {})))
    return Parts(weights=total_bytes(weights), adapters=total_bytes(adapters), gradients=total_bytes(gradients),
                 states=total_bytes(states), activations=_kept(training, loss_of), peak=peak)  # fmt: skip


def _warm(begin: Callable[[], Trainable], rows: torch.Tensor) -> None:
    """An update on two tokens of another such training: it has libraries load what they load when first used."""
    training = begin()
    training.update.gradient(training.loss(rows[:1, :2], 0), [0])
    training.update.descend(1e-5, 0.0)
    del training
    gc.collect()


def _held(training: Trainable, checkpoint: Checkpoint) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The model's own parameters and buffers, its teacher's among them, and those that training has put beside them."""
    known = set(checkpoint.skeleton.state_dict())
    weights = [] if training.teacher is None else [*training.teacher.parameters(), *training.teacher.buffers()]
    beside: list[torch.Tensor] = []
    for name, parameter in training.model.named_parameters():
        plain = re.sub(r"(\.original)+$", "", name.replace("parametrizations.", ""))
        (weights if plain in known else beside).append(parameter)
    for name, buffer in training.model.named_buffers():
        (beside if ".branch." in name else weights).append(buffer)
    return weights, beside


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested mappings."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of storages, each counted once."""
    found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(found.values())


class _Saved:
    """What autograd holds of a tensor, for as long as it does."""

    def __init__(self, x: torch.Tensor):
        self.x = x


def _kept(training: Trainable, loss_of: Loss) -> int:
    """Bytes that autograd keeps after a forward pass for the backward pass."""
    if not any(p.grad is not None for p in training.model.parameters()):
        return 0  # gradients come from forward passes
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(x: torch.Tensor) -> _Saved:
        held = _Saved(x)
        saved.add(held)
        return held

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.x):
        loss = loss_of(0)
        there = [held.x for held in saved]
    own = {x.untyped_storage().data_ptr() for x in [*training.model.parameters(), *training.model.buffers()]}
    del loss
    return total_bytes(x for x in there if x.untyped_storage().data_ptr() not in own)


def shape_of(checkpoint: Checkpoint) -> Shape:
    """The sizes of a LLaMA checkpoint; `ValueError` for another architecture or biases, which the formula lacks."""
    config = checkpoint.config
    biased = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    if checkpoint.architecture.name != "llama" or biased:
        raise ValueError(f"{checkpoint.name}: memory is predicted for LLaMA models without biases alone")
    return Shape(vocabulary=config.vocab_size, hidden=config.hidden_size, intermediate=config.intermediate_size,
                 layers=config.num_hidden_layers, heads=config.num_attention_heads,
                 kv=config.num_key_value_heads * checkpoint.head_dim, head=checkpoint.head_dim,
                 tied=checkpoint.tied)  # fmt: skip


def plan_of(recipe: Recipe) -> Plan:
    """What the formula knows of a recipe that trains; `ValueError` for what it does not know."""
    how = recipe.adaptation
    known = isinstance(how, QuantizationAware | LowRank) and not how.distills and not recipe.layers
    if not known or recipe.activations is not None or getattr(how, "sub_norm", False):
        raise ValueError(f"memory is not predicted for {recipe}: it rounds inputs, names layers, adds norms or has a "
                         "teacher")  # fmt: skip
    grid = None if recipe.weights is None else recipe.weights.grid
    if isinstance(how, LowRank):
        size = getattr(grid, "group", None) if how.pooled else None
        return Plan(packed=_packed(grid), branch=Branch(rank=how.adapters.rank, pooled=size, elastic=how.elastic))
    assert isinstance(how, QuantizationAware)
    return Plan(backward=how.perturbation is None, fake=None if grid is None else _fake(grid, how),
                branch=None if how.adapters is None else Branch(rank=how.adapters.rank, inside=True))  # fmt: skip


def _groups(grid: Any) -> Groups:
    if grid.group == "tensor":
        raise ValueError(f"memory is not predicted for {canonical(grid)}: expected groups or rows")
    return Groups(size=None if grid.group == "row" else grid.group, flat=getattr(grid, "axis", "in") == "flat")


def _packed(grid: Any) -> Packed:
    """How weights on a grid are stored."""
    if isinstance(grid, Integer) and not isinstance(grid.group, str):
        zero = {"symmetric": 0, "full-range": 0, "real-zero": grid.scale_bits}.get(grid.convention, grid.bits)
        return Packed(bits=grid.bits, groups=_groups(grid), beside=grid.scale_bits + zero)
    if isinstance(grid, Shifted):
        return Packed(bits=grid.bits, groups=Groups(size=64, flat=True), beside=16, doubled=2)
    if isinstance(grid, Scaled) and isinstance(grid.scale, DoubleQuantized):
        return Packed(bits=grid.bits, groups=_groups(grid), beside=8, doubled=1)
    raise ValueError(f"memory is not predicted for weights held as {canonical(grid)}")


def _fake(grid: Any, how: QuantizationAware) -> Fake:
    """What rounding within training keeps: levels for the gradient of scales, beside the rounded weights."""
    learns = how.learned == "scales"
    levels = 0 if not learns else 1 if how.gradient.constant else 2
    if isinstance(grid, Integer):
        zero = grid.convention == "real-zero"
        return Fake(groups=_groups(grid), tensors=1 + levels, learned=(1 + zero) * learns)
    if isinstance(grid, Scaled) and isinstance(grid.scale, RealScale):  # whose scales are divided by, where not zero
        return Fake(groups=_groups(grid), tensors=1 + levels, learned=int(learns), aside=(2, 1))
    raise ValueError(f"memory is not predicted for training on {canonical(grid)}")
