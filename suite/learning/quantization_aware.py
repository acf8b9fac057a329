"""Quantization-aware training of a whole model: weights, and scales of what rounds them, on the training tokens.

What comes out is a checkpoint like any other,
with learned parameters of grids beside it: measuring, packing and evaluating it are everybody's (`suite.measure`). It
is kept on disk under a hash of everything that it depends on; a run that was killed is taken up where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from suite.activations import Span
from suite.adaptation.low_rank import LowRank
from suite.adaptation.quantization_aware import QuantizationAware
from suite.blockwise import Trained
from suite.cache import cache_root, keep
from suite.calibration import Calibration
from suite.environment import code_version, environment_key
from suite.learning.student import Report, Student, Unrest, how_of
from suite.learning.sub_norms import with_sub_norms
from suite.models.checkpoint import Checkpoint
from suite.processes import mapped_memory
from suite.recipe import Recipe
from suite.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained model: `checkpoint` holds its unrounded weights; `beside` them what was learned of grids.

    `losses_nats` are those of every update, over `tokens` in all. `operations` are the multiplications and additions of
    matrix products in training: 2 for a weight and a token forth and 4 back, 2 for a teacher's, and 2 where adapted
    weights are multiplied once more in the backward pass. `unrest` is of the last updates. `rounding` is
    |W' - W|^2 / |W|^2 of what storing cost that training did not see, of adapters in float16 or merged into zero
    points; None where training sees what is stored.
    """

    checkpoint: Checkpoint
    beside: Trained
    losses_nats: torch.Tensor
    tokens: int
    operations: int
    unrest: Unrest
    rounding: float | None = None


def control_of(recipe: Recipe) -> Recipe:
    """The unquantized model trained equally: on the same tokens, by the same schedule and loss, adapters by LoRA."""
    how = recipe.adaptation
    if isinstance(how, LowRank) and how.schedule is not None:
        lora = QuantizationAware(schedule=how.schedule, rows=how.rows, learned="nothing", loss=how.loss,
                                 hidden=how.hidden, adapters=how.adapters)  # fmt: skip
        return Recipe(adaptation=lora)
    assert isinstance(how, QuantizationAware)
    plain = QuantizationAware(schedule=how.schedule, rows=how.rows, learned="nothing", loss=how.loss, hidden=how.hidden,
                              perturbation=how.perturbation, scratch=how.scratch, sub_norm=how.sub_norm,
                              adapters=how.adapters)  # fmt: skip
    return Recipe(adaptation=plain)


def learned_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    training: Tokens,
    *,
    seed: int,
    threads: int,
    calibration: Tokens | None = None,
    paged: bool = False,
    report: Report = lambda step, loss_nats: None,
) -> Learned:
    """The model trained as the recipe says, once for everything that it depends on.

    `calibration` are the tokens that weights are clipped by, where the recipe does that; nothing else depends on them.
    Where optimizer states are, `paged` or in memory, changes nothing.
    Raises `DivergedError`, and `UnsupportedError` for grids that cannot be trained on; `ValueError` where there is no
    calibration and weights are to be clipped.
    """
    begun = with_sub_norms(checkpoint) if how_of(recipe).sub_norm else checkpoint
    about = f"learned {checkpoint.sha256} {training.sha256} {checkpoint.dtype} {_taught(recipe)} seed {seed}"
    clips = calibration if how_of(recipe).clipping is not None else None
    if clips is not None:
        about += f" calibration {clips.sha256}"
    about = f"{about} {code_version()} {environment_key(threads)}"
    digest = hashlib.sha256(about.encode()).hexdigest()
    unfinished = cache_root() / f"training-{digest[:32]}"

    def make(path: Path) -> None:
        unfinished.mkdir(exist_ok=True)
        kept = None if clips is None else Calibration.of(begun, clips, threads)
        with nullcontext() if how_of(recipe).perturbation is None else mapped_memory():
            student = Student.of(begun, recipe, seed, kept, unfinished if paged else None)
            losses, unrest = student.train(training.tensor(), seed, unfinished / "state.pt", report)
        save_file(student.weights(), path / "weights.safetensors")
        save_file(student.learned() | {"losses_nats": losses}, path / "learned.safetensors")
        (path / "unrest.json").write_text(json.dumps(asdict(unrest)), encoding="utf8")
        shutil.rmtree(unfinished, ignore_errors=True)

    directory = keep(about, make)
    found = load_file(directory / "learned.safetensors")
    losses = found.pop("losses_nats")
    unrest = Unrest(**json.loads((directory / "unrest.json").read_text(encoding="utf8")))
    how = how_of(recipe)
    tokens = how.schedule.steps * how.schedule.accumulate * how.rows * training.rows.shape[1]
    held = _as_stored(begun, recipe, load_file(directory / "weights.safetensors"))
    trained = replace(begun, held=held, dial=None, known_sha256=digest)
    weights = sum(W.numel() for W in held.values() if W.ndim == 2)
    passes = (6 if how.perturbation is None else 4 * how.perturbation.directions) + (2 if how.distills else 0)
    passes += 2 if how.adapters is not None else 0
    return Learned(trained, _sorted(found), losses, tokens, passes * weights * tokens, unrest)


def _as_stored(checkpoint: Checkpoint, recipe: Recipe, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained weights by name; those that nothing is going to round have the type that the checkpoint stores them in.

    A model that is kept in bfloat16 is evaluated, and packed, as it is kept.
    """
    names = checkpoint.architecture
    layers = (names.full_name(i, layer) for i in range(checkpoint.n_blocks) for layer in names.layers)
    rounded = {f"{layer}.weight" for layer in layers if recipe.target_of(layer) is not None}
    return {key: x if key in rounded else x.to(checkpoint.files[key].dtype) for key, x in held.items()}


def _sorted(found: Mapping[str, torch.Tensor]) -> Trained:
    """What is named "layer/name", by layer and name."""
    parameters: dict[str, dict[str, torch.Tensor]] = {}
    ranges: dict[str, Span] = {}
    for key, x in found.items():
        layer, name = key.split("/")
        if name == "range":
            ranges[layer] = float(x[0]) if len(x) == 1 else (float(x[0]), float(x[1]))
        else:
            parameters.setdefault(layer, {})[name] = x
    return Trained(parameters, ranges)


def _taught(recipe: Recipe) -> Recipe:
    """What of a recipe training depends on."""
    return Recipe(weights=recipe.weights, layers=recipe.layers, activations=recipe.activations,
                  adaptation=recipe.adaptation)  # fmt: skip
