"""DuQuant: smooth, rotate blocks of channels greedily, permute them in zigzag, rotate again; then round to nearest.

Lin, Xu, Wu, Cui, Zhang, Mou, Song, Sun, Wei 2024, "DuQuant: Distributing Outliers via Dual Transformation Makes
Stronger Quantized LLMs", arXiv:2406.01721. Defaults are those of the release's script: smoothing at 0.6 of all sites,
blocks of 128, up to 256 steps, one permutation; inputs asymmetric per token, cut to 0.9 of their range; weights
asymmetric per output channel, cut to 0.8. Its learned clipping of weights ("LWC", 20 epochs) is not here.

The greedy steps follow the paper; `exchange="release"` follows the release where it leaves it (see
`suite.transforms.greedy`). The release smooths by the first of the layers that share an input, this by all of them, as
SmoothQuant; and at the output projection of grouped queries, where it divides at run time, this does not smooth.
"""

from typing import Any

from suite.grids import ClipRatio, Integer, OutputSearch, ShrinkSearch
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.transforms import DualRotation, SmoothScale
from suite.transforms.greedy import Exchange


def build(
    *,
    bits: int,
    group: int | str = "row",
    clip: ShrinkSearch | OutputSearch | ClipRatio | None = ClipRatio(0.8),  # noqa: B008 - a frozen value
    activation_bits: int | None = 4,
    alpha: float | None = 0.6,
    block: int = 128,
    steps: int = 256,
    permutations: int = 1,
    exchange: Exchange = "column",
    **options: Any,
) -> Recipe:
    """`alpha=None` does not smooth. Further options are fields of `Integer` for the weights."""
    smoothing = () if alpha is None else (SmoothScale(alpha=alpha, sources=("norm", "linear")),)
    rotation = DualRotation(block=block, steps=steps, permutations=permutations, exchange=exchange)
    inputs = None
    if activation_bits is not None:
        inputs = Target(Integer(bits=activation_bits, group="row", clip=ClipRatio(0.9), scale_bits=32))
    weights = Integer(bits=bits, group=group, clip=clip, **options)  # type: ignore[arg-type]
    return Recipe(transforms=(*smoothing, rotation), weights=Target(weights), activations=inputs)


DUQUANT = Method(
    name="duquant",
    paper="DuQuant: Distributing Outliers via Dual Transformation Makes Stronger Quantized LLMs",
    arxiv="2406.01721",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
