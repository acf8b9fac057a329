"""EXL2: input channels by importance, the most important ones in wider codes, so many that a budget of bits is kept.

The format of ExLlamaV2 (turboderp, 2023, exllamav2 `conversion/adaptivegptq.py`, `qparams.py`; no paper). Input
channels are sorted by decreasing diagonal of H. `group` consecutive ones in that order share a width b, and for each
output a scale, stored in 4 bits on a quadratic ladder under one float16 for the whole group:

    value = (code - 2^(b-1)) s,   s = (k / 16)^2 t,   k in 1..16,
    k = round(16 sqrt(a / max a)),   a = 2 max|w| / (2^b - 1) by output,   t = p max a in float16,

with one shrink p for the group, from 1 down to 0.75 in 48 steps: the least sum |w - q|^3.5, the largest of equals.
Ties of codes and of k go to even. Meant for error feedback in the same order, which fits a group when its turn comes.

`budget` is in bits per weight of the whole matrix, everything that is stored included, and never exceeded: all groups
begin at the narrowest width and are widened in turn, the most important first, while the next step still fits. By
default there are two widths: the widest of ExLlamaV2's in which the whole matrix fits, and the next one.

Differences: the release measures each layer's error in a menu of such settings and anneals over them, which is an
allocation over layers; here every matrix keeps the budget for itself. It stores 32 bits for each channel's place and
for each group's layout, here places take ceil(log2 in) bits and widths 3. It decodes in float16, here in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.layout import ALL, Columns, check_finite, check_matrix
from suite.grids.stored import from_bits, to_bits

WIDTHS = (2, 3, 4, 5, 6, 8)  # those that ExLlamaV2 has kernels for
_STEPS, _LEAST = 48, 0.75  # of the search for p, as the release has it
_SCALE_BITS, _TOP_BITS, _WIDTH_BITS = 4, 16, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Exl2:
    """Rows of the input by importance, on symmetric integers of two or more `widths` within a `budget`."""

    budget: float
    group: Literal[32, 64, 128] = 32
    widths: tuple[int, ...] | None = None

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.budget, int | float) and math.isfinite(self.budget)):
            raise ValueError(f"budget {self.budget!r}: expected bits per weight")
        object.__setattr__(self, "budget", float(self.budget))  # one text for equal values
        if self.group not in (32, 64, 128):
            raise ValueError(f"group {self.group!r}: EXL2 has groups of 32, 64 and 128")
        widths = self.widths
        if widths is not None and (not widths or list(widths) != sorted({*widths} & set(range(2, 9)))):
            raise ValueError(f"widths {widths!r}: expected ascending ones from 2 to 8")

    @property
    def bits(self) -> float:
        """The budget."""
        return self.budget

    @property
    def _narrowest(self) -> int:
        return WIDTHS[0] if self.widths is None else self.widths[0]

    @property
    def unsupported(self) -> str | None:
        """Why no matrix at all fits, or None."""
        if self.budget > self._narrowest:
            return None
        return f"codes of {self._narrowest} bits and their scales take more than {self.budget:g} bits per weight"

    def counts(self, n_in: int) -> list[int]:
        """How many input channels each group has; the last may have fewer."""
        return [min(self.group, n_in - start) for start in range(0, n_in, self.group)]

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of widths, the order, largest scales and steps."""
        n_out, n_in = header["shape"]
        groups = len(self.counts(n_in))
        order = [(n_in, (n_in - 1).bit_length())] if n_in > 1 else []
        return [(groups, _WIDTH_BITS), *order, (groups, _TOP_BITS), (n_out * groups, _SCALE_BITS)]

    def beside_bits(self, n_out: int, n_in: int) -> int:
        """Bits beside the codes: for each group its width, its largest scale and all its scales; and the order."""
        return sum(count * width for count, width in self.beside_widths({"shape": (n_out, n_in)}))

    def allocate(self, n_out: int, importance: torch.Tensor) -> torch.Tensor:
        """The width of every group (G,) for `importance` (in,), in decreasing order.

        Widening a group from a to b bits saves about importance (4^-a - 4^-b) for (b - a) bits of each of its values;
        steps are taken by that ratio, the earlier group first, up to the first that does not fit: for two widths as
        many of the most important groups as fit. Raises `ValueError` naming the least budget for the shape.
        """
        n_in, counts = len(importance), self.counts(len(importance))
        left = math.floor(Fraction(self.budget) * n_out * n_in) - self.beside_bits(n_out, n_in)
        if left < n_out * n_in * self._narrowest:
            least = Fraction(self.beside_bits(n_out, n_in), n_out * n_in) + self._narrowest
            digits = math.ceil(least * 10**4)
            digits += Fraction(digits / 1e4) < least  # 9.92 itself is no float, and the nearest is below
            raise ValueError(f"budget {self.budget:g} bits per weight: a matrix of shape {(n_out, n_in)} "
                             f"takes at least {digits / 1e4}")  # fmt: skip
        ladder = self.widths
        if ladder is None:
            fitting = [i for i, width in enumerate(WIDTHS) if n_out * n_in * width <= left]
            ladder = WIDTHS[fitting[-1] : fitting[-1] + 2]
        widths = [ladder[0]] * len(counts)
        left -= n_out * n_in * ladder[0]
        # a mean rounded up must not put a group before its betters
        means = torch.stack([part.mean() for part in importance.double().split(counts)]).cummin(0).values.tolist()
        steps = [(-mean * (4.0**-a - 4.0**-b) / (b - a), g, b)
                 for g, mean in enumerate(means) for a, b in pairwise(ladder)]  # fmt: skip
        for _, g, b in sorted(steps):
            left -= n_out * counts[g] * (b - widths[g])
            if left < 0:
                break
            widths[g] = b
        return torch.tensor(widths)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedExl2":
        """Bind the grid to `W` (out, in) and its Gram matrix `importance` (in, in).

        Raises `ValueError` without it, for a budget too small, NaN or infinite values, and an empty matrix.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        n_out, n_in = W.shape
        if importance is None or importance.shape != (n_in, n_in):
            found = "none" if importance is None else f"shape {tuple(importance.shape)}"
            raise ValueError(f"EXL2 needs the Gram matrix H of shape {(n_in, n_in)}, found {found}")
        diagonal, order = importance.diagonal().double().sort(descending=True, stable=True)
        widths = self.allocate(n_out, diagonal)
        parts = W[:, order].split(self.counts(n_in), dim=1)
        fits = [_fit_group(x, width) for x, width in zip(parts, widths.tolist(), strict=True)]
        steps = torch.stack([k for k, _ in fits]).T  # a group's side by side: error feedback reads column after column
        return FittedExl2.of(self, (n_out, n_in), order, widths, steps, torch.stack([top for _, top in fits]))

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedExl2", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedExl2.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        counts = self.counts(n_in)
        beside = self.beside_widths(header)
        size = -(-len(counts) * _WIDTH_BITS // 8)
        widths = unpack(payload[:size], beside[:1])[0] + 1  # which say how many codes there are
        codes_of = [(n_out * count, width) for count, width in zip(counts, widths.tolist(), strict=True)]
        found = unpack(payload, [*beside, *codes_of])
        fitted, parts = self.restore(found[: len(beside)], header), found[len(beside) :]
        codes = torch.empty(n_out, n_in, dtype=torch.uint8)
        codes[:, fitted.order] = torch.cat([part.reshape(n_out, -1) for part in parts], dim=1).to(torch.uint8)
        return fitted, codes

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedExl2":
        """The fitted grid from the values of `FittedExl2.beside`."""
        n_out, n_in = header["shape"]
        widths, *order, tops, steps = beside
        perm = order[0] if order else torch.zeros(1, dtype=torch.int64)
        if perm.sort().values.tolist() != list(range(n_in)):
            raise ValueError(f"the order is not one of {n_in} input channels")
        scales = (steps.reshape(-1, n_out).T + 1).float()
        return FittedExl2.of(self, (n_out, n_in), perm, widths + 1, scales, from_bits(tops, _TOP_BITS))


def _fit_group(x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The steps k (out,), 1 to 16, and t () in float16, both in the type of `x` (out, k)."""
    middle, most = 2 ** (width - 1), 2**width - 1
    scale = x.abs().amax(1) * (2 / most)
    largest = scale.max()
    ratio = scale / torch.where(largest == 0, 1.0, largest)
    steps = (16 * ratio.sqrt()).round_().clamp_(1, 16)
    best, least = _stored(largest), math.inf
    for p in torch.linspace(1.0, _LEAST, _STEPS + 1, dtype=torch.float64).tolist():
        top = _stored(largest * p)
        s = (steps.square() * (top / 256))[:, None]
        error = (x / s).round_().clamp_(-middle, most - middle).mul_(s).sub_(x).abs_()
        objective = float((error**3 * error.sqrt()).sum())  # |error|^3.5, cheaper than a power
        if objective < least:
            best, least = top, objective
    return steps, best


def _stored(top: torch.Tensor) -> torch.Tensor:
    """In float16, ties to even; 1 for a group of zeros, else at least the smallest positive number."""
    kind = torch.finfo(torch.float16)
    rounded = top.clamp(kind.smallest_normal * kind.eps, kind.max).half().to(top.dtype)
    return torch.where(top == 0, 1.0, rounded)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedExl2:
    """An `Exl2` grid bound to a matrix: `order` (in,), and by group `widths` (G,), `steps` (out, G) and `tops` (G,).

    `group_of` and `middle` (in,) are what follows for each input channel: its group, and the code of 0.
    """

    grid: Exl2
    shape: tuple[int, int]
    order: torch.Tensor
    widths: torch.Tensor
    steps: torch.Tensor
    tops: torch.Tensor
    group_of: torch.Tensor
    middle: torch.Tensor

    mask_size = 0

    @classmethod
    def of(
        cls, grid: Exl2, shape: tuple[int, int], order: torch.Tensor, widths: torch.Tensor,
        steps: torch.Tensor, tops: torch.Tensor,
    ) -> "FittedExl2":  # fmt: skip
        """With what follows for each input channel."""
        group_of = torch.empty_like(order)
        group_of[order] = torch.arange(len(order)) // grid.group
        middle = (2 ** (widths - 1))[group_of].to(steps.dtype)
        return cls(grid=grid, shape=shape, order=order, widths=widths, steps=steps, tops=tops,
                   group_of=group_of, middle=middle)  # fmt: skip

    @property
    def n_codes(self) -> int:
        """How many different codes the widest group has."""
        return 2 ** int(self.widths.max())

    @property
    def group_size(self) -> int:
        """How many input channels share scales."""
        return min(self.grid.group, self.shape[1])

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return len(self.widths) > 1

    def _affine(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales (out, k), exact in float32, and codes of 0 (k,)."""
        groups = self.group_of[columns]
        return self.steps[:, groups].square() * (self.tops[groups] / 256), self.middle[columns]

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, of the levels nearest to `x` (out, k), the values of `columns`.

        `cost` by code, up to the widest, in squared units of `x`, is added to the squared distance: the rate term.
        """
        if cost is None:
            return self.snap(x, columns)[0]
        scale, middle = self._affine(columns)
        levels = torch.arange(self.n_codes, dtype=x.dtype)
        penalty = (x[..., None] - scale[..., None] * (levels - middle[:, None])) ** 2 + cost[: len(levels)]
        return penalty.masked_fill(levels >= 2 * middle[:, None], math.inf).argmin(-1).to(torch.uint8)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for: `nearest` and `decode` in one go."""
        scale, middle = self._affine(columns)
        whole = torch.minimum((x / scale).round_().clamp_(min=-middle), middle - 1)
        return (whole + middle).to(torch.uint8), whole.mul_(scale)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        scale, middle = self._affine(columns)
        below = (x / scale).floor_() + middle
        zero = torch.zeros_like(middle)
        low, high = (c.clamp(zero, 2 * middle - 1).to(torch.uint8) for c in (below, below + 1))
        return low, high

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scales' type."""
        scale, middle = self._affine(columns)
        return (codes.to(scale.dtype) - middle) * scale

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32, from the parameters as they are stored."""
        steps, tops, middle = self.steps.float(), self.tops.float(), self.middle.float()
        return replace(self, steps=steps, tops=tops, middle=middle).decode(codes)

    def in_order(self, perm: torch.Tensor) -> "FittedExl2":
        """The same; `ValueError` unless `perm` (in,) is the order that the groups are made of."""
        if not torch.equal(perm, self.order):
            raise ValueError("groups of EXL2 follow the decreasing diagonal of H, found another order of columns")
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedExl2":
        """The grid with `group`'s scales fitted anew to `x` (out, k), the values its `columns` have now."""
        start = group * self.grid.group
        if not torch.equal(columns, self.order[start : start + self.grid.group]):
            raise ValueError(f"group {group} of EXL2 has other columns than the {len(columns)} given")
        steps, tops = self.steps.clone(), self.tops.clone()
        steps[:, group], tops[group] = _fit_group(x, int(self.widths[group]))
        return replace(self, steps=steps, tops=tops)

    @property
    def _code_bits(self) -> int:
        counts = self.grid.counts(self.shape[1])
        return self.shape[0] * sum(count * width for count, width in zip(counts, self.widths.tolist(), strict=True))

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, widths, scales and order."""
        return self._code_bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of widths, scales and order."""
        return self.grid.beside_bits(*self.shape)

    def _by_group(self, codes: torch.Tensor) -> list[torch.Tensor]:
        return list(codes[:, self.order].split(self.grid.counts(self.shape[1]), dim=1))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Widths, the order, largest scales, steps group after group."""
        n_in = self.shape[1]
        order = [(self.order, (n_in - 1).bit_length())] if n_in > 1 else []
        tops, steps = to_bits(self.tops, _TOP_BITS), self.steps.T.to(torch.int64) - 1
        return [(self.widths - 1, _WIDTH_BITS), *order, (tops, _TOP_BITS), (steps, _SCALE_BITS)]

    @property
    def _alphabets(self) -> list[torch.Tensor]:
        """The input channels (in,) of each width, as masks, the narrowest first."""
        by_channel = self.widths[self.group_of]
        return [by_channel == width for width in self.widths.unique()]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of each width, the narrowest first."""
        return tuple(codes[:, channels].reshape(-1) for channels in self._alphabets)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        codes = torch.empty(self.shape, dtype=torch.uint8)
        for channels, stream in zip(self._alphabets, streams, strict=True):
            codes[:, channels] = stream.to(torch.uint8).reshape(self.shape[0], -1)
        return codes

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """What is beside the codes, and the codes of one group after the other."""
        return pack([*self.beside(), *zip(self._by_group(codes), self.widths.tolist(), strict=True)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape."""
        return {"shape": list(self.shape)}
