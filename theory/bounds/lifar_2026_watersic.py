r"""What scalar rounding with an entropy coder loses to the limit: 0.2546 bits, and the unevenness of what it adds up.

Lifar, Savkin, Ordentlich, Polyanskiy 2026, WaterSIC, arXiv:2603.04956. Rows of W are Gaussian, N(0, v I_N), their
error is tr (W - Q) H (W - Q)^T. At high rates reverse water-filling (`theory.rate_distortion`) gives for an error D per
weight

    R* = log2(v det(H)^(1/N) / D) / 2        bits per weight.

Steps s_j, small against the weights: an entropy coder takes h(w) - log2 s_j bits for a code of column j, where h(w) =
log2(2 pi e v) / 2, and misses are uniform and uncorrelated. What they cost depends on how they are added up:

- nearest, one step for all: D = (s^2 / 12) tr H / N;
- error feedback, one step: D = (s^2 / 12) sum_j d_j / N, and prod_j d_j = det H;
- error feedback, steps s_j proportional to d_j^(-1/2) (WaterSIC): D = s_j^2 d_j / 12 for every j.

So R - R* is log2(2 pi e / 12) / 2 = 0.2546 bits plus half the logarithm of the ratio of the arithmetic mean of the
numbers that are added to their geometric mean: eigenvalues' arithmetic mean tr H / N over det^(1/N) in the first case,
pivots in the second, equal numbers in the third. A rotation of the inputs changes pivots, neither of the other two.

Lower rates, where a step is not small against a channel's share of the water, are out of its reach; so is what steps,
scales and tables take. The suite's ladder of quarter octaves costs ln 2 / 192 = 0.0036 bits more.

Imports no torch.
"""

from collections.abc import Sequence

import numpy as np

from theory.bounds.instances import Endless, coded_by, haar, power_law
from theory.bounds.pivots import Order, factored
from theory.experiment import Experiment, Point, Setting
from theory.rate_distortion import ECSQ_GAP_BITS_HIGHRATE, reverse_waterfilling_rate

_N, _BLOCK, _STEP = 64, 8, 0.125
_EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_STEPS, _EXPONENT = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0), 1.0
_HELD_BITS = 0.01
_NAMES = ("nearest", "GPTQ", "GPTQ, rotated", "WaterSIC")


def unevenness_bits(values: np.ndarray) -> float:
    """Half the binary logarithm of the arithmetic over the geometric mean of positive `values` (n,): never below 0.

    >>> round(unevenness_bits(np.array([1.0, 4.0])), 6)  # log2(2.5 / 2) / 2
    0.160964
    """
    values = np.asarray(values, dtype=float)
    return float(np.log2(values.mean()) - np.log2(values).mean()) / 2


def nearest_gap_highrate(H: np.ndarray) -> float:
    """Bits per weight above the limit of nearest rounding with one step, entropy coded; `H` (in, in)."""
    return ECSQ_GAP_BITS_HIGHRATE + unevenness_bits(np.linalg.eigvalsh(H))


def feedback_gap_highrate(H: np.ndarray, order: Order = "given", damping: float = 0.0) -> float:
    """The same of error feedback with one step, whose pivots are those of `H` in this order."""
    return ECSQ_GAP_BITS_HIGHRATE + unevenness_bits(factored(H, order, damping).d)


def watersic_gap_highrate() -> float:
    """The same of error feedback with steps by pivots: for every H."""
    return ECSQ_GAP_BITS_HIGHRATE


def rate_and_gap(
    W: np.ndarray, H: np.ndarray, step: float, *, feedback: bool, pivots: bool = False
) -> tuple[float, float]:
    """Bits per weight of the suite's rounding of `W` (rows, in), unit Gaussian, and how far above the limit they are.

    The rate is the codes' empirical entropy, those of one step together; the limit, at the same error, is exact.
    """
    from suite.coding import entropy_bits
    from suite.rounding import Feedback, Nearest

    codes, fitted = coded_by(Feedback(damping=0.0) if feedback else Nearest(), W, Endless(step, pivots), H)
    rate = sum(entropy_bits(stream) for stream in fitted.streams(codes)) / W.size
    E = W - fitted.decode(codes).numpy()
    D = float(np.einsum("ij,jk,ik", E, H, E)) / W.size
    eigenvalues = np.maximum(np.linalg.eigvalsh(H), 0)
    return rate, rate - float(reverse_waterfilling_rate(eigenvalues, D, np.ones(len(H))))


def gaps(exponent: float, step: float, rows: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """By name: the rate, the bits above the limit at equal error, and those predicted."""
    rng = np.random.default_rng(seed)
    H = power_law(_N, exponent, rng, _BLOCK)
    turn = haar(_N, rng)
    rotated = turn @ H @ turn.T
    rotated = (rotated + rotated.T) / 2
    W = rng.standard_normal((rows, _N))
    return {
        "nearest": (*rate_and_gap(W, H, step, feedback=False), nearest_gap_highrate(H)),
        "GPTQ": (*rate_and_gap(W, H, step, feedback=True), feedback_gap_highrate(H)),
        "GPTQ, rotated": (*rate_and_gap(W, rotated, step, feedback=True), feedback_gap_highrate(rotated)),
        "WaterSIC": (*rate_and_gap(W, H, step, feedback=True, pivots=True), watersic_gap_highrate()),
    }


def _measure(setting: Setting) -> list[Point]:
    rows, points = max(512, round(8192 * setting.effort)), []
    for exponent in _EXPONENTS:
        for name, (_, measured, predicted) in gaps(exponent, _STEP, rows, setting.seed).items():
            points.append(Point(series=name, x=exponent, y=measured))
            points.append(Point(series=f"{name}: predicted", x=exponent, y=predicted, predicted=True))
    return points


def _measure_rates(setting: Setting) -> list[Point]:
    rows, points = max(512, round(4096 * setting.effort)), []
    for step in _STEPS:
        for name, (rate, measured, predicted) in gaps(_EXPONENT, step, rows, setting.seed).items():
            points.append(Point(series=name, x=rate, y=measured))
            points.append(Point(series=f"{name}: at high rates", x=rate, y=predicted, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    last = max(p.x for p in points)
    parts = []
    for name in _NAMES:
        pairs = [(p, q) for p in points if p.series == name for q in points
                 if q.series == f"{name}: predicted" and q.x == p.x]  # fmt: skip
        off = max((abs(p.y - q.y), p.x) for p, q in pairs)
        measured, predicted = next((p.y, q.y) for p, q in pairs if p.x == last)
        parts.append(f"{name} {measured:.3f} measured, {predicted:.3f} predicted (farthest apart {off[0]:.3f}, at "
                     f"a = {off[1]:g})")  # fmt: skip
    return f"Bits above reverse water-filling at equal error, spectrum k^-{last:g}: {'; '.join(parts)}."


BY_SPECTRUM = Experiment(
    name="watersic-gap",
    title="Bits above the limit of entropy-coded scalar rounding, measured and predicted",
    source="Lifar, Savkin, Ordentlich, Polyanskiy 2026, arXiv:2603.04956",
    x="decay a of the spectrum k^-a",
    y="bits per weight above reverse water-filling",
    measure=_measure,
    sentence=_sentence,
    log="y",
)


def _sentence_rates(points: Sequence[Point]) -> str:
    parts = []
    for name in _NAMES:
        measured = sorted((p.x, p.y) for p in points if p.series == name)
        predicted = next(p.y for p in points if p.series == f"{name}: at high rates")
        held = [rate for rate, gap in measured if abs(gap - predicted) <= _HELD_BITS]
        from_rate = f"from {min(held):.2f} bits on" if held else "at none of these rates"
        parts.append(f"{name} {from_rate} ({measured[0][1]:.3f} at {measured[0][0]:.2f} bits)")
    return f"The high-rate gap is met within {_HELD_BITS} bits, spectrum k^-{_EXPONENT:g}: {'; '.join(parts)}."


BY_RATE = Experiment(
    name="watersic-rate",
    title="Bits above the limit over the rate: where high-rate theory stops holding",
    source="Lifar, Savkin, Ordentlich, Polyanskiy 2026, arXiv:2603.04956",
    x="bits per weight, entropy coded",
    y="bits per weight above reverse water-filling",
    measure=_measure_rates,
    sentence=_sentence_rates,
    log="y",
)

EXPERIMENTS = (BY_SPECTRUM, BY_RATE)
