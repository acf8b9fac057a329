"""Scales of a group: which statistic sets them, and what they are stored in.

Every rule is a frozen value. `fit` takes groups and gives the stored parameters by name; `scale` reads them back as the
factors (R, C) between levels and values; `inverse` is what values are multiplied by before they are encoded. A group of
zeros keeps a scale that can be stored, and decodes to zeros wherever the element has a zero.

Source of E8M0: OCP Microscaling Formats 1.0, section 6.3. Scales that are scaled again are in `suite.grids.nested`.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from suite.grids.elements import Element, fields_of
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


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
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
        return reciprocal(stored["scale"])

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
