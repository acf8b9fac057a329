"""Products with weights in MXFP4, NVFP4, MXFP6, MXFP8 and FP8."""

from kernels.float_product.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FloatFormat
from kernels.float_product.packing import FloatWeights, pack
from kernels.float_product.reference import float_product_reference
from kernels.float_product.triton import float_product, plan

__all__ = [
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "FloatFormat",
    "FloatWeights",
    "float_product",
    "float_product_reference",
    "pack",
    "plan",
]
