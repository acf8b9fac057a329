"""The page of the ledger: what became of the field's claims, each with its rule, its evidence and its command."""

import json
import re
from collections import Counter

from reports.claims import Judged, Ledger, Quantity
from reports.claims_drawing import draw_evidence
from reports.figures import Plot
from reports.page import number
from reports.sections import Section, render_sections
from suite.findings import Verdict

PAGE = "claims.html"
LINK = "What became of the field's claims: rules, verdicts, evidence"
_HEADER = ("quantity", "asked", "answer", "mean", "low", "high", "values", "from", "code", "environment", "command")
_ORDER: tuple[Verdict, ...] = ("confirmed", "refuted", "conditional", "undecided")


def draw_claims(ledger: Ledger) -> list[Section]:
    """A section for every verdict."""
    several = Counter(judged.claim.id for judged in ledger.judged)
    return [_section(judged, several[judged.claim.id] > 1) for judged in ledger.judged]


def render_claims(sections: list[Section], ledger: Ledger, *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same verdicts; with a link to the report if there is one."""
    rows = [{"id": judged.claim.id, "group": judged.claim.group, "verdict": judged.row.verdict,
             "sentence": judged.claim.sentence, "model": judged.row.model, "stem": f"{section.stem}-section"}
            for judged, section in zip(ledger.judged, sections, strict=True)]  # fmt: skip
    counts = Counter(judged.row.verdict for judged in ledger.judged)
    return render_sections(PAGE, sections, beside_report=beside_report, ledger=rows, waiting=ledger.waiting,
                           counts=[(verdict, counts[verdict]) for verdict in _ORDER])  # fmt: skip


def _section(judged: Judged, several: bool) -> Section:
    claim, row = judged.claim, judged.row
    seeds = json.loads(row.seeds)
    note = f"{claim.group}; {row.kind}. {len(seeds)} seeds" + (f" of {row.model}" if row.model else "")
    note += f", {row.seconds:.3g} s. Rule: {row.rule}."
    model = re.sub(r"[^a-z0-9]+", "-", (row.model or "sources").lower()).strip("-")
    name = f"{claim.id.lower()}-{model}" if several else claim.id.lower()
    said: list[tuple[str, str]] = [(row.verdict, row.condition or "as the rule asks")]
    said += [("why", judged.why)] if judged.why else []
    return Section(page="claims", name=name, model=row.model, heading=f"{claim.id}: {claim.sentence}", note=note,
                   plots=(_plot(judged),), missing=(judged.again,), verdicts={"evidence": tuple(said)})  # fmt: skip


def _plot(judged: Judged) -> Plot:
    row, quantities = judged.row, judged.quantities
    caption = ("Marks are means over seeds, ticks the seeds' values, bars intervals that cover with "
               f"{row.confidence:.4%} each, black lines the rule's margins; every line has its own scale.")  # fmt: skip
    lines = tuple((q.name, q.asked or "–", _answer(q), number(q.mean), number(q.low), number(q.high),
                   ", ".join(number(value) for value in q.values), f"claim {row.claim}", row.code, row.env, row.command)
                  for q in quantities)  # fmt: skip
    described = "; ".join(f"{q.name}: {q.said}" for q in quantities)
    return Plot(key="evidence", title=f"Evidence on {row.claim}", caption=caption, description=f"{described}.",
                header=_HEADER, rows=lines, curves=(), figure=draw_evidence(quantities))  # fmt: skip


def _answer(quantity: Quantity) -> str:
    return {True: "holds", False: "fails", None: "open"}[quantity.answer] if quantity.rule else "–"
