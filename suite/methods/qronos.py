"""Qronos: error feedback that first corrects what the layers before have done to the inputs.

Zhang, Zhang, Colbert, Saab 2025, "Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization",
arXiv:2505.11695. Defaults are those of its configurations for weights: a range of its own for every output channel,
fitted beforehand, columns by decreasing energy, damping of 1e-6 of the largest eigenvalue. A layer is calibrated on the
inputs that the layers quantized before hand it, and on those of the unquantized model at the same tokens.

The stochastic variant (Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853) is `pick=Stochastic()`.
"""

from typing import Any

from suite.grids import Integer
from suite.methods.method import Method, taken
from suite.recipe import Recipe, Target
from suite.rounding import Qronos


def build(*, bits: int, group: int | str = "row", **options: Any) -> Recipe:
    """Options are fields of `Qronos` (order, groups, damping, relative_to, block, pick) and of `Integer`."""
    rounding = taken(Qronos, options)
    return Recipe(weights=Target(Integer(bits=bits, group=group, **options), rounding), inputs="quantized")  # type: ignore[arg-type]


QRONOS = Method(
    name="qronos",
    paper="Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization",
    arxiv="2505.11695",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
