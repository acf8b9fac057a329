"""Coding: how are the chosen points stored? At fixed width, by `kernels.packing`, or by an entropy coder."""

from suite.coding.ans import Ans
from suite.coding.exponents import Exponents
from suite.coding.fixed import Fixed, entropy_bits
from suite.coding.general import Gzip, Lzma, Zstd
from suite.coding.huffman import Huffman

Coding = Fixed | Huffman | Ans | Exponents
CODINGS = (Fixed, Huffman, Ans, Exponents)

__all__ = ["CODINGS", "Ans", "Coding", "Exponents", "Fixed", "Gzip", "Huffman", "Lzma", "Zstd", "entropy_bits"]
