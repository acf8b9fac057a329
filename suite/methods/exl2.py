"""EXL2: a budget of bits per weight, spent on wider codes for the input channels that matter most.

turboderp 2023, ExLlamaV2 (github.com/turboderp/exllamav2), without a paper; the format is in `suite.grids.exl2`.
Rounded by GPTQ in decreasing order of H's diagonal ("act-order"), groups fitted as they come up, 7% damping, each
layer calibrated on the model quantized so far.

`bits` is the budget for everything that is stored, as EXL2's users mean "3.0 bpw": where others name the width of
their codes and scales come on top, here a matrix takes at most `bits` per weight. `budget` gives it in fractions
instead. At 2 nothing fits, since codes have at least two bits and their scales come on top: such a cell is skipped,
and the least budget is some tenth above. The release also anneals over layers, each with a budget of its own; here
all have the same.
"""

from typing import Literal

from suite.grids import Exl2
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback


def build(
    *,
    bits: float,
    budget: float | None = None,
    group: Literal[32, 64, 128] = 32,
    widths: tuple[int, ...] | None = None,
    damping: float = 0.07,
    inputs: Literal["original", "quantized"] = "quantized",
) -> Recipe:
    """`budget` in bits per weight, `bits` by default; `group` and `widths` as in `Exl2`."""
    grid = Exl2(budget=bits if budget is None else budget, group=group, widths=widths)
    return Recipe(weights=Target(grid, Feedback(order="decreasing", damping=damping)), inputs=inputs)


EXL2 = Method(
    name="exl2",
    paper="ExLlamaV2",
    arxiv=None,
    needs="calibration",
    bits=tuple(range(2, 9)),
    build=build,
)
