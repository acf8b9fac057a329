"""Products of int8 activations with ternary weights of 2 or 1.6 bits (W2A8, as BitNet b1.58 computes)."""

from kernels.ternary_product.packing import TernaryWeights, pack, unpack
from kernels.ternary_product.reference import ternary_product_reference
from kernels.ternary_product.tokens import quantize_tokens
from kernels.ternary_product.triton import plan, ternary_product

__all__ = [
    "TernaryWeights",
    "pack",
    "plan",
    "quantize_tokens",
    "ternary_product",
    "ternary_product_reference",
    "unpack",
]
