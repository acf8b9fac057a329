"""EntroLLM: one scale for a whole matrix, and a Huffman code for what that leaves in few levels.

Sanyal et al. 2025, EntroLLM: Entropy Encoded Weight Compression for Efficient Large Language Model Inference on Edge
Devices, arXiv:2505.02380v4. Its "mixed" quantization, unsigned or asymmetric by tensor (the abstract; the rule itself
could not be read), is taken to be what asymmetric integers do here by themselves, since their range always takes in 0:
weights of one sign get a zero point at the end of the range, which is unsigned quantization, and all others the range
from the smallest to the largest.

Here every matrix has its own code, since models stream through memory block by block; the paper counts one over all
of them. On the reference model one code would save at most 218 bytes of tables a matrix at 8 bits, 82 at 4 (0.016 and
0.006 bits a weight), and lose 0.048 and 0.079 bits a weight, since its matrices differ.

A third of a 4-bit code, as the paper has it, is left where outliers stretch the range until most weights share two or
three levels; the error grows with the range, so that rates of one nominal width say little. On the reference model 4
bits become 2.65 with an nmse of 0.043; groups of 128 at 3 bits store 3.15 (2.74 entropy coded) with 0.047.
"""

from suite.coding import Huffman
from suite.grids import Integer
from suite.grids.layout import Group
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(*, bits: int, group: Group = "tensor") -> Recipe:
    """Smaller groups than the paper's show what the code has left to gain from them."""
    return Recipe(weights=Target(Integer(bits=bits, group=group, convention="asymmetric")), coding=Huffman())


ENTROLLM = Method(
    name="entrollm",
    paper="EntroLLM: Entropy Encoded Weight Compression for Efficient Large Language Model Inference on Edge Devices",
    arxiv="2505.02380",
    needs="nothing",
    bits=tuple(range(2, 9)),  # the paper has 4 and 8
    build=build,
)
