"""LSQ: integers whose steps are learned with the weights.

Esser, McKinstry, Bablani, Appuswamy, Modha 2020, "Learned Step Size Quantization", arXiv:1902.08153. Steps begin at 2
mean|w| / sqrt(Q), their gradients are divided by sqrt(N Q), and training begins with the full-precision model. A row
has a step here, where the paper's convolutions have one for a layer, and only weights are rounded unless activations
are asked for. The paper has no 1 bit; it is two levels here.
"""

from typing import Any

from suite.grids import Integer
from suite.methods.method import Method, training
from suite.recipe import Recipe, Target


def build(*, bits: int, group: int | str = "row", **options: Any) -> Recipe:
    """Further options are fields of `Schedule`, of `QuantizationAware` and of `Integer`."""
    how = training(options, start="lsq")
    convention = options.pop("convention", "half-integer" if bits == 1 else "full-range")
    return Recipe(weights=Target(Integer(bits=bits, group=group, convention=convention, **options)), adaptation=how)  # type: ignore[arg-type]


LSQ = Method(
    name="lsq",
    paper="Learned Step Size Quantization",
    arxiv="1902.08153",
    needs="training",
    bits=tuple(range(1, 9)),
    build=build,
)
