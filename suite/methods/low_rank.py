"""A low-rank branch beside rounded weights, without training: what adapters that are trained are measured against.

The best of its rank for what rounding left of the weights (Yao, Wu, Li, Youn, He 2023, "ZeroQuant-V2",
arXiv:2303.08302, section 5: low rank compensation), for what it left of the outputs (Zhang, Cheng, Constantinides, Zhao
2024, "LQER", arXiv:2402.02446, by the whole Gram matrix here and not its diagonal), or the latter by turns with error
feedback, which rounds what the branch leaves (Saha, Sagan, Srivastava, Goldsmith, Pilanci 2024, "CALDERA",
arXiv:2405.18886, whose branches are rounded, too). Branches are stored in float16, and charged.
"""

from functools import partial
from typing import Any

from suite.grids import Integer
from suite.methods.adapting import branch
from suite.methods.method import Method, taken
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest


def build(*, bits: int, group: int | str = 128, feedback: bool = False, weighted: bool = False, rounds: int = 1,
          **options: Any) -> Recipe:  # fmt: skip
    """`rank` of the branch; further options are fields of `Integer`."""
    how = branch(options, trained=False, rounds=rounds, weighted=weighted)
    grid = taken(Integer, options, bits=bits, group=group)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    target = Target(grid, Feedback() if feedback else Nearest())
    return Recipe(weights=target, inputs="quantized" if feedback else "original", adaptation=how)


def _method(name: str, paper: str, arxiv: str, **options: Any) -> Method:
    return Method(name=name, paper=paper, arxiv=arxiv, needs="calibration" if options else "nothing",
                  bits=tuple(range(2, 9)), build=partial(build, **options))  # fmt: skip


LOW_RANK = _method("low-rank", "ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to "
                   "Low Rank Compensation", "2303.08302")  # fmt: skip
LOW_RANK_H = _method("low-rank-h", "LQER: Low-Rank Quantization Error Reconstruction for LLMs", "2402.02446",
                     weighted=True)  # fmt: skip
LOW_RANK_GPTQ = _method("low-rank-gptq", "Compressing Large Language Models using Low Rank and Low Precision "
                        "Decomposition", "2405.18886", weighted=True, feedback=True, rounds=5)  # fmt: skip
