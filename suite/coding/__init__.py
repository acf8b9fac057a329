"""Coding: how are the chosen points stored? At fixed width, by `kernels.packing`, or by an entropy coder."""

from suite.coding.ans import Ans
from suite.coding.fixed import Fixed, entropy_bits
from suite.coding.huffman import Huffman

CODINGS = (Fixed, Huffman, Ans)

__all__ = ["CODINGS", "Ans", "Fixed", "Huffman", "entropy_bits"]
