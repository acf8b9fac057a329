"""What quantization leaves of a matrix: codes, a fitted grid, and exactly as many bytes as it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
import torch

from kernels.packing import pack, unpack
from suite.coding import Ans, Coding, Fixed, entropy_bits
from suite.grids.grid import Fitted, Tunable
from suite.grids.stored import from_bits, to_bits
from suite.recipe import Target, canonical, parse
from suite.side import LowRankSide
from suite.transforms import Frame

_WIDE = 1 << 12  # codes; of more, tables cost more than they bring, and high and low bytes are coded apart


@dataclass(frozen=True, kw_only=True)  # without slots: the coded streams are kept once they are made
class Quantized:
    """Codes (out, in), integers, on a fitted grid.

    `coding` says how the codes are stored: at fixed width, in the grid's own layout, or entropy coded. `frame` are the
    coordinates that the matrix was rounded in, and `in_scale` (in,) is a channel scale that nothing before the layer
    could absorb, stored in float16: both are charged, and undone by `dequantize`. A `side` branch is added to what the
    codes decode to, in the coordinates below the channel scale, and charged too. `fallbacks` say what did not go as
    asked.
    """

    codes: torch.Tensor
    grid: Fitted
    coding: Coding = field(default_factory=Fixed)
    frame: Frame | None = None
    in_scale: torch.Tensor | None = None
    side: LowRankSide | None = None
    fallbacks: tuple[str, ...] = ()

    def dequantize(self) -> torch.Tensor:
        """The matrix (out, in) in float32, bit for bit what is evaluated and what comes back from bytes."""
        Q = self.grid.decode32(self.codes)
        if self.frame is not None:
            Q = self.frame.as_stored().back(Q)
        if self.side is not None:
            Q = Q + self.side.product()
        return Q if self.in_scale is None else Q / self.in_scale.float()

    def tunable(self) -> dict[str, torch.Tensor]:
        """The real numbers that may be adjusted while codes stay: "grid.", "frame." and what each calls them."""
        found = {f"grid.{name}": x for name, x in self._tunable_grid().items()}
        return found if self.frame is None else found | {f"frame.{name}": x for name, x in self.frame.tunable().items()}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "Quantized":
        """The same with `values`, some of `tunable`, in their place: `decode` is differentiable in them."""
        grid, frame = self.grid, self.frame
        if of_grid := _under("grid.", values):
            grid = cast(Tunable, grid).tuned(self._tunable_grid() | of_grid)
        if frame is not None and (of_frame := _under("frame.", values)):
            frame = frame.tuned(frame.tunable() | of_frame)
        return replace(self, grid=grid, frame=frame)

    def _tunable_grid(self) -> dict[str, torch.Tensor]:
        return cast(Tunable, self.grid).tunable() if hasattr(self.grid, "tunable") else {}

    def decode(self) -> torch.Tensor:
        """The matrix (out, in) from parameters as they are, in their type, not rounded to what is stored."""
        Q = self.grid.decode(self.codes)
        Q = Q if self.frame is None else self.frame.back(Q)
        Q = Q if self.side is None else Q + self.side.product(Q.dtype)
        return Q if self.in_scale is None else Q / self.in_scale.to(Q)

    def as_stored(self) -> "Quantized":
        """The same with parameters as they come back from bytes."""
        beside = [values.detach().reshape(-1).to(torch.int64) for values, _ in self.grid.beside()]
        grid = self.grid.grid.restore(beside, self.grid.header())
        return replace(self, grid=grid, frame=None if self.frame is None else self.frame.as_stored())

    @property
    def _around_bits(self) -> int:
        scale = 0 if self.in_scale is None else 16 * self.in_scale.numel()
        side = 0 if self.side is None else self.side.n_bits
        return scale + side + (0 if self.frame is None else self.frame.n_bits)

    @property
    def n_bits(self) -> int:
        """Exact bits of storage: codes, scales, zero points, masks, tables, indices, signs, channel scales, sides."""
        return self.grid.n_bits + self._around_bits if isinstance(self.coding, Fixed) else self.coded_bits

    @property
    def entropy_bits(self) -> float:
        """The same with the codes at their empirical entropy, one for each alphabet."""
        return self.grid.beside_bits + self._around_bits + sum(map(entropy_bits, self.grid.streams(self.codes)))

    @property
    def coded_bits(self) -> int:
        """The same with the codes really coded, tables and checksums included: by `coding`, or else by `Ans`."""
        return 8 * (-(-self.grid.beside_bits // 8) + sum(map(len, self._streams))) + self._around_bits

    @cached_property
    def _streams(self) -> tuple[bytes, ...]:
        streams = [stream.numpy() for stream in self.grid.streams(self.codes)]
        if not isinstance(self.coding, Fixed):
            return tuple(map(self.coding.encode, streams))
        if self.grid.n_codes > _WIDE:
            streams = [stream.astype("<u2").view(np.uint8)[start::2] for stream in streams for start in (0, 1)]
        return tuple(map(Ans().encode, streams))

    def to_bytes(self) -> bytes:
        """The payload of exactly ceil(n_bits / 8) bytes: the grid's, signs, channel scale, side, coded streams."""
        around = b"" if self.frame is None else self.frame.to_bytes()
        around += b"" if self.in_scale is None else to_bits(self.in_scale, 16).numpy().astype("<u2").tobytes()
        around += b"" if self.side is None else self.side.to_bytes()
        if isinstance(self.coding, Fixed):
            return self.grid.to_bytes(self.codes) + around
        return b"".join([pack(self.grid.beside()), around, *self._streams])

    def header(self) -> dict[str, Any]:
        """What the payload does not say and `from_bytes` needs: JSON values only."""
        framed = {"sign_bits": self.frame.bits} if self.frame is not None else {}
        scaled: dict[str, Any] = {"in_scale": True} if self.in_scale is not None else {}
        scaled |= {"rank": self.side.rank} if self.side is not None else {}
        coded = {} if isinstance(self.coding, Fixed) else {
            "coding": canonical(self.coding), "streams": [len(stream) for stream in self._streams]}  # fmt: skip
        return {"grid": str(Target(self.grid.grid)), **self.grid.header(), **framed, **scaled, **coded}

    @classmethod
    def from_bytes(cls, payload: bytes, header: dict[str, Any]) -> "Quantized":
        """The inverse of `to_bytes`; `ValueError` where payload and header do not fit."""
        target = parse(header["grid"]).weights
        assert target is not None
        coding = parse(f"Recipe(coding={header['coding']})").coding if "coding" in header else Fixed()
        *streams, payload = _from_the_end(payload, header.get("streams", []), "coded streams")
        n_out, n_in = header["shape"]
        frame = in_scale = side = None
        if rank := header.get("rank"):
            branch, payload = _from_the_end(payload, [2 * rank * (n_out + n_in)], "side branch")
            side = LowRankSide.from_bytes(branch, (n_out, n_in), rank)
        if header.get("in_scale"):
            scale, payload = _from_the_end(payload, [2 * n_in], "channel scales")
            in_scale = from_bits(torch.frombuffer(bytearray(scale), dtype=torch.int16), 16)
        if header.get("sign_bits"):
            signs, payload = _from_the_end(payload, [-(-header["sign_bits"] * (n_out + n_in) // 8)], "signs")
            frame = Frame.from_bytes(signs, (n_out, n_in), header["sign_bits"])
        if isinstance(coding, Fixed):
            grid, codes = target.grid.from_bytes(payload, header)
        else:
            grid = target.grid.restore(unpack(payload, target.grid.beside_widths(header)), header)
            codes = grid.codes_of([torch.from_numpy(coding.decode(stream)) for stream in streams])
        return cls(codes=codes, grid=grid, coding=coding, frame=frame, in_scale=in_scale, side=side)


def _under(prefix: str, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): x for name, x in values.items() if name.startswith(prefix)}


def _from_the_end(payload: bytes, sizes: list[int], what: str) -> list[bytes]:
    """Pieces of these sizes cut from the payload's end, in order, and then what is left."""
    start = len(payload) - sum(sizes)
    if start < 0:
        raise ValueError(f"payload has {len(payload)} bytes, its {what} alone need {sum(sizes)}")
    ends = list(accumulate(sizes, initial=start))
    return [*(payload[a:b] for a, b in pairwise(ends)), payload[:start]]
