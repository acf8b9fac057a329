"""BiLLM: salient columns in two binary orders, the other weights in two bells of one, block after block.

Huang et al. 2024, "BiLLM: Pushing the Limit of Post-Training Quantization for LLMs", arXiv:2402.04291. Blocks of 128
columns; in each, salient columns by the Hessian's score (or `score="magnitude"`) and the split of the others are
searched when the block's turn comes, on the weights as errors have moved them (`suite.grids.bell_split`).

`errors` says how errors are handed on: from column to column as in GPTQ, inside of a block too ("columns"); from block
to block only, with each block's error spread exactly ("groups", Alg. 1 of the paper to the letter); or as the release
does, by the diagonal alone ("release"). The release also searches on scores where the paper searches on weights, and
takes signs one after the other: `errors="release", search="scores", signs="successive"` is what it does.
`membership="nearest"` lets a weight take the nearest of its row's four levels, at the same bits.

The paper counts 1.08 bits: signs, and a mark per column. True storage is 3.0: which bell a weight is of takes another
bit, and means and scales take 128 bits for the 128 weights of a block's row. The fitted grid has both figures,
`published_bits` and `n_bits`.
"""

from typing import Any, Literal

from suite.grids import BellSplit
from suite.methods.method import Method, taken
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, GroupFeedback, Nearest


def build(
    *,
    errors: Literal["columns", "groups", "release", "none"] = "columns",
    inputs: Literal["original", "quantized"] = "quantized",
    **options: Any,
) -> Recipe:
    """Further options are fields of `BellSplit`; `errors="none"` rounds without handing on anything."""
    damping = options.get("damping", 0.01)
    roundings: dict[str, Feedback | GroupFeedback | Nearest] = {
        "columns": Feedback(damping=damping),
        "groups": GroupFeedback(damping=damping),
        "release": GroupFeedback(damping=damping, errors="diagonal"),
        "none": Nearest(),
    }
    if errors not in roundings:
        raise ValueError(f"errors {errors!r}: expected one of {', '.join(roundings)}")
    grid = taken(BellSplit, options)
    if options:
        raise ValueError(f"billm takes no option {next(iter(options))!r}")
    return Recipe(weights=Target(grid, roundings[errors]), inputs=inputs)


BILLM = Method(
    name="billm",
    paper="BiLLM: Pushing the Limit of Post-Training Quantization for LLMs",
    arxiv="2402.04291",
    needs="calibration",
    bits=(1.08,),
    build=build,
)
