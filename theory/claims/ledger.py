"""`CLAIMS`: every claim that has an experiment, in the order of the ledger."""

from theory.claims import bounds, grids, outliers
from theory.claims.frame import Claim

_BY_ID = {claim.id: claim for claim in (*outliers.CLAIMS, *grids.CLAIMS, *bounds.CLAIMS)}
_ORDER = ("O", "G", "E")
CLAIMS: tuple[Claim, ...] = tuple(sorted(_BY_ID.values(), key=lambda c: (_ORDER.index(c.id[0]), int(c.id[1:]))))
