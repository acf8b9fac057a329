"""What one flipped bit of a stored weight changes it by, for every position of every format.

Formats: IEEE float32 and bfloat16 (a sign, 8 exponent bits, 23 or 7 of mantissa), and the suite's integers of 8 and 4
bits in groups of 128, stored as a code c and a float16 scale s, w = s (c - 2^(b-1)). For a Gaussian weight of standard
deviation sigma:

- a code's bit k changes w by s 2^k, with s = max |w| / (2^(b-1) - 1) over the group, whose median solves
  (2 Phi(m / sigma) - 1)^128 = 1/2: bounded by 2^(b-1) / (2^(b-1) - 1) times the range;
- a float's sign changes it by 2 |w|, 1.349 sigma in the median; mantissa bit k of n by 2^(k - n) 2^floor(log2 |w|), at
  most half of |w|; an exponent bit multiplies it by 2^(2^k) or its inverse. The highest exponent bit is 0 wherever
  |w| < 2, and its flip multiplies by 2^128;
- a scale's bit does so to 128 weights at once.

Medians over the Gaussian are those over its quantiles (i + 1/2) / n, each flipped exactly: quadrature, no sampling.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    import torch

Format = Literal["fp32", "bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "int4")
GROUP = 128
_SCALE_BITS = 16
_QUANTILES = 1 << 14
_INTEGERS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Place:
    """Which bit of what is stored: of a `float`, a `code` or a group's `scale`, counted from the lowest."""

    format: Format
    part: Literal["float", "code", "scale"]
    bit: int

    @property
    def share(self) -> float:
        """Of all bits that are stored in this format, those at this place."""
        if self.part == "float":
            return 1 / (32 if self.format == "fp32" else 16)
        total = GROUP * _INTEGERS[self.format] + _SCALE_BITS
        return (GROUP if self.part == "code" else 1) / total


def places(form: Format) -> list[Place]:
    """Every place of a format, from the lowest bit up, codes before scales; their shares sum to 1."""
    if form in _INTEGERS:
        codes = [Place(form, "code", bit) for bit in range(_INTEGERS[form])]
        return codes + [Place(form, "scale", bit) for bit in range(_SCALE_BITS)]
    return [Place(form, "float", bit) for bit in range(32 if form == "fp32" else 16)]


def flipped_float(values: np.ndarray, form: Format, bit: int) -> np.ndarray:
    """Values of float32 or bfloat16 (as float32) with a bit of each flipped; shape of `values`.

    >>> flipped_float(np.array([1.0, 0.5], dtype=np.float32), "bf16", 15).tolist()  # the sign
    [-1.0, -0.5]
    """
    stored = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.asarray(stored ^ np.uint32(1 << (bit + (16 if form == "bf16" else 0)))).view(np.float32)


def flipped_scale(scales: np.ndarray, bit: int) -> np.ndarray:
    """Scales, float16, with a bit of each flipped."""
    stored = np.ascontiguousarray(scales, dtype=np.float16).view(np.uint16)
    return np.asarray(stored ^ np.uint16(1 << bit)).view(np.float16)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as float32."""
    stored = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    even = (stored >> np.uint32(16)) & np.uint32(1)
    return np.asarray((stored + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)


def median_change(place: Place, sigma: float) -> float:
    """The median of |dw| / sigma over Gaussian weights of a standard deviation, for a flip at this place.

    Of a scale it is that of one of its weights that are not 0. `ValueError` for a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma {sigma}: expected a positive number")
    at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    if place.part == "float":
        w = (sigma * ndtri(at)).astype(np.float32)
        w = as_bfloat16(w) if place.format == "bf16" else w
        with np.errstate(over="ignore", invalid="ignore"):
            changed = np.abs(flipped_float(w, place.format, place.bit).astype(float) - w)
        return float(np.median(np.nan_to_num(changed, nan=np.inf))) / sigma
    top = 2 ** (_INTEGERS[place.format] - 1) - 1
    reach = ndtri((1 + at ** (1 / GROUP)) / 2)  # of a group, over sigma, at its own quantiles
    if place.part == "code":
        return float(np.median(reach) / top * 2.0**place.bit)
    scale = (sigma * reach / top).astype(np.float16)[:: _QUANTILES // 64]
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(flipped_scale(scale, place.bit).astype(float) - scale) / sigma
        steps = np.minimum(np.abs(np.rint(sigma * ndtri(at)[:, None] / scale.astype(float))), top)
        changed = np.nan_to_num(moved * steps, nan=np.inf)
    return float(np.median(changed[steps > 0]))


@dataclass(frozen=True)
class Stored:
    """A matrix (out, in) as a format stores it: `values` that it is read as, codes and scales where it has them."""

    format: Format
    values: np.ndarray
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None

    @classmethod
    def of(cls, W: "torch.Tensor", form: Format) -> "Stored":
        """Round a matrix, float32."""
        from suite.grids import Integer

        if form not in _INTEGERS:
            plain = W.detach().float().numpy()
            return cls(form, as_bfloat16(plain) if form == "bf16" else plain.copy())
        fitted = Integer(bits=_INTEGERS[form], group=GROUP, convention="full-range").fit(W.detach().float())
        codes = fitted.nearest(W.detach().float())
        return cls(form, fitted.decode(codes).numpy(), codes.numpy(), fitted.scale.numpy().astype(np.float16))

    def flip(self, place: Place, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """A row, and what is added to it (in,), by a flip of this place's bit in a weight or a group that is drawn.

        What is added may be infinite or NaN.
        """
        row, column = (int(rng.integers(n)) for n in self.values.shape)
        added = np.zeros(self.values.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            if place.part == "float":
                w = self.values[row, column : column + 1]
                added[column] = (flipped_float(w, self.format, place.bit).astype(float) - w).item()
                return row, added
            assert self.codes is not None and self.scales is not None
            scale, codes = self.scales[row, column // GROUP], self.codes[row].astype(int)
            if place.part == "code":
                added[column] = float(scale) * ((codes[column] ^ (1 << place.bit)) - codes[column])
                return row, added
            group = slice(column // GROUP * GROUP, (column // GROUP + 1) * GROUP)
            read = codes[group] - 2 ** (_INTEGERS[self.format] - 1)
            added[group] = (float(flipped_scale(scale[None], place.bit)[0]) - float(scale)) * read
        return row, added
