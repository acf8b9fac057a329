r"""Qronos: the error on inputs that are not those the layer was made for, as what cannot be helped and what is rounded.

Zhang, Zhang, Colbert, Saab 2025, "Qronos", arXiv:2505.11695, and the bounds of arXiv:2508.04853. The layer was made for
X and sees X~. With F = X^T X / m, H = X~^T X~ / m, G = X^T X~ / m, all dampened by lambda I (which extends X and X~ by
the same rows sqrt(m lambda) I), the square is completed exactly: for every q

    |X w - X~ q|^2 / m + lambda |w - q|^2 = w F w^T - w* H w*^T  +  (w* - q) H (w* - q)^T,     w* = w G H^-1.

The first difference, |X w|^2 less its part in the span of X~, no q can do anything about. The second is the identity of
`zhang_2025_optq` with w* for w: sum_j d_j e_j^2, e_j being what column j of w* - q misses by. Error feedback on w* has
|e_j| <= s_j / 2 everywhere. Qronos takes for its first column the least-squares value f with all others as they are
(`suite.rounding.qronos`) in place of w*_0, so that |e_0| <= |w*_0 - f| + s_0 / 2, and

    |X w - X~ q|^2 / m <= w F w^T - w* H w*^T + d_0 (|w*_0 - f| + s_0 / 2)^2 + sum_{j > 0} d_j s_j^2 / 4.

Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theory.bounds.instances import power_law, rounded_by
from theory.bounds.pivots import Order, factored
from theory.experiment import Experiment, Point, Setting

_N, _TOKENS, _STEP = 32, 256, 0.25
_MISMATCHES = (0.0, 0.03, 0.1, 0.3, 1.0)
_DAMPING = 1e-6


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What `upper` is made of, all per token: `lost` (rows,) that no codes can avoid, `target` w* (rows, in).

    `first` (rows,) is what Qronos rounds its first column from, `channel` which one that is.
    """

    lost: np.ndarray
    target: np.ndarray
    first: np.ndarray
    channel: int
    d: np.ndarray  # by channel

    def upper(self, step: float) -> np.ndarray:
        """The bound (rows,) for nearest rounding to multiples of `step`, nothing clipped."""
        late = np.delete(self.d, self.channel).sum() * step**2 / 4
        early = np.abs(self.target[:, self.channel] - self.first) + step / 2
        return self.lost + self.d[self.channel] * early**2 + late


def mismatch(
    W: np.ndarray, X: np.ndarray, Xq: np.ndarray, *, order: Order = "decreasing", damping: float = 0.0
) -> Mismatch:
    """Complete the square for `W` (rows, in), `X` and `Xq` (tokens, in); `damping` is relative to the mean diagonal.

    Raises `ValueError` where H + lambda I is not positive definite.
    """
    F, H, G = X.T @ X / len(X), Xq.T @ Xq / len(X), X.T @ Xq / len(X)
    found = factored(H, order, damping)
    ridge = damping * (float(np.diag(H).mean()) or 1.0) * np.eye(len(H))
    target = np.linalg.solve(H + ridge, (G + ridge).T @ W.T).T
    lost = _energies(W, F + ridge) - _energies(target, H + ridge)
    c = int(found.perm[0])
    push = (W @ (G - H))[:, c] / H[c, c] if H[c, c] else np.zeros(len(W))
    return Mismatch(lost=lost, target=target, first=W[:, c] + push, channel=c, d=found.by_channel)


def _energies(W: np.ndarray, F: np.ndarray) -> np.ndarray:
    return np.einsum("ij,jk,ik->i", W, F, W)


def rounded(W: np.ndarray, X: np.ndarray, Xq: np.ndarray, step: float, *, correct: bool) -> np.ndarray:
    """Q (rows, in) by the suite's `Qronos`; without `correct` it takes the inputs for matched: GPTQ on `Xq`."""
    from suite.rounding import Qronos

    how = Qronos(damping=_DAMPING, relative_to="mean")
    return rounded_by(how, W, step, Xq.T @ Xq / len(X), *([X.T @ Xq / len(X)] if correct else []))


def _measure(setting: Setting) -> list[Point]:
    rng, draws = np.random.default_rng(setting.seed), max(4, round(8 * setting.effort))
    points = []
    for level in _MISMATCHES:
        found: dict[str, list[float]] = {}
        for _ in range(draws):
            X = rng.multivariate_normal(np.zeros(_N), power_law(_N, 1.0, rng), size=_TOKENS)
            Xq = X + level * X.std() * rng.standard_normal(X.shape)
            W = rng.standard_normal((64, _N))
            energy = float(((W @ X.T) ** 2).sum()) / _TOKENS
            about = mismatch(W, X, Xq, damping=_DAMPING)
            for name, correct in (("Qronos", True), ("GPTQ", False)):
                Q = rounded(W, X, Xq, _STEP, correct=correct)
                found.setdefault(name, []).append(float(((W @ X.T - Q @ Xq.T) ** 2).sum()) / _TOKENS / energy)
            found.setdefault("Qronos: at most", []).append(float(about.upper(_STEP).sum()) / energy)
            found.setdefault("no codes below", []).append(float(about.lost.sum()) / energy)
        for name, values in found.items():
            mean, half = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / draws**0.5
            if name in ("Qronos", "GPTQ"):
                points.append(Point(series=name, x=level, y=mean, low=mean - half, high=mean + half))
            elif mean > 1e-12:  # on a logarithmic axis what is 0 but for rounding has no place
                points.append(Point(series=name, x=level, y=mean, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for level in sorted({p.x for p in points}):
        at = {p.series: p.y for p in points if p.x == level}
        parts.append(f"{level:g}: {at['Qronos']:.2g} against {at['GPTQ']:.2g}, bound {at['Qronos: at most']:.2g}, "
                     f"least possible {_rounded_off(at.get('no codes below', 0.0)):.2g}")  # fmt: skip
    return f"Relative error of Qronos against GPTQ's on the same inputs, by mismatch, {'; '.join(parts)}."


def _rounded_off(share: float) -> float:
    """0 for what is a difference of two equal numbers, up to rounding."""
    return 0.0 if abs(share) < 1e-12 else share


EXPERIMENT = Experiment(
    name="qronos-mismatch",
    title="Relative error on mismatched inputs: Qronos, GPTQ, the bound, and what no codes avoid",
    source="Zhang, Zhang, Colbert, Saab 2025, arXiv:2508.04853 and 2505.11695",
    x="noise on the inputs, over their standard deviation",
    y="|X w - X~ q|² / |X w|²",
    measure=_measure,
    sentence=_sentence,
    log="y",
    interval="95% of the mean over inputs",
)
