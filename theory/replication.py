"""A mean with its interval, from one number for each seed: the unit of replication of an experiment.

Student 1908, The probable error of a mean: `(mean - mu) sqrt(n) / s` of n Gaussian numbers has his law of n - 1
degrees of freedom. Imports no torch.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from theory.experiment import Point, Setting

SEEDS = 3  # in the quick tier


def seeds_of(setting: Setting, least: int = SEEDS) -> range:
    """The seeds of an experiment, `least` of them in the quick tier and more with more effort, from the setting's."""
    return range(setting.seed, setting.seed + max(least, round(least * setting.effort)))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of `values` (n,) and the ends of its interval; of a single value, or equal ones, the ends are the mean.

    >>> mean, low, high = interval([1.0, 2.0, 3.0])
    >>> round(mean, 6), round(low, 4), round(high, 4)  # 4.3027 standard errors of sqrt(1 / 3) on each side
    (2.0, -0.4841, 4.4841)
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"expected finite values in a vector, got {values!r}")
    mean, n = float(found.mean()), len(found)
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * found.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return mean, mean - half, mean + half


def replicated(series: str, x: float, values: Sequence[float]) -> Point:
    """The point at `x` of what was measured once for each seed."""
    mean, low, high = interval(values)
    return Point(series=series, x=float(x), y=mean, low=low, high=high)


INTERVAL = "95% of the mean over seeds, by Student's law"
