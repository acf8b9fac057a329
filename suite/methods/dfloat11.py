"""DFloat11: BF16 weights with their exponents Huffman coded; nothing is lost where the checkpoint is in BF16.

Zhang et al. 2025, 70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length
Float, arXiv:2504.11651. Weights of other types are rounded to BF16 first, to nearest, ties to even. The layout is this
project's own (`suite.coding.exponents`, which says what differs); a matrix has tables of its own, where the paper has
one for the matrices of a transformer block.
"""

from suite.coding import Exponents
from suite.grids import BFloat16
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build() -> Recipe:
    """There is nothing to choose."""
    return Recipe(weights=Target(BFloat16()), coding=Exponents())


DFLOAT11 = Method(
    name="dfloat11",
    paper="70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float",
    arxiv="2504.11651",
    needs="nothing",
    bits=(16,),
    build=build,
)
