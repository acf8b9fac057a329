"""Products with sums of codebook entries, AQLM's 2 x 8 and 1 x 16: 2 bits a weight, eight weights an entry."""

from kernels.codebook_product.packing import CodebookWeights, pack
from kernels.codebook_product.reference import codebook_product_reference
from kernels.codebook_product.triton import codebook_product, plan

__all__ = ["CodebookWeights", "codebook_product", "codebook_product_reference", "pack", "plan"]
