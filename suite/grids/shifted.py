"""Levels times a scale per block, plus a shift per block that gives the codes the most entropy.

value = level[code] * scale[block] + tau[block]: the grid of IR-QLoRA's information calibration (Qin et al. 2024,
arXiv:2402.05445, section 3.2), whose search is in `suite.grids.shift_search`. A block's scale is the absmax of what is
left without its shift. Scales and shifts are both double quantized: 8 bits of the dynamic map each, in blocks of 256
with a float32 absmax; the scales less their mean, the shifts as they are (htqin/IR-QLoRA at e6fef4a).

As in the release, codes are chosen by the shift and the scale before they are quantized, so that the entropy is the one
that was searched; what the shift loses when it is stored then adds to the error. `DoubleQuantized(stored_first=True)`
chooses them by what will be read back instead. More entropy is not less error: the search does not look at the error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kernels.packing import pack, unpack
from suite.grids.elements import ELEMENTS, Table, code_type
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_matrix
from suite.grids.nested import DoubleQuantized
from suite.grids.scaled import FittedScaled, Scaled
from suite.grids.scales import reciprocal
from suite.grids.shift_search import code_entropy, entropy_shift
from suite.grids.stored import from_bits, to_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted:
    """A table of ascending levels, scaled and shifted by blocks of `group` values of the flattened matrix.

    Shifts are searched within `most` (lambda) standard deviations of a Gaussian block on either side of its median, in
    `steps` (n) steps on each. The defaults are the release's.
    """

    element: str = "nf4"
    group: int = 64
    scale: DoubleQuantized = field(default_factory=DoubleQuantized)
    most: float = 0.1
    steps: int = 100

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.group, int) and self.group >= 1):
            raise ValueError(f"group {self.group!r}: expected a positive integer")
        if not isinstance(ELEMENTS.get(self.element), Table):
            tables = [name for name, element in ELEMENTS.items() if isinstance(element, Table)]
            raise ValueError(f"element {self.element!r}: expected a table, one of {', '.join(tables)}")
        if not (self.most >= 0 and math.isfinite(self.most)):
            raise ValueError(f"most {self.most!r}: expected a finite number from 0 up")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps {self.steps!r}: expected a positive integer")

    @property
    def bits(self) -> int:
        """The width of a code."""
        return ELEMENTS[self.element].bits

    @property
    def unsupported(self) -> str | None:
        """Nothing is."""
        return None

    @property
    def unshifted(self) -> Scaled:
        """The same levels and scales without shifts."""
        return Scaled(element=self.element, group=self.group, scale=self.scale, axis="flat")

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedShifted":
        """Bind the grid to `W` (out, in), float32 or float64; `importance` is not read.

        A constant block, or one of zeros, is met by its shift alone, as closely as that can be stored. Raises
        `ValueError` for NaN or infinite values, an empty matrix.
        """
        check_matrix(W)
        check_finite(W)
        element = ELEMENTS[self.element]
        assert isinstance(element, Table)
        layout = self.unshifted.layout((W.shape[0], W.shape[1]))
        shift = entropy_shift(W.reshape(-1), layout.width, element, self.most, self.steps)[None]
        code, outer = self.scale.mapped(shift.float())
        if self.scale.stored_first:
            shift = self.scale.unmapped(code, outer).to(W.dtype)
        inner = self.unshifted.fit(W - layout.expand(shift))
        return FittedShifted(self, inner, shift, code, outer)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedShifted", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedShifted.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        *beside, codes = unpack(payload, [*self.beside_widths(header), (n_out * n_in, self.bits)])
        return self.restore(beside, header), codes.to(code_type(self.bits)).reshape(n_out, n_in)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of scales, the shifts' absmax and the shifts."""
        n_out, n_in = header["shape"]
        _, blocks = self.unshifted.layout((n_out, n_in)).parameters
        return [*self.unshifted.beside_widths(header), (-(-blocks // self.scale.block), 32), (blocks, 8)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedShifted":
        """The fitted grid from the values of `FittedShifted.beside`."""
        *scales, absmax, codes = beside
        code, outer = codes.to(torch.uint8).reshape(1, -1), from_bits(absmax, 32).reshape(1, -1)
        inner = self.unshifted.restore(scales, header)
        return FittedShifted(self, inner, self.scale.unmapped(code, outer), code, outer)


@dataclass(frozen=True, slots=True)
class FittedShifted:
    """A `Shifted` grid bound to a matrix.

    `shift` (1, C) is what values are less before they are encoded; what is read back is `shift_code` (1, C) of the
    dynamic map times `shift_absmax` (1, B).
    """

    grid: Shifted
    inner: FittedScaled
    shift: torch.Tensor
    shift_code: torch.Tensor
    shift_absmax: torch.Tensor

    mask_size = 0  # no masks
    regroups = False  # what blocks store depends on other blocks

    @property
    def layout(self) -> Layout:
        """Which values share a scale and a shift."""
        return self.inner.layout

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.inner.shape

    @property
    def n_codes(self) -> int:
        """How many different codes there are."""
        return self.inner.n_codes

    @property
    def group_size(self) -> int:
        """How many values really share a scale and a shift."""
        return self.inner.group_size

    @property
    def stored_shift(self) -> torch.Tensor:
        """The shifts (1, C) as they are read back, float32."""
        return self.grid.scale.unmapped(self.shift_code, self.shift_absmax)

    def entropy(self, codes: torch.Tensor) -> torch.Tensor:
        """Entropy (C,) of the codes (out, in) of every block, in bits, float64."""
        flat, width = codes.reshape(-1), self.layout.width
        whole = len(flat) // width * width
        parts = [flat[:whole].reshape(-1, width), flat[None, whole:]]
        return torch.cat([code_entropy(part, self.n_codes) for part in parts if part.numel()])

    def _less(self, x: torch.Tensor, shift: torch.Tensor, columns: Columns) -> torch.Tensor:
        return x - self.layout.expand(shift, columns).to(x.dtype)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) of the levels nearest to `x` (out, k), the values of `columns`; ties to the even place.

        `cost` (n_codes,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        shift = self.shift if cost is None else self.stored_shift
        return self.inner.nearest(self._less(x, shift, columns), columns, cost)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for: `nearest` and `decode` in one go."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`, by what is read back; outside the range both are the last."""
        stored = replace(self.inner, inverse=reciprocal(self.inner.scale))
        return stored.neighbors(self._less(x, self.stored_shift, columns), columns)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scale's type."""
        return self._shifted(self.inner.decode(codes, columns), columns)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from scales and shifts as they are stored, in float32."""
        return self._shifted(self.inner.decode32(codes), ALL)

    def _shifted(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        return values.add_(self.layout.expand(self.stored_shift, columns))

    def tunable(self) -> dict[str, torch.Tensor]:
        """Nothing: scales and shifts are integers of a map."""
        return {}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedShifted":
        """Itself."""
        return self

    def in_order(self, perm: torch.Tensor) -> "FittedShifted":
        """`ValueError`: blocks are runs of the flattened matrix, not of columns."""
        raise ValueError(f"the blocks of {self.grid} are no groups of columns")

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedShifted":
        """`ValueError`: what a block stores depends on other blocks."""
        raise ValueError(f"the scales of {self.grid} are not fitted one by one")

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, scales and shifts."""
        return math.prod(self.shape) * self.grid.bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of scales and shifts."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Scales, the shifts' absmax, the shifts' codes."""
        return [
            *self.inner.beside(),
            (to_bits(self.shift_absmax.reshape(-1), 32), 32),
            (self.shift_code.reshape(-1), 8),
        ]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row."""
        return self.inner.streams(codes)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in)."""
        return self.inner.codes_of(streams)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Scales and shifts, then the codes, row after row."""
        return pack([*self.beside(), (codes, self.grid.bits)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape."""
        return {"shape": list(self.shape)}
