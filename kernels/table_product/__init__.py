"""Products with weights out of a table of 16: NF4 and Lloyd-Max tables, also with doubly quantized scales (QLoRA)."""

from kernels.table_product.packing import NF4, SecondScale, TableWeights, pack, pack_flat
from kernels.table_product.reference import table_product_reference
from kernels.table_product.triton import plan, table_product

__all__ = [
    "NF4", "SecondScale", "TableWeights", "pack", "pack_flat", "plan", "table_product", "table_product_reference",
]  # fmt: skip
