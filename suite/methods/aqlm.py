"""AQLM: vectors of consecutive inputs as sums of entries of learned codebooks, codes chosen by beam search.

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh 2024, "Extreme Compression of Large Language Models via
Additive Quantization", arXiv:2401.06118. `codebooks`, `code_bits` and `length` are what the paper calls 1x16 and 2x8:

    codebooks=1, code_bits=16, length=8     2 bits and 2^19 values a matrix
    codebooks=2, code_bits=8, length=8      2 bits and 4096 values
    codebooks=1, code_bits=8, length=8      1 bit and 2048 values

Left to itself a width is one codebook, of 8 bits for eight, four or two weights at 1, 2 and 4 bits, of 6 bits for two
at 3: codebooks are stored with their matrix, and for those of the reference model these left less error than sums did,
all bits counted. Large matrices are better served by longer vectors.

Where this differs from the paper: codebooks and scales are solved for where it descends, and k-means starts with
vectors weighted by the diagonal of H, which together leave 1 to 5% less error in less time; and four combinations are
held where the release holds one, for a tenth less error on the reference model. `update="adam"` brings the paper's way
back, with the release's 100 steps at a rate of 1e-4 and its beam of 1.

Entries are stored in 8 bits, which costs no error that could be told; `entry_bits=16` are the paper's. Blocks are tuned
as suits small models; `tuning=AQLM_TUNING` is the release's way. The whole model is not tuned.
"""

from typing import Any, Literal

from suite.adaptation.block_tuning import BlockTuning
from suite.grids import Codebooks
from suite.methods.method import Method, split_of, taken
from suite.recipe import Recipe, Target
from suite.rounding import Additive

_SPLITS = {1: (1, 8, 8), 2: (1, 8, 4), 3: (1, 6, 2), 4: (1, 8, 2)}

_TUNING = BlockTuning()
_SOLVED: dict[str, Any] = {"beam": 4, "update": "least-squares", "steps": 20, "tolerance": 0.003, "weighted": True}


def build(
    *,
    bits: int,
    codebooks: int | None = None,
    code_bits: int | None = None,
    length: int | None = None,
    entry_bits: Literal[8, 16] = 8,
    scale: Literal["row", "none"] = "row",
    tuning: BlockTuning | None = _TUNING,
    inputs: Literal["original", "quantized"] = "quantized",
    **options: Any,
) -> Recipe:
    """Further options are fields of `Additive` (beam, update, steps, tolerance, ..) and of `Codebooks`.

    `codebooks`, `code_bits` and `length` go together and come to `bits` a weight.
    """
    stages, width, g = split_of(bits, _SPLITS, codebooks, code_bits, length)
    options = ({} if options.get("update") == "adam" else _SOLVED) | options
    rounding = taken(Additive, options)
    grid = Codebooks(code_bits=width, stages=stages, length=g, scale=scale, entry_bits=entry_bits, **options)  # type: ignore[arg-type]
    return Recipe(weights=Target(grid, rounding), inputs=inputs, adaptation=tuning)


AQLM = Method(
    name="aqlm",
    paper="Extreme Compression of Large Language Models via Additive Quantization",
    arxiv="2401.06118",
    needs="calibration",
    bits=(1, 2, 3, 4),
    build=build,
    grouped=False,
)
