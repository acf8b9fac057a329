r"""Incoherence bounds the pivots by the spectrum; and error feedback is the best feedback, until weights are clipped.

Chee, Cai, Kuleshov, De Sa 2023, "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", arXiv:2307.13304.
H = V diag(l) V^T is mu-incoherent if |V_jk| <= mu / sqrt(N) for all j, k. Their lemma, proved in our words: the pivots
of H in any order have

    sum_j d_j <= (mu^2 / N) (tr H^(1/2))^2.

Let S = H^(1/2). From S S = R R^T it follows that R = S B with an orthogonal B, so that sqrt(d_j) = R_jj = (S B)_jj.
With D = diag(d), multiplying by sqrt(d_j) and summing,

    sum_j d_j = tr(S B D^(1/2)) = sum_k l_k^(1/2) (B^T v_k)^T (D^(1/2) v_k) <= sum_k l_k^(1/2) |D^(1/2) v_k|

by Cauchy and Schwarz for each eigenvector v_k, as |B^T v_k| = 1; and |D^(1/2) v_k|^2 = sum_j d_j V_jk^2 is at most
(mu^2 / N) sum_j d_j. Divide by sqrt(sum_j d_j).

**Optimality.** Feedback by any strictly upper triangular A rounds w + (w - q) A and misses by e = (w - q)(I + A), so
that over dispersed weights the error is (s^2 / 12) tr (I + A)^-1 H (I + A)^-T. For unit triangular L = (I + A)^-1 R_1,
where R = R_1 diag(R_jj), that trace is sum_jk L_jk^2 d_k >= sum_j d_j, and L = I has equality: A = R_1 - I is the best
there is, in the mean and for the worst weights (e may be s/2 everywhere, with any signs). None of this survives
clipping, where e depends on how far the feedback pushes: `bad_case`, after their appendix, is one where nearest
rounding wins by a factor that grows with N, and `CLIPPED` counts how often it wins among random ones.

Imports no torch.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from theory.bounds.instances import haar, rounded
from theory.bounds.pivots import Order, factored
from theory.bounds.zhang_2025_optq import error_rows
from theory.experiment import Experiment, Point, Setting

_N, _STEP = 64, 0.25
_EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_BITS = (2, 3, 4, 5, 6, 8)


def incoherence(H: np.ndarray) -> float:
    """How coherent: mu = sqrt(N) max |V_jk| over eigenvectors of `H` (in, in): from 1 to sqrt(N).

    Where eigenvalues coincide it is that of the eigenvectors found, and the bound holds with it all the same.
    """
    return float(np.sqrt(len(H)) * np.abs(np.linalg.eigh(H)[1]).max())


def pivot_sum_upper(H: np.ndarray) -> float:
    """(mu^2 / N) (tr H^(1/2))^2, at least sum_j d_j of `H` (in, in), positive semidefinite, in every order.

    >>> pivot_sum_upper(np.diag([4.0, 1.0]))  # mu is sqrt(2), and the pivots' sum 5
    9.0
    """
    eigenvalues, V = np.linalg.eigh(H)
    mu2 = len(H) * float(np.abs(V).max()) ** 2
    return mu2 / len(H) * float(np.sqrt(np.maximum(eigenvalues, 0)).sum()) ** 2


def feedback_error(A: np.ndarray, H: np.ndarray) -> float:
    """The trace of (I + A)^-1 H (I + A)^-T for strictly upper triangular `A` and `H` (in, in).

    What s^2 / 12 is multiplied by with feedback A over dispersed weights; `best_feedback` makes it sum_j d_j.
    """
    L = np.linalg.inv(np.eye(len(A)) + A)
    return float(np.trace(L @ H @ L.T))


def best_feedback(H: np.ndarray, order: Order = "given") -> np.ndarray:
    """A = R diag(R_jj)^-1 - I of `H` (in, in), channels in `order`: LDLQ's."""
    R = factored(H, order).R
    return R / np.diag(R) - np.eye(len(R))


def outliers(n: int, exponent: float) -> np.ndarray:
    """H (n, n), diagonal: eigenvectors are channels, as coherent as can be."""
    spectrum = np.arange(1, n + 1) ** -exponent
    return np.diag(spectrum * n / spectrum.sum())


def hadamard_rotated(H: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`H` (in, in) in the coordinates of a Hadamard matrix with random signs, of a power of two channels."""
    from scipy.linalg import hadamard

    T = hadamard(len(H)) * rng.choice([-1.0, 1.0], len(H)) / np.sqrt(len(H))
    return T @ H @ T.T


def bad_case(n: int, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights w (n + 1,) and H (n + 1, n + 1) for which feedback on 0, 1, .., `top` is ever worse as `n` grows.

    The first n weights are .499 and .501 by turns, so that errors to nearest cancel along the one stiff direction, all
    channels alike. The first channel is tied to the others a little more: its error pushes all of them below zero,
    where they are clipped. The last weight is `top` by itself, so that grids of whole rows have steps of 1.
    """
    c = 0.01
    H = np.ones((n, n)) + np.eye(n)
    H[-1, -1] = 1.0
    H[0, 1:] += np.where(np.arange(1, n) < n - 1, 2 * c, c)
    H[:, 0] = H[0]
    H[0, 0] += 4 * c + n * c**2
    whole = np.zeros((n + 1, n + 1))
    whole[:n, :n], whole[n, n] = H, 1.0
    return np.append(0.499 + 0.002 * (np.arange(n) % 2), top), whole


def clipped_rows(
    W: np.ndarray, H: np.ndarray | None, bits: int, convention: Literal["narrow", "asymmetric"] = "narrow"
) -> np.ndarray:
    """Q (rows, in) by the suite's `Feedback` (without H: `Nearest`) on integers with a scale for each row."""
    import torch

    from suite.grids import Integer
    from suite.rounding import Feedback, Nearest

    rounding = Nearest() if H is None else Feedback(damping=0.0, groups="static")
    grid = Integer(bits=bits, group="row", convention=convention, scale_bits=32)
    gram = None if H is None else torch.from_numpy(H)
    found = rounding.round(torch.from_numpy(W), grid, gram, torch.Generator())
    return found.grid.decode(found.codes).numpy()


def _measure(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(2, round(8 * setting.effort))
    points = []
    for exponent in _EXPONENTS:
        found: dict[str, list[float]] = {}
        for _ in range(draws):
            kinds = {"channels are eigenvectors": outliers(_N, exponent)}
            kinds["Hadamard"] = hadamard_rotated(kinds["channels are eigenvectors"], rng)
            turn = haar(_N, rng)
            kinds["Haar"] = turn @ kinds["channels are eigenvectors"] @ turn.T
            for name, H in kinds.items():
                W = _STEP * rng.uniform(-32, 32, (64, _N))
                unit = _STEP**2 / 12 * _N
                found.setdefault(name, []).append(error_rows(W - rounded(W, H, _STEP), H).mean() / unit)
                found.setdefault(f"{name}: at most", []).append(pivot_sum_upper(H) / _N)
        for name, values in found.items():
            mean = float(np.mean(values))
            half = 1.96 * float(np.std(values, ddof=1)) / draws**0.5
            if name.endswith("at most"):
                points.append(Point(series=name, x=exponent, y=mean, predicted=True))
            else:
                points.append(Point(series=name, x=exponent, y=mean, low=mean - half, high=mean + half))
    return points


def _sentence(points: Sequence[Point]) -> str:
    last = max(p.x for p in points)
    at = {p.series: p.y for p in points if p.x == last}
    names = [name for name in at if not name.endswith("at most")]
    parts = [f"{name} {at[name]:.3f} (bound {at[f'{name}: at most']:.3g})" for name in names]
    ratios = [p.y / q.y for p in points for q in points if q.series == f"{p.series}: at most" and q.x == p.x]
    return (
        f"Error of error feedback over what rounding alone makes, spectrum k^-{last:g}: {', '.join(parts)}; over all "
        f"spectra the error is {min(ratios):.2f} to {max(ratios):.2f} of the incoherence bound."
    )


INCOHERENCE = Experiment(
    name="incoherence",
    title="Sum of pivots before and after a rotation, and QuIP's bound by the spectrum",
    source="Chee, Cai, Kuleshov, De Sa 2023, arXiv:2307.13304",
    x="decay a of the spectrum k^-a",
    y="error / (step² / 12 tr H)",
    measure=_measure,
    sentence=_sentence,
    log="y",
    interval="95% of the mean over rotations and weights",
)


def _measure_clipped(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(4, round(20 * setting.effort))
    points = []
    for bits in _BITS:
        wins: dict[str, list[float]] = {}
        for _ in range(draws):
            turn = haar(_N, rng)
            W = rng.standard_normal((64, _N))
            for exponent in (0.5, 1.5):
                H = turn @ outliers(_N, exponent) @ turn.T
                fed, alone = (error_rows(W - clipped_rows(W, gram, bits), H) for gram in (H, None))
                wins.setdefault(f"rows, spectrum k^-{exponent:g}", []).append(float((fed > alone).mean()))
                wins.setdefault(f"matrices, spectrum k^-{exponent:g}", []).append(float(fed.sum() > alone.sum()))
        for name, shares in wins.items():
            mean, half = float(np.mean(shares)), 1.96 * float(np.std(shares, ddof=1)) / draws**0.5
            points.append(Point(series=name, x=bits, y=mean, low=max(0.0, mean - half), high=min(1.0, mean + half)))
    return points


def _sentence_clipped(points: Sequence[Point]) -> str:
    names = list(dict.fromkeys(p.series for p in points))
    parts = []
    for name in names:
        found = {p.x: p.y for p in points if p.series == name}
        parts.append(f"{name}: " + ", ".join(f"{share:.1%} at {bits:g} bits" for bits, share in found.items()))
    return f"Error feedback loses to rounding to nearest in the following shares of {'; '.join(parts)}."


CLIPPED = Experiment(
    name="feedback-loses",
    title="How often error feedback is worse than rounding to nearest, on grids with ends",
    source="Chee, Cai, Kuleshov, De Sa 2023, arXiv:2307.13304: LDLQ is not optimal on finite grids",
    x="bits",
    y="share of cases in which nearest rounding has the smaller error",
    measure=_measure_clipped,
    sentence=_sentence_clipped,
    interval="95% of the mean over matrices",
)

EXPERIMENTS = (INCOHERENCE, CLIPPED)
