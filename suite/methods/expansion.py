"""Post-training model expansion: QuaRot with online Hadamard matrices larger than what they act on.

Franco, Monteagudo-Lago, Colbert, Fraser, Blott 2025, "Improving Quantization with Post-Training Model Expansion",
arXiv:2503.17513. The down projection's inputs are padded with zeros to a larger Hadamard size and turned there: error
feedback pushes errors into the directions that no input takes, at the price of more weights, which are charged. Columns
are taken by decreasing energy, as in its configurations. `steps` counts Hadamard sizes (the paper: 1, 3, 5, 7); with 0
of them the function is QuaRot's. `layers="double"` expands the output projection's inputs too, over all heads at once.

Its configurations quantize inputs asymmetrically in groups of 32; here they are QuaRot's, so that the two methods
differ by the expansion and the order of columns alone.
"""

from dataclasses import replace
from typing import Any, Literal

from suite.methods.method import Method
from suite.methods.quarot import build as build_quarot
from suite.recipe import Recipe
from suite.transforms import RotateHeads, RotateInputs


def build(*, bits: int, steps: int = 1, layers: Literal["single", "double"] = "single", **options: Any) -> Recipe:
    """Further options are QuaRot's."""
    if layers not in ("single", "double"):
        raise ValueError(f"layers {layers!r}: expected single or double")
    if options.get("rounding") != "rtn":
        options.setdefault("order", "decreasing")
    sites = ("down_proj",) if layers == "single" else ("o_proj", "down_proj")
    recipe = build_quarot(bits=bits, **options)
    replaced = (RotateInputs,) if layers == "single" else (RotateInputs, RotateHeads)
    kept = tuple(transform for transform in recipe.transforms if not isinstance(transform, replaced))
    return replace(recipe, transforms=(*kept, RotateInputs(sites=sites, steps=steps)))


EXPANSION = Method(
    name="expansion",
    paper="Improving Quantization with Post-Training Model Expansion",
    arxiv="2503.17513",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
