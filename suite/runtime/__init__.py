"""The runtime: a packed model that generates text from its packed codes, by the best product at hand for each format.

A *product* computes y = x W^T from codes and parameters (`suite.runtime.products`). `PackedLinear` stands in place of a
linear layer and holds what its product reads. Which product that is, one can say, or have measured
(`suite.runtime.choice`); all else is `transformers`' own: modules, cache and attention. Evaluation does not go this way
unless it is asked to: its figures are those of dequantized weights, bit for bit.
"""

from suite.runtime.choice import Chooser, Measured
from suite.runtime.core import ByRows, Core
from suite.runtime.generation import Generated, generate
from suite.runtime.linear import PackedLinear, through_products
from suite.runtime.model import Runtime, chooser_for, packed_runtime, plain_runtime
from suite.runtime.products import PRODUCTS, Product, product_named

__all__ = [
    "PRODUCTS", "ByRows", "Chooser", "Core", "Generated", "Measured", "PackedLinear", "Product", "Runtime",
    "chooser_for", "generate", "packed_runtime", "plain_runtime", "product_named", "through_products",
]  # fmt: skip
