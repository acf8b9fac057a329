"""RTN: every weight to the nearest level of its group's range. The baseline that needs no data and no paper."""

from typing import Any, Literal

from suite.grids import Integer
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Nearest, Stochastic


def build(
    *,
    bits: int,
    group: int | Literal["row", "tensor"] = 128,
    rounding: Nearest | Stochastic = Nearest(),  # noqa: B008 - a frozen value
    **grid: Any,
) -> Recipe:
    """Further options are fields of `Integer`: convention, clip, axis, scale_bits."""
    return Recipe(weights=Target(Integer(bits=bits, group=group, **grid), rounding))


RTN = Method(
    name="rtn",
    paper="round to nearest",
    arxiv=None,
    needs="nothing",
    bits=tuple(range(1, 9)),
    build=build,
)
