"""Scales of a group: which statistic sets them, and what they are stored in.

Every rule is a frozen value. `fit` takes groups and gives the stored parameters by name; `scale` reads
them back as the factors (R, C) between levels and values; `inverse` is what values are multiplied by before they are
encoded. A group of zeros keeps a scale that can be stored, and decodes to zeros wherever the element has a zero.

Sources: OCP Microscaling Formats 1.0, section 6.3 (E8M0); NVIDIA's NVFP4 recipe as in torchao 0.18; Dettmers et al.
2023, QLoRA, arXiv:2305.14314, and bitsandbytes 0.50.2 (double quantization, 8-bit dynamic map of arXiv:1511.04561).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch

from suite.grids.elements import E4M3, Element, Table, fields_of
from suite.grids.integer import ShrinkSearch
from suite.grids.layout import Groups
from suite.grids.stored import from_bits, stored_type, to_bits

Stored = dict[str, torch.Tensor]  # parameters as they are kept in memory, by name
Widths = dict[str, tuple[int, int]]  # how many of each are stored, and in how many bits


class ScaleRule(Protocol):
    """How the groups of a `Scaled` grid get their scales."""

    clip: ShrinkSearch | None

    @property
    def separate(self) -> bool:
        """Whether a group's scale is stored without regard to other groups', so that it can be fitted anew alone."""

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """Parameters for the groups, their statistic multiplied by `shrink`."""

    def scale(self, stored: Stored) -> torch.Tensor:
        """Factors (R, C) that levels are multiplied by."""

    def inverse(self, stored: Stored) -> torch.Tensor:
        """Factors (R, C) that values are multiplied by to be encoded."""

    def widths(self, rows: int, columns: int) -> Widths:
        """What (R, C) groups store."""

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """What is stored as non-negative integers, in the order of `widths`."""

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The inverse of `integers`; reals in float32."""


def _reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, finite: magnitudes below 2^-127 count as 2^-127."""
    return 1 / torch.where(scale.abs() < 2.0**-127, torch.copysign(torch.tensor(2.0**-127), scale), scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealScale:
    """A float16 or float32 per group, ties to even: the statistic over the element's reach.

    "absmax" puts the largest magnitude on the reach (with `signed` on the level of largest magnitude, sign and all,
    for elements that are not symmetric); "absmean" (BitNet b1.58, XNOR-Net) and "rms" (tables made for a density of
    variance 1) put the mean of |x| and the root mean square on 1. `clip` searches a smaller one by the error.
    """

    statistic: Literal["absmax", "absmean", "rms"] = "absmax"
    bits: Literal[16, 32] = 16
    signed: bool = False
    clip: ShrinkSearch | None = None

    separate = True

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """A scale for each group; of zeros, 1, or the least that can be stored where the element has no zero."""
        if self.statistic == "absmean":
            scale = groups.values.abs().sum(-1) / groups.members
        elif self.statistic == "rms":
            scale = (groups.values.square().sum(-1) / groups.members).sqrt()
        else:
            scale = groups.largest / element.reach
        kind = torch.finfo(stored_type(self.bits))
        least = kind.smallest_normal * kind.eps  # the smallest subnormal
        stored = (scale * shrink).clamp(max=kind.max).to(stored_type(self.bits)).to(scale.dtype).clamp_(min=least)
        stored = torch.where(scale == 0, 1.0 if 0.0 in element.levels else least, stored)
        if self.signed and self.statistic == "absmax":
            outward = -1.0 if element.reach == -min(element.levels) else 1.0
            stored = torch.where(groups.values.amax(-1) == groups.largest, outward, -outward).to(scale.dtype) * stored
        return {"scale": stored}

    def scale(self, stored: Stored) -> torch.Tensor:
        """The stored scales."""
        return stored["scale"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """Their reciprocals."""
        return _reciprocal(stored["scale"])

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """The bits of the numbers."""
        return [to_bits(stored["scale"], self.bits)]

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The numbers that have these bits."""
        return {"scale": from_bits(integers[0], self.bits).reshape(rows, columns)}

    def widths(self, rows: int, columns: int) -> Widths:
        """One number for each group."""
        return {"scale": (rows * columns, self.bits)}


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """E8M0: a power of two from 2^-127 to 2^127 in eight bits, by the exponent of the largest magnitude m.

    `rule`, with 2^E the largest power of two among the element's numbers and T its largest number:
    "floor" is OCP's 2^(floor(log2 m) - E), which clips m beyond T 2^..; "ceil" rounds log2 m up instead; "even"
    rounds m to the element's mantissa first, half up; "up" takes the least power with m <= T 2^.. (NVIDIA's RCEIL).
    """

    rule: Literal["floor", "ceil", "even", "up"] = "floor"

    clip = None
    separate = True

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """Exponents plus 127; 0 for a group of zeros."""
        most = groups.largest
        reach, mantissa = element.reach, _mantissa(element)
        if self.rule == "up":
            most = most / reach
        whole, width, bias = fields_of(most)
        if self.rule == "even":
            whole = whole + (1 << (width - mantissa - 1))
        exponent = (whole >> width) - bias
        if self.rule in ("ceil", "up"):
            exponent += (whole & ((1 << width) - 1)) != 0
        if self.rule != "up":
            exponent -= math.floor(math.log2(reach))
        return {"exponent": exponent.clamp(-127, 127).add_(127).to(torch.uint8).to(most.dtype)}

    def scale(self, stored: Stored) -> torch.Tensor:
        """The powers of two, exactly."""
        exponent = stored["exponent"]
        return torch.ldexp(torch.ones_like(exponent), (exponent - 127).to(torch.int32))

    def inverse(self, stored: Stored) -> torch.Tensor:
        """Their reciprocals, exactly."""
        exponent = stored["exponent"]
        return torch.ldexp(torch.ones_like(exponent), (127 - exponent).to(torch.int32))

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """The exponents."""
        return [stored["exponent"].to(torch.int64)]

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """The exponents; `ValueError` for the pattern 255, E8M0's NaN."""
        if bool((integers[0] == 255).any()):
            raise ValueError("expected finite scales, found E8M0's NaN")
        return {"exponent": integers[0].float().reshape(rows, columns)}

    def widths(self, rows: int, columns: int) -> Widths:
        """One exponent for each group."""
        return {"exponent": (rows * columns, 8)}


def _mantissa(element: Element) -> int:
    return int(getattr(element, "mantissa", getattr(element, "fraction", 0)))


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
        most = groups.largest
        g = most.amax().reshape(1, 1) / (E4M3.reach * element.reach)
        g = torch.where((g == 0) | (not self.matrix), 1.0, g.float().clamp(min=2.0**-126).to(most.dtype))
        wanted = (most / element.reach / g).clamp(min=2.0**-6, max=E4M3.reach)
        levels = torch.tensor(E4M3.levels, dtype=most.dtype)
        return {"tensor_scale": g, "scale": levels[E4M3.encode(wanted).to(torch.int64)]}

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
    """A float32 absmax per group, itself quantized: less its mean, to 8 bits of a dynamic map, in blocks of `block`.

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
        absmax = groups.largest.float()
        offset = absmax.mean().reshape(1, 1)
        flat = (absmax - offset).reshape(-1)
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).reshape(-1, self.block)
        outer = blocks.abs().amax(-1, keepdim=True)
        ratio = torch.where(outer == 0, 0.0, blocks * (1 / outer)).reshape(-1)[: len(flat)]
        ratio = ratio.clamp_(-1, 1)
        if self.lookup:
            ratio = ((ratio + 1) * 0.5 * 65535 + 0.5).floor_() * (2 / 65535) - 1
        code = dynamic_map().encode(ratio).reshape(absmax.shape)
        return {"absmax_absmax": outer.T, "offset": offset, "absmax_code": code, "absmax": groups.largest}

    def scale(self, stored: Stored) -> torch.Tensor:
        """The absmax as it is read back."""
        code = stored["absmax_code"]
        levels = torch.tensor(dynamic_map().levels, dtype=torch.float32)
        outer = stored["absmax_absmax"].reshape(-1).repeat_interleave(self.block)[: code.numel()].reshape(code.shape)
        return levels[code.to(torch.int64)] * outer + stored["offset"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """The reciprocals of what the codes are chosen by; of what is read back where nothing else is known."""
        chosen = self.scale(stored) if self.stored_first or "absmax" not in stored else stored["absmax"]
        return _reciprocal(chosen)

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


@dataclass(frozen=True, slots=True)
class Unscaled:
    """No scale at all."""

    clip = None
    separate = True

    def fit(self, groups: Groups, element: Element, shrink: float = 1.0) -> Stored:
        """Nothing."""
        return {"unit": torch.ones_like(groups.largest)}

    def scale(self, stored: Stored) -> torch.Tensor:
        """Ones."""
        return stored["unit"]

    def inverse(self, stored: Stored) -> torch.Tensor:
        """Ones."""
        return stored["unit"]

    def integers(self, stored: Stored) -> list[torch.Tensor]:
        """Nothing."""
        return []

    def restore(self, integers: list[torch.Tensor], rows: int, columns: int) -> Stored:
        """Ones."""
        return {"unit": torch.ones(rows, columns)}

    def widths(self, rows: int, columns: int) -> Widths:
        """Nothing is stored."""
        return {}


@cache
def dynamic_map() -> Table:
    """The 8-bit dynamic map: 0, 1 and, for i = 0 .. 6, +-10^(i-6) times the midpoints of 2^i parts of [0.1, 1]."""
    found = {0.0, 1.0}
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        found |= {sign * value for value in (10.0 ** (i - 6) * ((edges[1:] + edges[:-1]) / 2)).tolist()
                  for sign in (1.0, -1.0)}  # fmt: skip
    return Table("dynamic", 8, tuple(sorted(found)))


SCALES = (RealScale, PowerOfTwo, TwoLevel, DoubleQuantized, Unscaled)
