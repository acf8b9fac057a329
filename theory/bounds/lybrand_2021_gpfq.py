r"""GPFQ: round channel after channel so that the output's error stays where it is, and what that leaves.

Lybrand, Saab 2021, "A Greedy Algorithm for Quantizing Neural Networks" (JMLR 22), for Gaussian and other inputs; Zhang,
Zhou, Saab 2022, "Post-training Quantization for Neural Networks with Provable Guarantees", arXiv:2201.11113, for other
alphabets. The recursion for one neuron w and inputs X (tokens, in), of columns X_t, is

    q_t = round((X_t, u_{t-1} + w_t X_t) / |X_t|^2),    u_t = u_{t-1} + (w_t - q_t) X_t,    u_0 = 0.

With e_t what the rounding missed and P_t the projection off X_t that is u_t = P_t u_{t-1} + e_t X_t, two orthogonal
parts. Hence, with |e_t| <= s / 2 where nothing is clipped,

    |X (w - q)|^2 = |u_N|^2 <= |u_{N-1}|^2 + s^2/4 |X_N|^2 <= ... <= (s^2 / 4) |X|_F^2              for every X and w,

no better than what rounding alone is in the mean (s^2/12 |X|_F^2). The gain is that P_t takes something away. Where the
columns are independent and Gaussian, N(0, I_m), u_{t-1} is independent of X_t, whose direction is uniform, so that
E |P_t u|^2 = (1 - 1/m) |u|^2 and

    E |u_N|^2 <= (s^2 / 4) m^2 (1 - (1 - 1/m)^N) <= (s^2 / 4) m^2,

which no longer grows with N, while E |X w|^2 = m |w|^2 does: the relative error is at most s^2 m / (4 mean w^2 N), it
falls as the number of weights. The papers have this with high probability, a factor log N and unnamed constants. For
weights dispersed over whole steps 1/12 takes the place of 1/4 and the first inequality is an equality.

Error feedback (`zhang_2025_optq`) projects each column off all that come after it, not off the next alone.

Imports no torch: the suite has no GPFQ, the recursion is here.
"""

from collections.abc import Callable, Sequence

import numpy as np

from theory.bounds.instances import dispersed, rounded
from theory.experiment import Experiment, Point, Setting

Rounding = Callable[[np.ndarray], np.ndarray]  # values (rows,) to levels (rows,)

_STEP, _TOKENS, _DAMPING = 0.25, 16, 1e-3
_WIDTHS = (16, 32, 64, 128, 256, 512)


def path_following(W: np.ndarray, X: np.ndarray, pick: Rounding, Xq: np.ndarray | None = None) -> np.ndarray:
    """Q (rows, in) for `W` (rows, in) on inputs `X` (tokens, in): the recursion, all rows at once.

    With `Xq` (tokens, in), the inputs that the quantized model has instead, X W^T is followed by Xq Q^T. A column of
    zeros is rounded as it is.
    """
    Xq, Q = X if Xq is None else Xq, np.empty_like(W, dtype=float)
    u = np.zeros((len(W), len(X)))
    for t in range(W.shape[1]):
        u += np.outer(W[:, t], X[:, t])
        energy = float(Xq[:, t] @ Xq[:, t])
        Q[:, t] = pick(u @ Xq[:, t] / energy if energy else W[:, t])
        u -= np.outer(Q[:, t], Xq[:, t])
    return Q


def nearest(step: float) -> Rounding:
    """To the nearest multiple of `step`, ties to even, nothing clipped."""
    return lambda x: step * np.rint(x / step)


def squared_error_upper(X: np.ndarray, step: float) -> float:
    """(s^2 / 4) |X|_F^2, at most |X (w - q)|^2 for every row w; `X` (tokens, in).

    >>> squared_error_upper(np.eye(2), 2.0)
    2.0
    """
    return step**2 / 4 * float((np.asarray(X) ** 2).sum())


def gaussian_error(constant: float, step: float, tokens: int, n: int) -> float:
    """`constant` s^2 m^2 (1 - (1 - 1/m)^N): E |X (w - q)|^2 for Gaussian X of m = `tokens` rows and N = `n` columns.

    With 1/4 a bound for every w; with 1/12 (nearest) and 1/6 (stochastic) exact for weights dispersed over whole steps.

    >>> gaussian_error(1.0, 1.0, 1, 5)  # one token: only the last miss is left
    1.0
    """
    return constant * step**2 * tokens**2 * -np.expm1(n * np.log1p(-1 / tokens)) if tokens > 1 else constant * step**2


def _measure(setting: Setting) -> list[Point]:
    from theory.bounds.zhang_2023_spfq import stochastic

    rng, draws = np.random.default_rng(setting.seed), max(4, round(40 * setting.effort))
    points = []
    for n in _WIDTHS:
        found: dict[str, list[float]] = {name: [] for name in ("GPFQ", "SPFQ", "GPTQ", "nearest alone")}
        energy = _TOKENS * n * _STEP**2 * 64**2 / 12  # E |X w|^2 for weights uniform over 64 steps
        for _ in range(draws):
            X, W = rng.standard_normal((_TOKENS, n)), dispersed(16, n, _STEP, rng)
            outcomes = {
                "GPFQ": path_following(W, X, nearest(_STEP)),
                "SPFQ": path_following(W, X, stochastic(_STEP, rng)),
                "GPTQ": rounded(W, X.T @ X / _TOKENS, _STEP, damping=_DAMPING),
                "nearest alone": nearest(_STEP)(W),
            }
            for name, Q in outcomes.items():
                found[name].append(float((((W - Q) @ X.T) ** 2).sum(1).mean()) / energy)
        for name, ratios in found.items():
            mean, half = float(np.mean(ratios)), 1.96 * float(np.std(ratios, ddof=1)) / draws**0.5
            points.append(Point(series=name, x=n, y=mean, low=mean - half, high=mean + half))
        laws = {
            "GPFQ: at most, in the mean": 1 / 4,
            "GPFQ: dispersed weights": 1 / 12,
            "SPFQ: dispersed weights": 1 / 6,
        }
        points += [Point(series=name, x=n, y=gaussian_error(constant, _STEP, _TOKENS, n) / energy, predicted=True)
                   for name, constant in laws.items()]  # fmt: skip
    return points


def _sentence(points: Sequence[Point]) -> str:
    def curve(name: str) -> tuple[np.ndarray, np.ndarray]:
        return np.array([p.x for p in points if p.series == name]), np.array([p.y for p in points if p.series == name])

    parts = []
    for name in ("GPFQ", "SPFQ", "GPTQ", "nearest alone"):
        x, y = curve(name)
        tail = x >= 4 * _TOKENS
        slope = np.polyfit(np.log(x[tail]), np.log(y[tail]), 1)[0]
        parts.append(f"{name} {slope:.2f}")
    off = {name: np.abs(curve(name)[1] / curve(f"{name}: dispersed weights")[1] - 1).max() for name in ("GPFQ", "SPFQ")}
    loose = (curve("GPFQ: at most, in the mean")[1] / curve("GPFQ")[1]).mean()
    return (
        f"Relative squared error goes as the number of weights to the power of {', '.join(parts)} (from {4 * _TOKENS} "
        f"channels on, {_TOKENS} tokens); the closed forms are met within {off['GPFQ']:.1%} (GPFQ) and "
        f"{off['SPFQ']:.1%} (SPFQ), and the bound for any weights is {loose:.2f} times what dispersed ones have."
    )


EXPERIMENT = Experiment(
    name="path-following",
    title="Relative squared error of the output against the number of weights",
    source="Lybrand, Saab 2021; Zhang, Zhou, Saab 2022, arXiv:2201.11113; Zhang, Saab 2023, arXiv:2309.10975",
    x="weights of a neuron",
    y="|X (w - q)|² / E |X w|²",
    measure=_measure,
    sentence=_sentence,
    log="xy",
    interval="95% of the mean over Gaussian inputs",
)
