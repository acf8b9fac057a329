"""Weights rounded and packed on a GPU, for every layout that a product reads, and keys and values for a cache."""

from kernels.quantize_pack.integers import quantize_integers

__all__ = ["quantize_integers"]
