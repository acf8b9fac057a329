"""BiLLM against closed forms: what two binary orders and two bells leave of a source, and how far that is from R(D).

Huang et al. 2024, "BiLLM: Pushing the Limit of Post-Training Quantization for LLMs", arXiv:2402.04291. Salient columns
are read in two binary orders, the other weights in two bells of one order each (`suite.grids.bell_split`).

**Binary residuals.** Order k reads what is left, r, as a_k sign(r) with a_k = E|r|. Since E r sign(r) = E|r|,

    E (r - a sign r)^2 = E r^2 - 2 a E|r| + a^2 = E r^2 - a_k^2,

so that the error after k orders is sigma^2 - a_1^2 - .. - a_k^2. For a symmetric source r is |x| - c on each of 2^(k-1)
intervals of |x|, which the next order halves at c and moves to c -+ a: every a_k is a sum of masses and moments of
tails. Each order takes off what is left a factor of 1 - (E|r|)^2 / E r^2, which is near 1/4 only for a residual that is
uniform (3/4 of its square): the Gaussian's are not, so that the error falls ever further behind 4^-k.

**Bell split.** Weights of |x| < p and the others are each read as +-a of their own, a the part's E|x|. That is a
quantizer of four levels with a border at p, never better than Lloyd and Max's; where p is halfway between the two
levels it is theirs, if p is best. Which part a weight is of is a bit, as long as it is not coded by its entropy.

**Rate.** The paper counts a bit for a sign, two in salient columns. Stored are two bits for every weight, and for every
row of a block of 128 means and distances of four orders: 8 numbers of 16 bits, one more bit a weight (half without
means). `distance_bits` is the true rate less that at which R(D) is the error: of a Gaussian log2(1 / D) / 2, of a
Laplacian and of a layer's histogram between Blahut's and Arimoto's bounds (the upper one is taken), of Student's law
the Shannon lower bound, so that there it is the most it can be.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import minimize_scalar

from theory.blahut_arimoto import RateDistortion, default_slopes, rate_distortion
from theory.experiment import Experiment, Point, Setting
from theory.histogram_source import Histogram, histogram_of
from theory.replication import INTERVAL, replicated, seeds_of
from theory.sources import Laplace, Source, Student, gaussian, shannon_lower

SOURCES: dict[str, Source] = {"Gaussian": gaussian(), "Laplacian": Laplace(), "Student's t of 3": Student(degrees=3)}
LAYER = "the first block's mlp.down_proj"
VARIANTS: dict[str, dict[str, object]] = {
    "as published": {},
    "nearest of four levels": {"membership": "nearest"},
    "without means": {"center": False},
}
_ORDERS = 6
_SHAPE = (64, 512)


def residual_orders(source: Source, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """The scales a_k and the mean squared errors after order k = 1 .. `orders` of greedy binary residuals, (orders,).

    Exact for a symmetric source. `ValueError` for fewer than one order.

    >>> a, error = residual_orders(gaussian(), 2)
    >>> a.round(6).tolist(), error.round(6).tolist()  # sqrt(2 / pi) and 1 - 2 / pi first
    ([0.797885, 0.482624], [0.36338, 0.130454])
    """
    if orders < 1:
        raise ValueError(f"orders {orders!r}: expected at least 1")
    ends, centers = np.array([0.0, np.inf]), np.array([0.0])
    scales = []
    for _ in range(orders):
        cut = np.clip(centers, ends[:-1], ends[1:])  # where the residual |x| - c is 0, if it is anywhere
        mass, moment = _inside(source, np.sort(np.concatenate([ends, cut])))
        sign = np.where(np.arange(len(mass)) % 2 == 0, -1.0, 1.0)
        center = np.repeat(centers, 2)
        scales.append(float(sign @ (moment - center * mass)))
        ends, centers = np.sort(np.concatenate([ends, cut])), center + sign * scales[-1]
    a = np.array(scales)
    return a, source.variance - np.cumsum(a**2)


def _inside(source: Source, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mass and moment of |x| between consecutive `ends` (n + 1,), the last of which is infinity; (n,) each."""
    tails = (np.append(2 * f(ends[:-1]), 0.0) for f in (source.tail, source.tail_moment))
    mass, moment = (-np.diff(tail) for tail in tails)
    return mass, moment


def split_error(source: Source, border: float) -> float:
    """The mean squared error where |x| below and above `border` > 0 are each read as +-a of their own.

    >>> round(split_error(gaussian(), 0.9816), 6)  # Lloyd and Max's border
    0.117482
    """
    if not border > 0:
        raise ValueError(f"border {border!r}: expected above 0")
    mass, moment = _inside(source, np.array([0.0, border, np.inf]))
    explained = np.divide(moment**2, mass, out=np.zeros(2), where=mass > 0)
    return float(source.variance - explained.sum())


def best_split(source: Source) -> tuple[float, float]:
    """The border of the least error, and that error; the best of a grid of quarters of a deviation, then Brent's."""
    sigma = np.sqrt(source.variance)
    start = sigma * min(np.arange(1, 40) / 4, key=lambda p: split_error(source, sigma * p))
    found = minimize_scalar(
        lambda p: split_error(source, p), bounds=(start - sigma / 4, start + sigma / 4), method="bounded"
    )
    return float(found.x), float(found.fun)


def least_rate(source: Source, error: float) -> float:
    """R(D) in bits at a mean squared `error`, as the module says: the upper bound, of Student's Shannon's lower one."""
    if isinstance(source, Student):
        return max(0.0, float(np.log2(shannon_lower(source, 0) / error)) / 2)
    return max(0.0, float(_curve(source).rate(error)))


@cache
def _curve(source: Source) -> RateDistortion:
    return rate_distortion(source, default_slopes(source, 14, 4.5))


def matrix(name: str, model: str, seed: int) -> np.ndarray:
    """A matrix of one of `SOURCES`, drawn by `seed`, or the weights of the `LAYER`, of root mean square 1.

    Raises `ValueError` for another name.
    """
    if name in SOURCES:
        x = SOURCES[name].draw(np.random.default_rng(seed), _SHAPE)
    elif name != LAYER:
        raise ValueError(f"source {name!r}: expected one of {', '.join((*SOURCES, LAYER))}")
    else:
        from theory.layers import weights

        x = weights(model)
    return x / np.sqrt(np.mean(x**2))


def source_of(name: str, x: np.ndarray) -> Source:
    """What `x` is held against: its source, or its own histogram."""
    return SOURCES[name] if name in SOURCES else _histogram(x.tobytes())


@cache
def _histogram(values: bytes) -> Histogram:
    return histogram_of(np.frombuffer(values), 48)


def rounded_residuals(x: np.ndarray, orders: int) -> float:
    """The mean squared error of `suite`'s greedy residual binarization of `x` (out, in), one scale an order.

    Its scales are greedy; its signs are those of the nearest sum, which from the third order on can be better ones.
    """
    import torch

    from suite.grids import ResidualBinary

    W = torch.from_numpy(x)
    fitted = ResidualBinary(orders=orders, group="tensor", scales="greedy", scale_bits=32).fit(W)
    return float((W - fitted.decode(fitted.nearest(W))).square().mean())


def rounded_bells(x: np.ndarray, variant: str) -> dict[str, float]:
    """Of `suite`'s BiLLM on `x` (out, in), without an H: error, true bits, those the paper counts, those at entropy."""
    import torch

    from suite.grids import BellSplit
    from suite.quantized import Quantized

    W = torch.from_numpy(x)
    fitted = BellSplit(score="magnitude", **VARIANTS[variant]).fit(W)  # type: ignore[arg-type]
    found = Quantized(codes=fitted.nearest(W), grid=fitted)
    return {
        "error": float((W - found.dequantize()).square().mean()),
        "bits": found.n_bits / x.size,
        "published bits": fitted.published_bits,
        "entropy bits": found.entropy_bits / x.size,
        "salient": float(fitted.salient.double().mean()),
    }


def distance(name: str, variant: str, model: str, seed: int) -> dict[str, float]:
    """Of one seed, `rounded_bells` with its "distance" from R(D) at its true bits, and "at entropy"."""
    x = matrix(name, model, seed)
    found = rounded_bells(x, variant)
    least = least_rate(source_of(name, x), found["error"])
    return found | {"distance": found["bits"] - least, "at entropy": found["entropy bits"] - least}


def _measure_residuals(setting: Setting) -> list[Point]:
    points = []
    for name, source in SOURCES.items():
        errors = residual_orders(source, _ORDERS)[1]
        for k in range(1, _ORDERS + 1):
            found = [rounded_residuals(matrix(name, setting.model, seed), k) for seed in seeds_of(setting, 5)]
            points.append(replicated(name, k, [4.0**k * each for each in found]))
            points.append(Point(series=f"{name}, closed form", x=k, y=float(4.0**k * errors[k - 1]), predicted=True))
    return points


def _sentence_residuals(points: Sequence[Point]) -> str:
    parts = []
    for name in SOURCES:
        found = {p.x: p for p in points if p.series == name}
        exact = {p.x: p.y for p in points if p.series == f"{name}, closed form"}
        last = max(found)
        parts.append(
            f"{name} {found[2.0].y:.2f} times at two orders ({exact[2.0]:.2f}) and {found[last].y:.1f} at {last:g} "
            f"({exact[last]:.1f})"
        )
    return (
        f"Binary residuals of greedy scales leave, over the Gaussian's distortion-rate function, with signs of the "
        f"nearest sum (by the closed form, of greedy signs): {'; '.join(parts)}."
    )


def _measure_distance(setting: Setting) -> list[Point]:
    points = []
    for name in (*SOURCES, LAYER):
        for variant in VARIANTS:
            seeds = seeds_of(setting) if name in SOURCES else range(1)  # weights are what they are
            found = [distance(name, variant, setting.model, seed) for seed in seeds]
            x = float(np.mean([each["bits"] for each in found]))
            points.append(replicated(f"{name}, {variant}", x, [each["distance"] for each in found]))
            x = float(np.mean([each["entropy bits"] for each in found]))
            points.append(replicated(f"{name}, {variant}, at entropy", x, [each["at entropy"] for each in found]))
            if variant == "as published":
                claimed = float(np.mean([each["published bits"] for each in found]))
                y = float(np.mean([each["distance"] - each["bits"] + each["published bits"] for each in found]))
                points.append(Point(series=f"{name}, as the paper counts", x=claimed, y=y))
    return points


def _sentence_distance(points: Sequence[Point]) -> str:
    parts = []
    for name in (*SOURCES, LAYER):
        by = {p.series: p for p in points if p.series.startswith(name)}
        found, counted = by[f"{name}, as published"], by[f"{name}, as the paper counts"]
        best = min((p for p in by.values() if p is not counted), key=lambda p: p.y)
        parts.append(
            f"{name} {found.y:.2f} bits at {found.x:.2f} true bits (the {counted.x:.2f} that the paper counts would be "
            f"{'beyond the limit by' if counted.y < 0 else 'at'} {abs(counted.y):.2f}; nearest to it, at {best.y:.2f}: "
            f"{best.series.removeprefix(f'{name}, ')})"
        )
    return f"From R(D) of its source BiLLM is, at its true rate: {'; '.join(parts)}."


_SOURCE = "Huang et al. 2024, arXiv:2402.04291; closed forms of the module"

EXPERIMENTS = (
    Experiment(
        name="residual-binary",
        title="Squared error of greedy binary residuals over the Gaussian's distortion-rate function",
        source=_SOURCE,
        x="orders, bits per value",
        y="mean squared error · 4^k",
        measure=_measure_residuals,
        sentence=_sentence_residuals,
        log="y",
        interval=INTERVAL,
    ),
    Experiment(
        name="billm-distance",
        title="BiLLM's distance from the rate-distortion function, everything stored counted",
        source=_SOURCE,
        x="bits per weight",
        y="bits beyond R(D) at its error",
        measure=_measure_distance,
        sentence=_sentence_distance,
        interval=INTERVAL,
    ),
)
