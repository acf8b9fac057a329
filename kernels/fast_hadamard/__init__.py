"""Hadamard transforms of activations in one pass over memory, alone or with the rounding of their result."""

from kernels.fast_hadamard.reference import decode, hadamard_reference
from kernels.fast_hadamard.triton import fast_hadamard, hadamard_quantize, plan

__all__ = ["decode", "fast_hadamard", "hadamard_quantize", "hadamard_reference", "plan"]
