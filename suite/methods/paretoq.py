"""ParetoQ: one schedule from 1 to 4 bits, with the levels and the gradient that suit each width.

Liu, Zhao, Huang, Chen, Zhao, Lin, Xiong, Fedorov, Soran, Krishnamoorthi, Chandra, Tian, Blankevoort 2025, "ParetoQ:
Scaling Laws in Extremely Low-bit LLM Quantization", arXiv:2502.02631, section 3. A row has a scale alpha:

- 1 bit: alpha sign(w), alpha beginning at mean|w|; gradients within |w| <= alpha, and to alpha as if codes were
  constant;
- 1.58 and 2 bits: "stretched elastic" levels, three and four without and with half steps, that fill the range of w
  instead of ending at its largest value, alpha beginning at max|w|; gradients within .99 alpha;
- 3 and 4 bits: LSQ, beginning at max|w| / Q.

Gradients of alpha are divided by sqrt(N Q), as the release divides them, and follow from the forward pass at every
width. The release's at 1.58 bits does not: beyond the range it takes 1 where the level is 2/3 (`released=True`).
"""

from typing import Any

from suite.adaptation.quantization_aware import Gradient
from suite.grids import Integer, RealScale, Scaled
from suite.grids.grid import Grid
from suite.methods.method import Method, training
from suite.recipe import Recipe, Target

CLIP = 0.99  # of alpha: no value lies on a tie at its end


def build(*, bits: float, group: int | str = "row", released: bool = False, **options: Any) -> Recipe:
    """Further options are fields of `Schedule` and of `QuantizationAware`."""
    shared: Any = {"group": group}
    grid: Grid = Integer(bits=int(bits), convention="full-range", **shared)
    gradient = Gradient()
    if bits == 1:
        grid = Scaled(element="binary", scale=RealScale(statistic="absmean"), **shared)
        gradient = Gradient(constant=True)
    elif bits == 1.58:
        grid = Scaled(element="seq3", **shared)
        gradient = Gradient(beyond=CLIP - 2 / 3, overshoot=1 / 3 if released else 0.0)
    elif bits == 2:
        grid, gradient = Scaled(element="seq4", **shared), Gradient(beyond=CLIP - 3 / 4)
    how = training(options, gradient=gradient)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    return Recipe(weights=Target(grid), adaptation=how)


PARETOQ = Method(
    name="paretoq",
    paper="ParetoQ: Scaling Laws in Extremely Low-bit LLM Quantization",
    arxiv="2502.02631",
    needs="training",
    bits=(1, 1.58, 2, 3, 4),
    build=build,
)
