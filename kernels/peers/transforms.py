"""Hadamard transforms of others."""

from functools import partial
from typing import Any

import torch

from kernels.contender import Absent, Contender, n_copies
from kernels.hadamard import hadamard_transform
from kernels.peers.package import module

ROUNDINGS = 1e-4  # of 15 additions in float32, in units of the root mean square


def fast_hadamard(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`hadamard_transform(x, scale)` of Dao-AILab's fast-hadamard-transform, in float16, for powers of two.

    It fills other sizes up with zeros to the next power of two, which is another transform.
    """
    rows, columns = size
    if columns & (columns - 1):
        raise Absent(f"{columns} is not a power of two, to which it would fill rows up")
    library = module("fast_hadamard_transform")
    x = torch.randn(rows, columns, generator=torch.Generator(device).manual_seed(seed), device=device).half()
    copies = [x] + [x.clone() for _ in range(n_copies(x.nbytes, rotated_bytes) - 1)]
    return Contender(
        name="fast-hadamard-transform", kind="peer", dtype="float16",
        calls=tuple(partial(library.hadamard_transform, one, columns**-0.5) for one in copies),
        bytes_moved=2 * x.nbytes, bytes_written=x.nbytes, reference=hadamard_transform(x.double()),
        tolerance=ROUNDINGS,
    )  # fmt: skip
