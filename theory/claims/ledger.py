"""`CLAIMS`: every claim that has an experiment, in the order of the ledger, with the verdict that it has earned.

Verdicts are those of the shipped model, from seed 0 on, in the quick tier.
"""

from dataclasses import replace

from suite.findings import Verdict
from theory.claims import bits, bounds, entropy, grids, learning, limits, outliers, quality
from theory.claims.frame import Claim
from theory.claims.why import WHY

EARNED: dict[str, Verdict] = {
    "B2": "conditional", "B3": "conditional", "B5": "conditional", "B6": "confirmed", "B7": "conditional",
    "Q4": "confirmed", "Q5": "confirmed", "L6": "conditional",
    "O1": "confirmed", "O2": "confirmed", "O3": "confirmed", "O4": "confirmed", "O6": "undecided", "O7": "refuted",
    "G1": "conditional", "G2": "refuted", "G3": "conditional", "G4": "conditional", "G5": "confirmed",
    "E1": "confirmed", "E2": "conditional", "E3": "confirmed", "E4": "confirmed", "E5": "confirmed",
    "E6": "conditional", "E7": "conditional", "E8": "conditional", "E9": "confirmed",
    "N1": "refuted", "N2": "conditional", "N3": "conditional", "N4": "conditional", "N5": "confirmed",
    "N6": "conditional", "N7": "undecided", "N8": "confirmed",
    "M1": "confirmed", "M2": "conditional", "M3": "refuted", "M4": "confirmed",
    "M6": "conditional", "M7": "conditional",
}  # fmt: skip
_ORDER = "BQOGENLM"
_GROUPS = (bits, quality, outliers, grids, bounds, entropy, learning, limits)
_KNOWN = sorted((claim for group in _GROUPS for claim in group.CLAIMS),
                key=lambda claim: (_ORDER.index(claim.id[0]), int(claim.id[1:])))  # fmt: skip
CLAIMS: tuple[Claim, ...] = tuple(
    replace(claim, earned=EARNED.get(claim.id), why=WHY.get(claim.id, "")) for claim in _KNOWN
)
