"""One large value among values in [-1, 1]: how many of the others it takes to zero.

Claim O1. Min-max integers of b bits over [-1, M] have the step s = (M + 1) / (2^b - 1), and M > 1 and zero are levels
but for rounding of the zero point. A value goes to zero where |x| < s / 2, so of values uniform in [-1, 1] the share

    min(1, s / 2) = min(1, (M + 1) / (2 (2^b - 1))),

which is all of them from M = 2 (2^b - 1) - 1 on: 29 at four bits. Groups of g leave it to the outlier's own: of n
values the share of (g - 1) / (n - 1) at the most, and what their own largest magnitude rounds to zero besides: with
s = 2 / (2^b - 1) over [-1, 1], the share 1 / (2^b - 1).
"""

from collections.abc import Sequence

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

_SHAPE = (16, 256)
_OUTLIERS = (1.0, 3.0, 10.0, 20.0, 29.0, 50.0, 100.0, 1000.0)
_GROUPS: tuple[int | str, ...] = ("tensor", 128, 32)


def zeroed_share(outlier: float, bits: int = 4) -> float:
    """The share of values uniform in [-1, 1] that min-max integers take to zero beside one `outlier` >= 1.

    >>> zeroed_share(29.0), round(zeroed_share(1.0), 4)
    (1.0, 0.0667)
    """
    if not outlier >= 1:
        raise ValueError(f"outlier {outlier!r}: expected at least 1, the largest of the others")
    return min(1.0, (outlier + 1) / (2 * (2**bits - 1)))


def zeroed(outlier: float, group: int | str, seed: int, bits: int = 4) -> float:
    """Of one seed, the share of 4,095 values in [-1, 1] that decode to 0 beside one `outlier` as integers."""
    import torch

    from suite.grids import Integer

    x = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, _SHAPE))
    x[0, 0] = outlier
    fitted = Integer(bits=bits, group=group).fit(x)  # type: ignore[arg-type]
    others = fitted.decode(fitted.nearest(x)).reshape(-1)[1:]
    return float((others == 0).double().mean())


def _measure(setting: Setting) -> list[Point]:
    points = []
    for outlier in _OUTLIERS:
        for group in _GROUPS:
            name = f"groups of {group}" if isinstance(group, int) else "one scale"
            points.append(replicated(name, outlier, [zeroed(outlier, group, seed) for seed in seeds_of(setting, 5)]))
        y = zeroed_share(outlier)
        points.append(Point(series="one scale, closed form", x=outlier, y=y, predicted=True))
    return points


def _sentence(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    names = dict.fromkeys(p.series for p in points if not p.predicted)
    parts = [f"{at[name, 100.0]:.1%} with {name}" for name in names]
    whole = min((x for (series, x), y in at.items() if series == "one scale" and y == 1), default=None)
    since = "at none of the outliers tried" if whole is None else f"from {whole:g} on"
    return (
        f"Beside one value of 100 INT4 takes to zero {', '.join(parts)} of 4,095 values in [-1, 1], all of them "
        f"{since} with one scale (closed form: {zeroed_share(100.0):.1%}, all from 29 on)."
    )


EXPERIMENT = Experiment(
    name="grids-one-outlier",
    title="Values in [-1, 1] that min-max INT4 takes to zero beside one outlier",
    source="Claim O1; closed form of the module",
    x="the outlier",
    y="share of the others that decodes to zero",
    measure=_measure,
    sentence=_sentence,
    log="x",
    interval=INTERVAL,
)
