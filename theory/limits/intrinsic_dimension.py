"""Intrinsic dimension from distances to neighbors: two estimators, at scales that follow from how many neighbors.

- Facco, d'Errico, Rodriguez, Laio 2017 (TwoNN), Scientific Reports 7: where the density is constant over the second
  neighbor, mu = r2 / r1 has the law P(mu > x) = x^-d. d is the slope through the origin of -ln(1 - F) over ln mu, with
  the largest tenth left out.
- Levina, Bickel 2004, NIPS, with MacKay's and Ghahramani's mean of inverses: 1 / d is the mean of ln(r_k / r_j) over
  points and j < k. The more neighbors, the larger the scale.

Both are too low in many dimensions, where a finite sample has no neighbors near enough (`bias`): at 2,000 points on a
linear manifold TwoNN gives about 16 of 20. So what is said of a model's states is said beside a Gaussian of as many
points. Equal points are taken once: a distance of zero says nothing of a dimension.

The estimators are those of the package scikit-dimension (`skdim.id.TwoNN`, `skdim.id.MLE`), which tests compare with.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

Manifold = Literal["linear", "curved", "sphere"]
MANIFOLDS: tuple[Manifold, ...] = ("linear", "curved", "sphere")
DIMENSIONS = (2, 5, 10, 20)
_AMBIENT, _POINTS = 64, 1000
_DISCARDED = 0.1  # Facco et al. 2017, methods
NEIGHBORS = (5, 20, 100)


def neighbor_distances(X: np.ndarray, k: int) -> np.ndarray:
    """Distances (n, k) of distinct points X (N, D) to their k nearest others, ascending.

    Equal points are taken once. `ValueError` for fewer than k + 1 distinct points, and for values that are not finite.
    """
    points = np.unique(np.asarray(X, dtype=float), axis=0)
    if not np.isfinite(points).all() or len(points) < k + 1:
        raise ValueError(f"{len(points)} distinct points of shape {np.shape(X)}: expected finite ones, and {k + 1}")
    d = cdist(points, points)
    np.fill_diagonal(d, np.inf)
    return np.sort(np.partition(d, k - 1, axis=1)[:, :k], axis=1)


def two_nn(distances: np.ndarray) -> float:
    """TwoNN's dimension of distances (n, 2 or more), ascending in a row and above zero."""
    mu = np.sort(np.log(distances[:, 1] / distances[:, 0]))
    kept = int(len(mu) * (1 - _DISCARDED))
    y = -np.log1p(-np.arange(1, kept + 1) / len(mu))
    return float(mu[:kept] @ y / (mu[:kept] @ mu[:kept]))


def levina_bickel(distances: np.ndarray) -> float:
    """The maximum-likelihood dimension of distances (n, k), k >= 2, all points together."""
    return float(1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1])))


def dimensions(X: np.ndarray, neighbors: Sequence[int] = NEIGHBORS) -> dict[str, float]:
    """By name, TwoNN's dimension and the maximum-likelihood one with each number of neighbors, of points (N, D)."""
    found = neighbor_distances(X, max(neighbors))
    return {"TwoNN": two_nn(found)} | {f"MLE, {k} neighbors": levina_bickel(found[:, :k]) for k in neighbors}


def manifold(kind: Manifold, dimension: int, seed: int, points: int = _POINTS) -> np.ndarray:
    """Points (points, 64) of a manifold of known dimension, in a random rotation.

    Linear: a Gaussian in a subspace. Curved: uniform parameters u and (cos u, sin u) for each of them, a flat torus.
    Sphere: of one more dimension, uniform on its surface.
    """
    if not 1 <= dimension <= _AMBIENT // 2:
        raise ValueError(f"dimension {dimension}: expected 1 to {_AMBIENT // 2}")
    rng = np.random.default_rng((seed, dimension))
    if kind == "curved":
        u = rng.uniform(0, 2 * np.pi, (points, dimension))
        x = np.concatenate([np.cos(u), np.sin(u)], 1)
    else:
        x = rng.standard_normal((points, dimension + (kind == "sphere")))
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if kind == "sphere" else x
    turn = np.linalg.qr(rng.standard_normal((_AMBIENT, _AMBIENT)))[0]
    return np.asarray(x @ turn[: x.shape[1]])


def bias(kind: Manifold, dimension: int, seed: int) -> dict[str, float]:
    """By estimator, the dimension found on a manifold over the true one, less 1."""
    return {name: d / dimension - 1 for name, d in dimensions(manifold(kind, dimension, seed)).items()}


def like(X: np.ndarray, seed: int, isotropic: bool) -> np.ndarray:
    """As many points from a Gaussian of the covariance of X (n, D), or of one that is the same in all directions."""
    z = np.random.default_rng(seed).standard_normal(X.shape)
    if isotropic:
        return z
    values, U = np.linalg.eigh(np.cov(X.T))
    return np.asarray(z * np.sqrt(np.maximum(values, 0)) @ U.T)


def _measure(setting: Setting) -> list[Point]:
    points = []
    for kind in MANIFOLDS:
        for dimension in DIMENSIONS:
            found = [bias(kind, dimension, seed) for seed in seeds_of(setting)]
            for name in found[0]:
                points.append(replicated(f"{name}, {kind}", dimension, [100 * one[name] for one in found]))
    return points


def _sentence(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    parts = []
    for name in dict.fromkeys(p.series.rsplit(", ", 1)[0] for p in points):
        parts.append("; ".join([f"{name}: " + ", ".join(
            f"{at[f'{name}, linear', d]:+.0f}% of {d:g}" for d in DIMENSIONS)]))  # fmt: skip
    return f"Bias of estimates from 1,000 points on linear manifolds of known dimension: {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="dimension-bias",
    title="What estimators make of manifolds of known dimension",
    source="Facco et al. 2017; Levina, Bickel 2004",
    x="true dimension",
    y="bias, percent",
    measure=_measure,
    sentence=_sentence,
    log="x",
    interval=INTERVAL,
)
