"""What quantization leaves of a matrix: codes, a fitted grid, and exactly as many bytes as it says."""

from dataclasses import dataclass
from typing import Any

import torch

from suite.grids.grid import Fitted
from suite.grids.stored import from_bits, to_bits
from suite.recipe import Target, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Codes (out, in), integers, on a fitted grid.

    `in_scale` (in,) is a channel scale that nothing before the layer could absorb: stored in float16, charged, and
    divided out by `dequantize`. `fallbacks` say what did not go as asked.
    """

    codes: torch.Tensor
    grid: Fitted
    in_scale: torch.Tensor | None = None
    fallbacks: tuple[str, ...] = ()

    def dequantize(self) -> torch.Tensor:
        """The matrix (out, in) in float32, bit for bit what is evaluated and what comes back from bytes."""
        Q = self.grid.decode32(self.codes)
        return Q if self.in_scale is None else Q / self.in_scale.float()

    @property
    def _beside(self) -> int:
        return 0 if self.in_scale is None else 16 * self.in_scale.numel()

    @property
    def n_bits(self) -> int:
        """Exact bits of storage: codes, scales, zero points, masks, tables, group indices, channel scales."""
        return self.grid.n_bits + self._beside

    @property
    def entropy_bits(self) -> float:
        """The same with the codes at their empirical entropy."""
        return self.grid.entropy_bits(self.codes) + self._beside

    def to_bytes(self) -> bytes:
        """The payload of exactly ceil(n_bits / 8) bytes: what the grid writes, then the channel scale."""
        payload, scale = self.grid.to_bytes(self.codes), self.in_scale
        return payload if scale is None else payload + to_bits(scale, 16).numpy().astype("<u2").tobytes()

    def header(self) -> dict[str, Any]:
        """What the payload does not say and `from_bytes` needs: JSON values only."""
        scaled = {"in_scale": True} if self.in_scale is not None else {}
        return {"grid": str(Target(self.grid.grid)), **self.grid.header(), **scaled}

    @classmethod
    def from_bytes(cls, payload: bytes, header: dict[str, Any]) -> "Quantized":
        """The inverse of `to_bytes`; `ValueError` where payload and header do not fit."""
        target = parse(header["grid"]).weights
        assert target is not None
        in_scale = None
        if header.get("in_scale"):
            end = max(0, len(payload) - 2 * header["shape"][1])
            if len(payload) - end < 2 * header["shape"][1]:
                raise ValueError(f"payload has {len(payload)} bytes, its channel scales alone need more")
            in_scale = from_bits(torch.frombuffer(bytearray(payload[end:]), dtype=torch.int16), 16)
            payload = payload[:end]
        grid, codes = target.grid.from_bytes(payload, header)
        return cls(codes=codes, grid=grid, in_scale=in_scale)
