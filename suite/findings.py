"""What the theory's experiments found, as the result store keeps it: points of figures, and verdicts on claims.

Imports no torch.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["theorem", "mechanism", "scale-dependent"]
Verdict = Literal["confirmed", "refuted", "conditional", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """`y` at `x`: the point number `place` of a `series` in an experiment's figure, with an interval if it has one.

    `model` and `model_sha256` are empty where the experiment draws its own matrices. `seconds` are the experiment's.
    """

    experiment: str
    series: str
    place: int
    x: float
    y: float
    low: float | None
    high: float | None
    predicted: bool
    model: str
    model_sha256: str
    seed: int
    effort: float
    seconds: float
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """What an experiment made of a claim.

    `claim` is its id, `sentence` its words, `rule` how it is decided; `condition` says under which one it holds, or
    why nothing is decided. `evidence` is JSON: for every quantity its value for each of the seeds, their mean, and the
    ends of an interval that covers with probability `confidence`, corrected for `tested` claims.
    """

    claim: str
    kind: Kind
    sentence: str
    rule: str
    verdict: Verdict
    condition: str
    evidence: str
    seeds: str
    confidence: float
    tested: int
    model: str
    model_sha256: str
    effort: float
    seconds: float
    code: str
    env: str
    command: str
    started: str
