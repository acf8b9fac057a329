"""What bounds are tried on: Gram matrices of known spectrum, kind and unkind weights, and the suite's own rounding.

Arrays are float64 of numpy; torch is imported when something is rounded.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from theory.bounds.pivots import Order


def power_law(n: int, exponent: float, rng: np.random.Generator, block: int | None = None) -> np.ndarray:
    """H (n, n) with eigenvalues k^-`exponent`, k = 1 .. n, in a random basis (Haar); of trace as n.

    With `block` < n only so many consecutive eigenvalues are mixed: channels then differ in energy as well.
    """
    spectrum = np.arange(1, n + 1) ** -exponent
    V = np.zeros((n, n))
    for a in range(0, n, block or n):
        b = min(a + (block or n), n)
        V[a:b, a:b] = haar(b - a, rng)
    H = (V * (spectrum * n / spectrum.sum())) @ V.T
    return (H + H.T) / 2


def haar(n: int, rng: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix (n, n), uniformly random: QR of a Gaussian one with the signs made unique."""
    basis, upper = np.linalg.qr(rng.standard_normal((n, n)))
    return basis * np.sign(np.diag(upper))


def dispersed(rows: int, n: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """W (rows, n), uniform over 64 steps: whatever is added to a weight, its place between two levels is uniform.

    Misses by nearest rounding are then independent, uniform over a step: closed forms are exact.
    """
    return step * rng.uniform(-32, 32, (rows, n))


def adversarial(n: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """W (8, n), which make rounding as bad as it gets in one way or another.

    Half-way between levels, just below it with one sign and with random ones, on levels, all alike, one large value
    among small ones, heavy tails, and nothing but zeros.
    """
    whole = rng.integers(-9, 10, n)
    rows = [whole + 0.5, whole + 0.49, whole + 0.49 * rng.choice([-1, 1], n), whole.astype(float), np.full(n, 0.4999),
            np.where(np.arange(n) == 0, 1000.0, 1e-3), rng.standard_t(1.5, n).clip(-1e3, 1e3), np.zeros(n)]  # fmt: skip
    return step * np.stack(rows)


def rounded(
    W: np.ndarray,
    H: np.ndarray | None,
    step: float,
    *,
    order: Order = "given",
    damping: float = 0.0,
    stochastic: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Q (out, in): `W` on the whole multiples of `step` (a float32 number), as the suite's own rounding puts it there.

    By `Feedback` for a Gram matrix `H` (in, in), else value by value; to nearest (ties to even) or stochastically.
    """
    from suite.rounding import Feedback, Nearest, Stochastic

    pick = Stochastic() if stochastic else Nearest()
    return rounded_by(pick if H is None else Feedback(order=order, damping=damping, pick=pick), W, step, H, seed=seed)


def rounded_by(rounding: Any, W: np.ndarray, step: float, *grams: np.ndarray | None, seed: int = 0) -> np.ndarray:
    """Q (out, in): the same by a rounding of the suite, with the Gram matrices that it takes."""
    codes, fitted = coded_by(rounding, W, Endless(step), *grams, seed=seed)
    return fitted.decode(codes).numpy()


def coded_by(
    rounding: Any, W: np.ndarray, grid: Any, *grams: np.ndarray | None, seed: int = 0
) -> tuple[Any, Any]:  # fmt: skip
    """Codes and fitted grid, of torch, by a rounding of the suite on any grid, with the Gram matrices that it takes."""
    import torch

    tensors = [None if gram is None else torch.from_numpy(np.array(gram, dtype=float)) for gram in grams]
    H, *cross = tensors or [None]
    wide, generator = torch.from_numpy(np.array(W, dtype=float)), torch.Generator().manual_seed(seed)
    found = rounding.round(wide, grid, H, generator, *cross)
    raised = [what for what in found.fallbacks if what.startswith("damping raised")]
    assert not raised, raised  # what is measured would not be what was asked for
    return found.codes, found.grid


@dataclass(frozen=True, slots=True)
class Endless:
    """A grid of the whole multiples of a known `step`; nothing is clipped below 32,767 of them.

    With `pivots`, steps are proportional to 1 / R_jj on the suite's ladder of quarter octaves, and `step` is their
    geometric mean; otherwise it has to be a float32 number.
    """

    step: float
    pivots: bool = False

    block = (1, 1)

    def fit(self, W: Any, importance: Any = None) -> Any:
        """The suite's `Steps` bound to a tensor `W` (out, in), at 16 bits; `importance` is H (in, in), for `pivots`."""
        from suite.grids.steps import Steps, ladder

        grid = Steps(bits=8.0, spacing="pivots" if self.pivots else "even", centers=1, classes=W.shape[1], damping=0.0)
        rung = ladder(importance, 0.0, W.shape[1]) if self.pivots else None
        smallest = self.step if rung is None else self.step * 2.0 ** -float(rung.double().mean() / 4)
        fitted = replace(grid.bind(W, smallest, rung), width=16)
        assert self.pivots or float(fitted.step) == self.step, self.step
        return fitted
