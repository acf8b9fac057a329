"""What a claim is, and how the numbers of an experiment become a verdict.

An experiment gives a number for every quantity from each of several seeds: draws of the calibration text, of a source,
or of a training. Student's interval of their mean stands for what other seeds would give. A rule is a tuple of
comparisons, so that what is printed is what is done; each is answered yes or no where the whole interval lies on one
side of its margin, and left open where it does not.

Of many claims that are tested some would seem to hold by chance. The intervals cover with a probability of 1 - .05 / n
for a ledger of n claims (Bonferroni), so that all of them do with 95%, however they depend on each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from suite.findings import Kind, Verdict
from theory.experiment import Setting, Tier
from theory.replication import interval

LEDGER = 62  # claims in all, B to M, those among them that are not yet decided
CONFIDENCE = 1 - 0.05 / LEDGER


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity's `values` (one a seed), their mean and the ends of its interval, infinite for one value."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Student's interval of the mean of `values`, a point where all are the same; NaN where one of them is not finite.

    >>> round(estimate([1.0, 2.0, 3.0], confidence=0.95).low, 4)
    -0.4841
    """
    mean, low, high = interval(values, confidence) if all(map(math.isfinite, values)) else [math.nan] * 3
    if len(values) == 1:
        low, high = -math.inf, math.inf
    return Estimate(values=tuple(values), mean=mean, low=low, high=high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """That a quantity is above a margin, or below it."""

    quantity: str
    margin: float
    is_above: bool

    def __str__(self) -> str:
        return f"{self.quantity} {'>' if self.is_above else '<'} {self.margin:g}"

    def answer(self, found: Estimate) -> bool | None:
        """Yes, no, or None where the interval holds the margin, or where there is no number."""
        if found.low > self.margin or found.high < self.margin:
            return (found.low > self.margin) == self.is_above
        return None


def above(quantity: str, margin: float) -> Comparison:
    """That a quantity is above a margin."""
    return Comparison(quantity, margin, True)


def below(quantity: str, margin: float) -> Comparison:
    """That a quantity is below a margin."""
    return Comparison(quantity, margin, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence of the field, the experiment that decides it, and its rule.

    `measure` gives the quantities of one seed, by name: those of the rule, and others that are worth knowing. Where the
    rule asks for `every` comparison, one that fails refutes the claim; where each is a case that the claim may hold in
    (`cases`), some that hold and some that fail make it conditional. `scope` says for what a verdict stands, and what
    would decide more. A claim of the quick `tier` takes seconds, of the full one minutes; one of the nightly tier has
    models to train first, whose records stay in the store. `earned` is the verdict that the shipped model and these
    sources gave, once measured: a run that gives another is a change to look at. `why` is the
    paragraph on it, of a claim that is not simply true.
    """

    id: str
    group: str
    kind: Kind
    sentence: str
    measure: Callable[[Setting], Mapping[str, float]]
    rule: tuple[Comparison, ...]
    takes: Literal["every", "cases"] = "every"
    seeds: int = 3
    on_model: bool = False
    tier: Tier = "quick"
    scope: str = ""
    earned: Verdict | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if not self.rule or self.seeds < 3:
            raise ValueError(f"claim {self.id}: expected a rule and at least three seeds, found {self}")

    @property
    def rule_text(self) -> str:
        """The rule in one line."""
        return (" and " if self.takes == "every" else "; each for itself: ").join(map(str, self.rule))


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and under which condition it stands, or what is open."""

    verdict: Verdict
    condition: str


def decide(claim: Claim, found: Mapping[str, Estimate]) -> Decision:
    """What the estimates of a claim's quantities make of it; `KeyError` where one that the rule names is missing."""
    answers = {str(part): part.answer(found[part.quantity]) for part in claim.rule}
    yes, no, left = ([text for text, answer in answers.items() if answer is is_] for is_ in (True, False, None))
    said = "; ".join(f"{word}: {', '.join(texts)}" for word, texts in
                     (("holds", yes), ("fails", no), ("open", left)) if texts)  # fmt: skip
    verdict: Verdict
    if not no and not left:
        return Decision("confirmed", claim.scope)
    if claim.takes == "every":
        verdict = "refuted" if no else "undecided"
    else:
        verdict = "conditional" if yes and no else "refuted" if not yes and not left else "undecided"
    return Decision(verdict, "; ".join(filter(None, (said, claim.scope))))
