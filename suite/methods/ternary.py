"""Binary and ternary weights after training: -1 and 1, or -1, 0 and 1, times the mean magnitude.

Rastegari, Ordonez, Redmon, Farhadi 2016, "XNOR-Net", arXiv:1603.05279, section 3.1 (the scale with the least squared
error for signs); Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
arXiv:2402.17764, eqs. 1-3 (BitNet b1.58). There models are trained with them; here a trained model is rounded, which
says what training is for. One scale per row or matrix in the papers, per group of 128 inputs here, unless asked
otherwise; a ternary code takes two bits.

The mean magnitude is a choice for training. On a Gaussian it leaves .2635 of the variance to ternary levels that can do
with .1902 (Max 1960): `ternary-refit` puts codes and scale in turn at least squares, down to a fixed point.
"""

from functools import partial
from typing import Literal

from suite.grids import LeastSquares, RealScale, Scaled
from suite.grids.layout import Group
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(
    *,
    element: str,
    group: Group = 128,
    scale: RealScale | LeastSquares = RealScale(statistic="absmean"),  # noqa: B008 - frozen values
    rounding: Nearest | Stochastic | Feedback = Nearest(),  # noqa: B008
) -> Recipe:
    """`group="tensor"` is BitNet's, "row" XNOR-Net's; `rounding=Feedback()` fits scales when a group's turn comes."""
    grid = Scaled(element=element, group=group, scale=scale)
    inputs: Literal["original", "quantized"] = "quantized" if isinstance(rounding, Feedback) else "original"
    return Recipe(weights=Target(grid, rounding), inputs=inputs)


BINARY = Method(
    name="binary",
    paper="XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
    arxiv="1603.05279",
    needs="nothing",
    bits=(1,),
    build=partial(build, element="binary"),
)

TERNARY = Method(
    name="ternary",
    paper="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
    arxiv="2402.17764",
    needs="nothing",
    bits=(1.58,),
    build=partial(build, element="ternary"),
)

TERNARY_REFIT = Method(
    name="ternary-refit",
    paper="Ternary Weight Networks",
    arxiv="1605.04711",
    needs="nothing",
    bits=(1.58,),
    build=partial(build, element="ternary", scale=LeastSquares(starts=(1.0, 2.0))),
)
