"""From a recipe to a model with trained adapters: its layers are rounded first, then branches beside them trained."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from suite.blockwise import Trained, quantize_block
from suite.cache import cache_root, keep
from suite.calibration import Calibration
from suite.environment import code_version, environment_key
from suite.learning.adapters import Adapted, adapters_of
from suite.learning.quantization_aware import Learned
from suite.learning.student import Report, Unrest
from suite.models.checkpoint import Checkpoint
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.tokens import Tokens


def adapted_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    training: Tokens,
    *,
    seed: int,
    threads: int,
    calibration: Tokens,
    paged: bool = False,
    report: Report = lambda step, loss_nats: None,
) -> Learned:
    """The model with the recipe's layers rounded and its adapters trained, once for all that it depends on.

    Where optimizer states are, `paged` or in memory, changes nothing of it.
    Raises `DivergedError`, and `UnsupportedError` for what cannot be rounded so.
    """
    about = (f"adapted {checkpoint.sha256} {training.sha256} {calibration.sha256} {checkpoint.dtype} {recipe} "
             f"seed {seed} {code_version()} {environment_key(threads)}")  # fmt: skip
    unfinished = cache_root() / f"training-{hashlib.sha256(about.encode()).hexdigest()[:32]}"

    def make(path: Path) -> None:
        unfinished.mkdir(exist_ok=True)
        adapted = Adapted.of(checkpoint, recipe, seed, rounded_layers(checkpoint, recipe, calibration, seed, threads),
                             unfinished if paged else None)  # fmt: skip
        losses = adapted.train(training.tensor(), seed, unfinished / "state.pt", report)
        write_layers(path, adapted.stored(), {"losses_nats": losses, "rounding": torch.tensor(adapted.rounding())})
        shutil.rmtree(unfinished, ignore_errors=True)

    layers, beside = read_layers(keep(about, make))
    how = adapters_of(recipe)
    assert how.schedule is not None
    tokens = how.schedule.steps * how.schedule.accumulate * how.rows * training.rows.shape[1]
    return Learned(checkpoint, Trained(layers=layers), beside["losses_nats"], tokens,
                   operations_of(checkpoint, how.adapters.rank, layers, how.distills) * tokens,
                   Unrest(float("nan"), float("nan"), 0), float(beside["rounding"]))  # fmt: skip


@torch.no_grad()
def rounded_layers(
    checkpoint: Checkpoint, recipe: Recipe, calibration: Tokens, seed: int, threads: int
) -> dict[str, Quantized]:
    """The quantized layers of all blocks by full name, as a cell without training has them."""
    kept, recipe = Calibration.of(checkpoint, calibration, threads), replace(recipe, cache=None)
    follows = {stream: checkpoint.embed(calibration.tensor()) for stream in recipe.streams}
    found: dict[str, Quantized] = {}
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        done = quantize_block(checkpoint, i, block, recipe, kept.statistics(i), seed, follows.get("quantized"),
                              follows.get("original"))  # fmt: skip
        runs = {"quantized": block, "original": done.unquantized}
        follows = {stream: checkpoint.run(i, through, hidden)
                   for stream, hidden in follows.items() if (through := runs[stream]) is not None}  # fmt: skip
        found |= done.layers
    return found


def operations_of(checkpoint: Checkpoint, rank: int, layers: Mapping[str, Quantized], distills: bool) -> int:
    """Multiplications and additions of matrix products for a token in training.

    2 for a weight forth and 2 back, since a frozen one has no gradient of its own, 6 for an adapter's, and 2 for a
    teacher's.
    """
    head = f"{checkpoint.architecture.head}.weight"
    weights = sum(x.numel() for name, x in checkpoint.skeleton.state_dict().items()
                  if x.ndim == 2 and not (checkpoint.tied and name == head))  # fmt: skip
    adapters = sum(rank * sum(found.grid.shape) for found in layers.values())
    return (4 + 2 * distills) * weights + 6 * adapters


def write_layers(path: Path, layers: Mapping[str, Quantized], beside: Mapping[str, torch.Tensor]) -> None:
    """Write quantized layers by their full names, and what else there is, into the directory `path`."""
    payloads = {name: torch.frombuffer(bytearray(found.to_bytes()), dtype=torch.uint8)
                for name, found in layers.items()}  # fmt: skip
    save_file(payloads, path / "layers.safetensors")
    save_file(dict(beside), path / "beside.safetensors")
    headers = {name: found.header() for name, found in layers.items()}
    (path / "headers.json").write_text(json.dumps(headers), encoding="utf8")


def read_layers(path: Path) -> tuple[dict[str, Quantized], dict[str, torch.Tensor]]:
    """The inverse of `write_layers`."""
    headers = json.loads((path / "headers.json").read_text(encoding="utf8"))
    payloads = load_file(path / "layers.safetensors")
    layers = {name: Quantized.from_bytes(payloads[name].numpy().tobytes(), header) for name, header in headers.items()}
    return layers, load_file(path / "beside.safetensors")
