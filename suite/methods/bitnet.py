"""BitNet b1.58: ternary weights and 8-bit activations, from scratch or by fine-tuning.

Ma, Wang, Ma, Wang, Wang, Huang, Dong, Wang, Xue, Wei 2024, "The Era of 1-bit LLMs: All Large Language Models are in
1.58 Bits", arXiv:2402.17764; Wang et al. 2023, "BitNet", arXiv:2310.11453, section 2. Weights are rounded to mean|w|
times -1, 0, 1, one scale for a matrix, at every update anew; inputs of linear layers token by token to 8 bits;
gradients pass both as if they were not there. From scratch every layer that writes to the residual stream has a norm
before it (SubLN), and the rate and the weight decay drop after half of the updates ("The Era of 1-bit LLMs: Training
Tips, Code and FAQ", section 2.2). Embedding and head stay as they are.
"""

from functools import partial
from typing import Any

from suite.adaptation.quantization_aware import Gradient
from suite.adaptation.training import Schedule
from suite.grids import Integer, RealScale, Scaled
from suite.methods.method import TUNING, Method, training
from suite.recipe import Recipe, Target

# the shipped model's own peak rate, then two thirds of it, and as many updates as its fine-tuning has
SCRATCH = Schedule(steps=800, rate=2e-3, warmup=0.05, weight_decay=0.1, second_from=0.5, second_rate=1.3e-3,
                   second_decay=0.0)  # fmt: skip


def build(*, scratch: bool = False, sub_norm: bool | None = None, **options: Any) -> Recipe:
    """Further options are fields of `Schedule` and of `QuantizationAware`."""
    how = training(options, SCRATCH if scratch else TUNING, learned="nothing", gradient=Gradient(range="open"),
                   scratch=scratch, sub_norm=scratch if sub_norm is None else sub_norm)  # fmt: skip
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    weights = Scaled(element="ternary", group="tensor", scale=RealScale(statistic="absmean"))
    activations = Integer(bits=8, group="row", convention="full-range", scale_bits=32)
    return Recipe(weights=Target(weights), activations=Target(activations), adaptation=how)


BITNET = Method(
    name="bitnet",
    paper="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
    arxiv="2402.17764",
    needs="training",
    bits=(1.58,),
    build=partial(build, scratch=True),
    grouped=False,
)

BITNET_TUNED = Method(
    name="bitnet-tuned",
    paper="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
    arxiv="2402.17764",
    needs="training",
    bits=(1.58,),
    build=build,
    grouped=False,
)
