"""QA-LoRA: adapters that see the sums of groups of inputs, so that they go into the groups' zero points.

Xu, Xie, Gu, Chen, Chang, Zhang, Chen, Zhang, Tian 2023, "QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large
Language Models", arXiv:2309.14717. Groups of 32 inputs, asymmetric, rounded by GPTQ, zero points real numbers, which
the merge needs. Nothing is left beside the codes. Inputs are summed, as the
paper writes; the release averages, which asks for another rate.
"""

from typing import Any

from suite.grids import Integer
from suite.methods.adapting import branch
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback


def build(*, bits: int, group: int = 32, **options: Any) -> Recipe:
    """`rank` and `scale` of adapters; further options are fields of `Schedule` and of `LowRank`."""
    how = branch(options, pooled=True)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    weights = Target(Integer(bits=bits, group=group, convention="real-zero"), Feedback())
    return Recipe(weights=weights, inputs="quantized", adaptation=how)


QA_LORA = Method(
    name="qa-lora",
    paper="QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models",
    arxiv="2309.14717",
    needs="training",
    bits=(2, 3, 4),
    build=build,
)
