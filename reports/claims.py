"""The ledger of claims as a store has it: verdicts with their evidence, and what was not run. Imports no torch."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from suite.findings import VerdictRow
from suite.store import Store
from theory.claims.frame import Claim, Comparison, Estimate
from theory.claims.ledger import CLAIMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A measured quantity: its values, one a seed, their mean and interval, and what the rule compares it with."""

    name: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    rule: tuple[Comparison, ...]

    @property
    def margins(self) -> tuple[float, ...]:
        """What it is compared with; none where it is not in the rule."""
        return tuple(part.margin for part in self.rule)

    @property
    def answer(self) -> bool | None:
        """Whether it is as the rule asks: True only if all of its comparisons are, None where one is open."""
        found = Estimate(values=self.values, mean=self.mean, low=self.low, high=self.high)
        answers = [part.answer(found) for part in self.rule]
        return False if False in answers else None if None in answers else True

    @property
    def asked(self) -> str:
        """What the rule asks of it, "> 0.8, < 1.25"."""
        return ", ".join(f"{'>' if part.is_above else '<'} {part.margin:g}" for part in self.rule)

    @property
    def said(self) -> str:
        """Mean, interval, and the rule with its answer."""
        if not math.isfinite(self.mean):
            return "no number"
        interval = f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"
        word = {True: "holds", False: "fails", None: "open"}[self.answer]
        return f"{interval}; {self.asked} {word}" if self.rule else interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim with the newest verdict on it of a model."""

    claim: Claim
    row: VerdictRow

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What was measured, those of the rule first."""
        found = json.loads(self.row.evidence)
        ruling = [part.quantity for part in self.claim.rule]
        names = [name for name in dict.fromkeys([*ruling, *found]) if name in found]
        return tuple(
            Quantity(name=name, values=tuple(found[name]["values"]), mean=found[name]["mean"], low=found[name]["low"],
                     high=found[name]["high"], rule=tuple(p for p in self.claim.rule if p.quantity == name))
            for name in names
        )  # fmt: skip

    @property
    def why(self) -> str:
        """The ledger's paragraph, if it is about this verdict."""
        return self.claim.why if self.row.verdict == self.claim.earned else ""

    @property
    def again(self) -> str:
        """The command that comes to it from an empty store."""
        seeds = json.loads(self.row.seeds)
        command = f"bitfrontier claims --run --only {self.claim.id}"
        command += f" --seed {seeds[0]}" if seeds[0] else ""
        command += f" --effort {self.row.effort:g}" if self.row.effort != 1 else ""
        return command + (f" {self.row.model}" if self.row.model not in ("", "reference") else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Every claim's verdicts, in the order of the ledger, and the claims that have none."""

    judged: tuple[Judged, ...]
    waiting: tuple[Claim, ...]


def read_claims(store: Store, claims: Iterable[Claim] = CLAIMS) -> Ledger:
    """The newest verdict of most effort on every claim, for each model; verdicts by another rule are left out."""
    verdicts, judged, waiting = store.rows(VerdictRow), [], []
    for claim in claims:
        known = [row for row in verdicts if row.claim == claim.id and row.rule == claim.rule_text]
        for model in dict.fromkeys(row.model for row in known):
            newest = max((row for row in known if row.model == model), key=lambda row: (row.effort, row.started))
            judged.append(Judged(claim=claim, row=newest))
        if not known:
            waiting.append(claim)
    return Ledger(judged=tuple(judged), waiting=tuple(waiting))
