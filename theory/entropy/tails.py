"""Are weights alpha-stable? Three tests that a family of laws has to pass, not only an estimate of its parameter.

An estimate of alpha below 2 shows nothing: quantiles and the characteristic function say 1.4 to 1.8 of
Laplace and Student samples, whose variance is finite. What stable laws of alpha < 2 have and those have not:

1. **The tail**: P(|X| > x) ~ x^-alpha, so that Hill's index is below 2. A finite variance has an index above 2.
2. **Aggregation**: sums of m values are of the same law. Of a finite variance they become Gaussian, alpha = 2. Values
   of a matrix are put in random order first, since neighbors in a row depend on each other.
3. **Likelihood**: the density of the best alpha and scale is above those of rivals at their best. Rivals are the
   Gaussian, Laplace, Student (its degrees free) and the generalized Gaussian exp(-|x / s|^beta). Values are binned,
   1/20 of their median size wide up to 40 of them; beyond, each bin is 5% wider than the one before.

Sources as in `theory.entropy.stable`. Imports no torch but to read a model.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln

from theory.entropy.stable import by_characteristic_function, draw, hill, log_density, summed
from theory.entropy.weights import some_rows, trained
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

TAIL, BLOCK = 0.002, 16
FAMILIES = ("stable", "Gaussian", "Laplace", "Student", "generalized Gaussian")
KNOWN: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student of 4": lambda rng, n: rng.standard_t(4, n),
    "stable of 1.8": lambda rng, n: draw(1.8, rng, (n,)),
    "stable of 1.5": lambda rng, n: draw(1.5, rng, (n,)),
}
_SAMPLES = 100_000
_MATRICES, _ROWS = 8, 0.5  # that a seed draws, and the share of their rows
_SHARES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_BLOCKS = (1, 4, 16, 64)


def _log_of(family: str, x: np.ndarray, shape: float) -> np.ndarray:
    """Log density at x >= 0 of a family at scale 1; `shape` is alpha, the degrees or beta."""
    if family == "stable":
        return log_density(x, shape)
    if family == "Gaussian":
        return np.asarray(-(x**2) / 2 - np.log(2 * np.pi) / 2)
    if family == "Student":
        gammas = float(gammaln((shape + 1) / 2) - gammaln(shape / 2))
        return np.asarray(gammas - np.log(shape * np.pi) / 2 - (shape + 1) / 2 * np.log1p(x**2 / shape))
    beta = 1.0 if family == "Laplace" else shape
    return np.asarray(-(x**beta) + np.log(beta / 2) - gammaln(1 / beta))


_SHAPES = {"stable": (1.8, 1.0, 2.0), "Student": (5.0, 0.5, 1e3), "generalized Gaussian": (1.5, 0.2, 10.0)}


def fitted(values: np.ndarray) -> dict[str, tuple[float, float]]:
    """Of each of `FAMILIES` the greatest mean log-likelihood, in nats per value over its scale, and the shape there.

    Values are taken for symmetric about zero and their median size for one; families without a shape have NaN.
    """
    size = np.abs(np.asarray(values, dtype=float)).ravel()
    size = size / np.median(size)
    edges = list(np.arange(0, 40.05, 0.05))
    while edges[-1] <= size.max():
        edges.append(1.05 * edges[-1])
    ends = np.array(edges)
    counts, _ = np.histogram(size, ends)
    kept = counts > 0
    x, p = ((ends[1:] + ends[:-1]) / 2)[kept], counts[kept] / counts.sum()
    found = {}
    for family in FAMILIES:
        start, low, high = _SHAPES.get(family, (np.nan, np.nan, np.nan))

        def loss(at: np.ndarray, family: str = family, low: float = low, high: float = high) -> float:
            shape = float(np.clip(np.exp(at[1]), low, high)) if len(at) > 1 else np.nan
            return float(-p @ (_log_of(family, x / np.exp(at[0]), shape) - at[0]))

        begin = [0.0] if np.isnan(start) else [0.0, np.log(start)]
        best = minimize(loss, np.array(begin), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7})
        shape = float(np.clip(np.exp(best.x[1]), low, high)) if len(begin) > 1 else np.nan
        found[family] = float(-best.fun), shape
    return found


def stability(values: np.ndarray, seed: int) -> dict[str, float]:
    """The three tests on a sample: Hill's index, alpha before and after summing 16, and stable less the best rival."""
    x = np.random.default_rng(seed).permutation(np.asarray(values, dtype=float).ravel())
    fits = fitted(x)
    rival = max(nats for family, (nats, _) in fits.items() if family != "stable")
    alone, together = by_characteristic_function(x), by_characteristic_function(summed(x, BLOCK))
    return {"tail index": hill(x, TAIL), "alpha": alone, "alpha of sums of 16 less of one": together - alone,
            "nats, stable over the best rival": fits["stable"][0] - rival, "alpha by likelihood": fits["stable"][1],
            "degrees of freedom by likelihood": fits["Student"][1]}  # fmt: skip


def of_model(setting: Setting) -> Mapping[str, float]:
    """N4: medians of the three tests over matrices and rows that the seed draws, each over its own median size."""
    drawn = _drawn(setting, setting.seed)
    found = [stability(W, setting.seed) for W in drawn.values()]
    return {name: median(one[name] for one in found) for name in found[0]}


def _drawn(setting: Setting, seed: int) -> Mapping[str, np.ndarray]:
    known = trained(setting.model)
    names = np.random.default_rng(seed).permutation(sorted(known))[:_MATRICES]
    return some_rows({str(name): known[str(name)] for name in names}, seed, _ROWS)


def _samples(setting: Setting, seed: int) -> dict[str, list[np.ndarray]]:
    """By name, a sample of each known law and those of the model's matrices."""
    known = {name: [law(np.random.default_rng((seed, k)), _SAMPLES)] for k, (name, law) in enumerate(KNOWN.items())}
    return known | {"the model's matrices, median": [*_drawn(setting, seed).values()]}


def _curve(setting: Setting, at: Sequence[float], of: Callable[[np.ndarray, float], float]) -> list[Point]:
    found: dict[tuple[str, float], list[float]] = {}
    for seed in seeds_of(setting):
        for name, samples in _samples(setting, seed).items():
            mixed = [np.random.default_rng(seed).permutation(sample.ravel()) for sample in samples]
            for x in at:
                found.setdefault((name, x), []).append(median(of(sample, x) for sample in mixed))
    return [replicated(name, x, values) for (name, x), values in found.items()]


def _tail(setting: Setting) -> list[Point]:
    return _curve(setting, _SHARES, hill)


def _of_tail(points: Sequence[Point]) -> str:
    rows = [f"{p.y:.2f} ({p.series})" for p in points if p.x == TAIL]
    return f"Hill's index of the largest {100 * TAIL:g}%, below 2 for stable laws: {', '.join(rows)}."


def _aggregation(setting: Setting) -> list[Point]:
    return _curve(setting, _BLOCKS, lambda x, m: by_characteristic_function(summed(x, int(m))))


def _of_aggregation(points: Sequence[Point]) -> str:
    y = {(p.series, p.x): p.y for p in points}
    names = dict.fromkeys(p.series for p in points)
    rows = [f"{y[name, 1]:.2f} to {y[name, BLOCK]:.2f} ({name})" for name in names]
    return f"alpha by the characteristic function, of single values and of sums of {BLOCK}: {', '.join(rows)}."


def _likelihood(setting: Setting) -> list[Point]:
    points = []
    for k, W in enumerate(trained(setting.model).values()):
        fits = {family: nats for family, (nats, _) in fitted(W).items()}
        best = max(fits.values())
        points += [Point(series=family, x=k, y=nats - best) for family, nats in fits.items()]
    return points


def _of_likelihood(points: Sequence[Point]) -> str:
    best = {family: sum(p.y == 0 for p in points if p.series == family) for family in FAMILIES}
    short = {family: median(p.y for p in points if p.series == family) for family in FAMILIES}
    rows = [f"{family} {best[family]} times ({short[family]:+.4f} nats in the median)" for family in FAMILIES]
    return f"The likeliest family of a matrix's weights is {', '.join(rows)}."


EXPERIMENTS = (
    Experiment(name="entropy-tail-index", title="Hill's tail index of weights and of known laws", on_model=True,
               source="Hill 1975", x="share of values taken for the tail", y="tail index", measure=_tail,
               sentence=_of_tail, log="xy", interval=INTERVAL),
    Experiment(name="entropy-aggregation", title="The stable index of sums, of weights and of known laws",
               source="Press 1972", x="values in a sum", y="alpha", measure=_aggregation, sentence=_of_aggregation,
               log="x", interval=INTERVAL, on_model=True),
    Experiment(name="entropy-likelihood", title="Families of densities on a model's matrices", on_model=True,
               source="Nolan 2020", x="matrix", y="log-likelihood less the best family's, nats per weight",
               measure=_likelihood, sentence=_of_likelihood),
)  # fmt: skip
