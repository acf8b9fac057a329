"""Entropy-constrained scalar quantization: one step for a whole matrix, and an entropy coder for its codes.

Chou, Lookabaugh, Gray 1989, Entropy-constrained vector quantization, IEEE Transactions on Acoustics, Speech, and Signal
Processing 37, in one dimension: codes, their lengths and the levels in turn, each best for the other two, with the
step searched for the rate that is asked for. `bits` is that rate, everything stored included, and may be any number.
At high rates it is within 0.2546 bits of the rate-distortion function of a source without memory, whatever its density
(Gish and Pierce 1968); groups, clipping and zero points have no place in it. Cells of one size are within 0.1% of the
best ones on a Gaussian: `Recipe(weights=Target(Steps(bits=3)), coding=Ans())`, rounding to nearest, is nearly the same.
"""

from suite.coding import Ans
from suite.grids import Steps
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import RateAware


def build(*, bits: float, weight: float = 1.0, centers: int = 3) -> Recipe:
    """`weight` is that of the codes' lengths relative to the slope at high rates; `centers` as in `Steps`."""
    return Recipe(weights=Target(Steps(bits=bits, centers=centers), RateAware(weight=weight)), coding=Ans())


ECSQ = Method(
    name="ecsq",
    paper="Entropy-constrained vector quantization",
    arxiv=None,
    needs="nothing",
    bits=tuple(range(1, 9)),
    build=build,
    grouped=False,
)
