"""How transformed values leave registers: as they are, or times a factor as codes of a format.

An encoder takes values (rows, columns) in float32 and stores those in rows that are `here` and columns below `B`, at
`start` of `out`, rows `WIDTH` values apart.
"""

import triton
import triton.language as tl

from kernels import rounding


@triton.jit
def plain(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """Values as they are, in the type of `out`."""
    store(rounding.to_type(y, out.dtype.element_ty), out, start, here, WIDTH, B)


@triton.jit
def int8(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for each value, -127 to 127."""
    store(rounding.nearest_integer(y).to(tl.int8), out, start, here, WIDTH, B)


@triton.jit
def int4(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for two neighbors, -7 to 7."""
    store(rounding.two_in_a_byte(y), out, start // 2, here, WIDTH // 2, B // 2)


@triton.jit
def e4m3(y, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """A byte for each value in the OCP format E4M3, -448 to 448."""
    store(rounding.e4m3(y), out, start, here, WIDTH, B)


@triton.jit
def store(stored, out, start, here, WIDTH: tl.constexpr, B: tl.constexpr):
    """Store (rows, columns) at their places."""
    a = tl.arange(0, stored.shape[0])[:, None]
    b = tl.arange(0, stored.shape[1])[None, :]
    tl.store(out + start + (a * WIDTH + b), stored, mask=here[:, None] & (b < B))
