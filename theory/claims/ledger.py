"""`CLAIMS`: every claim that has an experiment, in the order of the ledger."""

from theory.claims import outliers
from theory.claims.frame import Claim

CLAIMS: tuple[Claim, ...] = (*outliers.CLAIMS,)
