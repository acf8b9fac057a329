"""Rate-aware rounding: every value takes the code that is best for its error and its length together, at a given rate.

Minimized is tr (W - Q) H (W - Q)^T + multiplier * bits, where a code's length follows from how often it occurs.
Without error feedback H is the identity: entropy-constrained scalar quantization (Chou, Lookabaugh, Gray 1989,
Entropy-constrained vector quantization, IEEE Transactions on Acoustics, Speech, and Signal Processing 37). With it,
column j takes the code of least R_jj^2 (x - level)^2 + multiplier * bits in the sweep of `Feedback`, H + lambda I =
R R^T. That is greedy: it sees what a code costs now, not what its error will cost the columns to come in bits. CERWU
(Conzel, Bamler 2025, arXiv:2505.18758) puts the part of the rate that is quadratic into the norm, where error feedback
solves it exactly. For codes that are Gaussian of variance v, in units of the values, a value q takes q^2 / (2 ln 2 v)
bits and a constant; so with c = multiplier / (2 ln 2 v), H' = H + lambda I + c I and W' = W (H + lambda I) H'^-1

    tr (W - Q)(H + lambda I)(W - Q)^T + c |Q|^2 = tr (W' - Q) H' (W' - Q)^T + a constant       (exact: `ridged`),

and a code costs R'_jj^2 (x' - level)^2 + multiplier * bits - c level^2 in the sweep of W' under H'. The released code
has c = multiplier / (ln 2 v), and half the error: the same.

Two things are unknown, the step and the multiplier, and one is asked for, the rate. At high rates the error falls by
(ln 2 / 6) mean_j R_jj^2 s_j^2 for each bit more, s_j being steps, and `weight` is the multiplier in these units: the
slope of the curve that one moves along by the step alone. What is left is searched: from sweep to sweep the step is
moved to where the rate should be met, lengths, offsets and c are taken from the codes of the sweep before, and of
those sweeps that kept the rate the one of the least error is returned.

Why weight 1: the rate saved at the same error in H, against weight 0, in thousandths of a bit, really coded; means of
eight layers of the reference model that differ in shape and in how far their pivots are apart. Measured when the
search still moved offsets and step together.

    weight                            1/4   1/2     1   3/2     2
    2 bits, even steps, no ridge        4     2   -28
            even steps, ridge                39    44    36    27
            steps by pivots, ridge           36    39    31    12
    3 bits, even steps, no ridge        2     2    -5
            even steps, ridge                 7    11     9     3
            steps by pivots, ridge            9     9     7    -1
    4 bits, even steps, no ridge        1     1     2
            even steps, ridge                 2     2     2     4
            steps by pivots, ridge            4     4     2    -2

Steps by pivots alone save 180, 222 and 229 there. Where pivots are farthest apart, in the first block's gate, even
steps save up to 0.2 bits more at weights of 8 and above, which make large steps of small ones for the channels that
matter little; steps by pivots save 0.8.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch

from suite.grids.grid import Fitted, Grid
from suite.grids.layout import ALL, Columns
from suite.grids.steps import FittedSteps, Steps
from suite.rounding.elementwise import Picked, Rounded
from suite.rounding.feedback import Feedback, Ordered, checked, factor
from suite.statistics import quadratic

_LEAST_SWEEPS = 4  # before the first is good enough: lengths and offsets come from the codes of the one before
_SLACK = 0.002  # of the rate: how much may be left of it
_OCTAVES = 2  # how far the search goes from the step that nearest rounding has at the same rate


@dataclass(frozen=True, slots=True, kw_only=True)
class RateAware:
    """Codes by error and length on `Steps`, at most as many bits as the grid asks for, in at most `sweeps` sweeps.

    `weight` is the multiplier relative to the slope at high rates; 0 looks at the error alone, but keeps the rate.
    `ridge` puts the quadratic part of the rate into the norm (CERWU); it needs `feedback`, and changes nothing
    without. `feedback` picks nearest: its `pick` is replaced.
    """

    weight: float = 1.0
    feedback: Feedback | None = None
    ridge: bool = True
    sweeps: int = 16

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.sweeps >= _LEAST_SWEEPS):
            raise ValueError(f"weight {self.weight!r}, sweeps {self.sweeps!r}: expected >= 0 and >= {_LEAST_SWEEPS}")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in); with feedback given `H` (in, in), and `ValueError` without it."""
        if not isinstance(grid, Steps):
            raise ValueError(f"rate-aware rounding searches the step of Steps, the grid is {grid}")
        norm = None if self.feedback is None else Norm.of(checked(H, W.shape[1]), self.feedback)
        fitted = grid.fit(W, H)
        fitted, codes = fitted.widened(fitted.nearest(W), fitted.width + _OCTAVES)
        total = max(grid.bits * W.numel(), fitted.coded_bits(codes))
        first, points, best = math.log2(float(fitted.step)), [], ((math.inf, math.inf), (codes, fitted))
        offset = fitted.offset
        sweep = Sweep(W=W, norm=norm, weight=self.weight, ridge=self.ridge, generator=generator)
        for i in range(self.sweeps):
            codes, fitted = sweep(fitted, codes)
            spent = fitted.coded_bits(codes)
            points.append((math.log2(float(fitted.step)), spent / W.numel()))
            worth = max(0.0, spent - total), sweep.error(fitted, codes)
            best = min(best, (worth, (codes, fitted)), key=lambda one: one[0])
            if i + 1 >= _LEAST_SWEEPS and (1 - _SLACK) * total <= spent <= total:
                break
            if i + 1 < _LEAST_SWEEPS:  # offsets that went on would take back what the step has gained
                offset = fitted.offset
            wanted = _step(points, (1 - _SLACK / 2) * total / W.numel())
            wanted = min(first + _OCTAVES, max(first - _OCTAVES, wanted))
            fitted = replace(fitted, offset=offset).with_step(2.0**wanted)
        (over, _), (codes, fitted) = best
        fallbacks = norm.fallbacks if norm else ()
        if over:
            rate = (total + over) / W.numel()
            fallbacks = (*fallbacks, f"coded at {rate:.4f} bits per weight instead of {grid.bits:g}")
        fitted, codes = fitted.widened(codes)
        return Rounded(codes, fitted, fallbacks)


@dataclass(frozen=True, slots=True)
class Norm:
    """H + lambda I, its factor in the order of the feedback, and what did not go as asked."""

    H: torch.Tensor
    R: torch.Tensor
    perm: torch.Tensor
    feedback: Feedback
    fallbacks: tuple[str, ...]

    @classmethod
    def of(cls, H: torch.Tensor, feedback: Feedback) -> "Norm":
        """The norm that error feedback minimizes the error in."""
        R, perm, fallbacks = factor(H, feedback.order, feedback.damping)
        back = torch.argsort(perm)
        return cls((R @ R.T)[back[:, None], back], R, perm, feedback, fallbacks)

    def ordered(self, W: torch.Tensor, ridge: torch.Tensor | None) -> tuple[Ordered, torch.Tensor]:
        """What to sweep over, and R_jj^2 by input channel: under the norm itself, or with a `ridge` (in,)."""
        R = self.R
        if ridge is not None:
            W, H = ridged(W, self.H, ridge)
            R, _, _ = factor(H[self.perm[:, None], self.perm], "given", 0.0)
        pivots = torch.empty_like(R.diagonal())
        pivots[self.perm] = R.diagonal().square()
        return Ordered.of(W, self.H, R, self.perm), pivots


def ridged(W: torch.Tensor, H: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W' (out, in) = W H H'^-1 and H' = H + diag(c), for positive definite `H` (in, in), float64, and `c` (in,) >= 0.

    For every Q: tr (Q - W) H (Q - W)^T + tr Q diag(c) Q^T = tr (Q - W') H' (Q - W')^T + a constant.
    """
    wide = H + torch.diag(c)
    pulled = torch.cholesky_solve((W.double() * c).T, torch.linalg.cholesky(wide)).T
    return (W.double() - pulled).to(W.dtype), wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One look at every value of `W`, with lengths and variances of the codes of the sweep before."""

    W: torch.Tensor
    norm: Norm | None
    weight: float
    ridge: bool
    generator: torch.Generator

    def __call__(self, fitted: FittedSteps, codes: torch.Tensor) -> tuple[torch.Tensor, FittedSteps]:
        """New codes on `fitted`, and it with the offsets that are best for them."""
        if self.norm is None:
            pivots = torch.ones(self.W.shape[1], dtype=torch.float64)
        else:
            columns, pivots = self.norm.ordered(self.W, None)
        multiplier = self.weight * math.log(2) / 6 * float((pivots * fitted.steps.double() ** 2).mean())
        ridge = torch.zeros_like(pivots)
        if self.norm is not None and self.ridge and multiplier > 0:
            ridge = multiplier / (2 * math.log(2) * _variances(fitted, codes))[fitted.class_of]
            columns, pivots = self.norm.ordered(self.W, ridge)
        pick = ByRate(multiplier, fitted.lengths(codes), pivots, ridge)
        if self.norm is None:
            codes, _ = pick.pick(self.W, fitted, ALL, self.generator)
            return codes, fitted.centered(self.W, codes)
        codes, _ = self.norm.feedback.sweep(columns, fitted, pick, self.generator)
        return codes, fitted.centered(self.W, codes, self.norm.H)

    def error(self, fitted: FittedSteps, codes: torch.Tensor) -> float:
        """The squared error in the norm."""
        E = self.W - fitted.decode(codes)
        return float(E.double().square().sum()) if self.norm is None else quadratic(E, self.norm.H)


@dataclass(frozen=True, slots=True)
class ByRate:
    """The code of least pivot (x - level)^2 + multiplier * bits - ridge level^2; nearest where nothing is added.

    `bits` (classes, codes) are the codes' lengths, `pivots` and `ridge` (in,) go with the input channel. Several
    columns at once are of one class, of one pivot and without a ridge.
    """

    multiplier: float
    bits: torch.Tensor
    pivots: torch.Tensor
    ridge: torch.Tensor

    def pick(self, x: torch.Tensor, grid: Fitted, columns: Columns, generator: torch.Generator) -> Picked:
        """Codes and values (out, k) for `x` (out, k), the values of `columns`; draws nothing."""
        if self.multiplier == 0:
            return grid.snap(x, columns)
        grid = cast(FittedSteps, grid)
        j = int(torch.arange(grid.shape[1])[columns][0])
        c = int(grid.class_of[j])
        values = grid.levels[c].double() * float(grid.steps[j])
        cost = (self.multiplier * self.bits[c] - self.ridge[j] * values**2) / self.pivots[j]
        codes = grid.nearest(x, columns, cost)
        return codes, grid.decode(codes, columns)


def _variances(fitted: FittedSteps, codes: torch.Tensor) -> torch.Tensor:
    """The mean square (classes,) of the values of each class, at least one in a thousand at the first level."""
    squares = fitted.decode(codes).double().square().mean(0)
    least = 1e-3 * fitted.steps.double() ** 2
    count = torch.bincount(fitted.class_of).double()
    return torch.zeros_like(count).index_add_(0, fitted.class_of, torch.maximum(squares, least)) / count


def _step(points: list[tuple[float, float]], rate: float) -> float:
    """The log2 of the step at which the line through the last two points, log2 steps and rates, meets `rate`.

    A step twice as large takes a bit less at high rates; slopes are kept between three quarters of a bit and two.
    """
    (step, there), slope = points[-1], -1.0
    if len(points) > 1 and points[-2][0] != step:
        slope = (there - points[-2][1]) / (step - points[-2][0])
    return step + (rate - there) / min(-0.75, max(-2.0, slope))
