"""What kernels are measured by, in the same run: a copy, a sum, the dense product in bfloat16, a clone of inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kernels.contender import PRODUCT, Contender, Rival, n_copies
from kernels.results import CLONE, COPY, DENSE, READ

BUFFER = 1 << 29  # bytes copied or summed in a call, 9 times the cache of an H200
SUMMED = 1e-4  # relative, of a float32 sum of positive numbers in whatever order a library takes
ROUNDING = 3 * 2**-8  # of a bfloat16 result and of sums in another order, in units of its root mean square


def copy(size: Any, seed: int, device: str, rotated_bytes: int, buffer: int = BUFFER) -> Contender:
    """`buffer` bytes read and written by the library's copy: the bandwidth that shares are shares of."""
    source = _random(seed, device, buffer)
    target = torch.empty_like(source)
    return Contender(
        name=COPY, kind="yardstick", dtype="float32", calls=(lambda: target.copy_(source),),
        bytes_moved=2 * buffer, bytes_written=buffer, reference=source,
    )  # fmt: skip


def read(size: Any, seed: int, device: str, rotated_bytes: int, buffer: int = BUFFER) -> Contender:
    """`buffer` bytes summed by the library: reads alone, as a product with few rows does."""
    source = _random(seed, device, buffer)
    return Contender(
        name=READ, kind="yardstick", dtype="float32", calls=(source.sum,), bytes_moved=buffer,
        reference=source.sum(dtype=torch.float64), tolerance=SUMMED,
    )  # fmt: skip


def dense(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`F.linear` in bfloat16 on random weights (outputs, inputs), as many copies in turns as other contenders have."""
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).bfloat16()
    weights = torch.randn(size.outputs, size.inputs, generator=draw, device=device).bfloat16()
    copies = [weights] + [weights.clone() for _ in range(n_copies(weights.nbytes, rotated_bytes) - 1)]
    return Contender(
        name=DENSE, kind="yardstick", dtype="bfloat16", calls=tuple(_linear(x, one) for one in copies),
        bytes_moved=x.nbytes + weights.nbytes + 2 * size.rows * size.outputs,
        bytes_written=2 * size.rows * size.outputs,
        reference=x.double() @ weights.double().T, tolerance=ROUNDING,
    )  # fmt: skip


def clone(size: Any, seed: int, device: str, rotated_bytes: int, tensors: int = 1) -> Contender:
    """`clone` of `tensors` tensors (rows, columns) of 16-bit numbers, in one: what a transform must read."""
    rows, columns = size
    x = torch.randn(tensors * rows, columns, generator=torch.Generator(device).manual_seed(seed), device=device).half()
    copies = [x] + [x.clone() for _ in range(n_copies(x.nbytes, rotated_bytes) - 1)]
    return Contender(
        name=CLONE, kind="yardstick", dtype="float16", calls=tuple(one.clone for one in copies),
        bytes_moved=2 * x.nbytes, bytes_written=x.nbytes, reference=x,
    )  # fmt: skip


def _linear(x: torch.Tensor, weights: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: F.linear(x, weights)


def _random(seed: int, device: str, nbytes: int) -> torch.Tensor:
    return torch.rand(nbytes // 4, generator=torch.Generator(device).manual_seed(seed), device=device)


YARDSTICKS: tuple[Rival, ...] = (
    Rival(name=COPY, build=copy),
    Rival(name=READ, build=read, beside=(PRODUCT, "attention", "decode")),
    Rival(name=DENSE, build=dense, beside=(PRODUCT,)),
    Rival(name=CLONE, build=clone, beside=("hadamard", "norm")),
    Rival(name=CLONE, build=partial(clone, tensors=2), beside=("sum-norm",)),
)
