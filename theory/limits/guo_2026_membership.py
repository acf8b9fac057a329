"""How many bits a memory spends on a fact, against the least that its false and missed recalls allow.

Guo, Li 2026, arXiv:2602.00906 (rate-distortion of membership testing); for a single threshold Carter, Floyd, Gill,
Markowsky, Wegman 1978, "Exact and approximate membership testers". A memory of B bits is filled with m facts out of
many more statements, says yes to a fact with probability 1 - fn and to another statement with probability fp. Then

    B / m >= KL(Bern(1 - fn) || Bern(fp)) = (1 - fn) log2((1 - fn) / fp) + fn log2(fn / (1 - fp)).

For fn = 0 that is log2(1 / fp): so many bits a fact, and no fewer than 2^-(B / m) of all other statements are recalled
falsely. Hash functions, the same for all sets of facts, are free in the bound, and free here. Three memories:

- a Bloom filter of c bits a fact and k = c ln 2 hash functions: fp ~ 2^-k, so 1 / ln 2 = 1.443 times the bound;
- the sorted set of r-bit signatures, the gaps in Golomb-Rice codes: fp ~ m 2^-r at about log2(2^r / m) + 1.5 bits;
- a linear memory: statements are vectors of signs that a hash function gives, a yes is x w > t, and w is the least-
  squares weight that separates facts from none, rounded to a few bits by the suite with its scales counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, rel_entr

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

FACTS = 4096
_OTHERS = 200_000  # statements that are no facts, asked for
_BLOOM = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)  # bits a fact
_RICE = (1, 2, 4, 6, 8, 10)  # log2 of what follows of a signature over the number of facts
LINEAR_BITS = (2, 3, 4, 8)
_WIDTH = 384  # weights of a linear memory
_LOADS = (0.5, 1.0, 2.0, 4.0)  # facts a weight
_LINEAR_OTHERS = 40_000
_GROUP, _THRESHOLD_BITS = 64, 16


@dataclass(frozen=True, slots=True)
class Recall:
    """What a memory costs and does: bits a fact, the share of facts missed and of other statements recalled."""

    bits: float
    missed: float
    false: float

    @property
    def least_bits(self) -> float:
        """The bound on bits a fact."""
        return least_bits(self.missed, self.false)

    @property
    def looseness(self) -> float:
        """Bits over the bound; infinite for a memory that tells nothing apart."""
        return self.bits / self.least_bits if self.least_bits > 0 else float("inf")


def least_bits(missed: float, false: float) -> float:
    """KL(Bern(1 - missed) || Bern(false)) in bits; infinite where nothing is recalled falsely.

    >>> least_bits(0.0, 0.25), least_bits(0.5, 0.5)
    (2.0, 0.0)
    """
    if not (0 <= missed <= 1 and 0 <= false <= 1):
        raise ValueError(f"missed {missed}, false {false}: expected shares from 0 to 1")
    return float((rel_entr(1 - missed, false) + rel_entr(missed, 1 - false)) / np.log(2))


def bloom(bits: float, seed: int, facts: int = FACTS) -> Recall:
    """A Bloom filter of about `bits` bits a fact, filled and asked."""
    rng, size = np.random.default_rng(seed), round(bits * facts)
    k = max(1, round(size / facts * np.log(2)))
    held = np.zeros(size, dtype=bool)
    places = rng.integers(size, size=(facts, k))
    held[places] = True
    false = held[rng.integers(size, size=(_OTHERS, k))].all(1).mean()
    return Recall(size / facts, float(1 - held[places].all(1).mean()), float(false))


def signatures(low_bits: int, seed: int, facts: int = FACTS) -> Recall:
    """A set of signatures of log2(facts) + `low_bits` bits, whose sorted gaps are Golomb-Rice codes of `low_bits`."""
    rng = np.random.default_rng(seed)
    space = facts << low_bits
    drawn = rng.integers(space, size=facts)
    held = np.unique(drawn)
    gaps = np.diff(held, prepend=-1) - 1
    n_bits = int((gaps >> low_bits).sum()) + len(gaps) * (1 + low_bits)  # unary, its end, and the rest
    false = np.isin(rng.integers(space, size=_OTHERS), held).mean()
    return Recall(n_bits / facts, float(1 - np.isin(drawn, held).mean()), float(false))


def linear(load: float, bits: int, seed: int) -> Recall:
    """A linear memory of 384 weights of `bits` bits, with `load` facts for each of them.

    Without rounding, w minimizes the mean of (1 - x w)^2 over facts plus that of (x w)^2 over all statements, |w|^2.
    The threshold, 16 bits, is where the bound is highest for a Gaussian score of other statements.
    """
    import torch

    from suite.quantize import quantize_matrix

    rng, facts = np.random.default_rng(seed), round(load * _WIDTH)
    X = rng.choice([-1.0, 1.0], size=(facts, _WIDTH))
    w = np.linalg.solve(X.T @ X / facts + np.eye(_WIDTH), X.mean(0))
    found = quantize_matrix(torch.from_numpy(w[None]), method="rtn", bits=bits, group=_GROUP)
    rounded = found.dequantize().double().numpy()[0]
    scores = np.sort(X @ rounded)
    shares = np.arange(facts) / facts  # missed, with the threshold just below the score of this place
    told = [least_bits(share, float(ndtr(-score / np.linalg.norm(rounded))))
            for share, score in zip(shares, scores, strict=True)]  # fmt: skip
    best = int(np.argmax(told))
    t = float(np.nextafter(np.float16(scores[best]), np.float16(-np.inf)))
    false = np.mean(rng.choice([-1.0, 1.0], size=(_LINEAR_OTHERS, _WIDTH)) @ rounded > t)
    return Recall((found.n_bits + _THRESHOLD_BITS) / facts, float((scores <= t).mean()), float(false))


def memories() -> dict[str, list[Callable[[int], Recall]]]:
    """By name, every memory at each of its sizes, of a seed."""
    found: dict[str, list[Callable[[int], Recall]]] = {
        "Bloom filter": [lambda seed, c=c: bloom(c, seed) for c in _BLOOM],  # type: ignore[misc]
        "coded signatures": [lambda seed, b=b: signatures(b, seed) for b in _RICE],  # type: ignore[misc]
    }
    for bits in LINEAR_BITS:
        found[f"linear, {bits} bits"] = [lambda seed, a=a, b=bits: linear(a, b, seed) for a in _LOADS]  # type: ignore[misc]
    return found


def _measure(setting: Setting) -> list[Point]:
    points = []
    for name, sizes in memories().items():
        for memory in sizes:
            found = [memory(seed) for seed in seeds_of(setting)]
            x = float(np.mean([one.bits for one in found]))
            points.append(replicated(name, x, [one.least_bits for one in found]))
    ends = min(p.x for p in points), max(p.x for p in points)
    return [*points, *(Point(series="the bound", x=x, y=x, predicted=True) for x in ends)]


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for name in dict.fromkeys(p.series for p in points if not p.predicted):
        mine = [p.x / p.y for p in points if p.series == name and p.y > 0]
        parts.append(f"{min(mine):.2f} to {max(mine):.2f} times ({name})")
    return f"Bits a fact, over the least that the memory's false and missed recalls allow: {', '.join(parts)}."


EXPERIMENT = Experiment(
    name="capacity-membership",
    title="What a memory's recalls are worth against the bits it spends on a fact",
    source="Guo, Li 2026, arXiv:2602.00906; Carter et al. 1978; Bloom 1970",
    x="bits spent on a fact",
    y="least bits that its false and missed recalls allow",
    measure=_measure,
    sentence=_sentence,
    interval=INTERVAL,
)
