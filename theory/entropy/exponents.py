"""Exponents of weights: how few bits they have, and whether heavy tails are why.

Yang et al. 2025, arXiv:2510.02676 (ECF8) derive for alpha-stable weights an upper bound of the exponents' entropy,
H(floor log2 |X|) <= alpha / (1 - 2^-alpha), 2.667 bits at alpha = 2, and with a sign and one bit of mantissa a limit of
4.67 bits (as their abstract and others tell it; the theorem's text was not at hand). The model behind such a bound is
one-sided: exponents geometric from a top, P(E = k) ~ 2^(-alpha k). The exponents of a law with a density have two
sides: below the scale P(|X| < x) ~ 2 f(0) x, so that P(E = -k) ~ 2^-k however heavy the tail is; above it, P(E = k) ~
2^(-alpha k). Heavier tails spread the upper side and add entropy, while the formula falls with alpha.

Exact for a distribution function F: P(E = k) = 2 (F(2^(k + 1)) - F(2^k)). It depends a little on the scale's place
within an octave. Zhang et al. 2025, arXiv:2504.11651 (DFloat11) code BF16's exponents, sign and mantissa as they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtr

from theory.entropy.stable import draw
from theory.entropy.tails import of_model as tails_of_model
from theory.entropy.weights import some_rows, trained
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

ALPHAS = (1.0, 1.2, 1.5, 1.8, 1.9, 2.0)
LIMIT_FP8, ABOUT_BF16 = 14 / 3, 11.0
_SAMPLES = 200_000
_ROWS = 0.5


def entropy_bound(alpha: float) -> float:
    """The bound alpha / (1 - 2^-alpha), in bits, that is said to hold of exponents' entropy.

    >>> round(entropy_bound(2.0), 4)
    2.6667
    """
    return float(alpha / (1 - 2.0**-alpha))


def gaussian_exponents(phase: float = 0.0) -> float:
    """H(floor log2 |X|) in bits of a Gaussian of spread 2^phase, exact: 2.542 to 2.546 by the phase.

    >>> round(gaussian_exponents(), 3)
    2.545
    """
    ends = 2.0 ** np.arange(-60.0, 8.0) / 2.0**phase
    p = 2 * np.diff(ndtr(-ends[::-1]))[::-1]
    p = p[p > 0]
    return float(-p @ np.log2(p))


def exponent_entropy(values: np.ndarray) -> float:
    """H(floor log2 |x|) in bits from the counts of values that are not zero."""
    size = np.abs(values.ravel())
    counts = np.unique(np.frexp(size[size > 0])[1], return_counts=True)[1]
    p = counts / counts.sum()
    return float(-p @ np.log2(p)) + 0.0


def stored_entropies(setting: Setting, seed: int) -> dict[str, float]:
    """Bits per weight of a model's rows in BF16 and in FP8 (E4M3 and E5M2, a scale per row), tables not counted.

    "exponents" is one table for all matrices; "coded exponents" adds sign and mantissa as they are, "words" is the
    entropy of whole words, the least that any code without memory needs.
    """
    import torch

    from suite.coding import entropy_bits
    from suite.entropy import float_parts
    from suite.methods import method_named

    matrices = [torch.from_numpy(W) for W in some_rows(trained(setting.model), seed, _ROWS).values()]
    streams = {"BF16": (8, 7, torch.cat([W.bfloat16().view(torch.int16).flatten() for W in matrices]).numpy())}
    for name, method, exponent in (("E4M3", "fp8", 4), ("E5M2", "fp8-e5m2", 5)):
        target = method_named(method).recipe().weights
        assert target is not None
        fitted = [(target.grid.fit(W), W) for W in matrices]
        codes = [grid.streams(grid.nearest(W))[0].numpy().astype(np.uint8) for grid, W in fitted]
        streams[name] = exponent, 7 - exponent, np.concatenate(codes)
    found: dict[str, float] = {}
    for name, (exponent, mantissa, words) in streams.items():
        bits = float_parts(words, exponent, mantissa)["exponent"] / words.size
        unsigned = torch.from_numpy(words.view(f"u{words.itemsize}").astype(np.int64))
        found |= {f"{name}, exponents": bits, f"{name}, coded exponents": bits + 1 + mantissa,
                  f"{name}, words": entropy_bits(unsigned) / words.size}  # fmt: skip
    return found


def concentration(setting: Setting) -> Mapping[str, float]:
    """N4: entropies of stored exponents, how far the limits said are off, the tests of stability, and the bound."""
    stored, tails = stored_entropies(setting, setting.seed), dict(tails_of_model(setting))
    rng = np.random.default_rng(setting.seed)
    bound = {f"bound less entropy, alpha {alpha:g}":
             entropy_bound(alpha) - exponent_entropy(draw(alpha, rng, (_SAMPLES,)))
             for alpha in (1.2, 1.5, 1.8)}  # fmt: skip
    return stored | tails | bound | {
        "FP8 (E4M3) off 4.67 bits by": abs(stored["E4M3, words"] - LIMIT_FP8),
        "BF16 off 11 bits by": abs(stored["BF16, coded exponents"] - ABOUT_BF16)}  # fmt: skip


def _measure(setting: Setting) -> list[Point]:
    points = [Point(series="bound as published", x=alpha, y=entropy_bound(alpha), predicted=True) for alpha in ALPHAS]
    for alpha in ALPHAS:
        found = [exponent_entropy(draw(alpha, np.random.default_rng((seed, round(10 * alpha))), (_SAMPLES,)))
                 for seed in seeds_of(setting)]  # fmt: skip
        points.append(replicated("stable samples", alpha, found))
    points.append(Point(series="Gaussian, exact", x=2.0, y=gaussian_exponents(), predicted=True))
    kept = [stored_entropies(setting, seed) for seed in seeds_of(setting)]
    alphas = [tails_of_model(Setting(model=setting.model, seed=seed))["alpha"] for seed in seeds_of(setting)]
    points += [replicated(f"the model's {name}", float(np.mean(alphas)), [one[f"{name}, exponents"] for one in kept])
               for name in ("BF16", "E4M3")]  # fmt: skip
    return points


def _sentence(points: Sequence[Point]) -> str:
    y = {(p.series, p.x): p.y for p in points}
    over = [f"{y['stable samples', a]:.3f} at {a:g} (bound {y['bound as published', a]:.3f})" for a in ALPHAS]
    said = ", ".join(f"{p.y:.3f} in {p.series.split()[-1]}" for p in points if p.series.startswith("the model's"))
    return f"Bits of entropy in exponents of stable samples: {', '.join(over)}; of the model's weights {said}."


EXPERIMENT = Experiment(
    name="entropy-exponents",
    title="Entropy of exponents against the index of stable laws",
    source="Yang et al. 2025, arXiv:2510.02676; derivation of the module",
    x="alpha",
    y="entropy of exponents, bits",
    measure=_measure,
    sentence=_sentence,
    interval=INTERVAL,
    on_model=True,
)
