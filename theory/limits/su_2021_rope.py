"""How far apart a position encoding keeps distances: rotary embeddings' geometric frequencies against two laws.

Su, Lu, Pan, Murtadha, Wen, Liu 2021, "RoFormer", arXiv:2104.09864. A query and a key of the same content at distance D
have the score sum_k |q_k|^2 cos(w_k D) over pairs of channels, on the mean over content proportional to

    K(D) = (1 / m) sum_k cos(w_k D),    w_k = b^(-k / m),  k = 0 .. m - 1.

The lemma on positions of 2511.12869 bounds |K| by 2 / (Omega D) for frequencies spread evenly over (0, Omega]: their
mean is the Dirichlet kernel, about sin(Omega D) / (Omega D). Geometric ones have the integral, with u = D b^-t,

    K(D) ~ int_0^1 cos(D b^-t) dt = (Ci(D) - Ci(D / b)) / ln b,

Ci the cosine integral. For 1 << D << b that is 1 - (gamma + ln D) / ln b: **each doubling of the distance costs ln 2 /
ln b**, whatever the distance, and D is told from D + 1 by 1 / (D ln b), in the mean over a turn of the fastest pair.
The sum is above the integral by (cos D - cos(D / b)) / (2 m) to first order (Euler, Maclaurin), as long as neighbors'
angles differ by less than half a turn: D w_k ln b / m < pi. The j pairs that are faster have angles as good as random,
and scatter the kernel about the law by sqrt(j / 2) / m: aliasing, from D = pi m / ln b on, 22 for 64 pairs.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import sici

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

BASE = 1e4
PAIRS = 64  # of channels, in a head of 128
OCTAVES = 2.0 ** np.arange(3, 13)  # distances 8 to 4,096
_CONTENTS = 256  # queries that a seed draws
_GAP = 8  # distances that are told apart: a turn of the fastest pair and a little more
Spacing = Literal["geometric", "even"]


def frequencies(spacing: Spacing, pairs: int = PAIRS, base: float = BASE) -> np.ndarray:
    """Angles a step (pairs,): b^(-k / m), or evenly over (0, 1]."""
    if pairs < 1 or not base > 1:
        raise ValueError(f"pairs {pairs}, base {base}: expected a pair at least, and a base above 1")
    if spacing == "even":
        return np.arange(1, pairs + 1) / pairs
    return base ** (-np.arange(pairs) / pairs)


def kernel(distances: ArrayLike, w: np.ndarray, energies: np.ndarray | None = None) -> np.ndarray:
    """sum_k e_k cos(w_k D), of energies (m,) that are made to sum to 1, or equal ones; shape of `distances`.

    >>> kernel([0.0, 64.0], frequencies("geometric")).round(3).tolist()
    [1.0, 0.477]
    """
    e = np.full(len(w), 1 / len(w)) if energies is None else energies / energies.sum()
    return np.asarray(np.cos(np.asarray(distances, dtype=float)[..., None] * w) @ e)


def logarithmic_law(distances: ArrayLike, base: float = BASE) -> np.ndarray:
    """(Ci(D) - Ci(D / b)) / ln b at distances above 0."""
    D = np.asarray(distances, dtype=float)
    return np.asarray((sici(D)[1] - sici(D / base)[1]) / np.log(base))


def scatter(distances: ArrayLike, pairs: int = PAIRS, base: float = BASE) -> np.ndarray:
    """The standard deviation that aliased pairs of random angles give the kernel about its law."""
    D = np.asarray(distances, dtype=float)[..., None]
    aliased = (D * frequencies("geometric", pairs, base) * np.log(base) / pairs > np.pi).sum(-1)
    return np.asarray(np.sqrt(aliased / 2) / pairs)


def content_kernel(distances: np.ndarray, spacing: Spacing, seed: int, base: float = BASE) -> np.ndarray:
    """The kernel of the content that a seed draws: energies of 256 Gaussian queries of 128 channels, summed."""
    q = np.random.default_rng(seed).standard_normal((_CONTENTS, PAIRS, 2))
    return kernel(distances, frequencies(spacing, base=base), np.square(q).sum((0, 2)))


def told_apart(distances: np.ndarray, seed: int) -> np.ndarray:
    """The mean of K(D') - K(D' + 8) over D' from D to 2 D, at each of the distances."""

    def mean(begin: float, gap: int) -> float:
        return float(content_kernel(np.arange(begin, 2 * begin) + gap, "geometric", seed).mean())

    return np.array([mean(D, 0) - mean(D, _GAP) for D in distances])


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent a of y ~ x^a, by least squares of logarithms; NaN where a y is not above 0."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if (y > 0).all() else float("nan")


def _measure(setting: Setting) -> list[Point]:
    points, distances = [], 2.0 ** np.arange(15)
    for base in (BASE, 5e5):
        rows = np.array([content_kernel(distances, "geometric", seed, base) for seed in seeds_of(setting)])
        for D, values, told in zip(distances, rows.T, logarithmic_law(distances, base), strict=True):
            points.append(replicated(f"geometric, base {base:g}", D, values))
            points.append(Point(series=f"logarithmic law, base {base:g}", x=D, y=float(told), predicted=True))
    even = np.abs([content_kernel(distances[:6], "even", seed) for seed in seeds_of(setting)])
    for D, values in zip(distances, even.T, strict=False):
        points.append(replicated("evenly spaced, absolute", D, values))
    points += [Point(series="2 / D", x=float(D), y=float(2 / D), predicted=True) for D in distances[1:]]
    return points


def _sentence(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    measured, law, lemma = (at[name, 64.0] for name in
                            (f"geometric, base {BASE:g}", f"logarithmic law, base {BASE:g}", "2 / D"))  # fmt: skip
    fall = (at[f"geometric, base {BASE:g}", 16.0] - at[f"geometric, base {BASE:g}", 1024.0]) / 6
    told = np.log(2) / np.log(BASE)
    return (
        f"At distance 64 RoPE's mean cosine is {measured:.3f}: the logarithmic law says {law:.3f}, 2 / D {lemma:.3f}. "
        f"From 16 to 1,024 each doubling costs {fall:.3f}, where ln 2 / ln b = {told:.3f}."
    )


EXPERIMENT = Experiment(
    name="positions-rope",
    title="How a position encoding's similarity falls with distance",
    source="Su et al. 2021, arXiv:2104.09864; 2511.12869, lemma on positions; derivation of the module",
    x="distance, tokens",
    y="mean cosine over pairs of channels",
    measure=_measure,
    sentence=_sentence,
    log="x",
    interval=INTERVAL,
)
