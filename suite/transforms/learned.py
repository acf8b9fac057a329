"""Learned rotations: what SpinQuant learns, and how fast. `suite/learning/rotations.py` learns it.

Liu et al. 2024, "SpinQuant: LLM Quantization with Learned Rotations", arXiv:2405.16406, section 3.2. Two things differ
from its release by default, since small models learn next to nothing its way (KL in nats on validation tokens of the
reference at 4 bits, weights rounded to nearest, from 0.0548 for the random rotations that learning starts from):

- rate 15 for 1.5: how large gradients are is a matter of the model, and here (|A|_1 = 0.08) a step of 1.5 hardly turns
  anything. 15 is about where the cap of Cayley SGD lies: 0.0490 at 15, 0.0493 at 50, 0.0516 at 1.5;
- `gradient="ranges"`: with the release's "straight-through" a rotation is not told that it has made a range smaller,
  and with it every error: 0.0536 at 15, 0.0521 at 1.5.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from suite.transforms.rotation import KINDS, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedRotations:
    """R1 of the residual stream and, with `heads`, R2 of every block's values, by `steps` of Cayley SGD.

    They start as random rotations of a `kind`. `rate` is the longest step, capped so that none turns too far, and falls
    to 0 along a cosine. `solver` takes the steps exactly, or by the release's 5 fixed-point iterations; `gradient` says
    what passes through quantization on the way back.
    """

    place: ClassVar[str] = "residual"
    steps: int = 100
    rate: float = 15.0
    heads: bool = True
    kind: Kind = "hadamard"
    solver: Literal["exact", "fixed-point"] = "exact"
    gradient: Literal["ranges", "straight-through"] = "ranges"

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.rate > 0:
            raise ValueError(f"steps {self.steps!r}, rate {self.rate!r}: expected 0 or more, and a positive number")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.gradient not in ("ranges", "straight-through"):
            raise ValueError(f"gradient {self.gradient!r}: expected ranges or straight-through")
        if self.solver not in ("exact", "fixed-point"):
            raise ValueError(f"solver {self.solver!r}: expected exact or fixed-point")
