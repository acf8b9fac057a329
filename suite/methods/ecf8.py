"""ECF8: FP8 weights with their exponents Huffman coded; nothing is lost on top of FP8.

Yang et al. 2025, To Compress or Not? Pushing the Frontier of Lossless GenAI Model Weights Compression with Exponent
Concentration, arXiv:2510.02676. The paper codes models that were released in FP8; here E4M3 is as in `fp8`, one float16
scale for each row, and its codes come back bit for bit. What the exponents take depends on that scale: it puts a row's
largest weight on 448, so that few weights are subnormal. Tables are per matrix, as in `suite.methods.dfloat11`.
"""

from dataclasses import replace

from suite.coding import Exponents
from suite.methods.floats import FP8
from suite.methods.method import Method
from suite.recipe import Recipe


def build() -> Recipe:
    """There is nothing to choose."""
    return replace(FP8.recipe(), coding=Exponents(exponent_bits=4, mantissa_bits=3))


ECF8 = Method(
    name="ecf8",
    paper="To Compress or Not? Pushing the Frontier of Lossless GenAI Model Weights Compression with Exponent "
    "Concentration",
    arxiv="2510.02676",
    needs="nothing",
    bits=(8,),
    build=build,
)
