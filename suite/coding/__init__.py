"""Coding: how are the chosen points stored? At fixed width, by `kernels.packing`, or by an entropy coder."""

from suite.coding.ans import Ans
from suite.coding.fixed import Fixed, entropy_bits
from suite.coding.general import Gzip, Lzma, Zstd
from suite.coding.huffman import Huffman

Coding = Fixed | Huffman | Ans
CODINGS = (Fixed, Huffman, Ans)

__all__ = ["CODINGS", "Ans", "Coding", "Fixed", "Gzip", "Huffman", "Lzma", "Zstd", "entropy_bits"]
