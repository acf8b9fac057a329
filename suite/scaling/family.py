"""The models of a scaling study: shapes, how many tokens each has, at which rates, and the cells of each.

A level is a number of tokens for each parameter. Nine tenths train a full-precision model, the last tenth what goes on
from it (`suite.scaling.study`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from suite.adaptation.training import Schedule
from suite.learning.quantization_aware import control_of
from suite.methods.bitnet import build as bitnet
from suite.methods.paretoq import PARETOQ
from suite.methods.paretoq import build as paretoq
from suite.recipe import Recipe
from suite.reference.text import LENGTH
from suite.reference.training import VOCABULARY, Plan

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
    """A size at a level of tokens per parameter, in three trainings: `base`, `tuned` after it, or `scratch` alone.

    With `autocast` their products are in bfloat16.
    """

    shape: Shape
    level: float
    autocast: bool = False

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
            schedule=Schedule(steps=self.base.updates, rate=self.base.rate, warmup=WARMUP, autocast=self.autocast),
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


def family(shapes: Sequence[int], levels: Sequence[float], *, autocast: bool = False) -> list[Budget]:
    """Every size at every level, the cheapest first; `ValueError` for sizes and levels that cannot be."""
    sizes = product(sorted(set(levels)), sorted(set(shapes)))
    found = [Budget(Shape(hidden), level, autocast) for level, hidden in sizes]
    return sorted(found, key=lambda budget: budget.level * budget.shape.parameters**2)


def cells_of(budget: Budget, bits: Sequence[float]) -> list[ScalingCell]:
    """The cells of a size at a level: ParetoQ at each of the widths, BitNet where 1.58 is one, and their controls."""
    tuned, scratch = budget.tuned, budget.scratch
    each: dict[str, Any] = {"warmup": WARMUP, "autocast": budget.autocast}
    how = each | {"steps": tuned.updates, "rows": tuned.rows, "rate": tuned.rate}
    recipes = {width: paretoq(bits=width, **how) for width in checked_bits(bits)}
    both = budget.base.tokens + tuned.tokens

    def cell(method: str, width: float, recipe: Recipe, phase: Phase, tokens: int) -> ScalingCell:
        return ScalingCell(budget=budget, method=method, bits=width, recipe=recipe, phase=phase, tokens=tokens)

    found = [cell("full-precision", FULL_BITS, control_of(recipe), tuned, both) for recipe in [*recipes.values()][:1]]
    found += [cell("paretoq", width, recipe, tuned, both) for width, recipe in recipes.items()]
    if 1.58 in recipes:
        recipe = bitnet(scratch=True, steps=scratch.updates, rows=scratch.rows, rate=scratch.rate,
                        second_rate=scratch.rate * 0.65, **each)  # fmt: skip
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
