"""HQQ: real zero points moved by half-quadratic splitting of an l_p error; no data.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs). Groups of 64 along
the inputs; the package's default is groups down the columns, `axis=0`, which was worse on every matrix measured.
"""

from typing import Any

from suite.grids import Integer
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import HalfQuadratic

_ROUNDING = ("norm", "beta", "growth", "iterations", "keep", "round_zero")


def build(*, bits: int, group: int | str = 64, **options: Any) -> Recipe:
    """Further options are fields of `HalfQuadratic` and of `Integer`."""
    rounding = {name: options.pop(name) for name in _ROUNDING if name in options}
    grid = Integer(bits=bits, group=group, convention="real-zero", **options)  # type: ignore[arg-type]
    return Recipe(weights=Target(grid, HalfQuadratic(**rounding)))


HQQ = Method(
    name="hqq",
    paper="Half-Quadratic Quantization of Large Machine Learning Models",
    arxiv=None,
    needs="nothing",
    bits=tuple(range(1, 9)),
    build=build,
)
