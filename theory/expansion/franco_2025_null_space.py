"""Expanded channels have a null space, error feedback fills it, and rounding to nearest does not know of it.

Franco, Monteagudo-Lago, Colbert, Fraser, Blott 2025, "Improving Quantization with Post-Training Model Expansion",
arXiv:2503.17513, whose claims these are; the identities are ours. Let T (K, K') have orthonormal rows, T T^T = I, and
let X (tokens, K) have rank K. Then X' = X T and W' = W T give the same products, and H' = T^T H T.

**Vanishing pivots.** The pivot of channel j is d_j = |P X'_j|^2 / tokens, P the projection off the span of the channels
that are rounded after it. From the last channel to the first that span grows by one dimension where the pivot is not
zero and stays where it is zero, and it ends at rank X' = K. So exactly K' - K pivots vanish, in whatever order, for
every T: those are roundings that cost nothing, since the error of feedback is sum_j d_j e_j^2.

**What is gained.** With a step s and errors e uniform over it the mean error is s^2 / 12 sum_j d_j of feedback and
s^2 / 12 tr H' of rounding to nearest, and tr H' = tr H T T^T = tr H: expansion by itself gains nothing but the smaller
step of smaller weights. That is for errors without correlation: two copies of a channel are rounded alike, and to
nearest their errors add up to twice the energy. (The paper bounds the largest error, which it finds to fall by
sqrt(K / K').)

**Where the error goes.** With H' + lambda I = R R^T feedback leaves E R = e D, D = diag(R), so that for uncorrelated e

    E^T E = s^2 / 12 C,    C = R^-T D^2 R^-1  of feedback,   C = I  of rounding to nearest.

The null space of X' is that of T, of projection N = I - T^T T and dimension K' - K. The share of |E|^2 in it is
tr N C / tr C: for C = I the chance of (K' - K) / K', exactly; for feedback near 1 while lambda is small, since without
it errors have to be small only where inputs are. The output's own error is tr C H', and sum_j d_j - lambda tr C is the
same number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from theory.bounds.instances import haar, power_law, rounded
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

_WIDTH, _ROWS, _EXPONENT = 64, 128, 1.5
_DAMPING = 1e-6  # of the mean diagonal: as little as leaves a Cholesky factor of expanded H in float64
_RATIOS = (1.0, 1.0625, 1.125, 1.25, 1.5, 2.0)
_STEP = 0.25  # of a weight's deviation
_STIFF = 8
_SEEDS = 5


def random_basis(narrow: int, wide: int, rng: np.random.Generator) -> np.ndarray:
    """T (narrow, wide): the first rows of an orthogonal matrix that is uniformly random."""
    return haar(wide, rng)[:narrow]


def truncated_hadamard(narrow: int, wide: int, rng: np.random.Generator) -> np.ndarray:
    """T (narrow, wide): rows of a Hadamard matrix of that order over its root, as expansion in `suite` has them.

    With random signs of the channels, of which nothing else here depends on `rng`. `ValueError` for an order of which
    no matrix can be built.
    """
    import torch

    from kernels.hadamard import hadamard

    signs = rng.choice([-1.0, 1.0], (narrow, 1))
    return signs * hadamard(wide, torch.float64).numpy()[:narrow] / np.sqrt(wide)


def duplicated(narrow: int, wide: int, rng: np.random.Generator) -> np.ndarray:
    """T (narrow, wide): `wide - narrow` random channels twice, each copy over sqrt(2); copies come first.

    Zhao, Hu, Dotzel, De Sa, Zhang 2019, "Improving Neural Network Quantization without Retraining using Outlier Channel
    Splitting", arXiv:1901.09504, whose halves of a weight are here made orthonormal. `wide` is at most twice `narrow`.
    """
    if wide > 2 * narrow:
        raise ValueError(f"{wide} channels of {narrow}: expected at most each of them twice")
    twice = rng.permutation(narrow)[: wide - narrow]
    T = np.concatenate([np.eye(narrow)[:, twice], np.eye(narrow)], axis=1)
    return T / np.sqrt(T.sum(axis=1, keepdims=True))


CONSTRUCTIONS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "random basis": random_basis,
    "Hadamard": truncated_hadamard,
    "duplicated": duplicated,
}


def pivots(X: np.ndarray, damping: float = 0.0) -> np.ndarray:
    """The pivots (in,) of `X` (tokens, in) in the given order; `damping` is relative to the mean of |X_j|^2 / tokens.

    By QR of [X; sqrt(tokens lambda) I] from the last channel to the first, which needs no damping: vanishing pivots
    come out at rounding's square, about (eps |X|)^2.

    >>> pivots(np.array([[1.0, 1.0], [0.0, 0.0]])).round(12).tolist()  # the first channel is the second
    [0.0, 0.5]
    """
    tokens, n = X.shape
    padding = np.sqrt(damping * np.mean(np.sum(X**2, axis=0))) * np.eye(n)
    R = np.linalg.qr(np.concatenate([X, padding])[:, ::-1], mode="r")
    return np.diag(R)[::-1] ** 2 / tokens


@dataclass(frozen=True, slots=True)
class Spread:
    """C (in, in), the covariance of a row of E = W - Q in units of s^2 / 12, and H (in, in) that it is measured by."""

    C: np.ndarray
    H: np.ndarray

    @classmethod
    def of_feedback(cls, H: np.ndarray, damping: float) -> "Spread":
        """C of error feedback in the given order, `damping` relative to the mean diagonal."""
        damped = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
        R = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        A = solve_triangular(R, np.diag(np.diag(R)), trans="T").T  # D R^-1
        return cls(A.T @ A, H)

    @property
    def output_error(self) -> float:
        """Of the mean over roundings, tr C H."""
        return float(np.sum(self.C * self.H))

    def share_in(self, basis: np.ndarray) -> float:
        """Of |E|^2, in the span of the orthonormal columns of `basis` (in, k)."""
        return float(np.sum(basis * (self.C @ basis)) / np.trace(self.C))


def null_basis(T: np.ndarray) -> np.ndarray:
    """Orthonormal columns (wide, wide - narrow) that span the null space of `T` (narrow, wide)."""
    return np.linalg.qr(T.T, mode="complete")[0][:, len(T) :]


def stiff_basis(H: np.ndarray, k: int = _STIFF) -> np.ndarray:
    """The eigenvectors (in, k) of the largest eigenvalues of `H` (in, in)."""
    return np.linalg.eigh(H)[1][:, -k:]


def share_of_rows(E: np.ndarray, basis: np.ndarray) -> float:
    """|E basis|^2 / |E|^2 of measured errors `E` (out, in)."""
    return float(np.sum((E @ basis) ** 2) / np.sum(E**2))


@dataclass(frozen=True, slots=True)
class Instance:
    """What one seed of the experiments is made of: H of a known spectrum, Gaussian W, and T."""

    W: np.ndarray
    H: np.ndarray
    T: np.ndarray

    @classmethod
    def draw(cls, ratio: float, construction: str, seed: int) -> "Instance":
        """Of the seed's W and H, and as many more channels as `ratio` says."""
        rng = np.random.default_rng(seed)
        H, W = power_law(_WIDTH, _EXPONENT, rng), rng.standard_normal((_ROWS, _WIDTH))
        return cls(W, H, CONSTRUCTIONS[construction](_WIDTH, round(_WIDTH * ratio), rng))

    @property
    def wide(self) -> tuple[np.ndarray, np.ndarray]:
        """W T and T^T H T."""
        return self.W @ self.T, self.T.T @ self.H @ self.T

    def errors(self, damping: float, seed: int) -> dict[str, np.ndarray]:
        """W' - Q' (out, wide) of the suite's own roundings on one step."""
        W, H = self.wide
        feedback = rounded(W, H, _STEP, damping=damping, seed=seed)
        return {"error feedback": W - feedback, "to nearest": W - rounded(W, None, _STEP, seed=seed)}


def gains(seed: int, ratio: float, construction: str) -> dict[str, float]:
    """Of one seed, the squared output error after expansion over that before it, at one step, by rounding.

    Beside them what the closed forms say of feedback: "sum of pivots".
    """
    found = []
    for r in (ratio, 1.0):
        instance = Instance.draw(r, construction if r > 1 else "random basis", seed)
        _, H = instance.wide
        errors = {name: float(np.sum((E @ H) * E)) for name, E in instance.errors(_DAMPING, seed).items()}
        found.append(errors | {"sum of pivots": Spread.of_feedback(H, _DAMPING).output_error})
    return {name: found[0][name] / found[1][name] for name in found[0]}


def shares(seed: int, ratio: float, damping: float, stiff: bool = False) -> dict[str, float]:
    """Of one seed, the share of the error's energy in the null space, or in the 8 `stiff`est directions, by rounding.

    Beside them what closed forms say of feedback ("feedback, predicted") and the share of dimensions ("chance").
    """
    instance = Instance.draw(ratio, "random basis", seed)
    _, H = instance.wide
    basis = stiff_basis(H) if stiff else null_basis(instance.T)
    found = {name: share_of_rows(E, basis) for name, E in instance.errors(damping, seed).items()}
    predicted = Spread.of_feedback(H, damping).share_in(basis)
    return found | {"feedback, predicted": predicted, "chance": basis.shape[1] / len(H)}


def _measure_gains(setting: Setting) -> list[Point]:
    points = []
    for ratio in _RATIOS:
        for name in CONSTRUCTIONS:
            found = [gains(seed, ratio, name) for seed in seeds_of(setting, _SEEDS)]
            points.append(replicated(f"feedback, {name}", ratio, [each["error feedback"] for each in found]))
            predicted = float(np.mean([each["sum of pivots"] for each in found]))
            points.append(Point(series=f"sum of pivots, {name}", x=ratio, y=predicted, predicted=True))
            if name != "Hadamard":
                points.append(replicated(f"to nearest, {name}", ratio, [each["to nearest"] for each in found]))
        points.append(Point(series="K / K'", x=ratio, y=1 / ratio, predicted=True))
    return points


def _sentence_gains(points: Sequence[Point]) -> str:
    def at(series: str) -> dict[float, float]:
        return {p.x: p.y for p in points if p.series == series}

    most = max(p.x for p in points)
    parts = [f"{at(f'feedback, {name}')[most]:.3f} ({name})" for name in CONSTRUCTIONS]
    off = max(abs(y / at(f"sum of pivots, {name}")[x] - 1)
              for name in CONSTRUCTIONS for x, y in at(f"feedback, {name}").items())  # fmt: skip
    pairs = [(x, y) for name in CONSTRUCTIONS for x, y in at(f"feedback, {name}").items() if x > 1]
    nearest = [f"{at(f'to nearest, {name}')[most]:.3f} ({name})" for name in ("random basis", "duplicated")]
    return (
        f"At one step, {most:g} times the channels leave {', '.join(parts)} of the squared output error of feedback, "
        f"within {off:.1%} of the sum of pivots, and {', '.join(nearest)} rounded to nearest; feedback is at or below "
        f"K / K' in {sum(y <= 1 / x for x, y in pairs)} of {len(pairs)} cases."
    )


def _measure_shares(setting: Setting) -> list[Point]:
    points = []
    for ratio in (1.125, 1.5):
        for damping in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            found = [shares(seed, ratio, damping) for seed in seeds_of(setting, _SEEDS)]
            for name in ("error feedback", "to nearest"):
                points.append(replicated(f"{name}, {ratio:g}", damping, [each[name] for each in found]))
            for name in ("feedback, predicted", "chance"):
                y = float(np.mean([each[name] for each in found]))
                points.append(Point(series=f"{name}, {ratio:g}", x=damping, y=y, predicted=True))
    return points


def _sentence_shares(points: Sequence[Point]) -> str:
    parts = []
    for ratio in (1.125, 1.5):
        by = {name: {p.x: p.y for p in points if p.series == f"{name}, {ratio:g}"}
              for name in ("error feedback", "to nearest", "chance", "feedback, predicted")}  # fmt: skip
        first, last = min(by["chance"]), max(by["chance"])
        off = max(abs(y - by["feedback, predicted"][x]) for x, y in by["error feedback"].items())
        nearest = max(abs(y - by["chance"][x]) for x, y in by["to nearest"].items())
        parts.append(
            f"with {ratio:g} times the channels feedback puts {by['error feedback'][first]:.1%} of its error into the "
            f"null space at a damping of {first:g} and {by['error feedback'][last]:.1%} at {last:g}, within {off:.3f} "
            f"of what is predicted; chance is {by['chance'][first]:.1%}, from which rounding to nearest stays within "
            f"{nearest:.3f}"
        )
    found = "; ".join(parts)
    return found[0].upper() + found[1:] + "."


def _measure_stiff(setting: Setting) -> list[Point]:
    points = []
    for ratio in _RATIOS:
        found = [shares(seed, ratio, 1e-2, stiff=True) for seed in seeds_of(setting, _SEEDS)]
        for name in ("error feedback", "to nearest"):
            points.append(replicated(name, ratio, [each[name] / each["chance"] for each in found]))
        y = float(np.mean([each["feedback, predicted"] / each["chance"] for each in found]))
        points.append(Point(series="feedback, predicted", x=ratio, y=y, predicted=True))
    return points


def _sentence_stiff(points: Sequence[Point]) -> str:
    by = {name: {p.x: p.y for p in points if p.series == name} for name in ("error feedback", "to nearest")}
    first, last = min(by["to nearest"]), max(by["to nearest"])
    feedback, nearest = by["error feedback"], by["to nearest"]
    return (
        f"In the {_STIFF} stiffest directions feedback leaves {feedback[first]:.3f} of chance without expansion and "
        f"{feedback[last]:.3f} with {last:g} times the channels, rounding to nearest {nearest[first]:.2f} and "
        f"{nearest[last]:.2f}: of what keeps errors off them, {feedback[first] / nearest[first]:.3f} is the factor of "
        f"feedback alone, {nearest[last] / nearest[first]:.2f} that of expansion alone."
    )


_SOURCE = "Franco, Monteagudo-Lago, Colbert, Fraser, Blott 2025, arXiv:2503.17513; identities of the module"

EXPERIMENTS = (
    Experiment(
        name="expansion-gain",
        title="Squared output error after expansion over that before it, at one step",
        source=_SOURCE,
        x="channels after expansion over those before, K' / K",
        y="relative squared output error",
        measure=_measure_gains,
        sentence=_sentence_gains,
        log="y",
        interval=INTERVAL,
    ),
    Experiment(
        name="expansion-null-space",
        title="Share of the rounding error's energy in the null space of expanded inputs",
        source=_SOURCE,
        x="damping over the mean diagonal of H'",
        y="share of |W' - Q'|²",
        measure=_measure_shares,
        sentence=_sentence_shares,
        log="x",
        interval=INTERVAL,
    ),
    Experiment(
        name="expansion-stiff-directions",
        title=f"Share of the rounding error's energy in the {_STIFF} stiffest directions, over chance",
        source=_SOURCE,
        x="channels after expansion over those before, K' / K",
        y="share over that of dimensions",
        measure=_measure_stiff,
        sentence=_sentence_stiff,
        log="y",
        interval=INTERVAL,
    ),
)
