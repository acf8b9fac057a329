"""PB-LLM: a tenth of the weights stays at 8 bits, the others are binary, within error feedback.

Shang, Yuan, Wu, Dong 2023, "PB-LLM: Partially Binarized Large Language Models", arXiv:2310.00034, its post-training
part (PB-GPTQ). Salient weights, 10% at 8 bits and anywhere in the matrix, are those of the largest Hessian scores (or
`score="magnitude"`); the others are m + s or m - s, once for a whole row or `group` of its inputs. Mask, m and s come
from the weights as they are before feedback moves them, as in the paper and its release.

The release averages m and s over salient weights too, as zeros: `average="all"`, which meets its numbers. With the
paper's, over binary weights alone, s is larger: `hnmse` is 2 to 15% lower on seeded matrices where saliency is by
magnitude, but 0 to 11% higher where it is the Hessian's, since what is left in the columns that matter is small then.

The paper counts 1.7 bits, the codes alone. Stored are also which weights are salient (a bit for each, or a list of
columns where that is shorter) and the parameters: 2.7 bits at least on layers of 512 inputs, 2.9 in groups of 128.
"""

from typing import Any, Literal

from suite.grids import PartlyBinary
from suite.methods.method import Method, taken
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest


def build(
    *,
    inputs: Literal["original", "quantized"] = "quantized",
    rounding: Feedback | Nearest | None = None,
    **options: Any,
) -> Recipe:
    """Further options are fields of `PartlyBinary`; `rounding=Nearest()` leaves error feedback out."""
    chosen = Feedback(groups="static", damping=options.get("damping", 0.01)) if rounding is None else rounding
    grid = taken(PartlyBinary, options)
    if options:
        raise ValueError(f"pb-llm takes no option {next(iter(options))!r}")
    return Recipe(weights=Target(grid, chosen), inputs=inputs)


PB_LLM = Method(
    name="pb-llm",
    paper="PB-LLM: Partially Binarized Large Language Models",
    arxiv="2310.00034",
    needs="calibration",
    bits=(1.7,),
    build=build,
)
