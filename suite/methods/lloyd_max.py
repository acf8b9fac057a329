"""Lloyd-Max: the fixed-rate scalar levels that a Gaussian wants, scaled by each group's root mean square.

Lloyd 1957 (IEEE Transactions on Information Theory 28, 1982), Max 1960 (IRE Transactions on Information Theory 6).
`table="uniform"` has equal steps, the best ones; `table="k-means"` fits the levels to each matrix and charges them: the
method `k-means`, after Han, Mao, Dally 2015, "Deep Compression", arXiv:1510.00149, section 3, with a scale per group.
"""

from functools import partial
from typing import Literal

from suite.grids import GaussianTable, KMeansTable, RealScale, Scaled
from suite.grids.layout import Group
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(
    *,
    bits: int,
    group: Group = 128,
    table: Literal["free", "uniform", "k-means"] = "free",
    rounding: Nearest | Stochastic | Feedback = Nearest(),  # noqa: B008 - a frozen value
) -> Recipe:
    """`table` is the spacing of a Gaussian's levels, or levels fitted to the matrix."""
    element = KMeansTable(bits=bits) if table == "k-means" else GaussianTable(bits=bits, spacing=table)
    grid = Scaled(element=element, group=group, scale=RealScale(statistic="rms"))
    return Recipe(weights=Target(grid, rounding))


LLOYD_MAX = Method(
    name="lloyd-max",
    paper="Least squares quantization in PCM",
    arxiv=None,
    needs="nothing",
    bits=tuple(range(1, 9)),
    build=build,
)

K_MEANS = Method(
    name="k-means",
    paper="Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding",
    arxiv="1510.00149",
    needs="nothing",
    bits=tuple(range(1, 9)),
    build=partial(build, table="k-means"),
)
