"""Products of quantized activations with quantized weights on 8-bit matrix units: W8A8 (int8, E4M3) and W4A4."""

from kernels.byte_product.packing import ByteWeights, pack
from kernels.byte_product.reference import byte_product_reference
from kernels.byte_product.triton import byte_product, integer_sums, plan

__all__ = ["ByteWeights", "byte_product", "byte_product_reference", "integer_sums", "pack", "plan"]
