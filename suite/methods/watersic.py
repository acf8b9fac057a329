"""WaterSIC: a step for each input channel, inversely proportional to its pivot, error feedback, an entropy coder.

Lifar, Savkin, Ordentlich, Polyanskiy 2026, WaterSIC: information-theoretically (near) optimal linear layer
quantization, arXiv:2603.04956 (github.com/egorlifar/watersic). Error feedback makes the error sum_j R_jj^2 e_j^2; steps
proportional to 1 / R_jj make its terms equal, as reverse water-filling does, which at high rates is 0.2546 bits from
the limit for every Gram matrix, where one step for all loses log2(AM / GM of R_jj^2) / 2 more.

As in the paper: columns in the given order, the whole matrix at the rate asked for, each layer calibrated on the
outputs of those quantized before it. Differences: steps lie on a ladder of quarter octaves in 5 bits, the paper's are
in BF16; channels share a table in up to 8 classes, the paper counts the entropy; levels are centered by least squares
under H, in place of the paper's shrinkage and its rescaling of rows and columns, which is not here. Nor is what the
paper adds for whole models: the drift of activations, the residual stream, weights by attention, fine-tuning.
`weight=1.0` adds CERWU's choice of codes, which the paper does not have.
"""

from typing import Literal

from suite.coding import Ans
from suite.grids import Steps
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, RateAware


def build(
    *,
    bits: float,
    weight: float = 0.0,
    damping: float = 0.01,
    centers: int = 3,
    classes: int = 8,
    inputs: Literal["original", "quantized"] = "quantized",
) -> Recipe:
    """`weight` as in `RateAware`, `centers` and `classes` as in `Steps`; `damping` is that of both."""
    grid = Steps(bits=bits, spacing="pivots", centers=centers, classes=classes, damping=damping)
    rounding = RateAware(weight=weight, feedback=Feedback(damping=damping))
    return Recipe(weights=Target(grid, rounding), inputs=inputs, coding=Ans())


WATERSIC = Method(
    name="watersic",
    paper="WaterSIC: information-theoretically (near) optimal linear layer quantization",
    arxiv="2603.04956",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
    grouped=False,
)
