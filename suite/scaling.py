"""A scaling study: models of one form in several sizes, in full precision and trained at few bits on equal tokens.

A family is LLaMA-architecture models of four blocks, with the tokenizer and the text of the reference checkpoint, that
differ in width. At every *level*, a fixed number of tokens for each parameter, a size is trained

- in full precision on 90% of the tokens, and from there by ParetoQ at each width on the last 10%, which is the split
  that it found best (Liu et al. 2025, arXiv:2502.02631, section 2);
- its control, in full precision on the same 10%: the full-precision model of the level;
- from scratch on all of the tokens as BitNet b1.58, and as its control, in full precision in BitNet's architecture.

All of them are cells of the engine, whose models are stored with 16 bits for what is not quantized, and evaluated as
they are stored. Everything is taken up again where it was: a size's training in its directory, a quantized one's in the
cache, a finished cell in the store. Training rows are drawn anew for each training: what follows the full-precision
one sees some rows again.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from suite.adaptation.training import Schedule
from suite.bench import Bench, Setting, forget, open_bench
from suite.cells import TIERS, Pick, TierName
from suite.engine import Plan as Cells
from suite.engine import execute
from suite.environment import code_version
from suite.evaluation import Ended, clustered_se, compare
from suite.learning import control_of
from suite.methods.bitnet import build as bitnet
from suite.methods.paretoq import PARETOQ
from suite.methods.paretoq import build as paretoq
from suite.models.checkpoint import REFERENCE
from suite.processes import Step, Told
from suite.readback import PackedModel
from suite.recipe import Recipe
from suite.reference.text import LENGTH
from suite.reference.training import VOCABULARY, Plan, train_reference
from suite.store import Record, ScalingRow, Store
from suite.tokens import Tokens

BLOCKS = 4
CHANNELS = 32  # of an attention head, as the reference checkpoint's; fewer where a model is too narrow for two heads
TUNED = 0.1  # of the tokens: Liu et al. 2025, section 2, "90% full-precision training, 10% fine-tuning"
MOST_ROWS = 16  # in an update, as the reference checkpoint's
UPDATES = 400  # that a training has at least, down to updates of one row
FULL_BITS = 16
WARMUP = 0.1  # of the updates: few hundreds of few rows; the reference checkpoint's 2% of them are a handful here
BESIDE = 210_000  # parameters that take as long as what does not grow with them: softmax of 2,048 logits, attention
QUANTIZED_SECONDS = 0.015, 1e-8  # of an update: for all layers, and for each weight that is rounded


@dataclass(frozen=True, slots=True)
class Shape:
    """A size of the family, by the width of its residual stream. `ValueError` for one that has no two heads."""

    hidden: int

    def __post_init__(self) -> None:
        if self.hidden < 4 or self.hidden % 4 or (self.hidden > 2 * CHANNELS and self.hidden % (2 * CHANNELS)):
            pair = 2 * CHANNELS  # query heads of 32 channels, of which two share keys and values
            raise ValueError(f"hidden {self.hidden}: expected a multiple of 4 up to {pair}, and above it of {pair}")

    @property
    def heads(self) -> int:
        """Query heads; there are half as many of keys and values."""
        return max(2, self.hidden // CHANNELS)

    @property
    def mlp(self) -> int:
        """The width inside the feed-forward."""
        return 3 * self.hidden

    @property
    def linear(self) -> int:
        """Weights of the blocks' linear layers: queries and output, half as wide keys and values, three of the MLP."""
        return BLOCKS * (3 * self.hidden**2 + 3 * self.hidden * self.mlp)

    @property
    def parameters(self) -> int:
        """All of them: linear layers, two norms in a block and a last one, and the embedding, which is the head too."""
        return self.linear + (2 * BLOCKS + 1) * self.hidden + VOCABULARY * self.hidden


@dataclass(frozen=True, slots=True)
class Phase:
    """A training: `updates` of `rows` rows of 256 tokens, at a peak learning `rate`."""

    rows: int
    updates: int
    rate: float

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.rows * self.updates * LENGTH


@dataclass(frozen=True, slots=True)
class Budget:
    """A size at a level of tokens per parameter, in three trainings: `base`, `tuned` after it, or `scratch` alone."""

    shape: Shape
    level: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and self.level > 0) or self.whole_rows < 10:
            raise ValueError(f"level {self.level}: of {self.shape.parameters} parameters, expected tokens for 10 rows "
                             f"of {LENGTH} at least, to keep one for the last tenth")  # fmt: skip

    @property
    def whole_rows(self) -> int:
        """Rows of 256 tokens in all."""
        return round(self.level * self.shape.parameters / LENGTH)

    @property
    def scratch(self) -> Phase:
        """All of the tokens at once."""
        return _phase(self.whole_rows, peak_rate(self.shape.hidden))

    @property
    def tuned(self) -> Phase:
        """The last tenth, at an eighth of the peak rate.

        Of 1/16, 1/8, 1/4, 1/2 and the whole of it that was best at width 64 and level 1, on validation text: 4.8163,
        4.8159, 4.8235, 4.851 and 4.907 nats in full precision, 4.858, 4.847, 4.849, 4.872 and 4.925 at 1 bit, 4.8236,
        4.8218, 4.827, 4.855 and 4.902 at 2 bits; one size and seed, so that only a quarter or less against a half or
        more is sure.
        """
        return _phase(round(TUNED * self.whole_rows), peak_rate(self.shape.hidden) / 8)

    @property
    def base(self) -> Phase:
        """What comes before it."""
        tuned = self.tuned
        return _phase(self.whole_rows - tuned.rows * tuned.updates, peak_rate(self.shape.hidden))

    @property
    def name(self) -> str:
        """What its directory is called."""
        return f"{self.shape.hidden}-{self.level:g}"

    def plan(self, seed: int) -> Plan:
        """How its full-precision base is trained."""
        return Plan(
            seed=seed, batch_rows=self.base.rows, hidden=self.shape.hidden, blocks=BLOCKS, mlp=self.shape.mlp,
            heads=self.shape.heads, cache_heads=self.shape.heads // 2,
            schedule=Schedule(steps=self.base.updates, rate=self.base.rate, warmup=WARMUP),
        )  # fmt: skip


def _phase(whole_rows: int, rate: float) -> Phase:
    """A training on about so many rows: in updates of a power of two of them, as large as leaves `UPDATES` updates."""
    rows = MOST_ROWS
    while rows > 1 and whole_rows < UPDATES * rows:
        rows //= 2
    return Phase(rows, max(1, round(whole_rows / rows)), rate * (rows / MOST_ROWS) ** 0.25)


def peak_rate(hidden: int) -> float:
    """The peak learning rate of a width for updates of `MOST_ROWS` rows: the reference checkpoint's at its width.

    It falls with the width as Adam's rate for hidden matrices does in Yang et al. 2022 (arXiv:2203.03466), and in
    `_phase` with the fourth root of the rows, half of what Malladi et al. 2022 (arXiv:2205.10287) have in theory. Among
    rates apart by a factor of two the one next to the rule's was the best or within 0.03 nats of it, on validation text
    after full-precision training: at width 64, 5.83 and 5.77 nats at .002 and .004 on 289 updates of a row, 4.92, 4.80,
    5.32 at .002, .004, .008 on 577 of two; at width 128, where a fiftieth of the updates warmed up, 5.58, 5.56, 5.74 at
    .001, .002, .004 on 369 of one. Both powers were chosen to agree with these.
    """
    return 2e-3 * 256 / hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingCell:
    """A model of the study: trained as `recipe` says, on `tokens` in all, those of its base among them."""

    budget: Budget
    method: str
    bits: float
    recipe: Recipe
    phase: Phase
    tokens: int

    @property
    def name(self) -> str:
        """What its directory is called."""
        return f"{self.method}-{self.bits:g}"


def family(shapes: Sequence[int], levels: Sequence[float]) -> list[Budget]:
    """Every size at every level, the cheapest first; `ValueError` for sizes and levels that cannot be."""
    found = [Budget(Shape(hidden), level) for level, hidden in product(sorted(set(levels)), sorted(set(shapes)))]
    return sorted(found, key=lambda budget: budget.level * budget.shape.parameters**2)


def cells_of(budget: Budget, bits: Sequence[float]) -> list[ScalingCell]:
    """The cells of a size at a level: ParetoQ at each of the widths, BitNet where 1.58 is one, and their controls."""
    tuned, scratch = budget.tuned, budget.scratch
    how: dict[str, Any] = {"steps": tuned.updates, "rows": tuned.rows, "rate": tuned.rate, "warmup": WARMUP}
    recipes = {width: paretoq(bits=width, **how) for width in checked_bits(bits)}
    both = budget.base.tokens + tuned.tokens

    def cell(method: str, width: float, recipe: Recipe, phase: Phase, tokens: int) -> ScalingCell:
        return ScalingCell(budget=budget, method=method, bits=width, recipe=recipe, phase=phase, tokens=tokens)

    found = [cell("full-precision", FULL_BITS, control_of(recipe), tuned, both) for recipe in [*recipes.values()][:1]]
    found += [cell("paretoq", width, recipe, tuned, both) for width, recipe in recipes.items()]
    if 1.58 in recipes:
        recipe = bitnet(scratch=True, steps=scratch.updates, rows=scratch.rows, rate=scratch.rate,
                        second_rate=scratch.rate * 0.65, warmup=WARMUP)  # fmt: skip
        found.append(cell("full-precision-sub-norm", FULL_BITS, control_of(recipe), scratch, scratch.tokens))
        found.append(cell("bitnet", 1.58, recipe, scratch, scratch.tokens))
    return found


def checked_bits(bits: Sequence[float]) -> tuple[float, ...]:
    """Widths that ParetoQ has, as it has them: 4 and 4.0 are one cell. `ValueError` for another, and for none."""
    known = PARETOQ.bits
    if not bits or not set(bits) <= set(known):
        raise ValueError(f"bits {', '.join(f'{b:g}' for b in bits) or 'none'}: expected some of "
                         f"{', '.join(f'{b:g}' for b in known)}")  # fmt: skip
    return tuple(width for width in known if width in bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Where a study is written, and what all of its cells share."""

    out: Path
    store: Path
    seed: int = 0
    threads: int = 2
    tier: TierName = "default"
    command: str = "python"

    def run(
        self,
        budgets: Sequence[Budget],
        bits: Sequence[float],
        on_step: Told = lambda step: None,
        on_done: Callable[[Record], None] = lambda record: None,
    ) -> list[Record]:
        """Train and measure every cell that has no row yet; the records of all, failed ones among them.

        `on_step` hears of every update.
        """
        torch.set_num_threads(self.threads)
        records = []
        for budget in budgets:
            model = self.base(budget, on_step)
            for cell in cells_of(budget, bits):
                record = self.measured(cell, model, on_step)
                records.append(record)
                on_done(record)
        return records

    def base(self, budget: Budget, on_step: Told = lambda step: None) -> Path:
        """The full-precision model of a size after nine tenths of its tokens, its weights stored in bfloat16.

        Raises `ValueError` where another plan has been there: another seed, or other rates of another version.
        """
        place = self.out / budget.name
        model, trained, plan = place / "model", place / "training", budget.plan(self.seed)
        if model.is_dir():
            if (trained / "plan.json").read_text() != json.dumps(asdict(plan), indent=1) + "\n":
                raise ValueError(f"{place}: there is a model of another plan, see {trained / 'plan.json'}")
            return model
        trained.mkdir(parents=True, exist_ok=True)
        if not (trained / "tokenizer.json").exists():
            shutil.copyfile(REFERENCE / "tokenizer.json", trained / "tokenizer.json")
        steps = plan.schedule.steps
        train_reference(trained, plan, lambda step, loss: on_step(Step(budget.name, step, steps, loss)))
        beside = place / "model-unfinished"
        AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16).save_pretrained(beside)
        for file in trained.glob("tokenizer*"):
            shutil.copyfile(file, beside / file.name)
        beside.rename(model)
        (trained / "training.pt").unlink()  # three times the weights, to go on from
        return model

    def measured(self, cell: ScalingCell, model: Path, on_step: Told = lambda step: None) -> Record:
        """The record of a cell, which is trained unless the store has its row."""
        limits = TIERS[self.tier]
        packed = self.out / cell.budget.name / cell.name
        setting = Setting(model=str(model), threads=self.threads, command=self.command, save=packed, alone=True,
                          calibration_tokens=limits.calibration_tokens,
                          evaluation_tokens=limits.evaluation_tokens)  # fmt: skip
        forget()
        bench = open_bench(setting, self.seed)
        assert isinstance(bench, Bench)
        pick = Pick(method=cell.method, bits=cell.bits, recipe=cell.recipe)
        with Store(self.store) as opened:
            key = bench.cell(pick).id, code_version(), setting.env
            done = opened.finished(*key)
            if done is not None and key in {(row.cell, row.code, row.env) for row in opened.scaling()}:
                return done
        (record,) = execute(Cells(setting, ((self.seed, pick),), ()), self.store, 1, on_step=on_step)
        if record.status == "ok":
            row = _row(cell, record, PackedModel.open(str(packed)), bench.evaluation)
            with Store(self.store) as opened:
                opened.put_scaling(row)
        return record


def _row(cell: ScalingCell, record: Record, packed: PackedModel, tokens: Tokens) -> ScalingRow:
    nll = losses_of(packed, tokens)
    shape = cell.budget.shape
    assert record.model_bytes is not None
    return ScalingRow(
        cell=record.cell, code=record.code, env=record.env, method=cell.method, bits=cell.bits, hidden=shape.hidden,
        level=cell.budget.level, parameters=sum(p.numel() for p in packed.checkpoint.skeleton.parameters()),
        linear=shape.linear, tokens=cell.tokens, updates=cell.phase.updates, batch_rows=cell.phase.rows,
        rate=cell.phase.rate, loss_nats=float(nll.mean()), loss_se=clustered_se(nll, tokens.clusters),
        model_bytes=record.model_bytes, model_sha256=record.model_sha256, data_sha256=record.data_sha256,
        seed=record.seed, command=record.command, started=record.started,
    )  # fmt: skip


@torch.no_grad()
def losses_of(packed: PackedModel, tokens: Tokens) -> np.ndarray:
    """Negative log-likelihoods (rows, length - 1) in nats of a packed model, as it is stored."""
    checkpoint, rows = packed.checkpoint, tokens.tensor()
    hidden = checkpoint.embed(rows)
    for i in range(checkpoint.n_blocks):
        hidden = checkpoint.run(i, packed.block(i)[0], hidden)
    return compare(Ended(checkpoint, hidden), None, rows).nll


def trainings(budgets: Sequence[Budget], bits: Sequence[float]) -> Iterator[tuple[str, float, Budget, Phase]]:
    """Every training of a study: the method, its width, the size and the phase, bases among them."""
    for budget in budgets:
        yield "base", FULL_BITS, budget, budget.base
        for cell in cells_of(budget, bits):
            yield cell.method, cell.bits, budget, cell.phase


def seconds_of(shape: Shape, phase: Phase, operations_per_second: float, *, quantized: bool) -> float:
    """About how long a training takes where matrix products make so many operations a second.

    They are 2 for a weight and a token forth and 4 back, and what is none takes as long again. That and the constants
    are guessed from times on two busy cores.
    """
    products = 6.0 * (shape.parameters + BESIDE) * phase.tokens / operations_per_second
    all_layers, each_weight = QUANTIZED_SECONDS
    return 2 * products + quantized * phase.updates * (all_layers + each_weight * shape.linear)
