"""VPTQ: vectors of outputs on codebooks of the matrix's own, with error feedback from column to column.

Liu, Wen, Wang, Ye, Zhang, Cao, Li, Yang 2024, "VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large
Language Models", arXiv:2409.17066. A code of b bits for v outputs is b / v bits per weight, and the codebook comes on
top: 16 v 2^b bits for each matrix. The paper's v = 8 with 2^16 entries is 8 million bits, which a matrix of 10^8
weights does not feel and one of 10^5 cannot carry, so that the defaults are for small ones.

Where this differs: codebooks are trained again for what feedback has made of the columns, and entries and codes are
refined in turns in the H-norm (`suite.rounding.vector_feedback`): closed forms of the paper's layer-wise fine-tuning.
`retrain=0, refine=0, order="given"` is the paper's rounding.
"""

from typing import Any, Literal

from suite.grids import Codebooks
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import VectorFeedback

_SPLITS = {2: (4, 8, 1), 3: (4, 6, 2), 4: (4, 8, 2)}  # by bits: outputs in a vector, bits of a code, codebooks
_ROUNDING = ("order", "damping", "block", "retrain", "refine", "importance")


def build(*, bits: int, inputs: Literal["original", "quantized"] = "original", **options: Any) -> Recipe:
    """Further options are fields of `Codebooks` (length, code_bits for its `bits`, stages, ..) and of its rounding."""
    length, code_bits, stages = _SPLITS[bits]
    rounding = VectorFeedback(**{name: options.pop(name) for name in _ROUNDING if name in options})
    fields = {"length": length, "bits": options.pop("code_bits", code_bits), "stages": stages, "iterations": 25}
    return Recipe(weights=Target(Codebooks(axis=0, **(fields | options)), rounding), inputs=inputs)


VPTQ = Method(
    name="vptq",
    paper="VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models",
    arxiv="2409.17066",
    needs="calibration",
    bits=tuple(_SPLITS),
    build=build,
    grouped=False,
)
