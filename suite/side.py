"""A low-rank side branch: what a matrix is stored as beside its codes, B A with A (rank, in) and B (out, rank)."""

from dataclasses import dataclass

import torch

from suite.grids.stored import from_bits, to_bits

_BITS = 16


@dataclass(frozen=True, slots=True)
class LowRankSide:
    """A (rank, in) and B (out, rank), float16: y = Q x + B (A x)."""

    A: torch.Tensor
    B: torch.Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or len(self.A) != self.B.shape[1] or not len(self.A):
            raise ValueError(f"a side branch of A {tuple(self.A.shape)} and B {tuple(self.B.shape)}: "
                             f"expected (rank, in) and (out, rank)")  # fmt: skip
        if self.A.dtype != torch.float16 or self.B.dtype != torch.float16:
            raise ValueError(f"a side branch in {self.A.dtype} and {self.B.dtype}: expected float16, as it is stored")

    @classmethod
    def stored(cls, A: torch.Tensor, B: torch.Tensor) -> "LowRankSide":
        """The branch rounded to float16; `ValueError` where that has no such numbers."""
        found = cls(A.detach().half(), B.detach().half())
        if not (found.A.isfinite().all() and found.B.isfinite().all()):
            raise ValueError("a side branch is not finite in float16")
        return found

    @property
    def rank(self) -> int:
        """Of the product, at most."""
        return len(self.A)

    @property
    def n_bits(self) -> int:
        """16 for every number."""
        return _BITS * (self.A.numel() + self.B.numel())

    def product(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """B A (out, in)."""
        return self.B.to(dtype) @ self.A.to(dtype)

    def to_bytes(self) -> bytes:
        """A, then B, row by row."""
        return b"".join(to_bits(x, _BITS).numpy().astype("<u2").tobytes() for x in (self.A, self.B))

    @classmethod
    def from_bytes(cls, payload: bytes, shape: tuple[int, int], rank: int) -> "LowRankSide":
        """The inverse of `to_bytes`, for a matrix (out, in) of this `shape`."""
        values = from_bits(torch.frombuffer(bytearray(payload), dtype=torch.int16), _BITS).half()
        A, B = values.split([rank * shape[1], shape[0] * rank])
        return cls(A.reshape(rank, shape[1]), B.reshape(shape[0], rank))
