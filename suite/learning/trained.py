"""Trained cells: the model that a recipe's training leaves on a bench, and what it owes to more training alone.

Every trained model is held against its control, the unquantized one trained equally longer on the same tokens, by the
same schedule and loss: a schedule that warms up again moves perplexity by several percent on its own.
"""

import math
from typing import Any

import numpy as np
import torch

from suite.adaptation.low_rank import LowRank
from suite.bench import Bench
from suite.calibration import last_hidden
from suite.evaluation import Comparison, Ended, clustered_se, compare
from suite.learning.adapting import adapted_for
from suite.learning.quantization_aware import Learned, control_of, learned_for
from suite.models.architecture import weight_of
from suite.models.checkpoint import Checkpoint
from suite.processes import Step, tell
from suite.recipe import Recipe, trains
from suite.store import Record, TrainingRow


def trained_for(bench: Bench, recipe: Recipe, name: str) -> Learned | None:
    """The model trained as the recipe says, on the bench's training tokens; None where it says nothing of that.

    Progress is told under `name`.
    """
    if not trains(recipe):
        return None
    how: Any = recipe.adaptation
    steps = how.schedule.steps

    def report(step: int, loss_nats: float) -> None:
        tell(Step(name, step, steps, loss_nats))

    if isinstance(how, LowRank):
        return adapted_for(bench.checkpoint, recipe, bench.training, seed=bench.seed, threads=bench.setting.threads,
                           calibration=bench.calibration, paged=bench.setting.paged, report=report)  # fmt: skip
    return learned_for(bench.checkpoint, recipe, bench.training, seed=bench.seed, threads=bench.setting.threads,
                       calibration=bench.calibration, paged=bench.setting.paged, report=report)  # fmt: skip


def control_for(bench: Bench, recipe: Recipe, method: str) -> Learned:
    """The control of a recipe that trains; trained when it is first asked for."""
    control = trained_for(bench, control_of(recipe), f"control of {method}")
    assert control is not None
    return control


@torch.no_grad()
def against_control(
    bench: Bench, recipe: Recipe, trained: Learned, compared: Comparison, record: Record
) -> TrainingRow:
    """Train the control, unless it is there already, and compare a trained cell's losses with its own."""
    control = control_for(bench, recipe, record.method)
    tokens = bench.evaluation.tensor()
    hidden = torch.from_numpy(last_hidden(control.checkpoint, bench.evaluation, bench.setting.threads))
    nll = compare(Ended(control.checkpoint, hidden), None, tokens).nll
    losses, frozen = trained.losses_nats, isinstance(recipe.adaptation, LowRank)
    layers = [name for name in _layers(bench.checkpoint) if recipe.target_of(name) is not None]
    return TrainingRow(
        cell=record.cell, code=record.code, env=record.env,
        updates=len(losses), tokens=trained.tokens, operations=trained.operations,
        loss_nats=float(losses[-max(1, len(losses) // 10):].mean()),
        ppl_control=float(np.exp(nll.mean())), excess_nats=float((compared.nll - nll).mean()),
        excess_se=clustered_se(compared.nll - nll, bench.evaluation.clusters),
        moved=None if frozen else _moved(bench.checkpoint, trained.checkpoint, layers),
        moved_control=_moved(bench.checkpoint, control.checkpoint, layers), rounding=trained.rounding,
        turning=_number(trained.unrest.turning), disorder=_number(trained.unrest.disorder),
        window=trained.unrest.window,
    )  # fmt: skip


def _number(share: float) -> float | None:
    return None if math.isnan(share) else share


def _layers(checkpoint: Checkpoint) -> list[str]:
    names = checkpoint.architecture
    return [names.full_name(i, layer) for i in range(checkpoint.n_blocks) for layer in names.layers]


def _moved(before: Checkpoint, after: Checkpoint, layers: list[str]) -> float | None:
    """|W' - W|^2 / |W|^2 over the weights of `layers`, a block at a time; None where there are none."""
    squares = np.zeros(2)
    for i in range(before.n_blocks):
        old, new = before.block(i), after.block(i)
        prefix = f"{before.architecture.blocks}.{i}."
        for layer in (name.removeprefix(prefix) for name in layers if name.startswith(prefix)):
            W, moved = (weight_of(block, layer).double() for block in (old, new))
            squares += [float((moved - W).square().sum()), float(W.square().sum())]
    return float(squares[0] / squares[1]) if squares[1] else None
