"""Lossless products: BF16 and FP8 weights whose exponents take 3 bits and their rare exceptions a list, bit exact."""

from kernels.coded_product.decoding import decode, decode_patterns, plan_decode
from kernels.coded_product.packing import CodedWeights, pack
from kernels.coded_product.reference import coded_product_reference, decode_reference
from kernels.coded_product.triton import coded_product, plan

__all__ = [
    "CodedWeights", "coded_product", "coded_product_reference", "decode", "decode_patterns", "decode_reference", "pack",
    "plan", "plan_decode",
]  # fmt: skip
