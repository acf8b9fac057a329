"""N:M sparsity: of every `of` consecutive inputs of a row, `kept` stay, on a grid of their own; the others are 0.

2:4 is what sparse tensor cores multiply (Mishra et al. 2021, arXiv:2104.08378). Which values stay is the `score`:

- `magnitude`: the largest |w|.
- `wanda`: the largest |w_j| sqrt(H_jj) (Sun, Liu, Bair, Kolter 2023, arXiv:2306.11695, eq. 1).
- `feedback`: the largest |w_j| R_jj, with w as it is inside error feedback when the first column of the set comes up
  and H + lambda I = R R^T (Frantar and Alistarh 2023, arXiv:2301.00774, Alg. 1, where 1 / R_jj^2 is what the inverse of
  H + lambda I has on its diagonal when j is the first column left). For a diagonal H it is Wanda's.

Of equal scores the earlier column stays, so that exactly `kept` of `of` are marked, zeros too. The inner grid is fitted
to the matrix with the dropped values at 0: as if they were not there, wherever the grid holds a zero, since a zero
neither widens a range nor adds to an error (a range of `real-zero` integers takes 0 in). Its groups count inputs,
kept or not. Scales that `feedback` fits before all masks of a group are known see what would stay if all were chosen
then; the release fits them to the dense row.

Stored as hardware does: the inner grid's parameters, a position of ceil(log2 of) bits for each kept value, and codes
of the kept values only. A width that is no multiple of `of` is padded with dropped or zero values, which are charged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F

from kernels.packing import pack, unpack
from suite.grids.grid import Fitted, Grid, Tunable
from suite.grids.integer import Integer
from suite.grids.layout import ALL, Columns, check_finite, check_matrix, in_chunks
from suite.grids.scaled import Scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """`kept` of every `of` consecutive inputs on `grid`, chosen by `score`."""

    grid: Grid
    kept: int = 2
    of: int = 4
    score: Literal["magnitude", "wanda", "feedback"] = "magnitude"

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.kept, int) and isinstance(self.of, int) and 1 <= self.kept < self.of):
            raise ValueError(f"kept {self.kept!r} of {self.of!r}: expected 1 <= kept < of")
        if self.score not in ("magnitude", "wanda", "feedback"):
            raise ValueError(f"score {self.score!r}: expected magnitude, wanda or feedback")

    @property
    def bits(self) -> float:
        """The width of a kept value's code; per weight it is kept / of times that, and the positions."""
        return self.grid.bits

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if not isinstance(self.grid, Integer | Scaled):
            return f"masks take grids of single values at one width, found {type(self.grid).__name__}"
        if isinstance(self.grid, Scaled) and (self.grid.pad or self.grid.first == "high"):
            return "masks store codes of kept values only: no padded groups, no order of halves in a byte"
        return self.grid.unsupported

    @property
    def index_bits(self) -> int:
        """The width of a position."""
        return (self.of - 1).bit_length()

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedSparse":
        """Bind the grid to `W` (out, in). `importance` is H (in, in), which all scores but `magnitude` need.

        Masks of `feedback` are Wanda's until error feedback chooses them. Raises `ValueError` without the H that is
        needed, for NaN or infinite values, an empty matrix, and an unsupported combination.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        n_in = W.shape[1]
        weight = None
        if self.score != "magnitude":
            if importance is None or importance.shape != (n_in, n_in):
                found = "none" if importance is None else f"shape {tuple(importance.shape)}"
                raise ValueError(f"score {self.score} needs the Gram matrix H of shape {(n_in, n_in)}, found {found}")
            weight = importance.diagonal().double().sqrt()
        mask = self.keep(W, weight).T.contiguous().T  # error feedback reads it column after column
        return FittedSparse(grid=self, inner=self.grid.fit(W.masked_fill(~mask, 0.0), importance), mask=mask)

    def keep(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Where `kept` of `of` have the largest |x| weight, for `x` (out, k), `weight` (k,) or None; the earlier first.

        >>> Sparse(grid=Integer(bits=4)).keep(torch.tensor([[1.0, -3.0, 1.0, 0.0, 0.0]]), torch.ones(5))
        tensor([[ True,  True, False, False,  True]])
        """
        return torch.cat([self._keep(part, weight) for part in in_chunks(x)])

    def _keep(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        size = x.abs() if weight is None else x.abs().double() * weight
        score = self._sets(size, -1.0).permute(2, 0, 1).contiguous()
        before = torch.arange(self.of - 1, -1, -1, dtype=torch.uint8)[:, None, None].repeat(1, *score.shape[1:])
        for i, j in combinations(range(self.of), 2):  # `before`: how many of its set come before each
            earlier = (score[i] >= score[j]).view(torch.uint8)
            before[i] -= earlier
            before[j] += earlier
        return (before < self.kept).permute(1, 2, 0).reshape(len(x), -1)[:, : x.shape[1]]

    def _sets(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """`x` (out, k) as (out, sets, of), a short last set filled up."""
        return F.pad(x, (0, -x.shape[1] % self.of), value=fill).reshape(len(x), -1, self.of)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedSparse", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedSparse.to_bytes` wrote."""
        n_kept = self._n_kept(header)
        *beside, kept = unpack(payload, [*self.beside_widths(header), (n_kept, int(self.bits))])
        where = self._where(beside[-1], header)
        codes = torch.zeros(where.shape, dtype=torch.int64).masked_scatter_(where, kept)
        fitted = self.restore(beside, header)
        return fitted, fitted.inner.codes_of([codes.reshape(len(codes), -1)[:, : fitted.shape[1]]])

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of the inner grid's parameters, and of positions."""
        return [*self.grid.beside_widths(header), (self._n_kept(header), self.index_bits)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedSparse":
        """The fitted grid from the values of `FittedSparse.beside`."""
        n_out, n_in = header["shape"]
        mask = self._where(beside[-1], header).reshape(n_out, -1)[:, :n_in]
        return FittedSparse(grid=self, inner=self.grid.restore(beside[:-1], header), mask=mask.T.contiguous().T)

    def _n_kept(self, header: dict[str, Any]) -> int:
        n_out, n_in = header["shape"]
        return n_out * -(-n_in // self.of) * self.kept

    def _where(self, positions: torch.Tensor, header: dict[str, Any]) -> torch.Tensor:
        """Where values are kept, (out, sets, of); `ValueError` for positions that are out of order or of range."""
        positions = positions.reshape(header["shape"][0], -1, self.kept)
        if bool((positions.diff() <= 0).any() | (positions >= self.of).any()):
            raise ValueError(f"positions do not name {self.kept} of {self.of} in ascending order")
        return torch.zeros(*positions.shape[:2], self.of, dtype=torch.bool).scatter_(-1, positions, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSparse:
    """A `Sparse` grid bound to a matrix: what is kept, `mask` (out, in), and the inner grid; dropped codes are 0."""

    grid: Sparse
    inner: Fitted
    mask: torch.Tensor

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
        """How many inputs share a scale, kept or not."""
        return self.inner.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.inner.regroups

    @property
    def mask_size(self) -> int:
        """Columns of a set, where error feedback chooses what is kept of it."""
        return self.grid.of if self.grid.score == "feedback" else 0

    def mark(self, x: torch.Tensor, first: int, pivots: torch.Tensor) -> None:
        """Choose, in place, what is kept of `x` (out, k), the values that columns `first` on have now."""
        self.mask[:, first : first + x.shape[1]] = self.grid.keep(x, pivots)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) nearest to `x` (out, k); `cost` as the inner grid has it; 0 where dropped."""
        codes = self.inner.nearest(x, columns, cost)
        return torch.where(self.mask[:, columns].contiguous(), codes, torch.zeros((), dtype=codes.dtype))

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes nearest to `x`, and the values they stand for, in one go."""
        (codes, values), kept = self.inner.snap(x, columns), self.mask[:, columns]
        return codes * kept, values.masked_fill(~kept, 0.0)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; where dropped, 0 is both."""
        (below, above), kept = self.inner.neighbors(x, columns), self.mask[:, columns]
        return below * kept, above * kept

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for; exactly 0 where dropped."""
        return self.inner.decode(codes, columns).masked_fill(~self.mask[:, columns], 0.0)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32, from the parameters as they are stored."""
        return self.inner.decode32(codes).masked_fill(~self.mask, 0.0)

    def tunable(self) -> dict[str, torch.Tensor]:
        """What the inner grid has."""
        return cast(Tunable, self.inner).tunable()

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedSparse":
        """The same with these in the inner grid."""
        return replace(self, inner=cast(Tunable, self.inner).tuned(values))

    def in_order(self, perm: torch.Tensor) -> "FittedSparse":
        """The same with the inner grid's groups made of consecutive columns in the order `perm` (in,)."""
        return replace(self, inner=self.inner.in_order(perm))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedSparse":
        """The inner grid's `group` fitted anew to what is kept of `x` (out, k), the values its `columns` have now."""
        x = x.masked_fill(~self.mask[:, columns], 0.0)
        return replace(self, inner=self.inner.refit(x, group, columns, H))

    @property
    def _kept_everywhere(self) -> torch.Tensor:
        """Where values are kept, (out, sets, of): in a short last set, padding makes up the number that is missing."""
        where = self.grid._sets(self.mask, False).clone()
        missing = self.grid.kept - where[:, -1].sum(1, keepdim=True)
        spare = ~where[:, -1]
        where[:, -1] |= spare & (spare.cumsum(1) <= missing)
        return where

    @property
    def n_bits(self) -> int:
        """Exact bits of what is beside the codes, and of the codes of what is kept, padding included."""
        return self.beside_bits + self.grid._n_kept(self.header()) * int(self.grid.bits)

    @property
    def beside_bits(self) -> int:
        """Exact bits of the inner grid's parameters, and of positions."""
        return self.inner.beside_bits + self.grid._n_kept(self.header()) * self.grid.index_bits

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The inner grid's parameters, and positions in ascending order."""
        return [*self.inner.beside(), (self._kept_everywhere.nonzero()[:, -1], self.grid.index_bits)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of what is kept, row after row."""
        return (codes[self.mask],)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), 0 where dropped."""
        kept = streams[0].to(torch.int64)
        return self.inner.codes_of([torch.zeros(self.shape, dtype=torch.int64).masked_scatter_(self.mask, kept)])

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """What is beside the codes, then the codes of what is kept."""
        kept = self.grid._sets(codes, 0)[self._kept_everywhere]
        return pack([*self.beside(), (kept, int(self.grid.bits))])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: what the inner grid's does not."""
        return self.inner.header()
