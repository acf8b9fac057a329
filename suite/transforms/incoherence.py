"""Incoherence: random signs and Hadamard matrices on both sides of a weight matrix, which make its values Gaussian.

Chee, Cai, Kuleshov, De Sa 2023, "QuIP", arXiv:2307.13304, section 4, proves error feedback better the more incoherent
weights and Hessian are; Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#", arXiv:2402.04396, section 3, gets there by

    W' = H_m D_m W D_n H_n / sqrt(m n),        H' = H_n^T D_n H D_n H_n / n,

with random signs D, so that tr (W - Q) H (W - Q)^T stays what it is. Every matrix has its own: unlike a rotation of the
residual stream this folds into nothing, and is undone at run time on the inputs and on the outputs of the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kernels.hadamard import hadamard_transform, is_hadamard_size
from kernels.packing import pack, unpack
from suite.grids.stored import from_bits, to_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoherence:
    """Signs and Hadamard matrices on both sides of every weight matrix of the blocks."""

    place: ClassVar[str] = "matrix"

    def fit(self, shape: tuple[int, int], generator: torch.Generator) -> "Frame":
        """Draw the signs for an (out, in) matrix; `ValueError` where a side has no Hadamard matrix."""
        for n, side in zip(shape, ("outputs", "inputs"), strict=True):
            if not is_hadamard_size(n):
                raise ValueError(f"no Hadamard matrix of order {n} can be built, which is the number of {side}")
        rows, columns = (torch.randint(2, (n,), generator=generator) * 2.0 - 1 for n in shape)
        return Frame(rows=rows, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The signs (out,) and (in,) of one matrix, float32 unless they are being tuned: `bits` each, 1 or 16.

    At 16 bits they are real numbers, which fine-tuning has made of signs.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    bits: int = 1

    def into(self, W: torch.Tensor) -> torch.Tensor:
        """W' (out, in) of `W`, both in its type."""
        return hadamard_transform(hadamard_transform(W / self.columns.to(W)).T / self.rows.to(W)).T.contiguous()

    def back(self, Q: torch.Tensor) -> torch.Tensor:
        """The inverse of `into`; differentiable in the signs too."""
        turned = hadamard_transform(Q.T, inverse=True).T * self.rows.to(Q)[:, None]
        return hadamard_transform(turned, inverse=True) * self.columns.to(Q)

    def gram(self, H: torch.Tensor) -> torch.Tensor:
        """H' (in, in) of a Gram or cross-Gram matrix of inputs, in its type."""
        half = hadamard_transform(H * self.columns.to(H))
        return hadamard_transform(half.T * self.columns.to(H)).T.contiguous()

    @property
    def n_bits(self) -> int:
        """Those of the signs, in whole bytes."""
        return -(-self.bits * (len(self.rows) + len(self.columns)) // 8) * 8

    def to_bytes(self) -> bytes:
        """The signs, rows first, in `n_bits` bits."""
        values = torch.cat([self.rows, self.columns]).detach()
        return pack([((values < 0).to(torch.int64) if self.bits == 1 else to_bits(values, 16), self.bits)])

    @classmethod
    def from_bytes(cls, payload: bytes, shape: tuple[int, int], bits: int) -> "Frame":
        """The frame of an (out, in) matrix that `to_bytes` wrote."""
        (found,) = unpack(payload, [(sum(shape), bits)])
        rows, columns = (1.0 - 2.0 * found if bits == 1 else from_bits(found, 16)).split(list(shape))
        return cls(rows=rows, columns=columns, bits=bits)

    def as_stored(self) -> "Frame":
        """The frame as its bytes have it, float32."""
        if self.bits == 1:
            return replace(self, rows=self.rows.float(), columns=self.columns.float())
        return replace(self, rows=self.rows.half().float(), columns=self.columns.half().float())

    def tunable(self) -> dict[str, torch.Tensor]:
        """The signs by name, as real numbers."""
        return {"rows": self.rows, "columns": self.columns}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "Frame":
        """Real numbers in place of the signs, at 16 bits each."""
        return Frame(rows=values["rows"], columns=values["columns"], bits=16)
