"""Every kind of grid against the limits of a source: the distortion-rate function and the two floors of scalars.

Lines, as factors over `4^-rate` (`theory.rate_distortion`): 1, the Gaussian's limit (Shannon 1959); 1.4233, or
2 pi e / 12, entropy-coded scalars at high rate (Gish, Pierce 1968); 2.7207, or pi sqrt(3) / 2, the best fixed-rate
scalars (Panter, Dite 1951). The three are 0.2546 bits, 1.5329 dB, and another 2.8141 dB apart: what cells lose that are
cubes and not balls, and what a fixed rate loses that gives rare values as many bits as common ones.

**Shaping.** G is a lattice's second moment per dimension where a cell has volume 1: 1/12 of cubes, 929/12960 of E8's
cells, 1 / (2 pi e) of balls of many dimensions, so that no shape gains more than 1.5329 dB over cubes. A grid that is
no lattice has no G: its net gain here is that of its error over entropy-coded cubes, at its true rate, so what its
shape gains less what its fixed rate, its scales and its finite size lose. Net gains are bounded by 1.5329 dB alike, at
high rate for every source and on the Gaussian at all rates, since there no error is below 4^-rate.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from theory.blahut_arimoto import rate_distortion
from theory.experiment import Experiment, Point, Setting
from theory.grids.measured import SOURCES, Outcome, matrix, rounded
from theory.rate_distortion import (
    ECSQ_FACTOR_HIGHRATE,
    PANTER_DITE_FACTOR_HIGHRATE,
    SHAPING_GAIN_DB_UPPER,
    ecsq_distortion,
    gaussian_distortion,
    panter_dite_factor,
)
from theory.replication import INTERVAL, replicated, seeds_of

_SHAPE = (64, 256)
_SCALAR = "Lloyd-Max"
_CODED = "entropy-coded steps"
Grids = dict[str, dict[float, dict[str, Any]]]


def grids() -> Grids:
    """By name and nominal bits, what `rounded` is told: every kind of grid of the suite that a density can judge."""
    from suite.grids import (
        E8P,
        DoubleQuantized,
        GaussianTable,
        Integer,
        RealScale,
        ResidualBinary,
        Scaled,
        Steps,
        Trellis,
    )

    def table(bits: int, spacing: Any) -> Scaled:
        return Scaled(
            element=GaussianTable(bits=bits, spacing=spacing), group="tensor", scale=RealScale(statistic="rms")
        )

    searched: dict[int, dict[str, Any]] = {
        2: {}, 3: {"scale": 1.0, "residual": 1.75, "tries": 4}, 4: {"scale": 0.9, "residual": 3.6, "tries": 4}
    }  # fmt: skip
    widths = range(1, 7)
    return {
        "integers, absmax of 64": {b: {"grid": Integer(bits=b, group=64)} for b in range(2, 7)},
        _SCALAR: {b: {"grid": table(b, "free")} for b in widths},
        "best equal steps": {b: {"grid": table(b, "uniform")} for b in widths},
        "NF4": {4: {"grid": Scaled(element="nf4", group=64, scale=DoubleQuantized(), axis="flat")}},
        "FP4, absmax of 64": {4: {"grid": Scaled(element="e2m1", group=64)}},
        "binary residuals": {b: {"grid": ResidualBinary(orders=b, group="tensor")} for b in range(1, 5)},
        _CODED: {R: {"grid": Steps(bits=R)} for R in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)},
        "ECSQ": {R: {"method": "ecsq", "bits": R} for R in (1, 2, 3)},
        "E8P": {b: {"grid": E8P(bits=b, **searched[b])} for b in searched},  # type: ignore[arg-type]
        "trellis": {b: {"grid": Trellis(bits=b, gain=1.0, L=12)} for b in (2, 3)},
    }


@cache
def outcome(source: str, grid: str, bits: float, seed: int) -> Outcome:
    """Of one seed: what a grid of this name and nominal `bits` leaves of 16,384 values of one of `SOURCES`."""
    return rounded(matrix(source, _SHAPE, "", seed), **grids()[grid][bits])


def net_gain_db(source: str, grid: str, bits: float, seed: int) -> float:
    """Decibels that a grid leaves less than entropy-coded cubes at its true rate, in closed form for the source."""
    found = outcome(source, grid, bits, seed)
    best = ecsq_distortion(found.bits, SOURCES[source]) / SOURCES[source].variance
    return float(10 * np.log10(best / found.error))


def lattice_gain_db(lattice: str, seed: int, samples: int = 50_000) -> float:
    """Of one seed, 10 log10 (1 / 12 G) of "Z", "D4" or "E8", by uniform points of a cube of sides 2, a whole period."""
    import torch

    from suite.grids.lattices import nearest_d, nearest_e8, nearest_integer

    nearest, n, volume = {"Z": (nearest_integer, 1, 1), "D4": (nearest_d, 4, 2), "E8": (nearest_e8, 8, 1)}[lattice]
    x = torch.from_numpy(2 * np.random.default_rng(seed).random((samples, n)))
    second = float((x - nearest(x)).square().sum(1).mean()) / (n * volume ** (2 / n))
    return float(-10 * np.log10(12 * second))


def exact_gain_db(lattice: str) -> float:
    """The same in closed form (Conway, Sloane 1982)."""
    from suite.grids.lattices import SECOND_MOMENT_E8, SECOND_MOMENT_Z, second_moment_d

    second = {"Z": SECOND_MOMENT_Z, "D4": second_moment_d(4), "E8": SECOND_MOMENT_E8}[lattice]
    return float(-10 * np.log10(12 * second))


def _measure(setting: Setting, source: str) -> list[Point]:
    points = []
    for name, by_bits in grids().items():
        for bits in by_bits:
            found = [outcome(source, name, bits, seed) for seed in seeds_of(setting)]
            x = float(np.mean([each.bits for each in found]))
            points.append(replicated(name, x, [each.error * 4.0**each.bits for each in found]))
    return points + _lines(source)


def _lines(source: str) -> list[Point]:
    rates, law = np.linspace(0.25, 6, 24), SOURCES[source]
    lines = {"coded cubes at high rate": ECSQ_FACTOR_HIGHRATE}
    if source == "Gaussian":
        limit = gaussian_distortion(rates)
        lines["fixed-rate scalars at high rate"] = PANTER_DITE_FACTOR_HIGHRATE
    else:
        curve = rate_distortion(law)
        limit = np.exp(np.interp(rates, curve.upper, np.log(curve.distortion)))
        lines["fixed-rate scalars at high rate"] = panter_dite_factor(law)
        lines["coded cubes at high rate"] *= float(limit[-1] * 4.0 ** rates[-1])
    coded = ecsq_distortion(rates, law)
    curves = {"distortion-rate function": limit, "coded cubes": coded}
    curves |= {name: factor * 4.0**-rates for name, factor in lines.items()}
    return [Point(series=name, x=float(R), y=float(D * 4.0**R), predicted=True)
            for name, curve in curves.items() for R, D in zip(rates, curve, strict=True)]  # fmt: skip


def _sentence(points: Sequence[Point]) -> str:
    limit = sorted((p.x, p.y) for p in points if p.series == "distortion-rate function")
    R, D = np.array(limit).T
    names = dict.fromkeys(p.series for p in points if not p.predicted)
    best = {name: min((p for p in points if p.series == name),
                      key=lambda p: p.y / np.interp(p.x, R, D)) for name in names}  # fmt: skip
    ratio = {name: p.y / float(np.interp(p.x, R, D)) for name, p in best.items()}
    below = [p for p in points if not p.predicted and (p.high or p.y) < np.interp(p.x, R, D)]
    parts = [f"{name} {ratio[name]:.2f} at {best[name].x:.2f} bits" for name in sorted(ratio, key=ratio.__getitem__)]
    return (
        f"Squared error over the distortion-rate function, each grid where it is nearest to it: {', '.join(parts)}; "
        f"{len(below)} of {sum(not p.predicted for p in points)} points are below the limit by their intervals."
    )


RIVALS = (_SCALAR, "best equal steps", _CODED)


def e8_against(rival: str, bits: int, seed: int) -> float:
    """Of one seed, decibels that E8P leaves less than `rival` on a Gaussian, both carried to the same true rate.

    A bit is worth 6.02 dB: rates differ by thousandths.
    """
    one, other = (outcome("Gaussian", name, bits, seed) for name in ("E8P", rival))
    return float(10 * np.log10(other.over_gaussian / one.over_gaussian))


def _measure_e8(setting: Setting) -> list[Point]:
    return [replicated(f"over {rival}", bits, [e8_against(rival, bits, seed) for seed in seeds_of(setting)])
            for rival in RIVALS for bits in (2, 3, 4)]  # fmt: skip


def _sentence_e8(points: Sequence[Point]) -> str:
    parts = []
    for rival in RIVALS:
        found = sorted((p.x, p.y) for p in points if p.series == f"over {rival}")
        parts.append(f"{', '.join(f'{y:+.2f} dB at {x:g} bits' for x, y in found)} ({rival})")
    return f"On a Gaussian E8P leaves less error at the same true rate by {'; '.join(parts)}."


def _measure_shaping(setting: Setting) -> list[Point]:
    points = []
    for n, lattice in ((1, "Z"), (4, "D4"), (8, "E8")):
        points.append(replicated(f"{lattice}, its cells", n, [lattice_gain_db(lattice, s) for s in seeds_of(setting)]))
        points.append(Point(series=f"{lattice}, closed form", x=n, y=exact_gain_db(lattice), predicted=True))
    sizes = {"E8P": 8, "trellis": 256}
    for name, by_bits in grids().items():
        for bits in by_bits:
            gains = [net_gain_db("Gaussian", name, bits, seed) for seed in seeds_of(setting)]
            points.append(replicated(f"{name}: net at {bits:g} bits", sizes.get(name, 1), gains))
    top = (1, 256)
    return points + [Point(series="balls", x=x, y=SHAPING_GAIN_DB_UPPER, predicted=True) for x in top]


def _sentence_shaping(points: Sequence[Point]) -> str:
    net = [p for p in points if ": net at" in p.series]
    cells = [f"{p.series.split(',')[0]} {p.y:.3f} dB" for p in points if p.series.endswith("its cells")]
    won = sorted((p for p in net if p.low is not None and p.low > 0), key=lambda p: -p.y)
    best = ", ".join(f"{p.series.replace(': net at', ' at')} {p.y:.2f} dB" for p in won)
    return (
        f"Of {SHAPING_GAIN_DB_UPPER:.3f} dB that shapes can gain over cubes, cells of {', '.join(cells)}; net of what "
        f"they lose otherwise, {len(won)} of {len(net)} grids gain on entropy-coded cubes of their true rate on a "
        f"Gaussian{': ' + best if won else ''}."
    )


def _of_source(source: str) -> Experiment:
    return Experiment(
        name=f"grids-distance-{source.lower()}",
        title=f"Squared error of the suite's grids over 4^-rate, at true rates, {source}",
        source="Shannon 1959; Gish, Pierce 1968; Panter, Dite 1951; Blahut 1972",
        x="bits per value, everything stored counted",
        y="mean squared error / variance · 4^rate",
        measure=lambda setting: _measure(setting, source),
        sentence=_sentence,
        log="y",
        interval=INTERVAL,
    )


EXPERIMENTS = (
    _of_source("Gaussian"),
    _of_source("Laplacian"),
    Experiment(
        name="grids-e8",
        title="What E8P leaves less than scalar grids of the same true rate, on a Gaussian",
        source="Tseng et al. 2024, arXiv:2402.04396; Conway, Sloane 1982",
        x="nominal bits per value",
        y="decibels",
        measure=_measure_e8,
        sentence=_sentence_e8,
        interval=INTERVAL,
    ),
    Experiment(
        name="grids-shaping",
        title="Shaping gains of lattices, and net gains of the suite's grids over entropy-coded cubes",
        source="Conway, Sloane 1982; Zador 1982",
        x="values coded together",
        y="decibels over cubes",
        measure=_measure_shaping,
        sentence=_sentence_shaping,
        log="x",
        interval=INTERVAL,
    ),
)
