"""Which values of a matrix share parameters: runs along a row, down a column, of the flattened matrix, or all of it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

Group = int | Literal["row", "tensor"]
Axis = Literal[0, 1, "flat"]
Columns = slice | torch.Tensor  # of a matrix: which of them some values belong to
ALL = slice(None)


def check_group(group: object) -> None:
    """Raise `ValueError` unless `group` is a positive integer, "row" or "tensor"."""
    if group not in ("row", "tensor") and not (isinstance(group, int) and group >= 1):
        raise ValueError(f'group {group!r}: expected a positive integer, "row" or "tensor"')


def check_matrix(W: torch.Tensor) -> None:
    """Raise `ValueError` unless `W` is a non-empty matrix."""
    if W.ndim != 2 or W.numel() == 0:
        raise ValueError(f"expected a non-empty matrix, found shape {tuple(W.shape)}")


_CHUNK = 1 << 17  # values looked at in one go: what is computed of them stays in a core's cache


def check_finite(W: torch.Tensor) -> None:
    """Raise `ValueError` for NaN or infinite values; a finite sum of all says at once that there are none."""
    if not bool(torch.isfinite(W.sum())) and not bool(torch.isfinite(W).all()):
        raise ValueError(f"expected finite values, found NaN or infinity in a matrix of shape {tuple(W.shape)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Parameters (R, C) of an (out, in) matrix: element (r, j) has those of row r % R, column j // width.

    With `axis="flat"` runs of `width` values of the flattened matrix share parameters, which are (1, C): element (r, j)
    has those of column (r * in + j) // width. The last run of a row, column or matrix may be short. `group_of` (in,)
    overrides the column that an input channel uses.
    """

    shape: tuple[int, int]
    rows: int
    width: int
    flat: bool = False
    group_of: torch.Tensor | None = None

    @classmethod
    def of(cls, shape: tuple[int, int], group: Group, axis: Axis = 1, group_of: torch.Tensor | None = None) -> "Layout":
        """`group` consecutive inputs of a row together; with `axis=0`, `group` rows of a column, dealt out evenly."""
        n_out, n_in = shape
        if group == "tensor":
            return cls(shape, 1, n_in, group_of=group_of)
        if group == "row":
            return cls(shape, n_out, n_in, group_of=group_of)
        if axis == "flat":
            return cls(shape, 1, min(group, n_out * n_in), flat=True)
        if axis == 0:
            return cls(shape, -(-n_out // group), 1)
        return cls(shape, n_out, min(group, n_in), group_of=group_of)

    @property
    def parameters(self) -> tuple[int, int]:
        """(R, C): the shape of what the groups have one of each."""
        return self.rows, -(-(math.prod(self.shape) if self.flat else self.shape[1]) // self.width)

    @property
    def group_size(self) -> int:
        """How many values share parameters, but for short groups."""
        return self.width if self.flat else self.width * -(-self.shape[0] // self.rows)

    @property
    def members(self) -> torch.Tensor:
        """How many values each group really has, int64, broadcastable to (R, C)."""
        n_out, n_in = self.shape
        rows, columns = self.parameters
        if not self.flat and rows < n_out:
            return self.width * (n_out // rows + (torch.arange(rows) < n_out % rows))[:, None]
        counts = torch.full((1, columns), self.width)
        counts[0, -1] = (n_out * n_in if self.flat else n_in) - (columns - 1) * self.width
        return counts

    def grouped(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """`x` (out, in) as (R, C, members of a group), short groups filled up with `fill`."""
        n_out, n_in = x.shape
        if self.flat:
            flat = x.reshape(-1)
            whole = flat if len(flat) % self.width == 0 else F.pad(flat, (0, -len(flat) % self.width), value=fill)
            return whole.reshape(1, -1, self.width)
        if self.rows == n_out:
            whole = x if n_in % self.width == 0 else F.pad(x, (0, -n_in % self.width), value=fill)
            return whole.reshape(n_out, -1, self.width)
        if self.width == n_in and self.rows == 1:
            return x.reshape(1, 1, -1)
        deep = -(-n_out // self.rows)
        return F.pad(x, (0, 0, 0, deep * self.rows - n_out), value=fill).reshape(deep, self.rows, n_in).permute(1, 2, 0)

    def ungrouped(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `grouped`: (R, C, members) as (out, in), the filling dropped."""
        n_out, n_in = self.shape
        if self.flat:
            return x.reshape(-1)[: n_out * n_in].reshape(n_out, n_in)
        if self.rows == n_out:
            return x.reshape(n_out, -1)[:, :n_in]
        if self.width == n_in and self.rows == 1:
            return x.reshape(n_out, n_in)
        return x.permute(2, 0, 1).reshape(-1, n_in)[:n_out]

    def expand(self, values: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """Parameters (R, C) as those of the values of `columns`, broadcastable to (out, k)."""
        n_out, n_in = self.shape
        if self.flat:
            chosen = torch.arange(n_in)[columns]
            return values[0, (torch.arange(n_out)[:, None] * n_in + chosen) // self.width]
        if values.shape[1] > 1:
            if self.group_of is not None:
                values = values[:, self.group_of[columns]]
            elif isinstance(columns, torch.Tensor):
                values = values[:, columns // self.width]
            elif columns.start is not None and (columns.stop - 1) // self.width == columns.start // self.width:
                values = values[:, columns.start // self.width, None]  # one group: a view, which error feedback needs
            else:
                start, stop, _ = columns.indices(n_in)
                first = start // self.width
                spread = values[:, first : (stop - 1) // self.width + 1].repeat_interleave(self.width, dim=1)
                values = spread[:, start - first * self.width :][:, : stop - start]
        if 1 < values.shape[0] < n_out:
            values = values.repeat(-(-n_out // values.shape[0]), 1)[:n_out]
        return values


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix cut into groups, `values` (R, C, width); short ones are filled up with zeros beyond their `members`."""

    values: torch.Tensor
    members: torch.Tensor
    largest: torch.Tensor  # magnitude, (R, C)

    @classmethod
    def of(cls, W: torch.Tensor, layout: Layout) -> "Groups":
        """Cut `W` (out, in); `ValueError` for NaN or infinite values."""
        check_finite(W)
        values = layout.grouped(W, 0.0)
        parts = [part.abs().amax(-1) for part in in_chunks(values.reshape(-1, values.shape[-1]))]
        largest = torch.cat(parts).reshape(values.shape[:2])
        return cls(values, layout.members, largest)


def in_chunks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows (n, width) in pieces of about 2^17 values, at least a row each."""
    return rows.split(max(1, _CHUNK // max(1, rows.shape[1])))
