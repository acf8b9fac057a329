"""Rows of `KERNELS`: Hadamard transforms of rows, as they are and rounded to codes."""

from functools import partial
from typing import NamedTuple

import torch

from kernels.codes import LARGEST
from kernels.fast_hadamard.reference import excess_of_codes, hadamard_reference
from kernels.fast_hadamard.triton import fast_hadamard, hadamard_quantize, plan
from kernels.hadamard import factors
from kernels.kernel import Kernel


class Rows(NamedTuple):
    """`rows` of `columns` values, each row transformed."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"

    @property
    def operations(self) -> int:
        """Additions of the fast algorithm: each factor of H multiplies on its own."""
        return self.rows * self.columns * sum(order - 1 for order in factors(self.columns))


def inputs(size: Rows, seed: int, device: str = "cpu", *, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor]:
    """Gaussian rows, a few values a hundred times as large, as channels of activations are."""
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(size.rows, size.columns, generator=draw, device=device)
    rare = torch.rand(size.rows, size.columns, generator=draw, device=device) < 1 / 512
    return (torch.where(rare, 100 * x, x).to(dtype),)


# Of the sums that the second product takes, 2^-16 at most is lost: a sum of independent errors, whose root mean square
# is below that of the result times 2^-17. Five times that, and the sums in float32.
TOLERANCE = 1e-4

CHECK = (Rows(3, 1), Rows(70, 12), Rows(5, 64), Rows(3, 172), Rows(2, 256), Rows(9, 512), Rows(7, 896), Rows(2, 4096),
         Rows(2, 11008), Rows(1, 14336), Rows(1, 32768))  # fmt: skip
CHECK_CODES = (Rows(3, 2), Rows(70, 12), Rows(2, 256), Rows(9, 512), Rows(7, 640), Rows(2, 5504), Rows(1, 32768))
TOKENS = 16384  # 134 MB of 4096 values: more than a cache holds
BENCH = tuple(Rows(TOKENS * 4096 // n, n) for n in (128, 256, 512, 1024, 2048, 4096, 8192, 11008, 14336, 16384, 32768))
BENCH_CODES = tuple(Rows(TOKENS * 4096 // n, n) for n in (4096, 8192, 14336, 32768))
# rows enough for a loop over them; one size for each way that a row is taken
COMPILE = (Rows(131072, 128), Rows(4096, 4096), Rows(4096, 11008), Rows(4096, 32768))
COMPILE_CODES = (Rows(65536, 512), Rows(4096, 32768))


def _codes(format: str) -> Kernel:
    return Kernel(
        name=f"hadamard-{format}", reference=hadamard_reference, kernel=partial(hadamard_quantize, format=format),
        plan=partial(plan, format=format), inputs=inputs, check=CHECK_CODES, bench=BENCH_CODES, compile=COMPILE_CODES,
        tolerance=TOLERANCE, excess=partial(excess_of_codes, format=format), operation="hadamard",
    )  # fmt: skip


HADAMARD_KERNELS = (
    Kernel(
        name="hadamard", reference=hadamard_reference, kernel=fast_hadamard, plan=plan, inputs=inputs, check=CHECK,
        bench=BENCH, compile=COMPILE, tolerance=TOLERANCE, operation="hadamard",
    ),
    *(_codes(format) for format in LARGEST),
)  # fmt: skip
