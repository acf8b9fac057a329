"""MX: blocks of 32 elements on a power of two.

Rouhani et al. 2023, "Microscaling Data Formats for Deep Learning", arXiv:2310.10537; OCP Microscaling Formats 1.0. The
scale follows OCP's rule, which clips a block whose largest value has a large mantissa; `rule="up"`, "ceil" and "even"
are the ways around it. Rows are padded to whole blocks.
"""

from functools import partial
from typing import Literal

from suite.grids import PowerOfTwo, Scaled
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(
    *,
    element: str,
    group: int = 32,
    rule: Literal["floor", "ceil", "even", "up"] = "floor",
    rounding: Nearest | Stochastic | Feedback = Nearest(),  # noqa: B008 - a frozen value
) -> Recipe:
    """`rule` is that of `PowerOfTwo`."""
    return Recipe(weights=Target(Scaled(element=element, group=group, scale=PowerOfTwo(rule), pad=True), rounding))


def _method(name: str, bits: int, element: str) -> Method:
    return Method(name=name, paper="Microscaling Data Formats for Deep Learning", arxiv="2310.10537", needs="nothing",
                  bits=(bits,), build=partial(build, element=element))  # fmt: skip


MXFP4 = _method("mxfp4", 4, "e2m1")
MXFP6 = _method("mxfp6", 6, "e2m3")
MXFP6_E3M2 = _method("mxfp6-e3m2", 6, "e3m2")
MXFP8 = _method("mxfp8", 8, "e4m3")
MXFP8_E5M2 = _method("mxfp8-e5m2", 8, "e5m2")
MXINT8 = _method("mxint8", 8, "int8")
