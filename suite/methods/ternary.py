"""Ternary weights after training: -1, 0 and 1 times the mean magnitude, the rounding of BitNet b1.58.

Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", arXiv:2402.17764, eqs. 1-3. There
the model is trained with it; here a trained model is rounded, which says what training is for. One scale per matrix
in the paper, per group of 128 inputs here, unless asked otherwise; codes take two bits.
"""

from suite.grids import RealScale, Scaled
from suite.grids.layout import Group
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(
    *,
    group: Group = 128,
    rounding: Nearest | Stochastic | Feedback = Nearest(),  # noqa: B008 - a frozen value
) -> Recipe:
    """`group="tensor"` is the paper's."""
    grid = Scaled(element="ternary", group=group, scale=RealScale(statistic="absmean"))
    return Recipe(weights=Target(grid, rounding))


TERNARY = Method(
    name="ternary",
    paper="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
    arxiv="2402.17764",
    needs="nothing",
    bits=(1.58,),
    build=build,
)
