"""What every kernel is measured by, in the same run: a copy, a sum, and the dense product in bfloat16."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.contender import Contender, n_copies
from kernels.results import COPY, DENSE, READ, Shape

BUFFER = 1 << 29  # bytes copied or summed in a call, 9 times the cache of an H200
SUMMED = 1e-4  # relative, of a float32 sum of positive numbers in whatever order a library takes
ROUNDING = 3 * 2**-8  # of a bfloat16 result and of sums in another order, in units of its root mean square


def copy(shape: Shape, seed: int, device: str, rotated_bytes: int, buffer: int = BUFFER) -> Contender:
    """`buffer` bytes read and written by the library's copy: the bandwidth that shares are shares of."""
    source = _random(seed, device, buffer)
    target = torch.empty_like(source)
    return Contender(
        name=COPY, kind="yardstick", shape=shape, dtype="float32", calls=(lambda: target.copy_(source),),
        bytes_moved=2 * buffer, reference=source,
    )  # fmt: skip


def read(shape: Shape, seed: int, device: str, rotated_bytes: int, buffer: int = BUFFER) -> Contender:
    """`buffer` bytes summed by the library: reads alone, as a product with few rows does."""
    source = _random(seed, device, buffer)
    return Contender(
        name=READ, kind="yardstick", shape=shape, dtype="float32", calls=(source.sum,), bytes_moved=buffer,
        reference=source.sum(dtype=torch.float64), tolerance=SUMMED,
    )  # fmt: skip


def dense(shape: Shape, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`F.linear` in bfloat16 on random weights of `shape`, as many copies in turns as other contenders have."""
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape.rows, shape.inputs, generator=draw, device=device).bfloat16()
    weights = torch.randn(shape.outputs, shape.inputs, generator=draw, device=device).bfloat16()
    copies = [weights] + [weights.clone() for _ in range(n_copies(weights.nbytes, rotated_bytes) - 1)]
    return Contender(
        name=DENSE, kind="yardstick", shape=shape, dtype="bfloat16", calls=tuple(_linear(x, one) for one in copies),
        bytes_moved=x.nbytes + weights.nbytes + 2 * shape.rows * shape.outputs,
        reference=x.double() @ weights.double().T, tolerance=ROUNDING,
    )  # fmt: skip


def _linear(x: torch.Tensor, weights: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: F.linear(x, weights)


def _random(seed: int, device: str, nbytes: int) -> torch.Tensor:
    return torch.rand(nbytes // 4, generator=torch.Generator(device).manual_seed(seed), device=device)


Yardstick = tuple[str, Callable[[Shape, int, str, int], Contender]]
YARDSTICKS: tuple[Yardstick, ...] = (
    (COPY, copy), (READ, read), (DENSE, dense),
)  # fmt: skip
