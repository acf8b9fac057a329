"""How rows of n values become matrices for `kernels.fast_hadamard.triton`, and the factors that multiply those.

What binds, reckoned for an H200 (4.3 TB/s, 790 TFLOP/s, 29.6e12 instructions of a lane a second), at two bytes read and
two written for a value: there is room for 735 operations of matrix units and 27 instructions, 20 where a byte is
written and 17 for half of one.

- Operations are 2 (A' + 2 B), A' the rows of the matrices, times what zeros fill them up: 384 in rows of powers of two
  up to 16,384, 512 for 32,768; with other factors and 64 columns, 410 to 640 for 12, 410 to 768 for 20 and 40, 439 to
  585 for 28, 683 for 36 (853 for 36 x 512), 607 for 108 and 714 for 172. Matrix units bind more than memory does for
  short rows: fewer than 64 columns beside 108 and 172 (910 for 108 x 32, 1143 for 172 x 32), and rows of up to 256
  values whose odd factor leaves no room for matrices of 64 (1715 for 172). B < 64 would need fewer operations, but more
  instructions, and matrix units of Hopper are slow with fewer columns.
- Instructions, with B = 64, are 5 to 7 in rows of up to 256 values, 8 to 12 in others with few zeros and up to 19 with
  many (36 or 40 rows of 64, 144 of 192), 11 to 23 with rounding to codes. So for codes they bind, too, where n is 36,
  40 or 172 times a power of two, by up to 1.4.

Else memory binds, where loads overlap with work: two to four programs share a multiprocessor and take row after row,
the next ones under way in shared memory; of rows above 16,384, and of 108 x 128, there is room for one.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
import triton

from kernels.hadamard import factors, kronecker

BLACKWELL = (10, 0)  # compute capability
DENSE = 256  # rows of up to so many values are multiplied from the right alone
RESIDENT = {64: 4, 128: 3, 256: 2}  # programs of 4 warps that registers leave room for, by the values in a row's part


class Shape(NamedTuple):
    """A row of n = A F B values as F matrices (A, B): the orders of H_A, F, and the orders of H_B."""

    left: tuple[int, ...]
    fold: int
    right: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows that are taken at a time."""
        return max(1, 64 // prod(self.left))

    @property
    def block_a(self) -> int:
        """Rows of the matrices, or of their first part."""
        return 64 if prod(self.left) <= 64 else 128

    @property
    def extra(self) -> int:
        """Rows of their second part."""
        return 64 if prod(self.left) > 128 else 0

    @property
    def block_b(self) -> int:
        """Columns of the matrices, 16 or more as matrix units take them."""
        return max(16, triton.next_power_of_2(prod(self.right)))

    @property
    def values(self) -> int:
        """What is loaded at a time, with what is masked."""
        return (self.block_a + self.extra) * self.fold * self.block_b

    @property
    def resident(self) -> int:
        """Programs of a multiprocessor."""
        return max(1, RESIDENT[max(64, self.fold * self.block_b)] // (self.block_a // 64))

    def stages(self, capability: tuple[int, int]) -> int:
        """Rows that are under way or at work: three, or two where three leave no room for as many programs.

        Blackwell keeps sums in a memory of its own, those of two rows if they overlap: too small for the largest.
        """
        if capability >= BLACKWELL and self.values > 16384:
            return 1
        return 3 if self.values <= 8192 else 2

    def warps(self, capability: tuple[int, int]) -> int:
        """One for 16 rows of the matrices; two where codes of several rows would not fit into registers else."""
        many = self.rows > 1 and (self.values if capability >= BLACKWELL else 64 * self.block_b) > 8192
        return self.block_a // (8 if many else 16)


@lru_cache(maxsize=256)
def shape_of(n: int) -> Shape:
    """How `transform` takes rows of n values. Raises `ValueError` where it cannot."""
    orders = factors(n)
    found = list(_shapes(n, orders))
    if not found:
        raise ValueError(
            f"rows of {n} values, with a Hadamard matrix of factors {orders}, do not become matrices of up to"
            f" 128 x 256 or 192 x 128"
        )
    return min(found, key=lambda shape: (_operations(shape), shape.fold))


def _shapes(n: int, orders: tuple[int, ...]) -> Iterator[Shape]:
    if n <= DENSE:
        parts = max(1, n // 64) if n & (n - 1) == 0 else 1
        yield Shape((), parts, orders[parts.bit_length() - 1 :])
        return
    for cut in range(1, len(orders)):
        for doublings in range(len(orders) - cut):
            shape = Shape(orders[:cut], 2**doublings, orders[cut + doublings :])
            wide = shape.fold * shape.block_b
            fits = prod(shape.left) <= 192 and wide <= (128 if shape.extra else 256)
            if fits and all(order == 2 for order in orders[cut : cut + doublings]):
                yield shape


def _operations(shape: Shape) -> float:
    """Multiplications of matrix units for each value, with zeros; fewer than 64 columns take as long as 64."""
    rows, columns = shape.block_a + shape.extra, max(64, shape.block_b)
    return (rows + 2 * shape.block_b) * rows * columns / (shape.rows * prod(shape.left) * prod(shape.right))


@lru_cache(maxsize=64)
def matrices(shape: Shape, inverse: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right factor, int8, filled up with zeros."""
    each = torch.eye(shape.rows, dtype=torch.int8)
    left, right = torch.kron(each, kronecker(shape.left)).T, kronecker(shape.right)
    if inverse:
        left, right = left.T, right.T
    return _filled(left, shape.block_a + shape.extra, device), _filled(right, shape.block_b, device)


def _filled(M: torch.Tensor, order: int, device: torch.device) -> torch.Tensor:
    more = order - len(M)
    return torch.nn.functional.pad(M, (0, more, 0, more)).contiguous().to(device)
