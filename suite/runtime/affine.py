"""Which matrices are integers in disguise: w = base + scale * code, with one (base, scale) for every run of inputs.

Products of integers take such matrices and do not care what a format calls its scales: GGUF's sums of two scales,
HQQ's real zero points, ternary weights and symmetric levels without a zero all are of this kind, NF4 and FP4 are not.
So a grid is asked by its values: code c decodes to base + scale * c for every c, and both stay what they are along a
run. Runs are of 32 inputs, or of a power of two times as many.
"""

from dataclasses import dataclass

import torch

from suite.grids.grid import Fitted

RUN = 32  # inputs: the least group that any integer product takes
_SLACK = 2.0**-20  # of the largest level: what a few operations in float32 leave, and no non-uniform grid stays within
_MOST = 256  # codes


@dataclass(frozen=True, slots=True)
class Affine:
    """w = base + scale * code: `codes` (out, in), uint8; `base` and `scale` (out, ceil(in / group)), float64.

    `top` is the largest code there can be; a last group may be short.
    """

    codes: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor
    group: int
    top: int

    def grouped(self, most: int) -> "Affine":
        """The same with groups of at most `most` inputs, a power of two that divides the group or is not below it."""
        if self.group <= most:
            return self
        n_in = self.codes.shape[1]
        first = torch.arange(0, n_in, most) // self.group
        return Affine(self.codes, self.base[:, first], self.scale[:, first], most, self.top)

    @property
    def raised(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes q, int32, of 4 bits or twice 4, their levels in the middle, and the offset z (out, groups) to them.

        w = (q - 8) scale + z, or with q = 16 h + l, w = 16 (h - 8) scale + (l - 8) scale + z.
        """
        up = 8 - (self.top + 1) // 2 if self.top < 16 else 16 * (8 - (self.top // 16 + 1) // 2)
        return self.codes.to(torch.int32) + up, self.base + ((8 if self.top < 16 else 136) - up) * self.scale

    def expanded(self, values: torch.Tensor) -> torch.Tensor:
        """Parameters (out, groups) as those of every weight, (out, in)."""
        return values.repeat_interleave(self.group, dim=1)[:, : self.codes.shape[1]]


def affine(codes: torch.Tensor, fitted: Fitted) -> Affine | None:
    """What `fitted`, as it is stored, makes of `codes`, or None where that is not affine in runs of 32 inputs."""
    top = fitted.n_codes - 1
    if fitted.grid.block != (1, 1) or codes.shape != fitted.shape or not 1 <= top < _MOST:
        return None
    low = fitted.decode(torch.zeros_like(codes)).double()
    scale = (fitted.decode(torch.full_like(codes, top)).double() - low) / top
    starts = torch.arange(0, fitted.shape[1], RUN)
    found = Affine(codes.to(torch.uint8), low[:, starts], scale[:, starts], RUN, top)
    if not _agrees(low, found.expanded(found.base), found) or not _agrees(scale, found.expanded(found.scale), found):
        return None
    if not _evenly_spaced(fitted, codes, found) or not _says_the_same(fitted, codes, found):
        return None
    return _merged(found)


def _levels(found: Affine) -> torch.Tensor:
    """The largest level of every group, in size: (out, groups)."""
    return torch.maximum(found.base.abs(), (found.base + found.scale * found.top).abs())


def _agrees(values: torch.Tensor, wanted: torch.Tensor, found: Affine) -> bool:
    return bool(((values - wanted).abs() <= _SLACK * found.expanded(_levels(found))).all())


def _evenly_spaced(fitted: Fitted, codes: torch.Tensor, found: Affine) -> bool:
    """Whether all codes of the first run lie where the two outer ones say."""
    columns = slice(0, min(RUN, codes.shape[1]))
    base, scale, slack = found.base[:, :1], found.scale[:, :1], _SLACK * _levels(found)[:, :1]
    for code in range(found.top + 1):
        levels = fitted.decode(torch.full_like(codes[:, columns], code), columns).double()
        if not bool(((levels - (base + scale * code)).abs() <= slack).all()):
            return False
    return True


def _says_the_same(fitted: Fitted, codes: torch.Tensor, found: Affine) -> bool:
    return _agrees(
        fitted.decode(codes).double(), found.expanded(found.base) + found.expanded(found.scale) * codes, found
    )


def _merged(found: Affine) -> Affine:
    """Groups as wide as they are the same, in powers of two times 32, up to a whole row."""
    base, scale, group = found.base, found.scale, found.group
    while base.shape[1] > 1:
        pairs = base.shape[1] // 2 * 2
        same = (base[:, 0:pairs:2] == base[:, 1:pairs:2]) & (scale[:, 0:pairs:2] == scale[:, 1:pairs:2])
        if not bool(same.all()):
            break
        base, scale, group = base[:, ::2], scale[:, ::2], 2 * group
    return Affine(found.codes, base, scale, group, found.top)
