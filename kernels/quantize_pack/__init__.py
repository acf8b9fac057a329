"""Weights rounded and packed on a GPU, for every layout that a product reads, and keys and values for a cache.

Not for what is searched rather than rounded (E8P, trellises, AQLM's codebooks) or coded without loss.
"""

from kernels.quantize_pack.cache import quantize_keys, quantize_values
from kernels.quantize_pack.floats import quantize_floats
from kernels.quantize_pack.integers import quantize_integers
from kernels.quantize_pack.tables import quantize_nf4, quantize_table
from kernels.quantize_pack.ternary import quantize_ternary

__all__ = [
    "quantize_floats",
    "quantize_integers",
    "quantize_keys",
    "quantize_nf4",
    "quantize_table",
    "quantize_ternary",
    "quantize_values",
]
