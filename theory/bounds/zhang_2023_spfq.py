r"""SPFQ: path following with stochastic rounding, and what it guarantees for every X and w.

Zhang, Saab 2023, "SPFQ: A Stochastic Algorithm and Its Error Analysis for Neural Network Quantization",
arXiv:2309.10975. The recursion of `lybrand_2021_gpfq` with rounding that is right in the mean: given what came before,
e_t has mean 0, lies in an interval as long as the step and has variance s^2 f (1 - f) <= s^2 / 4. Unrolled,

    u_N = sum_t e_t c_t,    c_t = P_N ... P_{t+1} X_t,    V = sum_t c_t c_t^T.

V follows a recursion of its own, V_t = P_t V_{t-1} P_t + X_t X_t^T, in which X_t X_t^T = |X_t|^2 (I - P_t). If
V_{t-1} <= b I then V_t <= b P_t + |X_t|^2 (I - P_t) <= max(b, |X_t|^2) I, so by induction V <= max_t |X_t|^2 I: the
variance of no direction adds up over channels, however many there are. Misses of different channels are uncorrelated,

    E |X (w - q)|^2 <= (s^2 / 4) tr V <= (s^2 / 4) m max_t |X_t|^2,

and Hoeffding's inequality for martingales, as in `zhang_2025_supnorm`, over m tokens at once gives

    |X (w - q)|_inf <= s max_i sqrt(V_ii) sqrt(ln(2 m / eta) / 2) <= s max_t |X_t| sqrt(ln(2 m / eta) / 2)

with probability at least 1 - eta: the paper's s max |X_t| sqrt(2 pi p m log N) (in the squared norm) without its 2 pi.
For dispersed weights f is uniform, and E |X (w - q)|^2 = (s^2 / 6) tr V exactly.

What it takes from a grid is in `lybrand_2021_gpfq.EXPERIMENT`, beside GPFQ. Imports no torch.
"""

from collections.abc import Sequence

import numpy as np

from theory.bounds.instances import dispersed
from theory.bounds.lybrand_2021_gpfq import Rounding, path_following
from theory.bounds.zhang_2025_supnorm import alike
from theory.experiment import Experiment, Point, Setting

_STEP, _TOKENS, _ETA = 0.25, 16, 0.05
_WIDTHS = (8, 16, 32, 64, 128, 256)


def stochastic(step: float, rng: np.random.Generator) -> Rounding:
    """Up to a multiple of `step` with the probability that makes the mean right, else down; nothing clipped."""
    return lambda x: step * np.floor(x / step + rng.random(x.shape))


def covariance(X: np.ndarray) -> np.ndarray:
    """V (tokens, tokens) of inputs `X` (tokens, in): the error's covariance if misses had variance 1.

    A column of zeros changes nothing.

    >>> covariance(np.array([[3.0, 1.0], [0.0, 0.0]])).tolist()  # the second column makes up for the first
    [[1.0, 0.0], [0.0, 0.0]]
    """
    V = np.zeros((len(X), len(X)))
    for x in X.T:
        energy = float(x @ x)
        if energy:
            off = np.eye(len(X)) - np.outer(x, x) / energy
            V = off @ V @ off + np.outer(x, x)
    return V


def sup_norm_upper(X: np.ndarray, step: float, eta: float) -> float:
    """What |X (w - q)|_inf exceeds with probability at most `eta` in (0, 1), for every row w; `X` (tokens, in)."""
    if not 0 < eta < 1:
        raise ValueError(f"eta {eta!r}: expected between 0 and 1")
    largest = float(np.sqrt(np.diag(covariance(X)).max()))
    return step * largest * float(np.sqrt(np.log(2 * len(X) / eta) / 2))


def sup_norm_simple_upper(X: np.ndarray, step: float, eta: float) -> float:
    """The same from the largest column alone, s max_t |X_t| sqrt(ln(2 m / eta) / 2): never less."""
    return step * float(np.linalg.norm(X, axis=0).max() * np.sqrt(np.log(2 * len(X) / eta) / 2))


def _measure(setting: Setting) -> list[Point]:
    rng, rows = np.random.default_rng(setting.seed), max(64, round(1000 * setting.effort))
    points = []
    for n in _WIDTHS:
        for kind in ("independent", "nearly parallel"):
            X = rng.standard_normal((_TOKENS, n)) if kind == "independent" else alike(_TOKENS, n, rng)
            E = dispersed(rows, n, _STEP, rng)
            E -= path_following(E, X, stochastic(_STEP, rng))
            largest = np.abs(E @ X.T).max(1) / _STEP
            y, high = np.quantile(largest, [0.5, 0.95])
            points.append(Point(series=f"{kind} inputs", x=n, y=y, low=float(largest.min()), high=high))
            for name, upper in (("covariance", sup_norm_upper), ("largest column", sup_norm_simple_upper)):
                y = upper(X, _STEP, _ETA) / _STEP
                points.append(Point(series=f"{kind}: 95% by the {name}", x=n, y=y, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    by = {(p.series, p.x): p for p in points}
    parts = []
    for kind in ("independent", "nearly parallel"):
        found = [by[f"{kind} inputs", n] for n in _WIDTHS]
        tight, simple = ([by[f"{kind}: 95% by the {name}", n].y / (by[f"{kind} inputs", n].high or 1) for n in _WIDTHS]
                         for name in ("covariance", "largest column"))  # fmt: skip
        parts.append(
            f"{kind} inputs: the median goes from {found[0].y:.2f} to {found[-1].y:.2f} steps, the guarantee is "
            f"{min(tight):.2f} to {max(tight):.2f} times the 95% quantile by the covariance, {min(simple):.2f} to "
            f"{max(simple):.2f} by the largest column"
        )
    return f"From {_WIDTHS[0]} to {_WIDTHS[-1]} channels, {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="spfq-sup-norm",
    title="Largest error of any token under stochastic path following, and what is guaranteed",
    source="Zhang, Saab 2023, arXiv:2309.10975; Hoeffding 1963, theorem 2",
    x="input channels",
    y="largest |X (w - q)| over 16 tokens, in steps",
    measure=_measure,
    sentence=_sentence,
    log="xy",
    interval="from the least to the 95% quantile over rows",
)
