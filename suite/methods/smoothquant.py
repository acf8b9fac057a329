"""SmoothQuant: move the activations' outliers into the weights, then quantize both.

Xiao, Lin, Seznec, Wu, Demouth, Han 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", arXiv:2211.10438. Published for 8-bit weights and activations; `bits` sets the weights' width and
the activations stay at 8 unless asked otherwise, per token and symmetric. The paper tunes one alpha per model by hand;
here every site takes the alpha with the least output error on calibration rows (`alpha=0.5` for the paper's default).
"""

from typing import Any, Literal

from suite.grids import Integer
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.transforms import SmoothScale


def build(
    *,
    bits: int,
    group: int | str = "row",
    alpha: float | Literal["search"] = "search",
    convention: str = "full-range",
    activation_bits: int = 8,
    activation_group: Literal["row", "tensor"] = "row",
    **grid: Any,
) -> Recipe:
    """`activation_group`: "row" is dynamic per token, "tensor" one static scale per layer from calibration."""
    weights = Integer(bits=bits, group=group, convention=convention, **grid)  # type: ignore[arg-type]
    inputs = Integer(bits=activation_bits, group=activation_group, convention="full-range", scale_bits=32)
    return Recipe(transforms=(SmoothScale(alpha=alpha),), weights=Target(weights), activations=Target(inputs))


SMOOTHQUANT = Method(
    name="smoothquant",
    paper="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    arxiv="2211.10438",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
