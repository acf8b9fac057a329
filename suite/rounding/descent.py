"""Coordinate descent: after error feedback, round block after block again, given how all the others were rounded.

QuIP#'s "tuning" (Tseng, Chee, Sun, Kuleshov, De Sa 2024, arXiv:2402.04396; in the release, `quip_tune_iters`). With
E = W - Q and all columns but those of block k fixed, tr E (H + lambda I) E^T is least, over real numbers, at

    Q_k + E (H + lambda I)_{:,k} (H + lambda I)_kk^-1.

The release puts there the nearest point of the grid, which is nearest in the Euclidean norm: for a single column that
is the best code, for a block it need not even be a better one than before, since H_kk is no multiple of I. With
`monotone` a code is replaced only where the error becomes smaller by it, so that no sweep can raise it.

Error feedback rounds a column once, before it knows how those to come will be rounded; a sweep knows all of them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from suite.grids.grid import Fitted, Grid
from suite.rounding.elementwise import Rounded
from suite.rounding.feedback import Feedback, Ordered, checked, factor

_TOGETHER = 128  # columns whose gradients are kept up to date one by one; any value is correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """`sweeps` over all blocks of columns, from the last to the first, after `start` has rounded them.

    `monotone`: keep a code where the new one does not lower the error in the norm of H + lambda I, lambda being what
    `start` has taken. Sweeps end where none has changed a code. Scales and masks stay as `start` leaves them.
    """

    start: Feedback = field(default_factory=lambda: Feedback(order="reversed"))
    sweeps: int = 10
    monotone: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.sweeps, int) and self.sweeps >= 0):
            raise ValueError(f"sweeps {self.sweeps!r}: expected a number from 0 on")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in) given `H` (in, in); `ValueError` without H or where H has the wrong shape."""
        H = checked(H, W.shape[1])
        width = grid.block[1]
        R, perm, fallbacks = factor(H, self.start.order, self.start.damping, width)
        ridge = float(R.square().sum(1).mean() - H.double().diagonal().mean())  # R R^T has the diagonal of H + lambda I
        codes, fitted = self.start.place(Ordered.of(W, H, R, perm, width), grid.fit(W, H), generator)
        blocks = _Blocks.of(W, H.double() + ridge * torch.eye(len(H), dtype=torch.float64), codes, fitted)
        for _ in range(self.sweeps):
            if not blocks.sweep(self.monotone):
                break
        return Rounded(blocks.codes, fitted, fallbacks)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks of columns of `W` (out, in) on a fitted grid, their `codes` and E = W - Q: both change in place.

    `H` (in, in) is in the type of W, and so are the inverses of its diagonal blocks.
    """

    W: torch.Tensor
    E: torch.Tensor
    H: torch.Tensor
    inverses: list[torch.Tensor]
    codes: torch.Tensor
    fitted: Fitted

    @classmethod
    def of(cls, W: torch.Tensor, H: torch.Tensor, codes: torch.Tensor, fitted: Fitted) -> "_Blocks":
        width, n_in = fitted.grid.block[1], len(H)
        inverses = [torch.linalg.inv(H[a : a + width, a : a + width]).to(W.dtype) for a in range(0, n_in, width)]
        return cls(W, W - fitted.decode(codes), H.to(W.dtype), inverses, codes.clone(), fitted)

    def sweep(self, monotone: bool) -> bool:
        """Round all blocks again, from the last to the first; whether a code has changed."""
        width, n_in = self.fitted.grid.block[1], len(self.H)
        together, changed = width * max(1, _TOGETHER // width), False
        for start in reversed(range(0, n_in, together)):
            stop = min(start + together, n_in)
            gradient = self.E @ self.H[:, start:stop]
            for first in reversed(range(start, stop, width)):
                last = min(first + width, stop)
                step = self._round(first, last, gradient[:, first - start : last - start], monotone)
                gradient -= step @ self.H[first:last, start:stop]
                changed |= bool(step.any())
        return changed

    def _round(self, first: int, last: int, gradient: torch.Tensor, monotone: bool) -> torch.Tensor:
        """Round columns `first` to `last` again, and return by how much their values (out, k) have moved."""
        k = first // self.fitted.grid.block[1]
        values = self.W[:, first:last] - self.E[:, first:last]
        code, there = self.fitted.snap(values + gradient @ self.inverses[k], slice(first, last))
        step, old, rows = there - values, self.codes[:, k : k + 1], self.fitted.grid.block[0]
        moved = (code != old).flatten(1).any(1)
        if monotone:
            rise = (step * (step @ self.H[first:last, first:last] - 2 * gradient)).sum(1)
            moved &= _of_codes(rise, rows) < 0
        self.codes[:, k : k + 1] = torch.where(moved.reshape(-1, *[1] * (code.ndim - 1)), code, old)
        step = torch.where(moved.repeat_interleave(rows)[: len(step), None], step, 0)
        self.E[:, first:last] -= step
        return step


def _of_codes(rise: torch.Tensor, rows: int) -> torch.Tensor:
    """What rows (out,) add up to for each code (ceil(out / rows),) of a block."""
    return F.pad(rise, (0, -len(rise) % rows)).reshape(-1, rows).sum(1)
