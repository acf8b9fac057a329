"""LoftQ: codes and a low-rank branch fitted to each other by turns, then the branch trained.

Li, Yu, Liang, He, Karampatziakis, Chen, Zhao 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language
Models", arXiv:2310.08659, algorithm 1, with its five rounds, on NF4 or NF2, or uniform integers with
`element="integer"`. The paper keeps the last round; scales are fitted anew in every one, so a round may raise the
error, and here the best is kept.
"""

from typing import Any

from suite.grids import Integer
from suite.methods import nf4
from suite.methods.adapting import branch
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(*, bits: int, group: int = 64, double: bool = True, element: str = "nf", **options: Any) -> Recipe:
    """`rank` and `scale` of adapters; further options are fields of `Schedule` and of `LowRank`."""
    how = branch(options, rounds=5)
    if options or element not in ("nf", "integer"):
        raise TypeError(f"unexpected {', '.join(sorted(options)) or f'element {element!r}, expected nf or integer'}")
    plain = nf4.build(element=f"nf{bits}", group=group, double=double).weights if element == "nf" else Target(
        Integer(bits=bits, group=group))  # fmt: skip
    return Recipe(weights=plain, adaptation=how)


LOFTQ = Method(
    name="loftq",
    paper="LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
    arxiv="2310.08659",
    needs="training",
    bits=(2, 4),
    build=build,
)
