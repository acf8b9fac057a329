"""SpinQuant: rotations like QuaRot's, learned on the network's loss instead of drawn.

Liu, Zhao, Fedorov, Soran, Choudhary, Krishnamoorthi, Chandra, Tian, Blankevoort 2024, "SpinQuant: LLM Quantization with
Learned Rotations", arXiv:2405.16406. R1 of the residual stream and R2 of every block's values are learned
(`suite.learning.rotations`); R3 and R4, Hadamard matrices on queries and keys and on the down projection's input, are
there at run time unless `online=False` (the paper's "no had"); R3 shows where the cache is quantized. Defaults
are the release's: GPTQ with 1% damping, a scale per output channel, symmetric, its range searched; inputs per token,
asymmetric. `activation_bits=None` quantizes weights alone, and the rotations are then learned on them.

`cache_bits` is the width of keys and values, asymmetric, a head of a token at a time; nothing is learned on them.

The release rounds the output projection's inputs head by head, which makes up for the rotation across heads that
QuaRot has and SpinQuant has not; here they are rounded per token like all others, and `heads=True` adds that rotation.
It decides where outliers sit in values: KL at 4 bits on reference+outliers is 0.538 for QuaRot, 0.582 without, 0.408
with it (standard error 0.03); on the reference, 0.0366 for QuaRot and 0.0338 without it.
"""

from typing import Any, Literal

from suite.grids import ClipRatio, Integer, OutputSearch, ShrinkSearch
from suite.kv_cache.target import CacheGrid, CacheTarget
from suite.methods.method import Method, named_rounding, taken
from suite.recipe import Recipe, Target
from suite.transforms import LearnedRotations, RotateHeads, RotateInputs, RotateKeys, Transform


def build(
    *,
    bits: int,
    group: int | str = "row",
    convention: str = "full-range",
    clip: ShrinkSearch | OutputSearch | ClipRatio | None = ShrinkSearch(),  # noqa: B008 - a frozen value
    activation_bits: int | None = 4,
    rounding: Literal["gptq", "qronos", "rtn"] = "gptq",
    cache_bits: int | None = None,
    online: bool = True,
    heads: bool = False,
    **options: Any,
) -> Recipe:
    """Other options are those of learning (steps, rate, kind, solver, gradient), of the rounding, and of `Integer`."""
    learned = taken(LearnedRotations, options)
    how = named_rounding(rounding, options)
    grid = Integer(bits=bits, group=group, convention=convention, clip=clip, **options)  # type: ignore[arg-type]
    across: tuple[Transform, ...] = (RotateHeads(),) if heads else ()
    at_run_time: tuple[Transform, ...] = (RotateInputs(), RotateKeys()) if online else ()
    return Recipe(
        transforms=(learned, *across, *at_run_time),
        weights=Target(grid, how),
        activations=None if activation_bits is None else Target(_per_token(activation_bits)),
        inputs="original" if rounding == "rtn" else "quantized",
        cache=None if cache_bits is None else _cache(cache_bits),
    )


def _per_token(bits: int) -> Integer:
    return Integer(bits=bits, group="row", convention="asymmetric", scale_bits=32)


def _cache(bits: int) -> CacheTarget:
    side = CacheGrid(grid=Integer(bits=bits, group="row"))
    return CacheTarget(keys=side, values=side)


SPINQUANT = Method(
    name="spinquant",
    paper="SpinQuant: LLM Quantization with Learned Rotations",
    arxiv="2405.16406",
    needs="calibration",
    bits=tuple(range(1, 9)),
    build=build,
)
