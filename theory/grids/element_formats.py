"""Elements of four bits against each other: E2M1 and integers from bells to heavy tails, NF4 and what is best.

Claims G1 and G2. The scales are the same where elements are compared, a float16 of each group's largest magnitude (or
of the whole matrix's), so that bits are equal and only the levels differ. Sources go from the Gaussian to Student's law
of 3 degrees of freedom: their tails fall like x^-(n + 1), and 1 / n is how heavy they are.

**What decides between E2M1 and INT4.** Scaled to a largest magnitude of M deviations, integers have steps of M / 7
everywhere; E2M1 has steps of M / 12 up to M / 3, M / 6 up to 2 M / 3 and M / 3 beyond. By high-rate theory (each step
squared over 12) E2M1's error over the integers' is

    (7 / 12)^2 P(|x| < M / 3) + (7 / 6)^2 P(M / 3 <= |x| < 2 M / 3) + (7 / 3)^2 P(2 M / 3 <= |x|):

it wins 4.68 dB where nearly all is in the inner third, and loses where a fifth or so is not. So what counts is M, the
crest: larger groups and heavier tails are for E2M1, small groups of light tails for integers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.grids.measured import Outcome, rounded
from theory.replication import INTERVAL, replicated, seeds_of
from theory.sources import Source, Student, gaussian

_SHAPE = (64, 1024)
_TAILS = (0.0, 1 / 30, 1 / 10, 1 / 6, 1 / 5, 1 / 4, 1 / 3)  # 1 / degrees of freedom
_GROUPS: tuple[int | str, ...] = (16, 32, 128, "tensor")
_BLOCK = 64


def law(tail: float) -> Source:
    """Student's law of 1 / `tail` degrees of freedom, the Gaussian at 0; of variance 1."""
    return Student(degrees=1 / tail) if tail else gaussian()


def e2m1_gain_db(x: np.ndarray, group: int | str) -> float:
    """Decibels that E2M1 leaves less than symmetric INT4 of the same float16 scales, for `x` (out, in)."""
    from suite.grids import Integer, Scaled

    floats: Any = Scaled(element="e2m1", group=group)  # type: ignore[arg-type]
    integers: Any = Integer(bits=4, group=group, convention="full-range")  # type: ignore[arg-type]
    one, other = rounded(x, floats), rounded(x, integers)
    assert one.bits == other.bits
    return one.snr_db - other.snr_db


def predicted_gain_db(source: Source, most: float) -> float:
    """The same by high-rate theory, for a largest magnitude of `most`, in the units of the source.

    >>> round(predicted_gain_db(gaussian(), 100.0), 4)  # all of it in the inner third: 20 log10 (12 / 7)
    4.6817
    """
    inner, middle = (1 - 2 * float(source.tail(most * share)) for share in (1 / 3, 2 / 3))
    ratio = (7 / 12) ** 2 * inner + (7 / 6) ** 2 * (middle - inner) + (7 / 3) ** 2 * (1 - middle)
    return float(-10 * np.log10(ratio))


def gains(seed: int, tail: float) -> dict[int | str, float]:
    """Of one seed, `e2m1_gain_db` by size of group on 65,536 samples of `law(tail)`."""
    x = law(tail).draw(np.random.default_rng(seed), _SHAPE)
    return {group: e2m1_gain_db(x, group) for group in _GROUPS}


def _measure_floats(setting: Setting) -> list[Point]:
    points = []
    for tail in _TAILS:
        found = [gains(seed, tail) for seed in seeds_of(setting)]
        for group in _GROUPS:
            points.append(replicated(_series(group), tail, [each[group] for each in found]))
    return points


def _series(group: int | str) -> str:
    return f"groups of {group}" if isinstance(group, int) else f"one scale for a {group}"


def _sentence_floats(points: Sequence[Point]) -> str:
    parts = []
    for group in _GROUPS:
        x, y = np.array(sorted((p.x, p.y) for p in points if p.series == _series(group))).T
        signs = np.sign(y)
        where = [f"{x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]):.3f}" for i in range(len(x) - 1)
                 if signs[i] != signs[i + 1]]  # fmt: skip
        flips = f"changing sign at {' and '.join(where)}" if where else "without a change of sign"
        parts.append(f"{_series(group)} from {y[0]:+.2f} dB (Gaussian) to {y[-1]:+.2f} (t of 3), {flips}")
    return f"E2M1 over INT4 at equal bits, against one over the degrees of freedom: {'; '.join(parts)}."


def four_bit_tables(seed: int) -> dict[str, Outcome]:
    """Of one seed, what tables of 16 levels leave of 262,144 Gaussian values, by name.

    In blocks of 64 on absmax scales of float16: NF4, E2M1, INT4, the table of the least error for such blocks (fitted
    by k-means to the data, and charged), and Lloyd's and Max's; on one scale for the matrix, Lloyd's and Max's. At a
    rate of its own, entropy-coded steps of the true rate of NF4.
    """
    from suite.grids import GaussianTable, Integer, KMeansTable, RealScale, Scaled, Steps

    x = gaussian().draw(np.random.default_rng(seed), (256, 1024))
    absmax: dict[str, Any] = {"group": _BLOCK, "scale": RealScale()}
    rms = RealScale(statistic="rms")
    kinds: dict[str, Any] = {
        "NF4, blocks": Scaled(element="nf4", **absmax),
        "E2M1, blocks": Scaled(element="e2m1", **absmax),
        "INT4, blocks": Integer(bits=4, group=_BLOCK, convention="full-range"),
        "best levels, blocks": Scaled(element=KMeansTable(bits=4), **absmax),
        "Lloyd-Max, root mean square of blocks": Scaled(element=GaussianTable(bits=4), group=_BLOCK, scale=rms),
        "Lloyd-Max, one scale": Scaled(element=GaussianTable(bits=4), group="tensor", scale=rms),
    }
    found = {name: rounded(x, grid) for name, grid in kinds.items()}
    return found | {"entropy-coded steps": rounded(x, Steps(bits=found["NF4, blocks"].bits))}


def _measure_tables(setting: Setting) -> list[Point]:
    found = [four_bit_tables(seed) for seed in seeds_of(setting)]
    return [replicated(name, float(np.mean([each[name].bits for each in found])),
                       [each[name].over_gaussian for each in found]) for name in found[0]]  # fmt: skip


def _sentence_tables(points: Sequence[Point]) -> str:
    ranked = sorted(points, key=lambda p: p.y)
    own = next(p for p in points if p.series == "NF4, blocks")
    better = [p for p in ranked if p.high is not None and own.low is not None and p.high < own.low]
    listed = ", ".join(f"{p.series} {p.y:.3f}" for p in ranked)
    bits = np.log2(own.y) / 2
    return (
        f"Error over a Gaussian's limit at the same true rate: {listed}; {len(better)} of {len(points) - 1} others are "
        f"below NF4 beyond their intervals, and NF4 is {bits:.2f} bits from the limit."
    )


EXPERIMENTS = (
    Experiment(
        name="grids-e2m1-int4",
        title="What E2M1 gains over INT4 on the same scales, from the Gaussian to heavy tails",
        source="Claim G1; derivation of the module",
        x="one over the degrees of freedom of Student's law",
        y="signal-to-noise ratio of E2M1 over that of INT4, decibels",
        measure=_measure_floats,
        sentence=_sentence_floats,
        interval=INTERVAL,
    ),
    Experiment(
        name="grids-nf4",
        title="Tables of 16 levels on a Gaussian: error over the limit at the same true rate",
        source="Dettmers et al. 2023, arXiv:2305.14314; Lloyd 1957, Max 1960",
        x="bits per value, everything stored counted",
        y="mean squared error · 4^rate",
        measure=_measure_tables,
        sentence=_sentence_tables,
        log="y",
        interval=INTERVAL,
    ),
)
