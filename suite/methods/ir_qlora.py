"""IR-QLoRA: QLoRA whose blocks are shifted for entropy, and whose adapters have paths past A and B.

Qin, Ma, Zheng, Li, Zhang, Liu, Luo, Liu, Magno 2024, "Accurate LoRA-Finetuning Quantization of LLMs via Information
Retention", arXiv:2402.05445. Information calibration chooses a shift for every block of 64 (`Shifted`); the elastic
connection's two learned numbers are merged into A and B when they are stored. The release has no 2 bits for this
layout; here it is the same search on NF2.
"""

from typing import Any

from suite.grids import Shifted
from suite.methods.adapting import branch
from suite.methods.method import Method, taken
from suite.recipe import Recipe, Target


def build(*, bits: int, group: int = 64, **options: Any) -> Recipe:
    """`rank` and `scale` of adapters; further options are fields of `Shifted`, of `Schedule` and of `LowRank`."""
    how = branch(options, elastic=True)
    grid = taken(Shifted, options, element=f"nf{bits}", group=group)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    return Recipe(weights=Target(grid), adaptation=how)


IR_QLORA = Method(
    name="ir-qlora",
    paper="Accurate LoRA-Finetuning Quantization of LLMs via Information Retention",
    arxiv="2402.05445",
    needs="training",
    bits=(2, 4),
    build=build,
)
