"""Scales that are quantized themselves: NVFP4's two levels, and double quantization.

Sources: NVIDIA's NVFP4 recipe as in torchao 0.18; Dettmers et al. 2023, QLoRA, arXiv:2305.14314, and bitsandbytes
0.50.2 (double quantization, with the 8-bit dynamic map of Dettmers 2015, arXiv:1511.04561).
"""

from dataclasses import dataclass
from functools import cache

import torch

from suite.grids.elements import E4M3, Element, Table
from suite.grids.layout import Groups
from suite.grids.scales import Stored, Widths, reciprocal
from suite.grids.stored import from_bits, to_bits


@dataclass(frozen=True, slots=True)
class TwoLevel:
    """NVFP4: an E4M3 scale per group on a float32 scale g of the whole matrix, g = max|W| / (448 reach).

    A group's scale is at least the smallest normal E4M3 number, 2^-6, so that groups more than 2^-15 below the
    largest lose their small values. Values are multiplied by (1 / g) / s, as torchao does. With `matrix=False` there
    is no g: it is 1, and not stored.
    """

    matrix: bool = True

    clip = None

    @property
    def separate(self) -> bool:
        """Only without a scale of the whole matrix."""
        return not self.matrix

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """E4M3 numbers "scale" (R, C), and "tensor_scale" (1, 1); a matrix of zeros has the tensor scale 1."""
        return self.fit_under(groups, element, groups.largest.amax())

    def fit_under(self, groups: Groups, element: Element, top: torch.Tensor) -> Stored:
        """The same with g made for magnitudes up to `top`, a scalar: groups beyond it saturate."""
        most = groups.largest
        g = top.reshape(1, 1) / (E4M3.reach * element.reach)
        g = torch.where((g == 0) | (not self.matrix), 1.0, g.float().clamp(min=2.0**-126).to(most.dtype))
        wanted = (most / element.reach / g).clamp(min=2.0**-6, max=E4M3.reach)
        return {"tensor_scale": g, "scale": E4M3.round(wanted)}

    def scale(self, stored: Stored) -> torch.Tensor:
        """The product of both, in the type of the parameters."""
        return stored["tensor_scale"] * stored["scale"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """(1 / g) / s, rounded twice."""
        return (1 / stored["tensor_scale"]) / stored["scale"]

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """The bits of g, then the E4M3 codes."""
        codes = E4M3.encode(stored["scale"])
        return [to_bits(stored["tensor_scale"], 32), codes] if self.matrix else [codes]

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The numbers that have these bits."""
        g = from_bits(integers[0], 32) if self.matrix else torch.ones(1)
        return {
            "tensor_scale": g.reshape(1, 1),
            "scale": torch.tensor(E4M3.levels)[integers[-1]].reshape(rows, columns),
        }

    def widths(self, rows: int, columns: int) -> Widths:
        """Eight bits for each group, 32 for the matrix."""
        return ({"tensor_scale": (1, 32)} if self.matrix else {}) | {"scale": (rows * columns, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleQuantized:
    """A float32 absmax per group over the element's reach, itself quantized: less its mean, to 8 bits of a dynamic map,
    in blocks of `block`.

    bitsandbytes chooses the elements' codes by the absmax before it is quantized; `stored_first=True` chooses them by
    what will be read back. Its CPU build looks the map up in 2^16 steps, which moves 0.2% of the codes to the level
    next to the nearest: `lookup=True`.
    """

    block: int = 256
    stored_first: bool = False
    lookup: bool = False

    clip = None
    separate = False

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """Codes "absmax_code" of the map, "absmax_absmax" of its blocks and the "offset"; and "absmax", not stored."""
        scale = groups.largest / element.reach
        absmax = scale.float()
        offset = absmax.mean().reshape(1, 1)
        code, outer = self.mapped(absmax - offset)
        return {"absmax_absmax": outer, "offset": offset, "absmax_code": code, "absmax": scale}

    def mapped(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the dynamic map for `values`, float32 of any shape, and the absmax (1, B) of every block of them."""
        flat = values.reshape(-1)
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).reshape(-1, self.block)
        outer = blocks.abs().amax(-1, keepdim=True)
        ratio = torch.where(outer == 0, 0.0, blocks * (1 / outer)).reshape(-1)[: len(flat)]
        ratio = ratio.clamp_(-1, 1)
        if self.lookup:
            ratio = ((ratio + 1) * 0.5 * 65535 + 0.5).floor_() * (2 / 65535) - 1
        return dynamic_map().encode(ratio).reshape(values.shape), outer.T

    def unmapped(self, code: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """The values, float32, that codes of the dynamic map and the absmax (1, B) of their blocks stand for."""
        levels = torch.tensor(dynamic_map().levels, dtype=torch.float32)
        spread = outer.reshape(-1).repeat_interleave(self.block)[: code.numel()].reshape(code.shape)
        return levels[code.to(torch.int64)] * spread

    def scale(self, stored: Stored) -> torch.Tensor:
        """The absmax as it is read back."""
        return self.unmapped(stored["absmax_code"], stored["absmax_absmax"]) + stored["offset"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """The reciprocals of what the codes are chosen by; of what is read back where nothing else is known."""
        chosen = self.scale(stored) if self.stored_first or "absmax" not in stored else stored["absmax"]
        return reciprocal(chosen)

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """The bits of the blocks' absmax and of the mean, then the codes."""
        return [to_bits(stored["absmax_absmax"], 32), to_bits(stored["offset"], 32), stored["absmax_code"]]

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The numbers that have these bits, and the codes."""
        outer, offset = (from_bits(x, 32).reshape(1, -1) for x in integers[:2])
        code = integers[2].to(torch.uint8).reshape(rows, columns)
        return {"absmax_absmax": outer, "offset": offset, "absmax_code": code}

    def widths(self, rows: int, columns: int) -> Widths:
        """Eight bits for each group, 32 for every `block` of them, 32 for the mean."""
        groups = rows * columns
        return {"absmax_absmax": (-(-groups // self.block), 32), "offset": (1, 32), "absmax_code": (groups, 8)}


@cache
def dynamic_map() -> Table:
    """The 8-bit dynamic map: 0, 1 and, for i = 0 .. 6, +-10^(i-6) times the midpoints of 2^i parts of [0.1, 1]."""
    found = {0.0, 1.0}
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        found |= {sign * value for value in (10.0 ** (i - 6) * ((edges[1:] + edges[:-1]) / 2)).tolist()
                  for sign in (1.0, -1.0)}  # fmt: skip
    return Table("dynamic", 8, tuple(sorted(found)))
