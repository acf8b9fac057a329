"""QuaRot: turn the whole network by Hadamard matrices, so that no channel stands out, and quantize it to 4 bits.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman 2024, "QuaRot: Outlier-Free 4-Bit Inference
in Rotated LLMs", arXiv:2404.00456. Defaults are the paper's: a randomized Hadamard matrix on the residual stream, plain
ones on values head by head, across heads before the output projection and on the down projection's input; GPTQ with 1%
damping, columns as given, a scale per output channel, symmetric, its range searched; inputs symmetric per token,
clipped at 0.9 of their range. `cache_bits=4` makes it the paper's W4A4KV4: keys and values asymmetric, a head of a
token at a time, clipped at 0.95, keys turned by a Hadamard matrix too. `activation_bits=None` quantizes weights alone.

The release also subtracts the embeddings' mean, which is right for LayerNorm and changes the function of a model with
RMSNorm; that is left out.
"""

from typing import Any, Literal

from suite.grids import ClipRatio, Integer, OutputSearch, ShrinkSearch
from suite.kv_cache.target import CacheGrid, CacheTarget
from suite.methods.method import Method, named_rounding
from suite.recipe import Recipe, Target
from suite.transforms import RotateHeads, RotateInputs, RotateResidual, RotateValues
from suite.transforms.rotation import Kind


def build(
    *,
    bits: int,
    group: int | str = "row",
    convention: str = "full-range",
    clip: ShrinkSearch | OutputSearch | ClipRatio | None = ShrinkSearch(),  # noqa: B008 - a frozen value
    activation_bits: int | None = 4,
    rounding: Literal["gptq", "qronos", "rtn"] = "gptq",
    kind: Kind = "hadamard",
    heads: bool = True,
    cache_bits: int | None = None,
    **options: Any,
) -> Recipe:
    """`kind` is that of the residual stream's rotation; `heads=False` leaves out the one across heads.

    The latter is for models whose number of heads no Hadamard matrix has. Further options are those of the rounding
    (order, groups, damping, block ..) and fields of `Integer` for the weights.
    """
    how = named_rounding(rounding, options)
    grid = Integer(bits=bits, group=group, convention=convention, clip=clip, **options)  # type: ignore[arg-type]
    return Recipe(
        transforms=(RotateResidual(kind=kind), RotateValues(), *([RotateHeads()] if heads else []), RotateInputs()),
        weights=Target(grid, how),
        activations=None if activation_bits is None else Target(_per_token(activation_bits)),
        inputs="original" if rounding == "rtn" else "quantized",
        cache=None if cache_bits is None else _cache(cache_bits),
    )


def _per_token(bits: int) -> Integer:
    return Integer(bits=bits, group="row", convention="full-range", clip=ClipRatio(0.9), scale_bits=32)


def _cache(bits: int) -> CacheTarget:
    grid = Integer(bits=bits, group="row", clip=ClipRatio(0.95))  # the release's groups of 128 are heads
    return CacheTarget(keys=CacheGrid(grid=grid, rotate=True), values=CacheGrid(grid=grid))


QUAROT = Method(
    name="quarot",
    paper="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
    arxiv="2404.00456",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
