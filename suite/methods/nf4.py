"""NF4 and NF2: quantiles of a Gaussian as levels, in blocks of 64 of the flattened matrix.

Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, with
the constants and the layout of bitsandbytes 0.50.2, double quantization included (`double=False` keeps each block's
absmax in float32). NF2 has its levels by the same construction (Li et al. 2023, LoftQ, arXiv:2310.08659).
"""

from functools import partial

from suite.grids import DoubleQuantized, RealScale, Scaled
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(*, element: str = "nf4", group: int = 64, double: bool = True) -> Recipe:
    """`group` consecutive values of the flattened matrix share an absmax."""
    scale = DoubleQuantized() if double else RealScale(bits=32)
    grid = Scaled(element=element, group=group, scale=scale, axis="flat", first="high" if element == "nf4" else "low")
    return Recipe(weights=Target(grid))


def _method(name: str, bits: int, paper: str, arxiv: str) -> Method:
    return Method(name=name, paper=paper, arxiv=arxiv, needs="nothing", bits=(bits,),
                  build=partial(build, element=name))  # fmt: skip


NF4 = _method("nf4", 4, "QLoRA: Efficient Finetuning of Quantized LLMs", "2305.14314")
NF2 = _method("nf2", 2, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", "2310.08659")
