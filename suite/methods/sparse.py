"""2:4 sparsity: two of every four consecutive weights stay; by magnitude, Wanda, or SparseGPT.

- `magnitude-24`: the two largest, without data.
- `wanda-24`: Sun, Liu, Bair, Kolter 2023, "A Simple and Effective Pruning Approach for Large Language Models",
  arXiv:2306.11695: the two with the largest |w| times the norm of their input. The others keep their values.
- `sparsegpt-24`: Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
  arXiv:2301.00774: chosen inside error feedback, which makes up for what is dropped (damping 1%, as in GPTQ).

At 16 bits the kept weights are float16, 9 bits per weight with their positions; there are no scales then, and `group`
says nothing. At 2 to 8 bits they are asymmetric integers in groups of 128 inputs, 64 of them kept: rounded to nearest
after the choice, or for SparseGPT within the same feedback (its joint quantization).

Both papers calibrate a layer on the activations of the model pruned so far, and so do we (`inputs="quantized"`). The
releases measure a whole decoder block before they prune any of it; here each site is measured when those before it
in the block are done, as GPTQ's true-sequential order does. SparseGPT's release fits integers to dense rows; here
groups are fitted to what stays.
"""

from functools import partial
from typing import Any, Literal

from suite.grids import Integer, Scaled, Sparse, Unscaled
from suite.grids.grid import Grid
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest

_BITS = (*range(2, 9), 16)
_FEEDBACK = ("groups", "damping", "block", "pick")


def build(
    *,
    bits: int,
    score: Literal["magnitude", "wanda", "feedback"],
    group: int | Literal["row", "tensor"] = 128,
    kept: int = 2,
    of: int = 4,
    inputs: Literal["original", "quantized"] = "quantized",
    **options: Any,
) -> Recipe:
    """Further options are fields of `Integer`, and with the score "feedback" of `Feedback`, but for its order."""
    rounding: Nearest | Feedback = Nearest()
    if score == "feedback":
        rounding = Feedback(**{name: options.pop(name) for name in _FEEDBACK if name in options})
    inner: Grid
    if bits == 16:
        inner = Scaled(element="float16", group="tensor", scale=Unscaled(), **options)
    else:
        inner = Integer(bits=bits, group=group, **options)
    return Recipe(weights=Target(Sparse(grid=inner, kept=kept, of=of, score=score), rounding), inputs=inputs)


MAGNITUDE_24 = Method(
    name="magnitude-24",
    paper="magnitude pruning, 2:4",
    arxiv=None,
    needs="nothing",
    bits=_BITS,
    build=partial(build, score="magnitude", inputs="original"),
)

WANDA_24 = Method(
    name="wanda-24",
    paper="A Simple and Effective Pruning Approach for Large Language Models",
    arxiv="2306.11695",
    needs="calibration",
    bits=_BITS,
    build=partial(build, score="wanda"),
)

SPARSEGPT_24 = Method(
    name="sparsegpt-24",
    paper="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arxiv="2301.00774",
    needs="calibration",
    bits=_BITS,
    build=partial(build, score="feedback"),
)
