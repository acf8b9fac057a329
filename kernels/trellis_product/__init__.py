"""Products with weights on QTIP's trellis, whose codes are computed (1MAD, 3INST) or looked up by a hash (HYB)."""

from kernels.trellis_product.packing import TrellisWeights, pack
from kernels.trellis_product.reference import trellis_product_reference
from kernels.trellis_product.triton import plan, trellis_product

__all__ = ["TrellisWeights", "pack", "plan", "trellis_product", "trellis_product_reference"]
