"""BitDistiller: clip once, then learn from the unquantized model, confidently where that is sure of itself.

Du, Zhang, Cao, Guo, Cao, Chu, Xu 2024, "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via
Self-Distillation", arXiv:2402.10631. At 3 bits levels of Gaussian quantiles with a scale for either side of zero
(NF-Asym), at 2 bits asymmetric integers. Both ends of every group are first drawn in by what the layer's outputs
profit, those of queries and keys excepted, as in the release; then weights are trained on the confidence-aware
divergence from the unquantized model, and gradients pass the rounding as if it were not there.

The paper trains on text that the teacher has written: `bitfrontier tokens --written` makes such rows, and `run
--training` takes them; without it they are those that every method has. Scales follow the weights at every update and
are constants in the gradient, where the release lets it pass through a group's largest and lowest value. Groups are of
64 at 2 bits, the default of the release's quantizer; its scripts ask for 128.
"""

from typing import Any

from suite.adaptation.clipping import AsymmetricClip
from suite.adaptation.quantization_aware import Gradient
from suite.grids import Integer, TwoSided
from suite.grids.grid import Grid
from suite.methods.method import Method, training
from suite.recipe import Recipe, Target

CLIP = AsymmetricClip(unclipped=("*.q_proj", "*.k_proj"))


def build(*, bits: int, group: int | str | None = None, **options: Any) -> Recipe:
    """`group` is 128 at 3 bits and 64 at 2. Further options are fields of `Schedule` and of `QuantizationAware`."""
    shared: Any = {"group": (128 if bits == 3 else 64) if group is None else group}
    how = training(options, loss="cakld", learned="nothing", gradient=Gradient(range="open"), clipping=CLIP)
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    grid: Grid = TwoSided(**shared) if bits == 3 else Integer(bits=bits, **shared)
    return Recipe(weights=Target(grid), adaptation=how)


BITDISTILLER = Method(
    name="bitdistiller",
    paper="BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via Self-Distillation",
    arxiv="2402.10631",
    needs="training",
    bits=(2, 3),
    build=build,
)
