r"""The largest error of any token: what stochastic rounding guarantees, and what is typical.

Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853, bound the l-infinity norm of X (w - q) for stochastic rounding with
feedback, which deterministic rounding does not allow. They dominate the error by a Gaussian in convex order; here it is
Hoeffding's inequality for martingales, whose constant is smaller.

In the letters of `zhang_2025_optq`, w - q = e D R^-1 with D = diag(R_jj), so that

    X (w - q)^T = V e^T,    V = X R^-T D  (tokens, in): column j is X_j off the span of those after it.

Given the columns before it, e_j has mean 0 and lies in an interval as long as the step, so for each token i (Hoeffding
1963, theorem 2; Azuma 1967) P(|(V e)_i| > t) <= 2 exp(-2 t^2 / (s^2 sum_j V_ij^2)), and over m tokens at once

    |X (w - q)|_inf <= s max_i |V_i| sqrt(ln(2 m / eta) / 2)    with probability at least 1 - eta,

for every w, X, order and damping. Nearest rounding has |e_j| <= s / 2, hence s/2 max_i sum_j |V_ij|, which grows as the
number of channels where the other grows as its root. Without feedback V = X.

Imports no torch.
"""

from collections.abc import Sequence

import numpy as np

from theory.bounds.instances import rounded
from theory.bounds.pivots import Order, factored
from theory.experiment import Experiment, Point, Setting

_STEP, _TOKENS, _ETA = 0.125, 64, 0.05
_WIDTHS = (16, 32, 64, 128, 256)
_DAMPING = 1e-4  # there are more channels than tokens


def responses(
    X: np.ndarray, *, feedback: bool = True, order: Order = "given", damping: float = 0.0
) -> np.ndarray:  # fmt: skip
    """V (tokens, in), by input channel: what a miss of 1 in one channel does to every token once all are rounded."""
    if not feedback:
        return np.array(X, dtype=float)
    found = factored(X.T @ X / len(X), order, damping)
    V = np.empty(X.shape)
    V[:, found.perm] = np.linalg.solve(found.R, X[:, found.perm].T).T * np.diag(found.R)
    return V


def stochastic_upper(V: np.ndarray, step: float, eta: float) -> float:
    """What |X (w - q)|_inf exceeds with probability at most `eta` in (0, 1), over the draws alone.

    >>> round(stochastic_upper(np.eye(2), 1.0, 0.5), 6)  # sqrt(ln 8 / 2)
    1.019667
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta {eta!r}: expected between 0 and 1")
    return step * float(np.linalg.norm(V, axis=1).max() * np.sqrt(np.log(2 * len(V) / eta) / 2))


def nearest_upper(V: np.ndarray, step: float) -> float:
    """What |X (w - q)|_inf cannot exceed where every weight goes to its nearest level."""
    return step / 2 * float(np.abs(V).sum(1).max())


def alike(tokens: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """X (tokens, n) of nearly parallel columns: 1, and a tenth of noise."""
    return 1 + 0.1 * rng.standard_normal((tokens, n))


def _measure(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(8, round(100 * setting.effort))
    points = []
    for n in _WIDTHS:
        for kind in ("random", "adversarial"):
            X = rng.standard_normal((_TOKENS, n)) if kind == "random" else alike(_TOKENS, n, rng)
            H = X.T @ X / _TOKENS
            W = _STEP * rng.uniform(-8, 8, (draws, n)) if kind == "random" else np.full((draws, n), 0.49 * _STEP)
            for how, gram in (("with feedback", H), ("without", None)):
                V = responses(X, feedback=gram is not None, damping=_DAMPING)
                for stochastic in (False, True):
                    Q = rounded(W, gram, _STEP, damping=_DAMPING, stochastic=stochastic, seed=setting.seed + n)
                    largest = np.abs((W - Q) @ X.T).max(1)
                    low, y, high = np.quantile(largest, [0.025, 0.5, 0.975])
                    name = f"{kind}, {how}, {'stochastic' if stochastic else 'nearest'}"
                    points.append(Point(series=name, x=n, y=y, low=low, high=high))
                y = stochastic_upper(V, _STEP, _ETA)
                points.append(Point(series=f"{kind}, {how}, stochastic: at most, 95%", x=n, y=y, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    widest = max(p.x for p in points)
    at = {p.series: p.y for p in points if p.x == widest}
    parts = []
    for kind in ("random", "adversarial"):
        for how in ("without", "with feedback"):
            nearest, drawn = at[f"{kind}, {how}, nearest"], at[f"{kind}, {how}, stochastic"]
            upper = at[f"{kind}, {how}, stochastic: at most, 95%"]
            least, more = sorted((("nearest", nearest), ("stochastic", drawn)), key=lambda pair: pair[1])
            times = f"{more[1] / least[1]:.2g} times" if least[1] else "without bound"
            feedback = "feedback" if how == "without" else ""
            parts.append(f"{kind} {how} {feedback}".strip() + f": {least[0]} is smaller, {times} "
                         f"({nearest:.3g} nearest, {drawn:.3g} stochastic, guaranteed {upper:.3g})")  # fmt: skip
    return f"Largest error of a token at {widest:g} channels, medians: {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="sup-norm",
    title="Largest error of any token: nearest against stochastic rounding",
    source="Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853; Hoeffding 1963, theorem 2",
    x="input channels",
    y="largest |X (w - q)| over 64 tokens",
    measure=_measure,
    sentence=_sentence,
    log="xy",
    interval="95% over weights and draws (over draws alone for adversarial weights)",
)
