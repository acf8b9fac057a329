"""QLoRA: frozen NF4 weights with double quantization, and LoRA beside every linear layer.

Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314.
Adapters stay beside the codes and are charged. At 2 bits the levels are NF2 (Li et al. 2023, arXiv:2310.08659, who
compare with QLoRA there). Dropout is left out. Paged optimizer states change no number: they are a setting of a run.
"""

from typing import Any

from suite.methods import nf4
from suite.methods.adapting import branch
from suite.methods.method import Method
from suite.recipe import Recipe


def build(*, bits: int, group: int = 64, double: bool = True, **options: Any) -> Recipe:
    """`rank` and `scale` of adapters; further options are fields of `Schedule` and of `LowRank`."""
    how = branch(options)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    return Recipe(weights=nf4.build(element=f"nf{bits}", group=group, double=double).weights, adaptation=how)


QLORA = Method(
    name="qlora",
    paper="QLoRA: Efficient Finetuning of Quantized LLMs",
    arxiv="2305.14314",
    needs="training",
    bits=(2, 4),
    build=build,
)
