"""The ledger as tests: `pytest theory` puts every claim to its test, one case each, and keeps the verdicts.

A case fails where an experiment does, or where its verdict is no longer the one that the claim has earned on the
shipped model with this many seeds. Claims of the full and of the nightly tier are marked slow.
"""

from pathlib import Path

import pytest

from theory.claims.frame import Claim
from theory.claims.ledger import CLAIMS
from theory.experiment import Setting

_CASES = [pytest.param(claim, id=claim.id, marks=() if claim.tier == "quick" else pytest.mark.slow) for claim in CLAIMS]


@pytest.mark.parametrize("claim", _CASES)
def test_claim(claim: Claim, request: pytest.FixtureRequest) -> None:
    """The claim's experiment runs, and comes to what it came to before."""
    from theory.running import verdict_of

    option = request.config.getoption
    model, seed = option("--models").split(",")[0], option("--seed") or 0
    store = Path(option("--store"))
    row = verdict_of(claim, Setting(model=model, seed=seed, store=store), "pytest theory")
    if claim.earned is not None and model == "reference" and seed == 0:
        assert row.verdict == claim.earned, f"{row.condition}: {row.evidence}"
