"""GPTQ: round column by column and push each error onto the columns to come, as the inputs' Gram matrix says.

Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323. Defaults follow the paper: columns in the given order, groups fitted on the weights as
they are when their turn comes, 1% damping, each layer calibrated on the outputs of the layers quantized before it.
"Act-order" of the release is `order="decreasing"`; `groups="stale"` and `convention="span"` are the release's ways.

The stochastic variant (Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853) replaces nearest by unbiased rounding.
"""

from functools import partial
from typing import Any, Literal

from suite.grids import Integer
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic

_FEEDBACK = ("order", "groups", "damping", "block")


def build(
    *,
    bits: int,
    group: int | str = 128,
    pick: Nearest | Stochastic = Nearest(),  # noqa: B008 - a frozen value
    inputs: Literal["original", "quantized"] = "quantized",
    **options: Any,
) -> Recipe:
    """Further options are fields of `Feedback` (order, groups, damping, block) and of `Integer`."""
    feedback = {name: options.pop(name) for name in _FEEDBACK if name in options}
    grid = Integer(bits=bits, group=group, **options)  # type: ignore[arg-type]
    return Recipe(weights=Target(grid, Feedback(pick=pick, **feedback)), inputs=inputs)


GPTQ = Method(
    name="gptq",
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arxiv="2210.17323",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)

GPTQ_STOCHASTIC = Method(
    name="gptq-stochastic",
    paper="Provable Post-Training Quantization: Theoretical Analysis of OPTQ and Qronos",
    arxiv="2508.04853",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=partial(build, pick=Stochastic()),
)
