"""Softmax crowding: the margin that attention on one key needs among many, and what rounding the keys takes from it.

"On the Fundamental Limits of LLMs at Scale" (2511.12869), its lemma on softmax crowding; derivation here. A target's
logit is s above the mean of n - 1 distractors' logits l_i, independent Gaussians of variance v. Its probability p has
log-odds s - ln Z with Z = sum_i exp l_i, so that p asks for the margin

    s = logit p + ln Z,    E Z = (n - 1) exp(v / 2),    s ~ logit p + ln(n - 1) + v / 2,

short of it by var(Z) / (2 (E Z)^2) = (e^v - 1) / (2 (n - 1)) to first order, because the logarithm is concave. At a
fixed margin the log-odds therefore fall by 1 for each unit of ln n. Where v > 2 ln n the largest logit makes up Z
(Derrida's random energy model, 1981, freezes) and s is near logit p + sqrt(2 v ln n) instead.

**Rounded keys.** Noise of variance w in every logit, independent of it, makes v + w of v and is 0 on the mean in the
target's own logit: the margin shrinks by w / 2.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import logit, logsumexp

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

LENGTHS = (64, 256, 1024, 4096, 16384)
HEAD = 64  # channels of a head
_QUERIES = 8
_SUMS = 32
_DEVIATIONS = (1.0, 2.0, 5.0)  # of logits; the last is frozen at every length here
BITS = (8, 4, 3, 2)


def margin(p: float, n: int, variance: float) -> float:
    """The margin, in nats, that gives a target the probability `p` among `n` keys of logits of this variance.

    `ValueError` for p outside (0, 1) and fewer than two keys.

    >>> round(margin(0.5, 4096, 1.0), 3)
    8.818
    """
    if not (0 < p < 1 and n >= 2 and variance >= 0):
        raise ValueError(f"p {p}, n {n}, variance {variance}: expected 0 < p < 1, two keys or more, no negative number")
    if variance > 2 * np.log(n):
        return float(logit(p) + np.sqrt(2 * variance * np.log(n)))
    return float(logit(p) + np.log(n - 1) + variance / 2)


def distractors(n: int, deviation: float, seed: int) -> np.ndarray:
    """Logits (32, n - 1) of a target's distractors: independent Gaussians of this standard deviation."""
    return deviation * np.random.default_rng((seed, n)).standard_normal((_SUMS, n - 1))


def needed(p: float, n: int, deviation: float, seed: int) -> float:
    """The mean over 32 draws of the margin that `p` really takes, by the sum over distractors."""
    return float(logit(p) + logsumexp(distractors(n, deviation, seed), axis=1).mean())


def heads(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries (8, d) of length sqrt(d), and Gaussian keys (8, n - 1, d), whose logits are `distractors` of 1."""
    rng = np.random.default_rng((seed, n))
    queries = rng.standard_normal((_QUERIES, HEAD))
    queries *= np.sqrt(HEAD) / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries, rng.standard_normal((_QUERIES, n - 1, HEAD))


def logits(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Products q k / sqrt(d) of queries (h, d) and keys (h, n, d), (h, n)."""
    products: np.ndarray = (keys @ queries[..., None])[..., 0] / np.sqrt(queries.shape[1])
    return products


def lost_to_rounding(bits: int, n: int, seed: int) -> tuple[float, float]:
    """The margin that keys of `bits` bits lose among `n`, and half the variance of the noise in their logits.

    Keys are rounded token by token to integers over their own range. What is lost is the rise of ln Z, the mean over
    queries, at logits of variance 1; the target's logit changes by nothing on the mean.
    """
    import torch

    from suite.grids import Integer

    queries, keys = heads(n, seed)
    flat = torch.from_numpy(keys.reshape(-1, HEAD))
    fitted = Integer(bits=bits, group="row").fit(flat)
    rounded = fitted.decode(fitted.nearest(flat)).double().numpy().reshape(keys.shape)
    exact, noisy = logits(queries, keys), logits(queries, rounded)
    return float((logsumexp(noisy, axis=1) - logsumexp(exact, axis=1)).mean()), float((noisy - exact).var()) / 2


def _measure(setting: Setting) -> list[Point]:
    points = []
    for deviation in _DEVIATIONS:
        for n in LENGTHS:
            found = [needed(0.5, n, deviation, seed) for seed in seeds_of(setting)]
            points.append(replicated(f"deviation {deviation:g}", n, found))
            y = margin(0.5, n, deviation**2)
            points.append(Point(series=f"deviation {deviation:g}, closed form", x=n, y=y, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    parts = []
    for name in dict.fromkeys(p.series for p in points if not p.predicted):
        first, last = (at[name, n] for n in (LENGTHS[0], LENGTHS[-1]))
        told = at[f"{name}, closed form", LENGTHS[-1]]
        parts.append(f"{first:.2f} to {last:.2f} nats (closed form at the end: {told:.2f}) at {name}")
    return (f"Half of the attention on one key takes a margin that grows over {LENGTHS[0]} to {LENGTHS[-1]} keys from "
            f"{'; from '.join(parts)}.")  # fmt: skip


def _measure_rounded(setting: Setting) -> list[Point]:
    points = []
    for bits in BITS:
        found = [lost_to_rounding(bits, 4096, seed) for seed in seeds_of(setting)]
        points.append(replicated("margin lost", bits, [lost for lost, _ in found]))
        half = float(np.mean([half for _, half in found]))
        points.append(Point(series="half the variance of the noise", x=bits, y=half, predicted=True))
    return points


def _sentence_rounded(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    parts = [f"{at['margin lost', x]:.2g} nats at {x:g} bits (half the noise's variance: "
             f"{at['half the variance of the noise', x]:.2g})" for x in BITS]  # fmt: skip
    return f"Among 4,096 keys rounded token by token a target's margin loses {', '.join(parts)}."


_SOURCE = "2511.12869, lemma on softmax crowding; Derrida 1981; derivation of the module"
EXPERIMENTS = (
    Experiment(name="crowding-margin", title="The margin that half of the attention takes among n keys", source=_SOURCE,
               x="keys", y="margin over the mean logit, nats", measure=_measure, sentence=_sentence, log="x",
               interval=INTERVAL),
    Experiment(name="crowding-rounded-keys", title="What rounding keys takes from a target's margin", source=_SOURCE,
               x="bits of keys", y="margin lost, nats", measure=_measure_rounded, sentence=_sentence_rounded, log="y",
               interval=INTERVAL),
)  # fmt: skip
