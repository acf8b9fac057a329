"""Quantization-aware training of a whole model: weights, and scales of what rounds them, on the training tokens.

Beside rotation learning the one place where a whole model is in memory. What comes out is a checkpoint like any other,
with learned parameters of grids beside it: measuring, packing and evaluating it are everybody's (`suite.measure`). It
is kept on disk under a hash of everything that it depends on; a run that was killed is taken up where it was.
"""

import copy
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, BitNetConfig

from suite.adaptation.distillation import cakld, confidence_of, forward_kl, hidden_error, reverse_kl
from suite.adaptation.oscillation import Flips
from suite.adaptation.quantization_aware import FakeInputs, FakeQuantize, QuantizationAware
from suite.adaptation.training import AdamW, Loss, Update, train
from suite.adaptation.zeroth_order import ZerothOrder
from suite.blockwise import Trained
from suite.cache import cache_root, keep
from suite.environment import code_version, environment_key
from suite.grids.integer import FittedInteger
from suite.models.architecture import architecture_of, linear
from suite.models.checkpoint import Checkpoint
from suite.outside import UnsupportedError, supported
from suite.quantize import generator_for
from suite.recipe import Recipe
from suite.tokens import Tokens

KEPT = 100  # updates between checkpoints
FOLLOWED = 1 << 16  # codes of a matrix whose oscillation is followed
CONFIDENCE_BATCHES = 8  # micro-batches that the teacher's confidence is averaged over
Report = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained model: `checkpoint` holds its unrounded weights; `beside` them what was learned of grids.

    `losses_nats` are those of every update, over `tokens` in all. `operations` are the multiplications and additions of
    matrix products in training: 2 for a weight and a token forth and 4 back, 2 for a teacher's. `turning` is the share
    of codes that oscillated within the last `window` updates, None where nothing is quantized.
    """

    checkpoint: Checkpoint
    beside: Trained
    losses_nats: torch.Tensor
    tokens: int
    operations: int
    turning: float | None
    window: int


def control_of(recipe: Recipe) -> Recipe:
    """The unquantized model trained equally: on the same tokens, by the same schedule and loss."""
    how = recipe.adaptation
    assert isinstance(how, QuantizationAware)
    plain = QuantizationAware(schedule=how.schedule, rows=how.rows, learned="nothing", loss=how.loss, hidden=how.hidden,
                              perturbation=how.perturbation, scratch=how.scratch, sub_norm=how.sub_norm)  # fmt: skip
    return Recipe(adaptation=plain)


def learned_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    training: Tokens,
    *,
    seed: int,
    threads: int,
    report: Report = lambda step, loss_nats: None,
) -> Learned:
    """The model trained as the recipe says, once for everything that it depends on.

    Raises `DivergedError`, and `UnsupportedError` for grids that cannot be trained on.
    """
    begun = with_sub_norms(checkpoint) if _how(recipe).sub_norm else checkpoint
    about = f"learned {checkpoint.sha256} {training.sha256} {checkpoint.dtype} {_taught(recipe)} seed {seed}"
    about = f"{about} {code_version()} {environment_key(threads)}"
    digest = hashlib.sha256(about.encode()).hexdigest()
    unfinished = cache_root() / f"training-{digest[:32]}"

    def make(path: Path) -> None:
        unfinished.mkdir(exist_ok=True)
        student = Student.of(begun, recipe, seed)
        losses, turning = student.train(training.tensor(), seed, unfinished / "state.pt", report)
        save_file(student.weights(), path / "weights.safetensors")
        turned = {"turning": torch.tensor(turning), "window": torch.tensor(student.window)}
        save_file(student.learned() | turned | {"losses_nats": losses}, path / "learned.safetensors")
        shutil.rmtree(unfinished, ignore_errors=True)

    directory = keep(about, make)
    found = load_file(directory / "learned.safetensors")
    losses, window = found.pop("losses_nats"), int(found.pop("window"))
    turning = float(found.pop("turning"))
    how = _how(recipe)
    tokens = how.schedule.steps * how.schedule.accumulate * how.rows * training.rows.shape[1]
    held = load_file(directory / "weights.safetensors")
    trained = replace(begun, held=held, dial=None, known_sha256=digest)
    weights = sum(W.numel() for W in held.values() if W.ndim == 2)
    passes = (6 if how.perturbation is None else 4 * how.perturbation.directions) + (2 if how.distills else 0)
    return Learned(trained, _sorted(found), losses, tokens, passes * weights * tokens,
                   None if math.isnan(turning) else turning, window)  # fmt: skip


def _sorted(found: Mapping[str, torch.Tensor]) -> Trained:
    """What is named "layer/name", by layer and name."""
    parameters: dict[str, dict[str, torch.Tensor]] = {}
    ranges: dict[str, float] = {}
    for key, x in found.items():
        layer, name = key.split("/")
        if name == "range":
            ranges[layer] = float(x)
        else:
            parameters.setdefault(layer, {})[name] = x
    return Trained(parameters, ranges)


def _how(recipe: Recipe) -> QuantizationAware:
    if not isinstance(recipe.adaptation, QuantizationAware):
        raise ValueError(f"expected a recipe with QuantizationAware, found {recipe}")
    return recipe.adaptation


def _taught(recipe: Recipe) -> Recipe:
    """What of a recipe training depends on."""
    return Recipe(weights=recipe.weights, layers=recipe.layers, activations=recipe.activations,
                  adaptation=recipe.adaptation)  # fmt: skip


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
    def of(cls, checkpoint: Checkpoint, recipe: Recipe, seed: int) -> "Student":
        """The model with its weights, or with random ones, and quantization where the recipe wants it."""
        how, names = _how(recipe), checkpoint.architecture
        model = whole_model(checkpoint, seed if how.scratch else None)
        teacher = copy.deepcopy(model).eval().requires_grad_(False) if how.distills else None
        weighed: dict[str, FakeQuantize] = {}
        entered: dict[str, FakeInputs] = {}
        for name in (names.full_name(i, layer) for i in range(checkpoint.n_blocks) for layer in names.layers):
            module, target = linear(model, name), recipe.target_of(name)
            if target is not None:
                weighed[name] = supported(partial(FakeQuantize, module.weight, target.grid, how))
                parametrize.register_parametrization(module, "weight", weighed[name])
            if recipe.activations is not None:
                entered[name] = supported(partial(FakeInputs, recipe.activations.grid))
                module.add_module("inputs", entered[name])
                module.register_forward_pre_hook(entered[name])
        update: Update
        if how.perturbation is None:
            update = AdamW(model, how.schedule, decays=_decays)
        else:
            update = ZerothOrder(model, noise=how.perturbation.noise, seed=seed, directions=how.perturbation.directions)
        return cls(checkpoint, recipe, model, weighed, entered, update, teacher)

    def train(self, rows: torch.Tensor, seed: int, state: Path | None, report: Report) -> tuple[torch.Tensor, float]:
        """Go through the schedule on rows (n, length), dealt out by `seed`, taking up what `state` holds, if anything.

        The loss of every update, float64, and the share of codes that turned within the last `window` updates, NaN
        where nothing is quantized. Of each matrix at most `FOLLOWED` codes are followed.
        """
        schedule, flips = _how(self.recipe).schedule, dict[str, Flips]()

        def after(step: int, loss_nats: float) -> None:
            if step >= schedule.steps - self.window:
                for name, codes in self._codes():
                    if name in flips:
                        flips[name].see(codes)
                    else:
                        flips[name] = Flips.of(codes)
            report(step, loss_nats)

        losses = train(self.model, self.loss(rows, seed), schedule, update=self.update, checkpoint=state, every=KEPT,
                       after=after)  # fmt: skip
        shares = [found.share(self.window) for found in flips.values()]
        return torch.tensor(losses, dtype=torch.float64), sum(shares) / len(shares) if shares else float("nan")

    @property
    def window(self) -> int:
        """The updates since the last checkpoint before the end: a run that is taken up makes all of them."""
        return (_how(self.recipe).schedule.steps - 1) % KEPT

    def _codes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every quantized layer's codes, of large matrices some spread evenly."""
        for name, fake in self.weighed.items():
            W = latent(linear(self.model, name))
            codes = fake.fitted(W.detach()).nearest(W.detach()).flatten()
            yield name, codes[:: -(-len(codes) // FOLLOWED)]

    def loss(self, rows: torch.Tensor, seed: int) -> Loss:
        """The loss of a micro-batch of `rows` (n, length), by its number."""
        how = _how(self.recipe)
        batch = partial(batch_of, rows, rows_per_batch=how.rows, seed=seed)
        if self.teacher is None:
            return lambda part: next_token_loss(self.model, batch(part))
        teacher, confidence = self.teacher, 0.0
        if how.loss == "cakld":
            with torch.no_grad():
                seen = [batch(part) for part in range(CONFIDENCE_BATCHES)]
                found = [confidence_of(read(teacher, part)[1][:, :-1], part[:, 1:]) for part in seen]
            confidence = sum(found) / len(found)

        def loss_of(part: int) -> torch.Tensor:
            tokens = batch(part)
            with torch.no_grad():
                aim, theirs = read(teacher, tokens)
            hidden, ours = read(self.model, tokens)
            loss = _loss(how.loss, confidence, ours[:, :-1], theirs[:, :-1], tokens[:, 1:])
            return loss + how.hidden * hidden_error(hidden, aim) if how.hidden else loss

        return loss_of

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by the tensor's name, unrounded, in the type that they were trained in."""
        found = {}
        for name in self.checkpoint.skeleton.state_dict():
            owner, _, own = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if owner in self.weighed and own == "weight":
                x = latent(module)
            else:
                x = getattr(module, own)
            found[name] = x.detach().clone().contiguous()
        if self.checkpoint.tied:
            found.pop(f"{self.checkpoint.architecture.head}.weight", None)
        return found

    def learned(self) -> dict[str, torch.Tensor]:
        """Learned parameters of grids and ranges of inputs, as "layer/name"."""
        found = {f"{layer}/{name}": x.detach().clone().contiguous()
                 for layer, fake in self.weighed.items() for name, x in fake.values().items()}  # fmt: skip
        for layer, inputs in self.entered.items():
            if inputs.step is not None:
                blank = inputs.grid.fit(torch.ones(1, 1))
                assert isinstance(blank, FittedInteger)
                found[f"{layer}/range"] = (inputs.step / blank.scale).detach().abs().reshape(())
        return found


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices of weights, not for scales, of which there may be a matrix, too."""
    return parameter.ndim >= 2 and ".learned." not in name and not name.endswith("inputs.step")


def _loss(
    kind: str, confidence: float, ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    if kind == "tokens":
        return nn.functional.cross_entropy(ours.flatten(0, 1), targets.flatten())
    if kind == "cakld":
        return cakld(ours, theirs, confidence)
    return (forward_kl if kind == "forward-kl" else reverse_kl)(ours, theirs)


def latent(module: nn.Module) -> torch.Tensor:
    """The weights of a layer that is read quantized, as they are trained."""
    found: torch.Tensor = cast(Any, module).parametrizations.weight.original
    return found


def next_token_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood in nats of all tokens of `tokens` (rows, length) but the first."""
    _, logits = read(model, tokens)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def read(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states behind the norm (rows, length, hidden), and logits (rows, length, vocabulary)."""
    hidden = model.get_submodule("model")(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden, model.get_submodule("lm_head")(hidden)


def batch_of(rows: torch.Tensor, part: int, *, rows_per_batch: int, seed: int) -> torch.Tensor:
    """Micro-batch number `part` of rows (n, length): every row once in an epoch, in an order drawn for it."""
    size = min(rows_per_batch, len(rows))
    epoch, index = divmod(part, len(rows) // size)
    order = torch.randperm(len(rows), generator=generator_for(seed, f"epoch {epoch}"))
    return rows[order[index * size : (index + 1) * size]]


def with_sub_norms(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint's sizes in BitNet's architecture, which has no weights yet; `UnsupportedError` for biased layers."""
    had = checkpoint.config
    if getattr(had, "attention_bias", False) or checkpoint.head_dim * had.num_attention_heads != had.hidden_size:
        raise UnsupportedError(f"{checkpoint.name}: BitNet's layers have no biases, and heads as wide as the stream")
    config = BitNetConfig(
        vocab_size=had.vocab_size, hidden_size=had.hidden_size, intermediate_size=had.intermediate_size,
        num_hidden_layers=had.num_hidden_layers, num_attention_heads=had.num_attention_heads,
        num_key_value_heads=had.num_key_value_heads, hidden_act=had.hidden_act,
        max_position_embeddings=had.max_position_embeddings, rms_norm_eps=had.rms_norm_eps,
        tie_word_embeddings=had.tie_word_embeddings, rope_parameters=had.rope_parameters,
        bos_token_id=had.bos_token_id, eos_token_id=had.eos_token_id,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    found = replace(checkpoint, config=config, architecture=architecture_of("bitnet"))
    like = checkpoint.files[f"{checkpoint.architecture.norm}.weight"]  # new norms are stored as those there are
    shapes = {name: tuple(x.shape) for name, x in found.skeleton.state_dict().items() if "sub_norm" in name}
    more = {name: replace(like, shape=shape) for name, shape in shapes.items()}
    return replace(found, files=checkpoint.files | more)


def whole_model(checkpoint: Checkpoint, seed: int | None = None) -> nn.Module:
    """All of a checkpoint in memory, ready to be trained; with random weights that `seed` draws, if one is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        model: nn.Module = AutoModelForCausalLM.from_config(checkpoint.config).to(checkpoint.dtype)
    if seed is None:
        names = checkpoint.architecture
        state = {f"{names.blocks}.{i}.{key}": x for i in range(checkpoint.n_blocks)
                 for key, x in checkpoint.block(i).state_dict().items()}  # fmt: skip
        for name in (names.embedding, names.norm, *(() if checkpoint.tied else (names.head,))):
            state |= {f"{name}.{key}": x for key, x in checkpoint.module(name).state_dict().items()}
        found = model.load_state_dict(state, strict=False)
        assert not found.unexpected_keys and set(found.missing_keys) <= {f"{names.head}.weight"}, found
    return model.requires_grad_(True)
