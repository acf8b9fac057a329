"""E8P, QuIP#'s lattice codebook: eight weights of a row at a time in 16 bits, and what is left of them in 8 or 16 more.

Tseng, Chee, Sun, Kuleshov, De Sa 2024, "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks", arXiv:2402.04396, sections 4 and 4.3. A matrix is divided by its root mean square over `scale` and rounded
to points p of E8P (`suite.grids.lattice_codebooks`): 2 bits. At 3 bits the sum p + f / `residual` is stored, f one of
256 points of E8; at 4 bits f is of E8P too. One scale is all that there is beside the codes: the codebooks are the
same for all matrices and belong to the format.

Made for Gaussian values, as incoherence makes them. The error per value of unit variance, by settings:

    bits    as released                          with 4 tries
    2       .0914   scale 1.03
    3       .0295   scale .98, residual 2.04     .0285   scale 1, residual 1.75
    4       .0097   scale 1.03, residual 3.45    .0077   scale .9, residual 3.6

Four bits as released are worse than the best sixteen levels for single values, .0095.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from kernels.packing import pack, unpack
from suite.grids.lattice_codebooks import beginnings, e8_points, e8p_points, nearest_code
from suite.grids.layout import ALL, Columns, check_finite, check_matrix
from suite.grids.stored import from_bits, stored_type, to_bits
from suite.grids.threads import in_threads

# by bits: what the release divides the root mean square by, and multiplies what is left by
RELEASED_SCALE = {2: 1.03, 3: 0.98, 4: 1.03}
RELEASED_RESIDUAL = {3: 2.04, 4: 3.45}


@dataclass(frozen=True, slots=True, kw_only=True)
class E8P:
    """Points of E8P, for 3 and 4 bits with a second point of a smaller codebook added.

    `scale` is the root mean square that the matrix is given before, `residual` what multiplies what the first point
    leaves; at None they are those of the release. `tries` first points are tried, those nearest to the values among the
    best of each shape of pattern, and the nearest sum is taken: 1 is the release's greedy choice. `scale_bits` is what
    the scale is stored in: float16 or float32.

    A last block of a row that is short takes the points that are nearest where there are values, one after the other;
    its code is stored and charged like the others. Ties are as `suite.grids.e8p_search` says, in a short block the
    first in the order of the points' values.
    """

    bits: Literal[2, 3, 4] = 2
    scale: float | None = None
    residual: float | None = None
    tries: int = 1
    scale_bits: Literal[16, 32] = 16

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4) or self.scale_bits not in (16, 32):
            raise ValueError(f"bits {self.bits!r}, scale_bits {self.scale_bits!r}: expected 2, 3 or 4, and 16 or 32")
        for name, value in (("scale", self.scale), ("residual", self.residual)):
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{name} {value!r}: expected a positive number, or None")
        if not (isinstance(self.tries, int) and 1 <= self.tries <= 16):
            raise ValueError(f"tries {self.tries!r}: expected 1 to 16")

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of values that share a code."""
        return 1, 8

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.bits == 2 and (self.residual is not None or self.tries > 1):
            return "2 bits are one point of E8P: there is no residual to scale, and its nearest point is found at once"
        return None

    @property
    def ratio(self) -> float:
        """What the values of the second point are divided by."""
        return RELEASED_RESIDUAL[self.bits] if self.residual is None else self.residual

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedE8P":
        """Bind the grid to `W` (out, in); `importance` is not read. A matrix of zeros stays one.

        Raises `ValueError` for an unsupported combination, NaN or infinite values, and an empty matrix.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        size = float(W.double().square().mean().sqrt()) / (self.scale or RELEASED_SCALE[self.bits])
        kind = torch.finfo(stored_type(self.scale_bits))
        smallest = kind.smallest_normal * kind.eps  # the smallest subnormal
        stored = torch.tensor(0.0 if size == 0 else min(max(size, smallest), kind.max), dtype=torch.float64)
        scale = stored.to(stored_type(self.scale_bits)).to(W.dtype).reshape(1, 1)
        return FittedE8P(grid=self, shape=(W.shape[0], W.shape[1]), scale=scale)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedE8P", torch.Tensor]:
        """The fitted grid and the codes (out, ceil(in / 8), bits) that `FittedE8P.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        shape = (n_out, -(-n_in // 8), self.bits)
        scale, codes = unpack(payload, [*self.beside_widths(header), (math.prod(shape), 8)])
        return self.restore([scale], header), codes.to(torch.uint8).reshape(shape)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The scale."""
        return [(1, self.scale_bits)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedE8P":
        """The fitted grid from its scale."""
        n_out, n_in = header["shape"]
        return FittedE8P(grid=self, shape=(n_out, n_in), scale=from_bits(beside[0], self.scale_bits).reshape(1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedE8P:
    """An `E8P` bound to an (out, in) matrix by its `scale` (1, 1).

    Codes are (out, ceil(in / 8), bits), uint8, a byte for each bit of a weight: the low and the high byte of the first
    point, which are its signs and its pattern, and then those of the second.
    """

    grid: E8P
    shape: tuple[int, int]
    scale: torch.Tensor

    n_codes = 256
    regroups = False
    mask_size = 0

    @property
    def group_size(self) -> int:
        """How many values share the scale: all."""
        return math.prod(self.shape)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, C, bits) nearest to `x` (out, k), the values of `columns`: whole blocks, a short one last.

        `ValueError` for a `cost`.
        """
        if cost is not None:
            raise ValueError("points of E8P take no cost by code: values that share a code have no rate each")
        n_out, k = x.shape
        scaled = x if self.scale == 0 else x / self.scale
        parts = [self._whole(scaled[:, : k - k % 8].reshape(-1, 8)).reshape(n_out, -1, self._stages)]
        if k % 8:
            parts.append(self._short(scaled[:, k - k % 8 :])[:, None])
        found = torch.cat(parts, 1)
        octets = torch.stack([found & 255, found >> 8], -1).to(torch.uint8)
        return octets.flatten(2)[..., : self.grid.bits].contiguous()

    @property
    def _stages(self) -> int:
        return 1 if self.grid.bits == 2 else 2

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (n, stages), int32, for vectors (n, 8) of unit scale."""
        from suite.grids.e8p_search import nearest_e8p, nearest_sum  # compiled when it is first needed

        vectors = x.contiguous().numpy()
        if self.grid.bits == 2:
            found = in_threads(lambda part: nearest_e8p(vectors[part])[:, None], len(x))
        else:
            how = self.grid.ratio, self.grid.tries, e8p_points().numpy(), self._second.numpy()
            found = in_threads(lambda part: nearest_sum(vectors[part], *how), len(x))
        return torch.from_numpy(np.concatenate(found))

    def _short(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (n, stages), int32, for the first values (n, k < 8) of vectors of unit scale."""
        values, codes = beginnings(x.shape[1], False)
        first = nearest_code(x, values)
        if self.grid.bits == 2:
            return codes[first][:, None]
        left = (x - values.to(x.dtype)[first]) * self.grid.ratio
        values, others = beginnings(x.shape[1], self.grid.bits == 3)
        return torch.stack([codes[first], others[nearest_code(left, values)]], 1)

    @property
    def _second(self) -> torch.Tensor:
        return e8_points() if self.grid.bits == 3 else e8p_points()

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self._values(codes)[:, : x.shape[1]] * self.scale

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """`ValueError`: points of eight dimensions have no two codes around a value."""
        raise ValueError("points of E8P have no neighbors below and above: they are of eight dimensions")

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scale's type."""
        k = len(range(self.shape[1])[columns]) if isinstance(columns, slice) else len(columns)
        return self._values(codes)[:, :k] * self.scale

    def _values(self, codes: torch.Tensor) -> torch.Tensor:
        """The points (out, 8 C) of unit scale."""
        octets = codes.to(torch.int64)
        values = e8p_points()[octets[..., 0] | octets[..., 1] << 8].to(self.scale.dtype)
        if self.grid.bits > 2:
            second = octets[..., 2] if self.grid.bits == 3 else octets[..., 2] | octets[..., 3] << 8
            values = values + self._second[second].to(self.scale.dtype) / self.grid.ratio
        return values.reshape(len(codes), -1)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the scale as it is stored, in float32."""
        return replace(self, scale=self._stored_scale).decode(codes)

    @property
    def _stored_scale(self) -> torch.Tensor:
        return from_bits(to_bits(self.scale.detach(), self.grid.scale_bits), self.grid.scale_bits)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The scale."""
        return {"scale": self.scale}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedE8P":
        """The same with another scale; rounded only in what is stored."""
        return replace(self, scale=values["scale"])

    def in_order(self, perm: torch.Tensor) -> "FittedE8P":
        """Itself: there are no groups of columns."""
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedE8P":
        """Itself: there are no groups of columns."""
        return self

    @property
    def n_bits(self) -> int:
        """Exact bits of codes and scale."""
        return self.shape[0] * -(-self.shape[1] // 8) * 8 * self.grid.bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of the scale."""
        return self.grid.scale_bits

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The scale."""
        return [(to_bits(self.scale.detach().reshape(-1), self.grid.scale_bits), self.grid.scale_bits)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Signs, patterns, and the bytes of the second point, row after row."""
        return tuple(codes[..., octet].reshape(-1) for octet in range(self.grid.bits))

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, ceil(in / 8), bits) that `streams` took apart."""
        return torch.stack([stream.to(torch.uint8) for stream in streams], -1).reshape(self.shape[0], -1, len(streams))

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """The scale, then the codes, those of a block together."""
        return pack([*self.beside(), (codes, 8)])

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}
