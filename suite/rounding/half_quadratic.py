"""Half-quadratic rounding: codes and zero points in turn, against a sparse error (HQQ).

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (blog; package `hqq` 0.2.8). The
l_p norm of the error, p < 1, is split as min_{z, E} |E|_p^p + beta/2 |W - Q(z) - E|^2: E by generalized shrinkage, z
by least squares for fixed codes. Scales never move. Needs no data. The best iterate is returned, so that the mean
absolute error never exceeds that of rounding to nearest. The released loop keeps beta constant, and returns the zero
points one step past the first that made things worse: `HalfQuadratic(growth=1.0, keep="last")`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from suite.grids.grid import Grid
from suite.grids.integer import Integer
from suite.rounding.elementwise import Rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfQuadratic:
    """`norm` is p; `beta` grows by `growth` at each of at most `iterations` steps (the package's constants)."""

    norm: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20
    keep: Literal["best", "last"] = "best"
    round_zero: bool = False  # start from whole zero points, as the package does on request

    def __post_init__(self) -> None:
        if not (self.norm > 0 and self.beta > 0 and self.growth > 0 and self.iterations >= 0):
            raise ValueError(f"{self}: expected a positive norm, beta and growth, and iterations >= 0")

    def round(self, W: torch.Tensor, grid: Grid, H: torch.Tensor | None, generator: torch.Generator) -> Rounded:
        """Codes for `W` (out, in); `H` is not read. `ValueError` unless the grid stores real zero points."""
        if not isinstance(grid, Integer) or grid.convention != "real-zero":
            raise ValueError(f"half-quadratic rounding moves the real zero points of integers, the grid is {grid}")
        fitted = grid.fit(W)
        if self.round_zero and fitted.zero is not None:
            fitted = replace(fitted, zero=fitted.zero.round())
        codes = fitted.nearest(W)
        best, least = Rounded(codes, fitted), _mean_error(W, fitted.decode(codes))
        beta, worse = self.beta, False
        for _ in range(self.iterations):
            residual = shrink(W - fitted.decode(codes), beta, self.norm)
            fitted = fitted.refit_zero(W - residual, codes)
            codes = fitted.nearest(W)
            if worse:  # the step that the release takes after it has seen that it should stop
                break
            error = _mean_error(W, fitted.decode(codes))
            worse = error >= least
            if worse and self.keep == "best":
                break
            if not worse:
                best, least, beta = Rounded(codes, fitted), error, beta * self.growth
        return best if self.keep == "best" else Rounded(codes, fitted)


def shrink(x: torch.Tensor, beta: float, norm: float) -> torch.Tensor:
    """Generalized soft threshold: sign(x) max(0, |x| - |x|^(p-1) / beta), 0 at 0."""
    size = x.abs()
    pulled = (size - size.clamp(min=torch.finfo(x.dtype).tiny).pow(norm - 1) / beta).clamp(min=0)
    return torch.copysign(pulled, x)


def _mean_error(W: torch.Tensor, Q: torch.Tensor) -> float:
    return float((W - Q).abs().double().mean())
