"""Floating-point weights: FP8, FP6 and FP4 with a real scale, rounded to nearest.

Formats: OCP 8-bit Floating Point Specification 1.0; Micikevicius et al. 2022, arXiv:2209.05433 (E4M3, E5M2); OCP
Microscaling Formats 1.0 (E3M2, E2M3, E2M1). Scales are float16, the row's largest magnitude on the format's largest
number: FP8 and FP6 per row as FP6-LLM has them (Xia et al. 2024, arXiv:2401.14112), FP4 per 128 inputs.
"""

from functools import partial
from typing import Any

from suite.grids import RealScale, Scaled
from suite.grids.layout import Group
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(*, element: str, group: Group, **scale: Any) -> Recipe:
    """Further options are fields of `RealScale`: bits, clip."""
    return Recipe(weights=Target(Scaled(element=element, group=group, scale=RealScale(**scale))))


def _method(name: str, bits: int, paper: str, arxiv: str, element: str, group: Group) -> Method:
    return Method(name=name, paper=paper, arxiv=arxiv, needs="nothing", bits=(bits,),
                  build=partial(build, element=element, group=group))  # fmt: skip


_EIGHT = "FP8 Formats for Deep Learning"
_SIX = "FP6-LLM: Efficiently Serving Large Language Models Through FP6-Centric Algorithm-System Co-Design"
_FOUR = "LLM-FP4: 4-Bit Floating-Point Quantized Transformers"

FP8 = _method("fp8", 8, _EIGHT, "2209.05433", "e4m3", "row")
FP8_E5M2 = _method("fp8-e5m2", 8, _EIGHT, "2209.05433", "e5m2", "row")
FP6 = _method("fp6", 6, _SIX, "2401.14112", "e3m2", "row")
FP6_E2M3 = _method("fp6-e2m3", 6, _SIX, "2401.14112", "e2m3", "row")
FP4 = _method("fp4", 4, _FOUR, "2310.16836", "e2m1", 128)
