"""NVFP4: blocks of 16 E2M1 elements on an E4M3 scale, and a float32 scale for the matrix.

NVIDIA 2025, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149. Rows are padded to whole blocks.
"""

from suite.grids import Scaled, TwoLevel
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(*, group: int = 16, rounding: Nearest | Stochastic | Feedback = Nearest()) -> Recipe:  # noqa: B008 - frozen
    """`rounding` may feed errors back: the scales stay as they are."""
    return Recipe(weights=Target(Scaled(element="e2m1", group=group, scale=TwoLevel(), pad=True), rounding))


NVFP4 = Method(
    name="nvfp4",
    paper="Pretraining Large Language Models with NVFP4",
    arxiv="2509.25149",
    needs="nothing",
    bits=(4,),
    build=build,
)
