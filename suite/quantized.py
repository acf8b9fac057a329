"""What quantization leaves of a matrix: codes, a fitted grid, and exactly as many bytes as it says."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.packing import pack, unpack
from suite.coding import entropy_bits
from suite.grids.integer import FittedInteger
from suite.recipe import Target, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Codes (out, in), uint8, on a fitted grid.

    `in_scale` (in,) is a channel scale that nothing before the layer could absorb: stored in float16, charged, and
    divided out by `dequantize`. `fallbacks` say what did not go as asked.
    """

    codes: torch.Tensor
    grid: FittedInteger
    in_scale: torch.Tensor | None = None
    fallbacks: tuple[str, ...] = ()

    def dequantize(self) -> torch.Tensor:
        """The matrix (out, in) in float32, bit for bit what is evaluated and what comes back from bytes."""
        Q = self.grid.decode32(self.codes)
        return Q if self.in_scale is None else Q / self.in_scale.float()

    @property
    def n_bits(self) -> int:
        """Exact bits of storage: codes, scales, zero points, group indices, channel scales."""
        return self.grid.n_bits + (0 if self.in_scale is None else 16 * self.in_scale.numel())

    @property
    def entropy_bits(self) -> float:
        """The same with the codes at their empirical entropy."""
        return self.n_bits - self.codes.numel() * self.grid.grid.bits + entropy_bits(self.codes)

    def to_bytes(self) -> bytes:
        """The payload of exactly ceil(n_bits / 8) bytes: parameters of the grid, codes, channel scale."""
        streams = [*self.grid.streams(), (self.codes, self.grid.grid.bits)]
        if self.in_scale is not None:
            streams.append((self.in_scale.half().view(torch.int16).to(torch.int64) & 0xFFFF, 16))
        return pack(streams)

    def header(self) -> dict[str, Any]:
        """What the payload does not say and `from_bytes` needs: JSON values only."""
        scaled = {"in_scale": True} if self.in_scale is not None else {}
        return {"grid": str(Target(self.grid.grid)), **self.grid.header(), **scaled}

    @classmethod
    def from_bytes(cls, payload: bytes, header: dict[str, Any]) -> "Quantized":
        """The inverse of `to_bytes`; `ValueError` where payload and header do not fit."""
        target = parse(header["grid"]).weights
        assert target is not None
        plan = FittedInteger.plan(target.grid, header)
        scaled = [(header["shape"][1], 16)] if header.get("in_scale") else []
        streams = unpack(payload, [*plan, *scaled])
        grid = FittedInteger.from_streams(target.grid, header, streams[: len(plan) - 1])
        codes = streams[len(plan) - 1].to(torch.uint8).reshape(header["shape"])
        in_scale = streams[-1].to(torch.int16).view(torch.float16).float() if scaled else None
        return cls(codes=codes, grid=grid, in_scale=in_scale)
