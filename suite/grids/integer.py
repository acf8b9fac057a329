"""Uniform integers of 1 to 8 bits: x is stored as a code c in [0, 2^b) and read as s (c - z).

Everything the field calls "INT b" is this one affine grid; what differs is how a group's scale s and zero point z
follow from its range. The conventions by name (amax = max |x| of the group):

- `asymmetric`: s = (max - min) / (2^b - 1) with 0 kept inside the range, z a stored integer (GPTQ, AWQ).
- `real-zero`: the same without forcing 0 inside, z a stored float (HQQ).
- `full-range`: s = amax / (2^(b-1) - 1), codes -2^(b-1) .. 2^(b-1) - 1 (QuaRot).
- `narrow`: the same scale without the lowest code, so that the levels are symmetric (Brevitas).
- `span`: s = 2 amax / (2^b - 1), z = 2^(b-1): +amax is clipped, -amax is passed by (GPTQ's release).
- `signed-max`: s = -m / 2^(b-1) where m is the value with |m| = amax, which is met exactly (llama.cpp's Q4_0).
- `half-integer`: levels +-s/2, +-3s/2, ..: symmetric without a zero, and the only one that makes sense at 1 bit.

Ties go to the even code of x / s (of x / s + z where z is not an integer). Scales are rounded to the type they are
stored in before any code is chosen. A group of zeros has s = 1 and decodes to zeros (`half-integer` has no zero level:
its scale is the smallest that can be stored); a constant group is met by `real-zero` as closely as z can be stored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_group, check_matrix
from suite.grids.stored import from_bits, stored_type, to_bits

Convention = Literal["asymmetric", "real-zero", "full-range", "narrow", "span", "signed-max", "half-integer"]
CONVENTIONS: tuple[str, ...] = Convention.__args__  # type: ignore[attr-defined]


def _check_search(steps: int, most: float) -> None:
    if not (steps >= 1 and 0 <= most <= 1):
        raise ValueError(f"steps {steps!r}, most {most!r}: expected at least 1, and 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkSearch:
    """Shrink a group's range by 1 - i/steps, i < most * steps, and keep the least sum |x - q|^norm (GPTQ's release).

    With norm 2.4 the squared error itself may rise: only the searched norm is monotone.
    """

    norm: float = 2.4
    steps: int = 100
    most: float = 0.8

    def __post_init__(self) -> None:
        _check_search(self.steps, self.most)
        if not self.norm > 0:
            raise ValueError(f"norm {self.norm!r}: expected a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSearch:
    """Clamp a group to +-(1 - i/steps) amax, i < most * steps; keep the least output error e H_gg e^T (AWQ).

    The release measures the error on 512 sampled tokens; the Gram matrix holds all of them.
    """

    steps: int = 20
    most: float = 0.5

    def __post_init__(self) -> None:
        _check_search(self.steps, self.most)


@dataclass(frozen=True, slots=True)
class ClipRatio:
    """Shrink every range by one factor and search nothing (QuaRot: 0.9 for activations); values beyond it saturate."""

    ratio: float

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, int | float) and 0 < self.ratio <= 1):
            raise ValueError(f"clip ratio {self.ratio!r}: expected above 0, at most 1")
        object.__setattr__(self, "ratio", float(self.ratio))  # one text for equal values


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """Uniform integers. `group` consecutive inputs of a row share a scale, or a whole "row", or the "tensor".

    With `axis=0` a group is `group` rows of one column instead (HQQ's default), rows dealt out evenly. A last group
    may be short. `scale_bits` is what a scale and a real zero point are stored in: float16 or float32.
    """

    bits: int
    group: int | Literal["row", "tensor"] = 128
    convention: Convention = "asymmetric"
    clip: ShrinkSearch | OutputSearch | ClipRatio | None = None
    axis: Literal[0, 1] = 1
    scale_bits: Literal[16, 32] = 16

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise ValueError(f"bits {self.bits!r}: integers take 1 to 8")
        check_group(self.group)
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention {self.convention!r}: expected one of {', '.join(CONVENTIONS)}")
        if self.axis not in (0, 1) or self.scale_bits not in (16, 32):
            raise ValueError(f"axis {self.axis!r}, scale_bits {self.scale_bits!r}: expected 0 or 1, and 16 or 32")

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.bits == 1 and self.convention != "half-integer":
            return f"1-bit integers need half-integer levels, the convention is {self.convention}"
        if isinstance(self.clip, OutputSearch) and (self.axis == 0 or self.group == "tensor"):
            return "an output search needs groups along the inputs"
        return None

    @property
    def zero(self) -> float:
        """The zero point of the conventions that do not store one."""
        return 2 ** (self.bits - 1) - (0.5 if self.convention == "half-integer" else 0)

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which values of an (out, in) matrix share a scale."""
        return Layout.of(shape, self.group, self.axis, group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedInteger":
        """Bind the grid to `W` (out, in). `importance` is H (in, in); only an `OutputSearch` reads it.

        Raises `ValueError` for an unsupported combination, for NaN or infinite values, and for an empty tensor.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        if isinstance(self.clip, OutputSearch) and importance is None:
            raise ValueError("an output search needs the Gram matrix H")
        layout = self.layout((W.shape[0], W.shape[1]))
        grouped_low, grouped_high = layout.grouped(W, math.inf).amin(-1), layout.grouped(W, -math.inf).amax(-1)
        if self.clip is None or isinstance(self.clip, ClipRatio):
            return self.fit_range(grouped_low, grouped_high, layout.shape)
        best = self._from_range(layout.shape, grouped_low, grouped_high)
        least = self._objective(W, best, importance)
        absmax = torch.maximum(-grouped_low, grouped_high)
        for i in range(1, int(self.clip.most * self.clip.steps)):
            keep = 1 - i / self.clip.steps
            if isinstance(self.clip, ShrinkSearch):
                candidate = self._from_range(layout.shape, grouped_low * keep, grouped_high * keep)
            else:
                clamped = grouped_low.clamp(min=-keep * absmax), grouped_high.clamp(max=keep * absmax)
                candidate = self._from_range(layout.shape, *clamped)
            objective = self._objective(W, candidate, importance)
            better = objective < least
            least = torch.where(better, objective, least)
            best = best._where(better, candidate)
        return best

    def fit_range(self, low: torch.Tensor, high: torch.Tensor, shape: tuple[int, int]) -> "FittedInteger":
        """Bind the grid to known ranges, one per group, instead of to values (static activation scales)."""
        keep = self.clip.ratio if isinstance(self.clip, ClipRatio) else 1.0
        return self._from_range(shape, low * keep, high * keep)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedInteger", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedInteger.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        *beside, codes = unpack(payload, [*self.beside_widths(header), (n_out * n_in, self.bits)])
        return self.restore(beside, header), codes.to(torch.uint8).reshape(n_out, n_in)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of scales, zero points and group indices."""
        return list(self._blank(header).widths.values())

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedInteger":
        """The fitted grid from the values of `FittedInteger.beside`."""
        blank = self._blank(header)
        found: dict[str, Any] = {}
        for (name, (_, width)), values in zip(blank.widths.items(), beside, strict=True):
            found[name] = _from_integers(values, name, width)
            if name != "group_of":
                found[name] = found[name].reshape(blank.scale.shape)
        return replace(blank, **found)

    def _blank(self, header: dict[str, Any]) -> "FittedInteger":
        n_out, n_in = header["shape"]
        shape = self.layout((n_out, n_in)).parameters
        zero = torch.empty(shape) if self.convention in ("asymmetric", "real-zero") else None
        group_of = torch.empty(n_in) if header.get("grouped") else None
        return FittedInteger(grid=self, shape=(n_out, n_in), scale=torch.empty(shape), zero=zero, group_of=group_of)

    def _from_range(self, shape: tuple[int, int], low: torch.Tensor, high: torch.Tensor) -> "FittedInteger":
        top = 2**self.bits - 1
        zero: torch.Tensor | None = None
        if self.convention == "asymmetric":
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = self._stored((high - low) / top)
            zero = (-low / scale).round().clamp(0, top)
        elif self.convention == "real-zero":
            scale = self._stored(self._wide_enough((high - low) / top, torch.maximum(-low, high)))
            zero = self._stored_real(-low / scale)
        else:
            absmax = torch.maximum(-low, high)
            divisor = {"full-range": top // 2, "narrow": top // 2, "span": top / 2,
                       "half-integer": top / 2, "signed-max": 2 ** (self.bits - 1)}[self.convention]  # fmt: skip
            sign = torch.where(high >= -low, -1.0, 1.0).to(low.dtype) if self.convention == "signed-max" else 1.0
            scale = self._stored(absmax / divisor) * sign
        scale = scale.T.contiguous().T  # a group's scales side by side: error feedback reads them column after column
        zero = None if zero is None else zero.T.contiguous().T
        return FittedInteger(grid=self, shape=shape, scale=scale, zero=zero)

    def _wide_enough(self, scale: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
        """Scales at which a real zero point can be stored: far from 0, a narrow group's would overflow float16."""
        if self.scale_bits == 32:
            return scale
        least = absmax / 2**15  # -low / s then stays below 65504, however s is rounded
        return torch.where(scale == 0, least.clamp(min=1), torch.maximum(scale, least))

    def _stored_real(self, x: torch.Tensor) -> torch.Tensor:
        largest = torch.finfo(stored_type(self.scale_bits)).max
        return x.clamp(-largest, largest).to(stored_type(self.scale_bits)).to(x.dtype)

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Round to the stored type; zero becomes 1 (or the smallest value, for levels without a zero)."""
        kind = torch.finfo(stored_type(self.scale_bits))
        smallest = kind.smallest_normal * kind.eps  # the smallest subnormal
        rounded = self._stored_real(scale)
        empty = smallest if self.convention == "half-integer" else 1.0
        return torch.where(scale == 0, empty, rounded.clamp(min=smallest))

    def _objective(self, W: torch.Tensor, fitted: "FittedInteger", H: torch.Tensor | None) -> torch.Tensor:
        """What the clip search minimizes, per group: (R, C)."""
        E = W - fitted.decode(fitted.nearest(W))
        if isinstance(self.clip, ShrinkSearch):
            return fitted.layout.grouped(E.abs().pow_(self.clip.norm), 0.0).sum(-1)
        assert H is not None
        width = fitted.layout.width
        parts = [(e @ H[a : a + width, a : a + width].to(e.dtype) * e).sum(-1)
                 for a, e in zip(range(0, W.shape[1], width), E.split(width, dim=1), strict=True)]  # fmt: skip
        return torch.stack(parts, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedInteger:
    """An `Integer` bound to an (out, in) tensor: `scale` and `zero` (R, C), and who belongs where.

    `group_of` (in,) overrides the column of the scale that an input channel uses, j // g; it is charged.
    """

    grid: Integer
    shape: tuple[int, int]
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    group_of: torch.Tensor | None = None

    mask_size = 0

    @property
    def n_codes(self) -> int:
        """How many different codes there are."""
        return 2**self.grid.bits

    @property
    def layout(self) -> Layout:
        """Which values share a scale."""
        return self.grid.layout(self.shape, self.group_of)

    @property
    def group_size(self) -> int:
        """How many values really share a scale."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.grid.axis == 1 and self.scale.shape[1] > 1

    def _affine(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Scale and zero point of the given columns, broadcastable to (out, k)."""
        layout = self.layout
        zero = self.grid.zero if self.zero is None else layout.expand(self.zero, columns)
        return layout.expand(self.scale, columns), zero

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, of the levels nearest to `x` (out, k), the values of `columns`.

        `cost` (2^b,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        if cost is not None:
            scale, zero = self._affine(columns)
            levels = torch.arange(self._lowest, self.n_codes, dtype=x.dtype)
            penalty = (x[..., None] - scale[..., None] * (levels - _last(zero))) ** 2 + cost[self._lowest :]
            return (penalty.argmin(-1) + self._lowest).to(torch.uint8)
        return self.snap(x, columns)[0]

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for: `nearest` and `decode` in one go."""
        scale, zero = self._affine(columns)
        levels = self._round(x / scale, zero).clamp_(self._lowest, self.n_codes - 1)
        return levels.to(torch.uint8), levels.sub_(zero).mul_(scale)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """The values nearest to `x` (out, in) alone: what `snap` gives second."""
        scale, zero = self._affine(ALL)
        if isinstance(zero, torch.Tensor) or self.grid.convention == "half-integer":
            return self._round(x / scale, zero).clamp_(self._lowest, self.n_codes - 1).sub_(zero).mul_(scale)
        return (x / scale).round_().clamp_(self._lowest - zero, self.n_codes - 1 - zero).mul_(scale)

    def _round(self, ratio: torch.Tensor, zero: torch.Tensor | float) -> torch.Tensor:
        if self.grid.convention in ("real-zero", "half-integer"):
            return ratio.add_(zero).round_()
        return ratio.round_().add_(zero)

    @property
    def _lowest(self) -> int:
        return 1 if self.grid.convention == "narrow" else 0

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest code."""
        return float(self._lowest), float(self.n_codes - 1)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        scale, zero = self._affine(columns)
        below = (x / scale).add_(zero).floor_()
        low, high = (c.clamp(self._lowest, self.n_codes - 1).to(torch.uint8) for c in (below, below + 1))
        return low, high

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scale's type."""
        scale, zero = self._affine(columns)
        return (codes.to(scale.dtype) - zero) * scale

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the parameters as they are stored, in float32."""
        width = self.grid.scale_bits
        stored = {name: from_bits(to_bits(x, width), width) for name, x in self.tunable().items()}
        zero = None if self.zero is None else self.zero.float()
        return replace(self, zero=zero).tuned(stored).decode(codes)

    def tunable(self) -> dict[str, torch.Tensor]:
        """Scales, and zero points where they are real numbers: (R, C)."""
        if self.grid.convention != "real-zero" or self.zero is None:
            return {"scale": self.scale}
        return {"scale": self.scale, "zero": self.zero}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedInteger":
        """The same with these scales and zero points."""
        return replace(self, scale=values.get("scale", self.scale), zero=values.get("zero", self.zero))

    def in_order(self, perm: torch.Tensor) -> "FittedInteger":
        """The grid with groups made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, group_of=group_of)

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedInteger":
        """The grid with `group`'s parameters fitted anew to `x` (out, k), the values its `columns` have now."""
        grid = replace(self.grid, group="row", axis=1)
        importance = None if H is None else H[columns[:, None], columns]
        fresh = grid.fit(x, importance)
        scale = self.scale.clone()
        scale[:, group] = fresh.scale[:, 0]
        zero = self.zero
        if zero is not None and fresh.zero is not None:
            zero = zero.clone()
            zero[:, group] = fresh.zero[:, 0]
        return replace(self, scale=scale, zero=zero)

    def refit_zero(self, target: torch.Tensor, codes: torch.Tensor) -> "FittedInteger":
        """The grid with the zero points that are least-squares optimal for fixed codes and scales (HQQ, eq. 7)."""
        scale, _ = self._affine(ALL)
        wanted = codes.to(scale.dtype) - target / scale
        total = self.layout.grouped(wanted, 0.0).sum(-1)
        count = self.layout.grouped(torch.ones_like(wanted), 0.0).sum(-1)
        return replace(self, zero=self.grid._stored_real(total / count))

    def _where(self, better: torch.Tensor, other: "FittedInteger") -> "FittedInteger":
        zero = self.zero
        if zero is not None and other.zero is not None:
            zero = torch.where(better, other.zero, zero)
        return replace(self, scale=torch.where(better, other.scale, self.scale), zero=zero)

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """What is stored beside the codes: (count, bits of each) by the name of the field."""
        stored: dict[str, tuple[int, int]] = {"scale": (self.scale.numel(), self.grid.scale_bits)}
        if self.zero is not None:
            whole = self.grid.convention == "asymmetric"
            stored["zero"] = (self.zero.numel(), self.grid.bits if whole else self.grid.scale_bits)
        if self.group_of is not None:
            stored["group_of"] = (self.group_of.numel(), max(1, (self.scale.shape[1] - 1).bit_length()))
        return stored

    @property
    def n_bits(self) -> int:
        """Exact bits of codes and parameters."""
        return math.prod(self.shape) * self.grid.bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of the parameters."""
        return sum(count * width for count, width in self.widths.values())

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Parameters in the order of `widths`."""
        fields = {"scale": self.scale, "zero": self.zero, "group_of": self.group_of}
        return [(_as_integers(fields[name], name, width), width) for name, (_, width) in self.widths.items()]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        return streams[0].to(torch.uint8).reshape(self.shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Parameters in the order of `widths`, then `codes` (out, in)."""
        return pack([*self.beside(), (codes, self.grid.bits)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their groups."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.group_of is not None else {})


def _last(zero: torch.Tensor | float) -> torch.Tensor | float:
    return zero[..., None] if isinstance(zero, torch.Tensor) else zero


def _as_integers(values: torch.Tensor | None, name: str, width: int) -> torch.Tensor:
    assert values is not None
    return values.to(torch.int64) if name == "group_of" or width not in (16, 32) else to_bits(values, width)


def _from_integers(values: torch.Tensor, name: str, width: int) -> torch.Tensor:
    if name == "group_of":
        return values
    return from_bits(values, width) if width in (16, 32) else values.float()
