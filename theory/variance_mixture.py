"""A Gaussian variance mixture fitted to a histogram by expectation maximization, exact for binned samples.

Source: Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, section 4.3;
for binned samples McLachlan and Jones (1988), Fitting mixture models to grouped and truncated data via the EM
algorithm.

A sample's variance is one of K unknown values `v_k` with probability `w_k`; its sign and place within its bin are
unknown too. With `P_k(b)` the mass of N(0, v_k) in bin b, responsibilities are `r_bk = w_k P_k(b) / sum_j w_j P_j(b)`,
and one step sets, over all samples n with counts n_b,

    w_k = sum_b n_b r_bk / n,      v_k = sum_b n_b r_bk E[X^2 | X in b, k] / sum_b n_b r_bk,

where a Gaussian cut to `a < x <= b` (in its standard deviations) has the second moment `1 - (b f(b) - a f(a)) / P`.
The likelihood of the counts never falls. Imports no torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr, logsumexp

from theory.sources import GaussianMixture

_STEPS = 1000
_LEAST_GAIN = 1e-9  # of the mean log-likelihood, in nats: what ends the steps
_LEAST_WEIGHT = 1e-9  # a component of less, one sample in a billion, is left out
_FINEST = 0.5  # of a bin: standard deviations below it cannot be told from one another


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The mixture, and the mean log-likelihood of a sample's bin before each step, in nats: never falling."""

    mixture: GaussianMixture
    log_likelihood: tuple[float, ...]


def fit_variances(edges: ArrayLike, counts: ArrayLike, components: int = 5) -> Fit:
    """The mixture of up to `components` zero-mean Gaussians of greatest likelihood, from where a fixed start leads.

    `edges` (n + 1,) rise and are symmetric about zero; `counts` (n,) are the samples between them, those beyond the
    outer edges in the outer bins. The start has equal weights and variances in steps of 4 around the samples' mean
    square; components that lose their weight are left out, and the others are ordered by variance. Standard
    deviations stay above half of the narrowest bin.

    >>> edges = np.linspace(-8, 8, 257)
    >>> from scipy.special import ndtr
    >>> fit = fit_variances(edges, 1e6 * np.diff(ndtr(edges)), components=1)
    >>> round(fit.mixture.variances[0], 4)
    1.0
    """
    edges, n = _folded(np.asarray(edges, dtype=float), np.asarray(counts, dtype=float))
    if components < 1:
        raise ValueError(f"expected at least one component, got {components}")
    middles = (edges[1:] + edges[:-1]) / 2
    least = (_FINEST * np.diff(edges).min()) ** 2
    v = np.maximum((n @ middles**2) / n.sum() * 4.0 ** (np.arange(components) - components // 2), least)
    w = np.full(components, 1 / components)
    history: list[float] = []
    for _ in range(_STEPS):
        log_mass, second = _in_bins(edges, v)
        log_joint = np.log(np.maximum(w, 1e-300)) + log_mass
        log_total = logsumexp(log_joint, axis=1)
        history.append(float(n @ log_total / n.sum()))
        if len(history) > 1 and history[-1] - history[-2] < _LEAST_GAIN:
            break
        share = n[:, None] * np.exp(log_joint - log_total[:, None])
        w = share.sum(0) / n.sum()
        v = np.where(w > 0, (share * second).sum(0) / np.maximum(share.sum(0), 1e-300), v)
        v = np.maximum(v, least)
    kept = [k for k in np.argsort(v, kind="stable") if w[k] > _LEAST_WEIGHT]
    mixture = GaussianMixture(weights=tuple((w[kept] / w[kept].sum()).tolist()), variances=tuple(v[kept].tolist()))
    return Fit(mixture=mixture, log_likelihood=tuple(history))


def _folded(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts of |x|: the components are symmetric, so only those of both signs together matter."""
    if edges.ndim != 1 or counts.shape != (len(edges) - 1,) or len(edges) < 3 or not (np.diff(edges) > 0).all():
        raise ValueError(f"expected n + 1 rising edges and n counts, got shapes {edges.shape} and {counts.shape}")
    if not np.allclose(edges, -edges[::-1], rtol=0, atol=1e-9 * edges[-1]):
        raise ValueError(f"expected edges symmetric about zero, got {edges[0]} to {edges[-1]}")
    if not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum():
        raise ValueError(f"expected counts that are not negative, of which one is positive, got {counts}")
    both = counts + counts[::-1]
    half = both[len(both) // 2 :].copy()
    positive = edges[len(edges) // 2 :]
    if len(both) % 2:  # a bin astride zero was added to itself
        half[0] /= 2
        positive = np.append(0.0, positive)
    return positive, half


def _in_bins(edges: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For |X| in each bin under N(0, v): the logarithm of its mass and its second moment there; (bins, K) each.

    The last bin has no upper end. Masses are differences of upper tails in logarithms, which hold far out.
    """
    t = edges[:, None] / np.sqrt(v)
    log_tail = np.log(2) + log_ndtr(-t)
    log_tail[-1] = -np.inf
    log_mass = log_tail[:-1] + np.log1p(-np.exp(log_tail[1:] - log_tail[:-1]))
    log_mass = np.maximum(log_mass, -1e5)  # bins that rounding empties
    log_edge = np.log(np.maximum(t, 1e-300)) - t**2 / 2 + np.log(2 / np.pi) / 2  # t f(t), f of |X|
    log_edge[-1] = -np.inf
    moment = 1 + np.exp(log_edge[:-1] - log_mass) - np.exp(log_edge[1:] - log_mass)
    ends = np.append(edges[1:-1], np.inf)[:, None]
    return log_mass, np.clip(v * moment, edges[:-1, None] ** 2, ends**2)
