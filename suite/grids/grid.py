"""What a grid is to everything else: a frozen value that binds itself to a matrix, and the fitted grid that it makes.

Roundings, the container and the harness know these two protocols and nothing of any format.

Values share a code in blocks of (rows, columns), single values in most grids. Codes are then (ceil(out / rows),
ceil(in / columns)), with further dimensions behind where a block takes several integers. A block that is short, the
last of the rows or columns, is filled up with zeros by the grid, and its code is stored and charged like the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from suite.grids.layout import ALL, Columns


class Fitted(Protocol):
    """A grid bound to an (out, in) matrix: its scales, zero points, masks and tables.

    Codes are integer tensors (uint8 up to 8 bits, else int32); below, (out, k) stands for their shape where values are
    coded one by one, and `columns` take in whole blocks, of which the last may be short. All arithmetic is in the type
    of the matrix that the grid was fitted to, but for `decode32`, which is float32 from the parameters as they are
    stored: what is evaluated, and what comes back from bytes, bit for bit.
    """

    @property
    def grid(self) -> Any:
        """The frozen value that it was fitted from."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def n_codes(self) -> int:
        """How many different values an integer of the codes takes, in the widest group."""

    @property
    def group_size(self) -> int:
        """How many values really share a scale; recorded for every layer."""

    @property
    def regroups(self) -> bool:
        """Whether error feedback may `refit` one group of columns after the other."""

    @property
    def mask_size(self) -> int:
        """Columns of a set whose mask error feedback has to choose (see `Masked`); 0 where there is none to choose."""

    @property
    def n_bits(self) -> int:
        """Exact bits of everything stored, codes at fixed width; nothing is free."""

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) nearest to `x` (out, k), the values of `columns`; `cost`, by code, joins the squared error.

        Blocks have no `cost`: `ValueError`.
        """

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes nearest to `x`, and the values they stand for, in one go."""

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the two levels around `x`, the lower code first; outside the range both are the last level.

        `ValueError` where values are coded in blocks.
        """

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for."""

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32, from the parameters as they are stored."""

    def in_order(self, perm: torch.Tensor) -> "Fitted":
        """The same with groups made of consecutive columns in the order `perm` (in,); charged. Where `regroups`."""

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "Fitted":
        """Fit `group` anew to `x` (out, k), the values its `columns` have now; only where `regroups`."""

    @property
    def beside_bits(self) -> int:
        """Exact bits of everything but the codes."""

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Everything but the codes, as streams of (values, width) for `kernels.packing`: `beside_bits` bits."""

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes as an entropy coder takes them: integers (n,) of each alphabet, no padding."""

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in) that `streams` took apart."""

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Everything stored at fixed width, in exactly ceil(n_bits / 8) bytes."""

    def header(self) -> dict[str, Any]:
        """What the bytes do not say: "shape", and little else; JSON values only."""


class Tunable(Fitted, Protocol):
    """A fitted grid with real parameters that may be adjusted while the codes stay."""

    def tunable(self) -> dict[str, torch.Tensor]:
        """The real parameters by name, in the type of the matrix."""

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "Tunable":
        """The same with these in their place: `decode` is differentiable in them.

        They are rounded where they are stored, in `decode32` and `to_bytes`.
        """


class Masked(Fitted, Protocol):
    """A fitted grid that keeps some values of every `mask_size` > 0 consecutive columns of a row."""

    def mark(self, x: torch.Tensor, first: int, pivots: torch.Tensor) -> None:
        """Choose, in place, what is kept of `x` (out, k), the values that columns `first` on have now.

        Whole sets, but for the last of the matrix. `pivots` (k,) is the diagonal of R in H + lambda I = R R^T: dropping
        a value costs (x_j R_jj)^2. In place, since a copy of the mask for every set would cost more than the rounding:
        the mask belongs to this fitted grid and to what its `refit` returns.
        """


class Grid(Protocol):
    """A frozen value, part of a recipe."""

    @property
    def bits(self) -> float:
        """The nominal width of a code."""

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of values that share a code."""

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> Fitted:
        """Bind the grid to `W` (out, in); `importance` is H (in, in), for those that read it.

        Raises `ValueError` for NaN or infinite values, an empty matrix, and an unsupported combination.
        """

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple[Fitted, torch.Tensor]:
        """The fitted grid and the codes (out, in) that `Fitted.to_bytes` wrote; `ValueError` where they do not fit."""

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of every stream that `Fitted.beside` gives for this header."""

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> Fitted:
        """The fitted grid from the values of `Fitted.beside`, int64; `ValueError` where they make no sense."""
