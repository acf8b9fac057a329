"""Products with weights of 2, 3, 4 or 8-bit integers in groups, with or without zero points (W2A16 .. W8A16)."""

from kernels.integer_product.packing import IntegerWeights, pack
from kernels.integer_product.reference import integer_product_reference
from kernels.integer_product.triton import integer_product, plan

__all__ = ["IntegerWeights", "integer_product", "integer_product_reference", "pack", "plan"]
