"""Coding: how are the chosen points stored? So far at fixed width, by `kernels.packing`."""

from suite.coding.fixed import Fixed, entropy_bits

CODINGS = (Fixed,)

__all__ = ["CODINGS", "Fixed", "entropy_bits"]
