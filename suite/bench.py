"""What a run is measured on: a setting, and for each seed a *bench*, the opened model with its tokens."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from suite.cells import Cell, Pick
from suite.environment import environment_key
from suite.learning.adapter_files import with_adapter
from suite.models.checkpoint import Checkpoint, load_model
from suite.packed import holds_packed
from suite.readback import PackedModel, find_base
from suite.recipe import trains
from suite.tokens import Tokens, load_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the cells of a run share; small enough to send to another process.

    `alone` says that there is one cell: its outputs go into the directories `save` and `export` themselves, else into
    one below them for each cell. `base` is where a packed model's unquantized one is, other than where it was, and
    `adapter` where the side branches are that it has instead of its own. With a `product` the model is evaluated by the
    runtime, on `device`, and not by its dequantized weights. Trainings that are `paged` keep their optimizer's states
    in a file, which changes no number.
    """

    model: str
    calibration: str | None = None
    evaluation: str | None = None
    training: str | None = None
    retention: str | None = None
    length: int | None = None
    calibration_tokens: int | None = None
    evaluation_tokens: int | None = None
    threads: int = 1
    command: str = "python"
    save: Path | None = None
    export: Path | None = None
    alone: bool = False
    base: str | None = None
    adapter: str | None = None
    product: str | None = None
    device: str = "cpu"
    paged: bool = False

    @property
    def env(self) -> str:
        """The environment's key, with the runtime where it evaluates."""
        return environment_key(self.threads, "" if self.product is None else f"{self.product} on {self.device}")

    def place(self, root: Path, method: str, cell: str) -> Path:
        """The directory below (or at) `root` that a cell's output goes to."""
        return root if self.alone else root / f"{method}-{cell[:12]}"


@dataclass(frozen=True, slots=True)
class Bench:
    """A checkpoint with its tokens for one seed; those of `retention` are of a text that it may forget."""

    setting: Setting
    seed: int
    checkpoint: Checkpoint
    calibration: Tokens
    evaluation: Tokens
    retention: Tokens | None = None

    @property
    def training(self) -> Tokens:
        """What models are trained on, as long as evaluation rows; read when it is first asked for."""
        return open_training(self.setting)

    def cell(self, pick: Pick) -> Cell:
        """The cell that a pick is on this bench."""
        taught = trains(pick.recipe)
        return Cell(model_sha256=self.checkpoint.sha256, recipe=str(pick.recipe), bits=pick.bits, seed=self.seed,
                    calibration_sha256=self.calibration.sha256, evaluation_sha256=self.evaluation.sha256,
                    training_sha256=self.training.sha256 if taught else None,
                    length=self.evaluation.rows.shape[1])  # fmt: skip


@dataclass(frozen=True, slots=True)
class PackedBench:
    """A packed model with its evaluation tokens, and the unquantized one where it is to be had.

    `fallbacks` say what is not measured for want of it, and what was asked for and cannot be.
    """

    setting: Setting
    packed: PackedModel
    base: Checkpoint | None
    evaluation: Tokens
    fallbacks: tuple[str, ...]
    retention: Tokens | None = None

    @property
    def seed(self) -> int:
        """The seed that the model was quantized with."""
        return self.packed.header.seed

    @property
    def checkpoint(self) -> Checkpoint:
        """The packed model's own checkpoint: its hash is that of the packed files."""
        return self.packed.checkpoint

    @property
    def pick(self) -> Pick:
        """The only pick there is."""
        header = self.packed.header
        return Pick(method=header.method, bits=header.bits, recipe=self.packed.recipe)

    def cell(self, pick: Pick) -> Cell:
        """The cell that the packed model is on these tokens; `ValueError` for another pick."""
        if pick != self.pick:
            raise ValueError(f"{self.setting.model} is packed already, as {self.pick.method}: it cannot be quantized")
        return Cell(model_sha256=self.checkpoint.sha256, recipe=str(pick.recipe), bits=pick.bits, seed=self.seed,
                    calibration_sha256=self.packed.header.calibration_sha256,
                    evaluation_sha256=self.evaluation.sha256, length=self.evaluation.rows.shape[1])  # fmt: skip


open_model = lru_cache(maxsize=1)(load_model)  # hashing a checkpoint reads all of it
open_packed = lru_cache(maxsize=1)(PackedModel.open)  # so does checking a packed one


@lru_cache(maxsize=1)
def open_training(setting: Setting) -> Tokens:
    """The training rows of a run, which all of its cells share."""
    checkpoint = open_model(setting.model)
    return load_tokens(setting.training, "training", checkpoint, _length(setting, checkpoint))


def forget() -> None:
    """Open everything anew from now on: files may have changed."""
    for opened in (open_bench, open_model, open_packed, open_training):
        opened.cache_clear()


@lru_cache(maxsize=2)
def open_bench(setting: Setting, seed: int) -> Bench | PackedBench:
    """Open the model and its tokens; `ValueError` in one line for anything that cannot be used."""
    if holds_packed(Path(setting.model)):
        return _open_packed_bench(setting, seed)
    _refuse_a_shelf(Path(setting.model))
    if setting.base is not None:
        raise ValueError(f"base {setting.base}: {setting.model} is not a packed model, and is its own base")
    if setting.adapter is not None:
        raise ValueError(f"adapter {setting.adapter}: {setting.model} is not a packed model, which could have it")
    checkpoint = open_model(setting.model)
    length = _length(setting, checkpoint)
    calibration = load_tokens(setting.calibration, "calibration", checkpoint, length)
    evaluation = _evaluation(setting, checkpoint, length)
    return Bench(setting, seed, checkpoint, calibration.draw(setting.calibration_tokens, seed), evaluation,
                 _retention(setting, checkpoint, evaluation))  # fmt: skip


def _evaluation(setting: Setting, checkpoint: Checkpoint, length: int) -> Tokens:
    return load_tokens(setting.evaluation, "evaluation", checkpoint, length).spread(setting.evaluation_tokens)


def _retention(setting: Setting, checkpoint: Checkpoint, evaluation: Tokens) -> Tokens | None:
    """The tokens that forgetting is measured on; `ValueError` where they are those of the evaluation."""
    if setting.retention is None:
        return None
    source = None if setting.retention == "reference" else setting.retention
    found = load_tokens(source, "evaluation", checkpoint, _length(setting, checkpoint))
    found = found.spread(setting.evaluation_tokens)
    if found.sha256 == evaluation.sha256:
        raise ValueError(f"retention {setting.retention}: is what the model is evaluated on, expected another text")
    return found


def _refuse_a_shelf(path: Path) -> None:
    """Raise `ValueError` for a directory that is no model and holds packed ones, saying what they are called."""
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(child for child in path.iterdir() if holds_packed(child))
        if found:
            raise ValueError(f"{path} holds {len(found)} packed models: name one of them, {found[0]} for instance")


def _open_packed_bench(setting: Setting, seed: int) -> PackedBench:
    packed = open_packed(setting.model)
    header = packed.header
    if seed != header.seed:
        raise ValueError(f"seed {seed}: {setting.model} was quantized with seed {header.seed}")
    length = _length(setting, packed.checkpoint)
    base, missing = find_base(setting.base, packed)
    fallbacks = list(packed.provenance.fallbacks) if packed.provenance else ["nmse, hnmse: the directory does not say"]
    if base is None:
        fallbacks.append(f"ppl_base, kl, top1: not measured without the unquantized model: {missing}")
    tokenized = base or packed.checkpoint  # the shipped model has rows of its own
    if setting.calibration is not None:
        given = load_tokens(setting.calibration, "calibration", tokenized, length)
        if given.draw(setting.calibration_tokens, seed).sha256 != header.calibration_sha256:
            fallbacks.append(f"calibration {setting.calibration}: not used, the model was calibrated on other tokens")
    evaluation = _evaluation(setting, tokenized, length)
    if setting.adapter is not None:
        packed = with_adapter(packed, setting.adapter)
        fallbacks.append("nmse, hnmse: not measured again with an adapter")
    retention = _retention(setting, tokenized, evaluation)
    return PackedBench(setting, packed, base, evaluation, tuple(fallbacks), retention)


def _length(setting: Setting, checkpoint: Checkpoint) -> int:
    length = setting.length or min(2048, checkpoint.context)
    if not 2 <= length <= checkpoint.context:
        raise ValueError(f"length {length}: {checkpoint.name} takes rows of 2 to {checkpoint.context} tokens")
    return length
