"""The loss of a model over its size, its data and the precision of its weights: a law, fitted with its uncertainty.

Kumar, Ankner, Spector, Bordelon, Muennighoff, Paul, Pehlevan, Re, Raghunathan 2024, "Scaling Laws for Precision",
arXiv:2411.04330: weights of P bits count as fewer of them,

    L(N, D, P) = E + A N_eff^-alpha + B D^-beta,    N_eff = N (1 - exp(-P / gamma)).

It is fitted as Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3) fit theirs: the Huber loss, delta = 1e-3, of log L,
from many starts. They descend by L-BFGS from a grid of all parameters; here alpha, beta and gamma are on the grid, a
start's E, A and B are the best not below 0 for these, a trust region with the exact Jacobian descends by squares, and
from the best ends by the Huber loss. Coordinates are log E, alpha, beta, log gamma, and the logarithms of the two other
terms at the geometric means of N and D, where they hardly depend on alpha and beta.

A law says nothing beyond the N, D and P that it was fitted on: `Fit` carries their ranges. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, nnls

HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
PARAMETERS = ("E", "A", "alpha", "B", "beta", "gamma")
_EXPONENTS = (0.1, 0.4, 1.0)  # starts of alpha and beta; the published ones are between 0.05 and 0.6
_GAMMAS = (0.5, 1.5, 4.0)  # bits; 2.7 in Kumar et al. for weights
_POLISHED = 3  # of the ends by squares, whose order may be another by the Huber loss
_LOWER = np.array([np.log(1e-6), np.log(1e-9), 0.0, np.log(1e-9), 0.0, np.log(0.02)])
_UPPER = np.array([np.log(1e3), np.log(1e3), 4.0, np.log(1e3), 4.0, np.log(64.0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """L = E + A N_eff^-alpha + B D^-beta in nats, with N_eff = N (1 - exp(-P / gamma)) and gamma in bits."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    gamma: float

    def loss(self, parameters: ArrayLike, tokens: ArrayLike, bits: ArrayLike) -> np.ndarray:
        """Nats per token of models of N `parameters` at P `bits` after D `tokens`; shapes broadcast.

        >>> Law(E=1.0, A=10.0, alpha=0.5, B=0.0, beta=1.0, gamma=1.0).loss(100.0, 1.0, np.inf).item()
        2.0
        """
        N = self.effective(parameters, bits)
        return self.E + self.A * N**-self.alpha + self.B * np.asarray(tokens, dtype=float) ** -self.beta

    def effective(self, parameters: ArrayLike, bits: ArrayLike) -> np.ndarray:
        """N_eff: how many weights of full precision are worth N `parameters` at P `bits`."""
        return np.asarray(parameters, dtype=float) * -np.expm1(-np.asarray(bits, dtype=float) / self.gamma)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Models that were trained: `parameters`, `tokens`, `bits` of a weight and `loss_nats`, all (n,)."""

    parameters: np.ndarray
    tokens: np.ndarray
    bits: np.ndarray
    loss_nats: np.ndarray

    def __post_init__(self) -> None:
        shapes = {np.shape(getattr(self, name)) for name in self.__slots__}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"expected four vectors of one length, found shapes {sorted(shapes)}")
        for name in self.__slots__:
            values = np.asarray(getattr(self, name), dtype=float)
            bad = values[~(np.isfinite(values) & (values > 0))]
            if bad.size:
                raise ValueError(f"every one of {name} must be positive and finite, got {bad[0]}")

    def __len__(self) -> int:
        return len(self.loss_nats)

    def chosen(self, which: np.ndarray) -> "Observations":
        """Those at these places, or where a mask is True."""
        return Observations(**{name: np.asarray(getattr(self, name), dtype=float)[which] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law with what it stands on.

    `draws` (replicates, 6) are the laws of resampled points, in the order of `PARAMETERS`. `ranges` are the least and
    largest N, D and P of the points, outside which the law is a guess. `rms` is the root mean square of the residuals
    of log L. `condition` is that of the Jacobian of log L in the coordinates of the fit, columns at length 1: of one
    per cent in the data, up to `condition` per cent may come back in some direction of the parameters; infinite where
    the points cannot tell two of them apart.
    """

    law: Law
    draws: np.ndarray
    ranges: dict[str, tuple[float, float]]
    rms: float
    condition: float

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """Ends of the percentile interval of a parameter over resampled points."""
        low, high = np.quantile(self.draws[:, PARAMETERS.index(name)], _tails(confidence))
        return float(low), float(high)

    def band(
        self, parameters: ArrayLike, tokens: ArrayLike, bits: ArrayLike, confidence: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the same interval of the law's loss."""
        losses = np.array([_law(draw).loss(parameters, tokens, bits) for draw in self.draws])
        low, high = np.quantile(losses, _tails(confidence), axis=0)
        return low, high

    def covers(self, parameters: float, tokens: float, bits: float) -> bool:
        """Whether such a model is within the ranges that the law was fitted on."""
        asked = {"parameters": parameters, "tokens": tokens, "bits": bits}
        return all(low <= asked[name] <= high for name, (low, high) in self.ranges.items())


def fit(points: Observations, rng: np.random.Generator, replicates: int = 200) -> Fit:
    """The law of `points`, and those of as many `replicates`, the points drawn anew with replacement by `rng`.

    What the intervals cover is which points there happen to be. They do not cover another form of the law, anything
    that all points share (the text, the tokenizer, the recipe, the seed), or that points of one base model do not vary
    on their own, which makes them too narrow. Raises `ValueError` for fewer points than the law has parameters.
    """
    best = _best(points)
    draws = []
    for _ in range(replicates):
        again = points.chosen(np.sort(rng.integers(len(points), size=len(points))))
        draws.append(_values(_descended(again, _centered(best, again), "huber", 100).x, again))
    theta = _centered(best, points)
    columns = _jacobian(theta, points)
    lengths = np.linalg.norm(columns, axis=0)
    told = columns / np.where(lengths > 0, lengths, 1.0)
    ranges = {name: (float(np.min(getattr(points, name))), float(np.max(getattr(points, name))))
              for name in ("parameters", "tokens", "bits")}  # fmt: skip
    return Fit(law=best, draws=np.array(draws).reshape(-1, len(PARAMETERS)), ranges=ranges,
               rms=float(np.sqrt(np.mean(_residuals(theta, points) ** 2))),
               condition=float(np.linalg.cond(told)) if lengths.all() else float("inf"))  # fmt: skip


def left_out_errors(points: Observations, groups: Sequence[Any]) -> np.ndarray:
    """Predicted over measured loss, less 1, of every point by the law of all points of other `groups`, (n,).

    Raises `ValueError` where fewer points are left than the law has parameters.
    """
    if len(groups) != len(points):
        raise ValueError(f"expected a group for each of {len(points)} points, found {len(groups)}")
    named, errors = np.array([str(group) for group in groups]), np.full(len(points), np.nan)
    for group in sorted(set(named)):
        mine = named == group
        out = points.chosen(mine)
        law = _best(points.chosen(~mine))
        errors[mine] = law.loss(out.parameters, out.tokens, out.bits) / out.loss_nats - 1
    return errors


def _tails(confidence: float) -> list[float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected between 0 and 1")
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _best(points: Observations) -> Law:
    """The law of least Huber loss over all starts."""
    if len(points) < len(PARAMETERS):
        raise ValueError(f"{len(points)} points: a law of {len(PARAMETERS)} parameters takes as many at least")
    starts = [(alpha, beta, gamma) for alpha in _EXPONENTS for beta in _EXPONENTS for gamma in _GAMMAS]
    ends = sorted((_descended(points, _start(points, *start), "linear", 100) for start in starts), key=_cost)
    found = [_descended(points, end.x, "huber", 100) for end in ends[:_POLISHED]]
    return _law(_values(min(found, key=_cost).x, points))


def _start(points: Observations, alpha: float, beta: float, gamma: float) -> np.ndarray:
    """Coordinates with the best E, A and B >= 0 for these exponents, by relative least squares."""
    shape = Law(E=0.0, A=1.0, alpha=alpha, B=0.0, beta=1.0, gamma=gamma)
    terms = np.stack([np.ones(len(points)), shape.loss(points.parameters, points.tokens, points.bits),
                      np.asarray(points.tokens, dtype=float) ** -beta])  # fmt: skip
    size = terms.mean(1)
    E, A, B = nnls((terms / size[:, None] / points.loss_nats).T, np.ones(len(points)))[0] / size
    least = 1e-3 * np.min(points.loss_nats) / size  # a term of 0 has no gradient to grow by
    law = Law(E=max(E, least[0]), A=max(A, least[1]), alpha=alpha, B=max(B, least[2]), beta=beta, gamma=gamma)
    return _centered(law, points)


def _descended(points: Observations, start: np.ndarray, loss: str, most: int) -> Any:
    inside = np.clip(start, _LOWER + 1e-9, _UPPER - 1e-9)
    return least_squares(_residuals, inside, _jacobian, bounds=(_LOWER, _UPPER), args=(points,), loss=loss,
                         f_scale=HUBER_DELTA, xtol=1e-10, ftol=1e-10, gtol=1e-12, max_nfev=most)  # fmt: skip


def _cost(result: Any) -> float:
    return float(result.cost)


def _centers(points: Observations) -> tuple[float, float]:
    return float(np.mean(np.log(points.parameters))), float(np.mean(np.log(points.tokens)))


def _centered(law: Law, points: Observations) -> np.ndarray:
    """A law in the coordinates of the fit."""
    of_N, of_D = _centers(points)
    with np.errstate(divide="ignore"):  # a bound is put in the place of log 0
        return np.array([np.log(law.E), np.log(law.A) - law.alpha * of_N, law.alpha, np.log(law.B) - law.beta * of_D,
                         law.beta, np.log(law.gamma)])  # fmt: skip


def _values(theta: np.ndarray, points: Observations) -> np.ndarray:
    """The inverse of `_centered`: a law's values in the order of `PARAMETERS`."""
    of_N, of_D = _centers(points)
    e, a, alpha, b, beta, g = theta
    return np.array([np.exp(e), np.exp(a + alpha * of_N), alpha, np.exp(b + beta * of_D), beta, np.exp(g)])


def _law(values: np.ndarray) -> Law:
    return Law(**{name: float(x) for name, x in zip(PARAMETERS, values, strict=True)})


def _terms(theta: np.ndarray, points: Observations) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The three terms (3, n), log N_eff and log D from the centers, and P / gamma."""
    of_N, of_D = _centers(points)
    e, a, alpha, b, beta, g = theta
    ratio = points.bits / np.exp(g)
    log_N = np.log(points.parameters) - of_N + np.log(-np.expm1(-ratio))
    log_D = np.log(points.tokens) - of_D
    terms = np.stack([np.full(len(points), np.exp(e)), np.exp(a - alpha * log_N), np.exp(b - beta * log_D)])
    return terms, log_N, log_D, ratio


def _residuals(theta: np.ndarray, points: Observations) -> np.ndarray:
    return np.log(_terms(theta, points)[0].sum(0)) - np.log(points.loss_nats)


def _jacobian(theta: np.ndarray, points: Observations) -> np.ndarray:
    """The derivative d log L / d theta (n, 6); with u = P / gamma, d log N_eff / d log gamma = -u / (e^u - 1)."""
    terms, log_N, log_D, ratio = _terms(theta, points)
    E, of_N, of_D = terms / terms.sum(0)
    faded = ratio * np.exp(-ratio) / -np.expm1(-ratio)
    return np.stack([E, of_N, -of_N * log_N, of_D, -of_D * log_D, theta[2] * of_N * faded], axis=1)
