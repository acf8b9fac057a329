"""Do finer blocks buy more than their scales cost? E2M1 in blocks of 8 to 128, on scales of 8 and 16 bits.

Claim G3: NVFP4 (blocks of 16 on E4M3, 4.5 bits) against MXFP4 (blocks of 32 on powers of two, 4.25 bits) differs in
both block and scale. Here each element-and-scale is measured at every size, and a bit is worth what it is worth to the
best code, a factor of 4 in squared error: `error * 4^rate` falls with finer blocks where they buy more than they cost.
Halving blocks of n costs 8 / n bits of scales of 8 bits, 48.2 / n dB.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.grids.measured import LAYER, SOURCES, Outcome, matrix, rounded
from theory.replication import INTERVAL, replicated, seeds_of

_SHAPE = (64, 1024)
_BLOCKS = (8, 16, 32, 64, 128)


def scales() -> dict[str, Any]:
    """By name: powers of two as in MX, E4M3 under one float32 as in NVFP4, float16."""
    from suite.grids import PowerOfTwo, RealScale, TwoLevel

    return {"powers of two": PowerOfTwo(), "E4M3": TwoLevel(), "float16": RealScale()}


def by_block(source: str, model: str, seed: int) -> dict[tuple[str, int], Outcome]:
    """Of one seed, what E2M1 leaves of one of `SOURCES` or of the `LAYER`, by kind of scale and size of block."""
    from suite.grids import Scaled

    x = matrix(source, _SHAPE, model, seed)
    return {(name, n): rounded(x, Scaled(element="e2m1", group=n, scale=scale))
            for name, scale in scales().items() for n in _BLOCKS}  # fmt: skip


def gain_db(found: dict[tuple[str, int], Outcome], fine: tuple[str, int], coarse: tuple[str, int]) -> float:
    """Decibels that `fine` leaves less than `coarse` once the bits are paid for, 6.02 dB each."""
    return float(10 * np.log10(found[coarse].over_gaussian / found[fine].over_gaussian))


def _measure(setting: Setting) -> list[Point]:
    points = []
    for source in (*SOURCES, LAYER):
        seeds = seeds_of(setting) if source in SOURCES else range(1)  # weights are what they are
        found = [by_block(source, setting.model, seed) for seed in seeds]
        for name, n in found[0]:
            points.append(replicated(f"{name}, {source}", n, [each[name, n].over_gaussian for each in found]))
    return points


def _sentence(points: Sequence[Point]) -> str:
    y = {(p.series, p.x): p.y for p in points}
    parts = []
    for source in (*SOURCES, LAYER):

        def db(fine: tuple[str, int], coarse: tuple[str, int], source: str = source) -> float:
            return float(10 * np.log10(y[f"{coarse[0]}, {source}", coarse[1]] / y[f"{fine[0]}, {source}", fine[1]]))

        best = min((p for p in points if p.series.endswith(source)), key=lambda p: p.y)
        halving = ", ".join(f"{db((name, 16), (name, 32)):+.2f} on {name}" for name in ("powers of two", "E4M3"))
        parts.append(
            f"{source}: NVFP4's over MXFP4's {db(('E4M3', 16), ('powers of two', 32)):+.2f} dB, of which blocks of 16 "
            f"over 32 {halving}; best of all blocks of {best.x:g} on {best.series.split(',')[0]}"
        )
    return f"Net of 6.02 dB for every bit of scales, {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="grids-block-sizes",
    title="E2M1 in blocks: error over 4^-rate against the size of blocks, by kind of scale",
    source="Rouhani et al. 2023, arXiv:2310.10537; NVIDIA 2025, arXiv:2509.25149",
    x="values of a block",
    y="mean squared error / variance · 4^rate",
    measure=_measure,
    sentence=_sentence,
    log="xy",
    interval=INTERVAL,
)
