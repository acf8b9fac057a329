"""QuIP#: weights made Gaussian by random signs and Hadamard matrices, rounded eight at a time to points of E8.

Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks", arXiv:2402.04396. Every matrix is turned on both sides (`Incoherence`), rounded to `E8P` by error feedback
on blocks of eight columns from the last to the first, and then again in sweeps of coordinate descent.

Defaults differ from the release (`released=True`) where it can be bettered at the same bits: sweeps keep a code where
the new one does not lower the error, which at 4 bits they would otherwise raise; and at 3 and 4 bits the first of two
points is sought for the sum of both, on scales that suit this, instead of by itself. Layers are calibrated on the
outputs of the quantized layers before them. Blocks are tuned, but for their signs: made real numbers, as in the paper
and in the release, they take 16 bits each, which small matrices do not earn back:
`tuning=BlockTuning(sign_rate=1e-2)`, or `QUIP_SHARP_TUNING` in the release's way, tunes them too. The whole model is
not tuned.
"""

from typing import Any, Literal

from suite.adaptation.block_tuning import BlockTuning
from suite.grids import E8P
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Descent, Feedback
from suite.transforms import Incoherence

# least error of the H-norm on a correlated Gaussian matrix, of a grid of scales and residuals
_SEARCHED: dict[int, dict[str, Any]] = {
    2: {},
    3: {"scale": 1.0, "residual": 1.75, "tries": 4},
    4: {"scale": 0.9, "residual": 3.6, "tries": 4},
}
_TUNING = BlockTuning()


def build(
    *,
    bits: int,
    released: bool = False,
    sweeps: int = 10,
    damping: float = 0.01,
    inputs: Literal["original", "quantized"] = "quantized",
    tuning: BlockTuning | None = _TUNING,
    **grid: Any,
) -> Recipe:
    """Further options are fields of `E8P`; `released` takes its codebooks and sweeps as the release does."""
    start = Feedback(order="reversed", damping=damping)
    rounding = Descent(start=start, sweeps=sweeps, monotone=not released)
    searched = {} if released else _SEARCHED.get(bits, {})
    target = Target(E8P(bits=bits, **(searched | grid)), rounding)  # type: ignore[arg-type]
    return Recipe(transforms=(Incoherence(),), weights=target, inputs=inputs, adaptation=tuning)


QUIP_SHARP = Method(
    name="quip-sharp",
    paper="QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks",
    arxiv="2402.04396",
    needs="calibration",
    bits=(2, 3, 4),
    build=build,
    grouped=False,
)
