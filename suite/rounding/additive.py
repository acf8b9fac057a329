"""Additive codebooks: codes by beam search, codebooks and scales by descent, in turn, both in the H-norm (AQLM).

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh 2024, "Extreme Compression of Large Language Models via
Additive Quantization", arXiv:2401.06118, Alg. 1, from the residual k-means that `Codebooks` starts with. The release
(Vahe1994/AQLM) takes 100 steps of Adam at a rate of 1e-4 with betas (0, 0.95) and AMSGrad, one beam search, and again,
until a round has lowered the loss by less than a hundredth; it ends on a beam search.

Given its codes a matrix is linear in the codebooks, and each row in its scale, so that descent has an end that can be
had: `update="least-squares"` solves for the codebooks by conjugate gradients, preconditioned by the block of the normal
equations that belongs to each entry, and then for the scales, one division a row.

What a beam search sees are the parameters as they will be stored. Parameters that would raise the loss are not taken,
so that no step raises it, and the codes that are returned are those that the last search chose for the parameters that
are returned.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from suite.grids.codebooks import Codebooks, FittedCodebooks
from suite.grids.grid import Grid
from suite.grids.layout import check_finite
from suite.rounding.beam_search import beam_search, decoded, row_losses
from suite.rounding.elementwise import Rounded

_BETAS = (0.0, 0.95)  # aq_engine.py of the release; with AMSGrad
_RIDGE = 1e-3  # of an entry's own mean diagonal: keeps its block invertible where few groups use it
_TOGETHER = 1 << 22  # weights of entries in groups held at once: bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Additive:
    """At most `rounds` of an `update` and `sweeps` beam searches that hold `beam` combinations.

    They end when a round lowers the loss by less than `tolerance` of itself. "adam" takes `steps` at `rate`, its
    moments kept from round to round; "least-squares" as many steps of conjugate gradients. `damping` times the mean
    diagonal is added to H.
    """

    beam: int = 1
    update: Literal["adam", "least-squares"] = "adam"
    steps: int = 100
    rate: float = 1e-4
    tolerance: float = 0.01
    rounds: int = 1000
    sweeps: int = 1
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.update not in ("adam", "least-squares"):
            raise ValueError(f"update {self.update!r}: expected adam or least-squares")
        if min(self.beam, self.steps, self.rounds, self.sweeps) < 1 or not self.rate > 0:
            raise ValueError(f"{self}: expected a beam, steps, rounds and sweeps of at least 1, and a positive rate")
        if not (0 <= self.tolerance < 1 and self.damping >= 0):
            raise ValueError(f"tolerance {self.tolerance!r}, damping {self.damping!r}: expected 0 to 1, and >= 0")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in) given `H` (in, in), on `Codebooks` of inputs; else, and without H, `ValueError`."""
        if not isinstance(grid, Codebooks) or grid.axis != 1:
            raise ValueError(f"beam search takes codebooks of consecutive inputs, the grid is {grid}")
        if H is None or H.shape != (W.shape[1],) * 2:
            found = "none" if H is None else f"shape {tuple(H.shape)}"
            raise ValueError(f"beam search needs the Gram matrix H of shape {(W.shape[1],) * 2}, found {found}")
        check_finite(H)
        H = H.double()
        if self.damping:
            H = H + self.damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
        fitted = grid.fit(W, H)
        problem = Problem.of(W, H, fitted)
        state = problem.start(fitted.nearest(W))
        update = Descent(self) if self.update == "adam" else Solution(self.steps)
        for _ in range(self.rounds):
            before = state.loss
            state = problem.moved(state, update(problem, state))
            for _ in range(self.sweeps):
                state = problem.searched(state, self.beam, generator)
            if not state.loss < (1 - self.tolerance) * before:
                break
        return Rounded(state.codes.to(fitted.code_type), state.fitted)


@dataclass(frozen=True, slots=True)
class State:
    """A fitted grid with its parameters as stored, in the type of the matrix; codes (out, C, M), int32; their loss."""

    fitted: FittedCodebooks
    codes: torch.Tensor
    loss: float

    @property
    def scale(self) -> torch.Tensor:
        """The scale (out,) of every row; 1 where the grid has none."""
        scale = self.fitted.scale
        return self.fitted.codebooks.new_ones(self.fitted.shape[0]) if scale is None else scale[:, 0]


@dataclass(frozen=True, slots=True)
class Problem:
    """tr (W - Q) H (W - Q)^T for `W` (out, n) and `H` (n, n), float64, filled up with zeros to whole groups of inputs.

    `near` is H in the type of `W`; `fitted` the grid as it was fitted.
    """

    W: torch.Tensor
    H: torch.Tensor
    near: torch.Tensor
    fitted: FittedCodebooks

    @classmethod
    def of(cls, W: torch.Tensor, H: torch.Tensor, fitted: FittedCodebooks) -> "Problem":
        """For a grid fitted to `W` (out, in)."""
        short = -W.shape[1] % fitted.grid.length
        H = F.pad(H, (0, short, 0, short))
        return cls(F.pad(W, (0, short)), H, H.to(W.dtype), fitted)

    def start(self, codes: torch.Tensor) -> State:
        """The grid's parameters as they are stored, with `codes`."""
        return self._state(self.fitted, codes.to(torch.int32))

    def moved(self, state: State, values: dict[str, torch.Tensor]) -> State:
        """The same codes with new parameters, as they are stored, if that lowers the loss."""
        new = self._state(self.fitted.tuned(values), state.codes)
        return new if new.loss < state.loss else state

    def searched(self, state: State, beam: int, generator: torch.Generator) -> State:
        """The same parameters with the codes that a beam search finds."""
        books = state.fitted.codebooks
        found = beam_search(self.W, self.H, books, state.codes, state.scale, beam, generator)
        return State(state.fitted, found.codes, float(found.loss.sum()))

    def _state(self, fitted: FittedCodebooks, codes: torch.Tensor) -> State:
        stored = fitted.rounded()
        stored = stored.tuned({name: value.to(self.W.dtype) for name, value in stored.tunable().items()})
        state = State(stored, codes, 0.0)
        E = self.W.double() - decoded(stored.codebooks.double(), codes, state.scale.double())
        return replace(state, loss=float(row_losses(E, self.H).sum()))


class Sums:
    """The sums of the entries that fixed `codes` (out, C, M) name: a linear map of codebooks, and its transpose."""

    def __init__(self, codes: torch.Tensor, n_codes: int):
        self._codes, self._n_codes = codes, n_codes
        self.index = codes.to(torch.int64).permute(2, 0, 1).reshape(codes.shape[2], -1)

    def __call__(self, codebooks: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Values (out, C g) for codebooks (M, K, g) and the scale (out,) of every row."""
        return decoded(codebooks, self._codes, scale)

    def collected(self, V: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What `V` (out, C g), times `scale` (out,), adds up to at every entry: (M, K, g)."""
        parts = (V * scale[:, None]).reshape(self.index.shape[1], -1)
        blank = parts.new_zeros(self._n_codes, parts.shape[1])
        return torch.stack([blank.index_add(0, index, parts) for index in self.index])


class Descent:
    """Steps of Adam on codebooks and scales; the moments go on from call to call."""

    def __init__(self, how: Additive):
        self._how, self._values = how, dict[str, torch.Tensor]()

    def __call__(self, problem: Problem, state: State) -> dict[str, torch.Tensor]:
        """The parameters, unrounded, after so many more steps for the codes of `state`."""
        if not self._values:
            self._values = {name: value.clone() for name, value in state.fitted.tunable().items()}
            self._adam = torch.optim.Adam(self._values.values(), self._how.rate, betas=_BETAS, amsgrad=True)
        values, sums = self._values, Sums(state.codes, state.fitted.n_codes)
        ones = torch.ones_like(state.scale)
        for _ in range(self._how.steps):
            scale = values["scale"][:, 0] if "scale" in values else ones
            total = sums(values["codebooks"], ones)
            slope = (total * scale[:, None] - problem.W) @ problem.near * (2 / len(problem.W))  # the release's mean
            values["codebooks"].grad = sums.collected(slope, scale)
            if "scale" in values:
                values["scale"].grad = (slope * total).sum(1, keepdim=True)
            self._adam.step()
        return {name: value.clone() for name, value in values.items()}


class Solution:
    """Codebooks that are best for codes and scales, then scales that are best for codes and codebooks."""

    def __init__(self, steps: int):
        self._steps = steps

    def __call__(self, problem: Problem, state: State) -> dict[str, torch.Tensor]:
        """The parameters, unrounded, for the codes of `state`, from those that it has."""
        sums, scale = Sums(state.codes, state.fitted.n_codes), state.scale
        books = self._codebooks(problem, sums, state.fitted.codebooks, scale)
        if state.fitted.scale is None:
            return {"codebooks": books}
        total = sums(books, torch.ones_like(scale))
        weighted = total @ problem.near
        energy, moment = (weighted * total).sum(1), (weighted * problem.W).sum(1)
        best = torch.where(energy > 0, moment / energy, scale)
        return {"codebooks": books, "scale": best[:, None]}

    def _codebooks(self, problem: Problem, sums: Sums, books: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Preconditioned conjugate gradients (Hestenes, Stiefel 1952) on the normal equations.

        What is added to one codebook and taken from another changes nothing, so that the equations are singular: steps
        end where the residual is rounding errors, which would be followed out of sight.
        """
        inverse = _preconditioner(problem, sums, scale, books.shape[1])
        left = sums.collected((problem.W - sums(books, scale)) @ problem.near, scale)
        towards = ahead = (left[:, :, None] @ inverse)[:, :, 0]
        size = (left * ahead).sum()
        least = torch.finfo(books.dtype).eps * size  # of squares: the loss is then as good as its sums are
        for _ in range(self._steps):
            pushed = sums.collected(sums(towards, scale) @ problem.near, scale)
            curvature = (towards * pushed).sum()
            if not (size > least and curvature > 0):
                break
            books, left = books + size / curvature * towards, left - size / curvature * pushed
            ahead = (left[:, :, None] @ inverse)[:, :, 0]
            size, last = (left * ahead).sum(), size
            towards = ahead + size / last * towards
        return books


def _preconditioner(problem: Problem, sums: Sums, scale: torch.Tensor, n_codes: int) -> torch.Tensor:
    """The inverses (M, K, g, g) of sum s^2 H_ii over the groups i that name an entry, a ridge added."""
    g = problem.fitted.grid.length
    blocks = torch.stack([problem.near[a : a + g, a : a + g] for a in range(0, len(problem.near), g)])
    found = []
    for index in sums.index:
        normal = torch.zeros(n_codes, g, g, dtype=torch.float64)
        named, step = index.reshape(len(scale), -1), max(1, _TOGETHER // n_codes)
        for part, there in zip(named.split(step, dim=1), blocks.split(step), strict=True):
            place = part * len(there) + torch.arange(len(there))
            energy = scale.square()[:, None].expand(place.shape).reshape(-1)
            weight = energy.new_zeros(n_codes * len(there)).index_add_(0, place.reshape(-1), energy)
            normal += torch.tensordot(weight.reshape(n_codes, -1), there, 1)
        mean = normal.diagonal(dim1=1, dim2=2).mean(1)
        ridge = torch.where(mean > 0, _RIDGE * mean, 1.0)
        normal.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        found.append(torch.linalg.inv(normal).to(scale.dtype))
    return torch.stack(found)
