"""QTIP: weights made Gaussian by random signs and Hadamard matrices, rounded 256 at a time to paths of a trellis.

Tseng, Sun, Hou, De Sa 2024, "QTIP: Quantization with Trellises and Incoherence Processing", arXiv:2406.11235. Every
matrix is turned on both sides (`Incoherence`) and rounded to a `Trellis` in tiles of 16 x 16 by error feedback on
blocks of 16 columns, from the last to the first.

The paper leaves the code open. The default here is 1MAD: it comes nearest to independent draws at all three widths and
has no table. HYB, which the release's kernels are written for, leaves 2% more error at 2 bits and 20% more at 4; it is
searched in half the time, two values a step: `code="hyb"`. The scale is the release's, 0.9 of the code's deviation.
Blocks are tuned, as in the paper, but for their signs, which as real numbers would take 16 bits each
(`suite.methods.quip_sharp`); the whole model is not.
"""

from typing import Any, Literal

from suite.adaptation.block_tuning import BlockTuning
from suite.grids import Trellis
from suite.grids.trellis_codes import Code
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback
from suite.transforms import Incoherence

_TUNING = BlockTuning()


def build(
    *,
    bits: int,
    code: Code = "1mad",
    V: int | None = None,
    damping: float = 0.01,
    inputs: Literal["original", "quantized"] = "quantized",
    tuning: BlockTuning | None = _TUNING,
    **grid: Any,
) -> Recipe:
    """`V` is what the code has, if it leaves no choice, else 1. Further options are fields of `Trellis`."""
    each = (2 if code == "hyb" else 1) if V is None else V
    target = Target(Trellis(bits=bits, code=code, V=each, **grid), Feedback(order="reversed", damping=damping))
    return Recipe(transforms=(Incoherence(),), weights=target, inputs=inputs, adaptation=tuning)


QTIP = Method(
    name="qtip",
    paper="QTIP: Quantization with Trellises and Incoherence Processing",
    arxiv="2406.11235",
    needs="calibration",
    bits=(2, 3, 4),
    build=build,
    grouped=False,
)
