r"""GPTQ is LDLQ is Babai's nearest plane: the same codes, from three algorithms that share no line.

Chen, Shabanzadeh, Crncevic, Hoefler, Alistarh 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
Algorithm", arXiv:2507.18553. Let w be a row, s_j its steps, H + lambda I = Y^T Y: (w - q)(H + lambda I)(w - q)^T is the
squared distance from the point Y w^T to the lattice of basis b_j = s_j Y_j. Babai (1986, "On Lovasz' lattice reduction
and the nearest lattice point problem") goes through the basis from the last vector to the first: the nearest plane
spanned by the vectors before it, then the projection onto it. What is left is inside the box of the Gram-Schmidt
vectors b*_j,

    (w - q)(H + lambda I)(w - q)^T <= (1/4) sum_j |b*_j|^2 = (1/4) sum_j s_j^2 d_j,

the bound of `zhang_2025_optq` with a step for each column, and s_j^2 d_j / 12 each over dispersed weights. The vector
that Babai takes last is the one that GPTQ rounds first: bases are reversed.

- `gptq`: the update of Frantar et al. 2022 (arXiv:2210.17323), by the inverse of H that is left.
- `ldlq`: H = (U + I) D (U + I)^T, q_j from w_j + (w - q)_{<j} U_{<j,j} (Chee et al. 2023, arXiv:2307.13304).
- `babai`: Gram-Schmidt of the basis by QR, coefficients from the last vector to the first.

The suite's `Feedback` is a fourth. All agree but at ties, which arithmetic breaks. Imports no torch.
"""

from collections.abc import Sequence
from itertools import count

import numpy as np

from theory.bounds.instances import power_law, rounded
from theory.bounds.zhang_2025_optq import error_rows
from theory.experiment import Experiment, Point, Setting

_STEP = 0.25
_WIDTHS = (4, 8, 16, 32, 64)


def gptq(w: np.ndarray, H: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes (in,), int64, of row `w` (in,) under positive definite `H` (in, in), steps (in,): column after column.

    Rounding column j to q_j moves the others to w - (w_j - q_j) / P_jj P_j, P the inverse of H where columns are left.
    """
    w, P, codes = w.astype(float).copy(), np.linalg.inv(H), np.zeros(len(w), dtype=np.int64)
    for j in range(len(w)):
        codes[j] = np.rint(w[j] / steps[j])
        w -= (w[j] - codes[j] * steps[j]) / P[j, j] * P[j]
        P = P - np.outer(P[j], P[j]) / P[j, j]
    return codes


def ldlq(w: np.ndarray, H: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes (in,) likewise, by the unit triangular factor of `H`, column by column from the last."""
    n, left = len(w), H.astype(float).copy()
    U = np.zeros((n, n))
    for j in reversed(range(n)):
        U[:j, j] = left[:j, j] / left[j, j]
        left[:j, :j] -= np.outer(U[:j, j], left[j, :j])
    missed, codes = np.zeros(n), np.zeros(n, dtype=np.int64)
    for j in range(n):
        codes[j] = np.rint((w[j] + missed[:j] @ U[:j, j]) / steps[j])
        missed[j] = w[j] - codes[j] * steps[j]
    return codes


def babai(w: np.ndarray, H: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes (in,) likewise, by the nearest plane in the lattice of `H`, whose basis is reversed.

    Any Y with Y^T Y = H will do: here its symmetric square root.
    """
    eigenvalues, V = np.linalg.eigh(H)
    Y = (V * np.sqrt(np.maximum(eigenvalues, 0))) @ V.T
    basis = (Y * steps)[:, ::-1]
    orthogonal, _ = np.linalg.qr(basis)
    point, codes = Y @ w, np.zeros(len(w), dtype=np.int64)
    for k in reversed(range(len(w))):  # the last basis vector first
        along = orthogonal[:, k]
        codes[k] = np.rint((along @ point) / (along @ basis[:, k]))
        point = point - codes[k] * basis[:, k]
    return codes[::-1]


def closest(w: np.ndarray, H: np.ndarray, steps: np.ndarray) -> float:
    """The least (w - q) H (w - q)^T over all codes: exact, by Schnorr and Euchner's enumeration (1994).

    Depth first over columns in the order of rounding, each from its nearest code outwards, within the least so far.
    """
    R = np.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1]
    d, unit, n = np.diag(R) ** 2, R / np.diag(R), len(w)
    best, missed = [np.inf], np.zeros(n)

    def descend(j: int, spent: float) -> None:
        if j == n:
            best[0] = min(best[0], spent)
            return
        x = w[j] + missed[:j] @ unit[:j, j]
        near = np.rint(x / steps[j])
        side = 1.0 if x >= near * steps[j] else -1.0
        for k in count():  # near, near + side, near - side, near + 2 side, ..
            code = near + (side if k % 2 else -side) * ((k + 1) // 2)
            total = spent + d[j] * (x - code * steps[j]) ** 2
            if total >= best[0]:
                return
            missed[j] = w[j] - code * steps[j]
            descend(j + 1, total)

    descend(0, 0.0)
    return float(best[0])


def _measure(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(4, round(24 * setting.effort))
    points = []
    for n in _WIDTHS:
        same = {name: 0 for name in ("GPTQ as published", "LDLQ", "Babai")}
        over_best = []
        for k in range(draws):
            H = power_law(n, float(rng.uniform(0, 2)), rng)
            W, steps = _STEP * rng.uniform(-8, 8, (1, n)), np.full(n, _STEP)
            Q = rounded(W, H, _STEP)
            codes = np.rint(Q[0] / _STEP)
            for name, algorithm in zip(same, (gptq, ldlq, babai), strict=True):
                same[name] += int((algorithm(W[0], H, steps) == codes).sum())
            if n <= 16 and k < 12:
                over_best.append(float(error_rows(W - Q, H)[0] / closest(W[0], H, steps)))
        points += [Point(series=name, x=n, y=equal / (draws * n)) for name, equal in same.items()]
        if over_best:
            y = float(np.mean(over_best))
            points.append(Point(series="error over the closest point's", x=n, y=y, low=1.0, high=max(over_best)))
    return points


def _sentence(points: Sequence[Point]) -> str:
    shares: dict[str, list[float]] = {}
    for p in points:
        if not p.series.startswith("error"):
            shares.setdefault(p.series, []).append(p.y)
    agreed = ", ".join(f"{name} {min(values):.2%}" for name, values in shares.items())
    over = [p for p in points if p.series.startswith("error")]
    worst = max(p.high or p.y for p in over)
    means = ", ".join(f"{p.y:.3f} at {p.x:g}" for p in over)
    return (
        f"Codes equal to those of the suite's error feedback, at least: {agreed}. Its error over that of the closest "
        f"lattice point: {means} channels in the mean, {worst:.2f} at worst."
    )


EXPERIMENT = Experiment(
    name="babai",
    title="Codes in common with the suite's error feedback, and its error over the closest lattice point's",
    source="Chen, Shabanzadeh, Crncevic, Hoefler, Alistarh 2025, arXiv:2507.18553",
    x="input channels",
    y="share of equal codes, or ratio of errors",
    measure=_measure,
    sentence=_sentence,
    log="x",
    interval="of the ratio: from 1, which is exact, to the largest",
)
