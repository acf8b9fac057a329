"""QuIP#: weights made Gaussian by random signs and Hadamard matrices, rounded eight at a time to points of E8.

Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks", arXiv:2402.04396. Every matrix is turned on both sides (`Incoherence`), rounded to `E8P` by error feedback
on blocks of eight columns from the last to the first, and then again in sweeps of coordinate descent.
"""

from typing import Any, Literal

from suite.grids import E8P
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Descent, Feedback
from suite.transforms import Incoherence


def build(
    *,
    bits: int,
    sweeps: int = 10,
    monotone: bool = True,
    damping: float = 0.01,
    inputs: Literal["original", "quantized"] = "quantized",
    **grid: Any,
) -> Recipe:
    """Further options are fields of `E8P`."""
    start = Feedback(order="reversed", damping=damping)
    rounding = Descent(start=start, sweeps=sweeps, monotone=monotone)
    target = Target(E8P(bits=bits, **grid), rounding)  # type: ignore[arg-type]
    return Recipe(transforms=(Incoherence(),), weights=target, inputs=inputs)


QUIP_SHARP = Method(
    name="quip-sharp",
    paper="QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks",
    arxiv="2402.04396",
    needs="calibration",
    bits=(2, 3, 4),
    build=build,
    grouped=False,
)
