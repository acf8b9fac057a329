"""Tokens rounded to 8 or 4 bits as they are at hand, with RMSNorm and the sum before it in the same pass."""

from kernels.norm_quantize.reference import norm_quantize_reference
from kernels.norm_quantize.triton import norm_quantize, plan, token_quantize

__all__ = ["norm_quantize", "norm_quantize_reference", "plan", "token_quantize"]
