"""Products y = x W^T from packed weights: one row of `PRODUCTS` for each way, and what it rounds.

A *core* is a quantized matrix without what stands around it: codes on a grid as it is stored. `prepare` lays it out as
the product reads it, or raises `Unfit` with the reason. Beside float32 sums, what a product rounds:

- `int4pack`: inputs and output to bfloat16, a group's scale and offset to bfloat16, (q - 8) s + z being what ATen's
  kernel computes in float32. Codes of 5 to 8 bits are two matrices of 4, one below the other: 16 (h - 8) s and
  (l - 8) s + z, whose sum is taken in float32 of two outputs in bfloat16. Fewer levels than fit are put in the middle,
  where q - 8 and z are small, and so are their errors;
- `int4decoded`: from the same words, (q - 8) s + z, or the sum of both, to bfloat16, and inputs and output;
- `int8pack`: inputs, output and the row's scale to bfloat16; for integers symmetric about a code, one scale a row;
- `int8decoded`: from the same integers, which bfloat16 holds; the output before its scale and after it;
- `dense`: weights to the type of the inputs, of which it holds a copy: nothing else, and nothing at all in float32;
- `dequantize`: the same from codes, a few columns at a time;
- `kernel`: on a GPU, those of `kernels`: see `suite.runtime.gpu`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from suite.runtime.core import Core, Prepared
from suite.runtime.dequantized import Dense, Dequantize
from suite.runtime.packed_integers import Int4Decoded, Int4Pack, Int8Decoded, Int8Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A row of `PRODUCTS`. `prepare(core, dtype, device)` is for inputs of that type on that device.

    `reads` is the product whose layout it shares, of which there is then one copy, or None for one of its own.
    `holds_dense` says that it keeps all weights decoded, which takes as much memory as not to quantize at all, `exact`
    that with inputs in float32 it rounds nothing but sums.
    """

    name: str
    device: str
    prepare: Callable[[Core, torch.dtype, torch.device], Prepared]
    reads: str | None = None
    holds_dense: bool = False
    exact: bool = False


def _kernel(core: Core, dtype: torch.dtype, device: torch.device) -> Prepared:
    """Our own product of packed weights, on a GPU."""
    from suite.runtime.gpu import Kernel  # Triton is imported for those alone who ask for it

    return Kernel.prepare(core, dtype, device)


PRODUCTS = (
    Product(name="int4pack", device="cpu", prepare=Int4Pack.prepare),
    Product(name="int4decoded", device="cpu", prepare=Int4Decoded.prepare, reads="int4pack"),
    Product(name="int8pack", device="cpu", prepare=Int8Pack.prepare),
    Product(name="int8decoded", device="cpu", prepare=Int8Decoded.prepare, reads="int8pack"),
    Product(name="kernel", device="cuda", prepare=_kernel),
    Product(name="dense", device="any", prepare=Dense.prepare, holds_dense=True, exact=True),
    Product(name="dequantize", device="any", prepare=Dequantize.prepare, exact=True),
)


def product_named(name: str) -> Product:
    """The product of this name; `ValueError` that lists them."""
    for product in PRODUCTS:
        if product.name == name:
            return product
    raise ValueError(f"product {name!r}: expected one of {', '.join(product.name for product in PRODUCTS)}")
