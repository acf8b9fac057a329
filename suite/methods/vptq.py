"""VPTQ: vectors of outputs on codebooks of the matrix's own, with error feedback from column to column.

Liu, Wen, Wang, Ye, Zhang, Cao, Li, Yang 2024, "VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large
Language Models", arXiv:2409.17066. A code of b bits for v outputs is b / v bits per weight, and the codebook comes on
top: 16 v 2^b bits for each matrix. The paper's v = 8 with 2^16 entries is 8 million bits, which a matrix of 10^8
weights does not feel and one of 10^5 cannot carry, so that the defaults are for small ones.

Where this differs: codebooks are trained again for what feedback has made of the columns, and entries and codes are
refined in turns in the H-norm (`suite.rounding.vector_feedback`): closed forms of the paper's layer-wise fine-tuning.
`retrain=0, refine=0, order="given"` is the paper's rounding. On the reference model, in nats of KL at true bits:

    split: codebooks x bits / outputs            bits    KL
    1 x 8 / 4, entries of 16 bits               2.146   .0592
    1 x 8 / 4, entries of 8 bits, the default   2.073   .0593
    the same, the paper's rounding, 16 bits     2.146   .0904
    2 x 7 / 7, 16 bits                          2.274   .0668
    1 x 6 / 3, 16 bits                          2.035   .0685
    1 x 4 / 2, 16 bits                          2.005   .0785
    GPTQ, groups of 64                          2.281   .149
"""

from dataclasses import replace
from typing import Any, Literal

from suite.adaptation.block_tuning import BlockTuning
from suite.grids import Codebooks, OutlierColumns
from suite.methods.method import Method, split_of, taken
from suite.recipe import Recipe, Target
from suite.rounding import VectorFeedback

_SPLITS = {1: (1, 8, 8), 2: (1, 8, 4), 3: (2, 6, 4), 4: (2, 8, 4)}


def build(
    *,
    bits: int,
    codebooks: int | None = None,
    code_bits: int | None = None,
    length: int | None = None,
    entry_bits: Literal[8, 16] = 8,
    outliers: float = 0.0,
    outlier_codebooks: int | None = None,
    tuning: BlockTuning | None = None,
    inputs: Literal["original", "quantized"] = "original",
    **options: Any,
) -> Recipe:
    """Further options are fields of `VectorFeedback` (order, retrain, refine, ..) and of `Codebooks`.

    `outliers` is the share of columns with codebooks of their own, `outlier_codebooks` of them (as many as the others).

    `codebooks`, `code_bits` and `length` go together and come to `bits` a weight.
    """
    stages, width, v = split_of(bits, _SPLITS, codebooks, code_bits, length)
    options = {"iterations": 25} | options
    rounding = taken(VectorFeedback, options)
    rest = Codebooks(code_bits=width, stages=stages, length=v, axis=0, entry_bits=entry_bits, **options)
    grid: Codebooks | OutlierColumns = rest
    if outliers:
        grid = OutlierColumns(share=outliers, outliers=replace(rest, stages=outlier_codebooks or stages), rest=rest)
    return Recipe(weights=Target(grid, rounding), inputs=inputs, adaptation=tuning)


VPTQ = Method(
    name="vptq",
    paper="VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models",
    arxiv="2409.17066",
    needs="calibration",
    bits=tuple(_SPLITS),
    build=build,
    grouped=False,
)
