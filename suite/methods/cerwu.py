"""CERWU: error feedback that minimizes the error and the rate together, and an entropy coder for its codes.

Conzel and Bamler 2025, Reducing Storage of Pretrained Neural Networks by Rate-Constrained Quantization and Entropy
Coding, arXiv:2505.18758 (github.com/Conzel/cerwu). The identities are in `suite.rounding.rate`. As in the paper: one
grid for a whole matrix, columns in the given order, 1% damping, the quadratic part of the rate in the norm, every code
chosen by its error and length. `ridge=False` leaves the norm alone (the paper's OPTQ-RD); `weight=0` is GPTQ on a step
that keeps the rate.

Differences: the paper codes with DeepCABAC, whose adaptive contexts its lengths follow from value to value; here the
code is static, lengths are those of the sweep before, and sweeps are repeated until they agree. The paper gives a grid
and a multiplier and takes the rate that comes; here the rate is given, the multiplier follows from the step, and the
step is searched. Levels are centered for the codes that were chosen, by least squares. The release minimizes half the
squared error, with twice the quadratic rate: the same.

Why half the weight that is best for the error in H: on validation tokens of the reference model, all at 2.14 bits, KL
is 0.0482 at weight 0, 0.0465 at 1/2 (paired difference -0.0017 +- 0.0005), 0.0516 at 1 (+0.0034 +- 0.0003), though
the error in H is 3% and 4% below that of weight 0. A ridge makes weights smaller in every layer alike, which may be
what adds up; that was not tested.
"""

from typing import Any, Literal

from suite.coding import Ans
from suite.grids import Steps
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, RateAware

_FEEDBACK = ("order", "damping", "block")


def build(
    *,
    bits: float,
    weight: float = 0.5,
    ridge: bool = True,
    centers: int = 3,
    inputs: Literal["original", "quantized"] = "quantized",
    **options: Any,
) -> Recipe:
    """`weight` and `ridge` as in `RateAware`, `centers` as in `Steps`; further options are fields of `Feedback`."""
    feedback = {name: options.pop(name) for name in _FEEDBACK if name in options}
    grid = Steps(bits=bits, centers=centers, **options)
    rounding = RateAware(weight=weight, feedback=Feedback(**feedback), ridge=ridge)
    return Recipe(weights=Target(grid, rounding), inputs=inputs, coding=Ans())


CERWU = Method(
    name="cerwu",
    paper="Reducing Storage of Pretrained Neural Networks by Rate-Constrained Quantization and Entropy Coding",
    arxiv="2505.18758",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
    grouped=False,
)
