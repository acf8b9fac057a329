"""`CLAIMS`: every claim that has an experiment, in the order of the ledger, with the verdict that it has earned.

Verdicts are those of the shipped model, from seed 0 on, in the quick tier.
"""

from dataclasses import replace

from suite.findings import Verdict
from theory.claims import bounds, grids, limits, outliers
from theory.claims.frame import Claim

EARNED: dict[str, Verdict] = {
    "O1": "confirmed", "O2": "confirmed", "O3": "confirmed", "O4": "confirmed", "O6": "undecided", "O7": "refuted",
    "G1": "conditional", "G2": "refuted", "G3": "conditional", "G4": "conditional", "G5": "confirmed",
    "E1": "confirmed", "E2": "conditional", "E3": "confirmed", "E4": "confirmed", "E5": "conditional",
    "E6": "conditional", "E7": "conditional", "E8": "conditional", "E9": "confirmed",
    "M1": "confirmed", "M2": "conditional", "M3": "refuted", "M4": "confirmed",
    "M6": "conditional", "M7": "conditional",
}  # fmt: skip
_ORDER = ("O", "G", "E", "M")
_KNOWN = sorted((*outliers.CLAIMS, *grids.CLAIMS, *bounds.CLAIMS, *limits.CLAIMS),
                key=lambda claim: (_ORDER.index(claim.id[0]), int(claim.id[1:])))  # fmt: skip
CLAIMS: tuple[Claim, ...] = tuple(replace(claim, earned=EARNED.get(claim.id)) for claim in _KNOWN)
