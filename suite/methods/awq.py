"""AWQ: scale the channels that see large activations before rounding, then clip the groups that profit.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han 2023, "AWQ: Activation-aware Weight Quantization for LLM
Compression and Acceleration", arXiv:2306.00978. As in the release, the clip search leaves queries and keys alone; the
scales are searched on the linear layers' outputs (the paper) and not on the block's (the release).
"""

from typing import Any

from suite.grids import Integer, OutputSearch
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.transforms import AwqScale


def build(*, bits: int, group: int | str = 128, steps: int = 20, clip: bool = True, **grid: Any) -> Recipe:
    """`steps` candidates for the scales; `clip=False` leaves the ranges alone."""
    plain = Target(Integer(bits=bits, group=group, **grid))  # type: ignore[arg-type]
    if not clip:
        return Recipe(transforms=(AwqScale(steps=steps),), weights=plain)
    searched = Target(Integer(bits=bits, group=group, clip=OutputSearch(), **grid))  # type: ignore[arg-type]
    unclipped = tuple((pattern, plain) for pattern in ("*.q_proj", "*.k_proj"))
    return Recipe(transforms=(AwqScale(steps=steps),), weights=searched, layers=unclipped)


AWQ = Method(
    name="awq",
    paper="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    arxiv="2306.00978",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
