"""Error feedback: round a column, spread its error over the columns that are still to come.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv:2210.17323, Alg. 1) = OPTQ = LDLQ (Chee et al. 2023,
arXiv:2307.13304) = Babai's nearest plane (Chen et al. 2025, arXiv:2507.18553): three dresses of one recursion. With
H + lambda I = R R^T, R upper triangular, column j is rounded after adding (W - Q)_{<j} R_{<j,j} / R_jj, and

    tr (W - Q)(H + lambda I)(W - Q)^T = sum_j R_jj^2 |w'_j - q_j|^2       (exact, for every grid and every `pick`).

The published form reads the same numbers from the Cholesky factor U = R^-1 of the inverse. Here nothing is inverted:
one factorization in float64, and errors are gathered by column blocks from the left instead of being spread to the
right, which is the same arithmetic in large matrix products.

Where a grid codes several columns together (`Grid.block`), they are rounded together, as QuIP# does (Tseng et al. 2024,
arXiv:2402.04396): R_jj becomes the block R_kk, and block k is rounded after adding (W - Q)_{<k} R_{<k,k} R_kk^-1.

A grid that asks for it (`mask_size`) chooses which values it keeps here too, when the first column of a set comes up
(SparseGPT: Frantar and Alistarh 2023, arXiv:2301.00774); a value that is dropped is one rounded to 0.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, cast

import torch

from suite.grids.grid import Fitted, Grid, Masked
from suite.grids.layout import Columns
from suite.rounding.elementwise import Nearest, Picked, Rounded, Stochastic

_INNER = 16  # columns finished by matrix-vector products before a matrix product takes over; any value is correct
_LARGEST_DAMPING = 10.0
WHOLE = ("given", "reversed")  # orders that keep blocks of columns whole

Order = Literal["given", "reversed", "decreasing", "pivot"]
ORDERS: tuple[str, ...] = Order.__args__  # type: ignore[attr-defined]
Groups = Literal["static", "dynamic", "stale"]


class Pick(Protocol):
    """What error feedback needs of the rounding of single columns."""

    def pick(self, x: torch.Tensor, grid: Fitted, columns: Columns, generator: torch.Generator) -> Picked:
        """Codes and values (out, k) for `x` (out, k), the values that `columns` have now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Error feedback in the H-norm.

    `order`: columns as given, "reversed" (from the last to the first), by decreasing diagonal ("act-order"), or by
    "pivot", which takes the smallest Schur complement last, greedily; the latter two tear apart what is coded together.
    `groups`: "static" fits all scales before the first column; "dynamic" fits a group when its first column comes up,
    on the weights as they are then (the paper); "stale" on the weights as they were when the block of `block` columns
    began (the release, where a group that starts inside a block misses its updates). With "dynamic" and an order of its
    own a group is made of consecutive columns in that order, and is charged. `damping` is relative to the mean diagonal
    and is raised tenfold, and recorded, while H cannot be factored.
    """

    order: Order = "given"
    groups: Groups = "dynamic"
    damping: float = 0.01
    block: int = 128
    pick: Nearest | Stochastic = field(default_factory=Nearest)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}: expected one of {', '.join(ORDERS)}")
        if self.groups not in ("static", "dynamic", "stale"):
            raise ValueError(f"groups {self.groups!r}: expected static, dynamic or stale")
        if self.damping < 0 or self.block < 1:
            raise ValueError(f"damping {self.damping!r}, block {self.block!r}: expected >= 0 and >= 1")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in) given `H` (in, in); `ValueError` without H or where H has the wrong shape."""
        H = checked(H, W.shape[1])
        width = grid.block[1]
        R, perm, fallbacks = factor(H, self.order, self.damping, width)
        codes, fitted = self.place(Ordered.of(W, H, R, perm, width), grid.fit(W, H), generator)
        return Rounded(codes, fitted, fallbacks)

    def place(self, columns: "Ordered", fitted: Fitted, generator: torch.Generator) -> tuple[torch.Tensor, Fitted]:
        """Codes (out, in) for `columns` on a grid fitted to the matrix, and the grid with its groups as asked for."""
        if fitted.mask_size and self.order != "given":
            raise ValueError(f"masks chosen in error feedback need the given order of columns, not {self.order!r}")
        if columns.width > 1:
            if self.order not in WHOLE:
                raise ValueError(f"blocks of {columns.width} columns stay whole: the order is {self.order!r}")
            return self._sweep_blocks(columns, fitted, generator), fitted
        regroup = self.groups != "static" and fitted.regroups
        if regroup and self.order != "given":
            fitted = fitted.in_order(columns.perm)
        return self.sweep(columns, fitted, self.pick, generator, regroup)

    def sweep(
        self, columns: "Ordered", fitted: Fitted, pick: Pick, generator: torch.Generator, regroup: bool = False
    ) -> tuple[torch.Tensor, Fitted]:
        """Round column after column as `pick` says; returns codes (out, in) and the grid as it was in the end."""
        original, errors, A, perm = columns.original, columns.errors, columns.A, columns.perm
        n_in, size, masked = len(perm), fitted.group_size, fitted.mask_size
        block = size if regroup and self.groups == "dynamic" else self.block
        codes = []
        wanted, missed = (rows[:, :, None].unbind(0) for rows in (original, errors))  # columns (out, 1)
        for start in range(0, n_in, block):
            stop = min(start + block, n_in)
            push = A[:start, start:stop].T @ errors[:start]
            current = original[start:stop] + push
            now = current[:, :, None].unbind(0)
            for first in range(start, stop, _INNER):
                last = min(first + _INNER, stop)
                current[first - start : last - start] += A[start:first, first:last].T @ errors[start:first]
                for j in range(first, last):
                    if j > first:
                        current[j - start].addmv_(errors[first:j].T, A[first:j, j])
                    if regroup and j % size == 0:
                        known = start if self.groups == "stale" else j
                        fitted = _refit(fitted, columns, j, known, start, push)
                    if masked and j % masked == 0:
                        _mark(fitted, columns, j, first, last, current[j - start : last - start])
                    column = slice(j, j + 1) if self.order == "given" else perm[j : j + 1]
                    x = now[j - start] if j or columns.first is None else columns.first[:, None]
                    code, value = pick.pick(x, fitted, column, generator)
                    codes.append(code[:, 0])
                    torch.sub(wanted[j], value, out=missed[j])
        back = torch.empty_like(perm)
        back[perm] = torch.arange(n_in)
        return torch.stack(codes)[back].transpose(0, 1).contiguous(), fitted

    def _sweep_blocks(self, columns: "Ordered", fitted: Fitted, generator: torch.Generator) -> torch.Tensor:
        """Round block after block of columns; returns codes."""
        original, errors, A, perm = columns.original, columns.errors, columns.A, columns.perm
        codes = []
        for together in _batches(columns.edges, self.block):
            start, stop = together[0][0], together[-1][1]
            current = original[start:stop] + A[:start, start:stop].T @ errors[:start]
            for first, last in together:
                x = current[first - start : last - start] + A[start:first, first:last].T @ errors[start:first]
                where = int(perm[first])
                code, values = self.pick.pick(x.T, fitted, slice(where, where + last - first), generator)
                errors[first:last] = original[first:last] - values.T
                codes.append(code)
        return torch.cat(codes if self.order == "given" else codes[::-1], 1)


@dataclass(frozen=True, slots=True)
class Ordered:
    """A matrix with its columns as rows, in the order in which they are rounded: row j is `perm[j]` of `W`.

    `A` (in, in) is R with columns scaled to a unit diagonal, `pivots` (in,), or, where `width` columns are coded
    together, R blockdiag(R_kk)^-1. Row j of `errors` is column j of W - Q once it is rounded. `first` (out,) is what
    the first column is rounded from, where it is not its value (Qronos).
    """

    original: torch.Tensor
    errors: torch.Tensor
    A: torch.Tensor
    pivots: torch.Tensor
    H: torch.Tensor
    perm: torch.Tensor
    first: torch.Tensor | None = None
    width: int = 1

    @classmethod
    def of(cls, W: torch.Tensor, H: torch.Tensor, R: torch.Tensor, perm: torch.Tensor, width: int = 1) -> "Ordered":
        """`W` (out, in) before its first column is rounded, R and `perm` as `factor` gives them."""
        original, pivots = W.T.contiguous()[perm], R.diagonal().clone()
        A = R.to(W.dtype)  # R itself where W is in float64, and not needed again
        if width == 1:
            A.div_(A.diagonal().clone())
        else:
            for first, last in _edges(perm, width):
                part, corner = R[:last, first:last], R[first:last, first:last].clone()
                A[:last, first:last] = torch.linalg.solve_triangular(corner, part, upper=True, left=False)
        return cls(original, torch.zeros_like(original), A, pivots, H, perm, width=width)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Where each block of columns that are coded together begins and ends, in order."""
        return _edges(self.perm, self.width)

    def pushed(self, known: int, first: int, last: int, push: torch.Tensor | None = None) -> torch.Tensor:
        """Columns `first` to `last` as rows, where the errors of those before `known` have pushed them.

        If nothing more were rounded, the columns from `known` on would have moved by D with
        D A_gg = (W - Q)_{<known} A_{<known,g}, g = known .. last. The right-hand side may be there already: `push`.
        """
        if push is None:
            push = self.A[:known, known:last].T @ self.errors[:known]
        return self.original[first:last] + self._spread(known, last, push)[first - known :]

    def pushed_within(self, j: int, first: int, last: int, current: torch.Tensor) -> torch.Tensor:
        """Columns `j` to `last` as rows, pushed by the errors of all before j.

        `current` holds them with the pushes of columns before `first`, its first row with those of all before j.
        """
        push = current - self.original[j:last]
        push[1:] += self.A[first:j, j + 1 : last].T @ self.errors[first:j]
        return self.original[j:last] + self._spread(j, last, push)

    def _spread(self, known: int, last: int, push: torch.Tensor) -> torch.Tensor:
        unit = self.A[known:last, known:last].T
        return torch.linalg.solve_triangular(unit, push, upper=False, unitriangular=True)


def _refit(fitted: Fitted, columns: Ordered, j: int, known: int, start: int, push: torch.Tensor) -> Fitted:
    """The group that begins with column `j` fitted anew, pushed by the columns before `known`.

    Where masks are still to be chosen, the values it is fitted to are those that would be kept if all were chosen now.
    """
    size, masked = fitted.group_size, fitted.mask_size
    whole = -(-(j + size) // masked) * masked if masked else j + size  # to the end of the last set
    whole = min(whole, len(columns.perm))
    ready = known == start and whole <= start + len(push)  # `push` is that of the block's beginning, as far as it goes
    moved = columns.pushed(known, j, whole, push[: whole - known] if ready else None)
    if masked:
        set_at = -(-j // masked) * masked
        cast(Masked, fitted).mark(moved[set_at - j :].T, set_at, columns.pivots[set_at:whole])
    return fitted.refit(moved[:size].T, j // size, columns.perm[j : j + size], columns.H)


def _mark(fitted: Fitted, columns: Ordered, j: int, first: int, last: int, current: torch.Tensor) -> None:
    """Choose what is kept of the set of columns that begins with `j`, as its values are now."""
    end = min(j + fitted.mask_size, len(columns.perm))
    if end <= last:
        moved = columns.pushed_within(j, first, end, current[: end - j])
    else:  # the set goes beyond the columns at hand
        moved = columns.pushed(j, j, end)
    cast(Masked, fitted).mark(moved.T, j, columns.pivots[j:end])


def _edges(perm: torch.Tensor, width: int) -> list[tuple[int, int]]:
    """The beginning and end of each block in an order that keeps blocks whole: a short one is the matrix's last."""
    short = len(perm) % width if perm[0] != 0 else 0
    starts = [*([0] if short else []), *range(short, len(perm), width)]
    return list(pairwise([*starts, len(perm)]))


def _batches(edges: list[tuple[int, int]], block: int) -> list[list[tuple[int, int]]]:
    """Consecutive blocks of columns, in lists of about `block` columns."""
    size = max(1, block // max(last - first for first, last in edges))
    return [edges[i : i + size] for i in range(0, len(edges), size)]


def checked(H: torch.Tensor | None, n_in: int) -> torch.Tensor:
    """`H`, or a `ValueError` where there is none or its shape is wrong."""
    if H is None or H.shape != (n_in, n_in):
        found = "none" if H is None else f"shape {tuple(H.shape)}"
        raise ValueError(f"error feedback needs the Gram matrix H of shape {(n_in, n_in)}, found {found}")
    return H


def factor(
    H: torch.Tensor, order: Order, damping: float, width: int = 1
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """R upper triangular and perm with (H + lambda I)[perm][:, perm] = R R^T, float64, and what was not as asked.

    lambda = `damping` times the mean diagonal. "reversed" keeps blocks of `width` columns as they are. Raises
    `ValueError` where no damping up to 10 makes H factorable.
    """
    H = H.double()
    fallbacks: list[str] = []
    dead = int((H.diagonal() == 0).sum())
    if dead:
        fallbacks.append(f"{dead} dead input channels: rounded without feedback")
    mean = float(H.diagonal().mean()) or 1.0
    used = damping
    while True:
        perm = _order(H, order, used * mean, width)
        back = perm.flip(0)
        turned = H.flip(0, 1) if order == "given" else H[back[:, None], back]
        turned.diagonal().add_(used * mean)
        R, failed = torch.linalg.cholesky_ex(turned)
        if not failed and bool(torch.isfinite(R.diagonal()).all()):
            break
        used = max(used * 10, 1e-4)
        if used > _LARGEST_DAMPING:
            raise ValueError(f"the Gram matrix cannot be factored with damping up to {_LARGEST_DAMPING:g}")
    if used != damping:
        fallbacks.append(f"damping raised from {damping:g} to {used:g}")
    return R.flip(0, 1), perm, tuple(fallbacks)


def _order(H: torch.Tensor, order: Order, damping: float, width: int) -> torch.Tensor:
    if order == "given":
        return torch.arange(len(H))
    if order == "reversed":
        return torch.cat(torch.arange(len(H)).split(width)[::-1])
    if order == "decreasing":
        return torch.argsort(H.diagonal(), descending=True, stable=True)
    S, perm = H.clone(), torch.empty(len(H), dtype=torch.int64)
    S.diagonal().add_(damping)
    left = S.diagonal().clone()
    for place in range(len(H) - 1, -1, -1):  # the last column's pivot is its own diagonal, so choose from the end
        i = int(left.argmin())
        perm[place] = i
        column = S[:, i] / left[i].clamp(min=torch.finfo(S.dtype).tiny).sqrt()
        S.addr_(column, column, alpha=-1)
        left = torch.minimum(S.diagonal(), left)  # rounding never raises a pivot
        left[perm[place:]] = torch.inf
    return perm
