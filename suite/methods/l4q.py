"""L4Q: adapters within a quantizer whose steps are learned with them; what is stored is codes alone.

Jeon, Kim, Kim 2024, "L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models",
arXiv:2402.04902. W + s B A is rounded as a whole, on integers in groups of 128 with learned scales and offsets (LSQ+),
which begin as wide as the larger end of a group asks for, around zero.
"""

from typing import Any

from suite.grids import Integer
from suite.methods.adapting import ADAPTING, adapters
from suite.methods.method import Method, training
from suite.recipe import Recipe, Target


def build(*, bits: int, group: int | str = 128, **options: Any) -> Recipe:
    """`rank` and `scale` of adapters; further options are fields of `Schedule` and of `QuantizationAware`."""
    how = training(options, ADAPTING, start="symmetric", adapters=adapters(options))
    if options:
        raise TypeError(f"unexpected {', '.join(sorted(options))}")
    grid = Integer(bits=bits, group=group, convention="real-zero")  # type: ignore[arg-type]
    return Recipe(weights=Target(grid), adaptation=how)


L4Q = Method(
    name="l4q",
    paper="L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models",
    arxiv="2402.04902",
    needs="training",
    bits=(2, 3, 4),
    build=build,
)
