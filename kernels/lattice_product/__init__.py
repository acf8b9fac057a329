"""Products with points of QuIP#'s lattice codebooks: E8P in 2 bits a weight, and sums of two points in 3 and 4."""

from kernels.lattice_product.packing import LatticeWeights, pack
from kernels.lattice_product.reference import lattice_product_reference
from kernels.lattice_product.triton import lattice_product, plan

__all__ = ["LatticeWeights", "lattice_product", "lattice_product_reference", "pack", "plan"]
