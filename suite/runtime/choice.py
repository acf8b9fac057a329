"""Which product a layer takes: the one that is asked for, or the fastest by a measurement that is kept.

Candidates are timed for one row, as in decoding, for a few, and for many, as of a prompt, once for every grid and
shape. For one row all products compete but those that hold decoded weights, which are taken where they are asked for
and nowhere else. For more rows those compete that read the words of the one chosen for one row, so that a layer holds
them once. Between two numbers of rows that were timed, times are taken to lie on straight lines, which say from how
many on the second choice is the faster one.
Where inputs are rounded to a few levels, a product that rounds on its own would now and then move one to the next level
and make another model: such recipes have exact products, in float32, unless another is asked for.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from suite.recipe import Target
from suite.runtime.core import ByRows, Core, Prepared, Unfit
from suite.runtime.products import PRODUCTS, product_named

AUTO = "auto"
FALLBACK = "dequantize"  # which computes everything
ROWS = (1, 16, 128)  # that are timed: a token, a few, a prompt
_REPEATS = 9  # of a candidate, and one to warm up
_OTHER = 1 << 25  # values, 128 MiB: more than the last cache of a CPU or a GPU holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found for one grid and shape: `taken[i]` from `since[i]` rows on.

    With microseconds of every candidate by its name, for each of `ROWS`.
    """

    grid: str
    shape: tuple[int, int]
    taken: tuple[str, ...]
    since: tuple[int, ...]
    microseconds: tuple[dict[str, float], ...]


@dataclass
class Chooser:
    """Prepares layers for inputs of `dtype` on `device`, by the product `asked` for, or by measurement for "auto".

    A product that cannot compute a layer gives way to `dequantize`, which is noted: `unfit` says why, once for each
    grid and shape. `measured` are the measurements so far. With `exact` only exact products compete.
    """

    asked: str = AUTO
    exact: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measured: dict[tuple[str, tuple[int, int]], Measured] = field(default_factory=dict)
    unfit: dict[tuple[str, tuple[int, int]], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.asked != AUTO:
            product_named(self.asked)

    def prepare(self, core: Core) -> ByRows:
        """The layer as its products read it."""
        key = str(Target(core.fitted.grid)), core.shape
        if self.asked != AUTO:
            return ByRows((self._one(self.asked, core, key),))
        if key not in self.measured:
            self.measured[key] = self._measure(key, self._ready(core))
        found = self.measured[key]
        return ByRows(tuple(self._one(name, core, key) for name in found.taken), found.since)

    def _one(self, name: str, core: Core, key: tuple[str, tuple[int, int]]) -> Prepared:
        try:
            return product_named(name).prepare(core, self.dtype, self.device)
        except Unfit as error:
            self.unfit[key] = f"{name} does not take {key[0]} of shape {key[1]}: {error}"
            return product_named(FALLBACK).prepare(core, self.dtype, self.device)

    def _ready(self, core: Core) -> dict[str, Prepared]:
        found: dict[str, Prepared] = {}
        for product in PRODUCTS:
            there = product.device in ("any", self.device.type) and not product.holds_dense
            if there and (product.exact or not self.exact):
                try:
                    found[product.name] = product.prepare(core, self.dtype, self.device)
                except Unfit:
                    continue
        return found

    def _measure(self, key: tuple[str, tuple[int, int]], ready: dict[str, Prepared]) -> Measured:
        times = [self._times(ready, ROWS[0], key[1][1])]
        first = min(times[0], key=times[0].__getitem__)
        same = {name: prepared for name, prepared in ready.items() if _words(name) == _words(first)}
        times += [self._times(same, rows, key[1][1]) for rows in ROWS[1:]]
        taken, since = [first], [1]
        for i in range(1, len(ROWS)):
            best = min(times[i], key=times[i].__getitem__)
            if best != taken[-1]:
                since.append(_crossing(ROWS[i - 1 : i + 1], [times[j][taken[-1]] for j in (i - 1, i)],
                                       [times[j][best] for j in (i - 1, i)]))  # fmt: skip
                taken.append(best)
        return Measured(grid=key[0], shape=key[1], taken=tuple(taken), since=tuple(since), microseconds=tuple(times))

    def _times(self, candidates: dict[str, Prepared], rows: int, n_in: int) -> dict[str, float]:
        """The least of several times, in microseconds: what else runs only adds.

        Candidates take turns, and between any two the caches are filled with something else: in decoding, all other
        layers come between two uses of one.
        """
        x = torch.randn(rows, n_in, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        other = torch.ones(_OTHER, device=self.device)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(_REPEATS + 1):
            for name, prepared in candidates.items():
                other.sum()
                times[name].append(seconds(partial(prepared, x), self.device))
        return {name: round(1e6 * min(taken[1:]), 2) for name, taken in times.items()}


def _words(name: str) -> str:
    return product_named(name).reads or name


def _crossing(rows: Sequence[int], first: Sequence[float], second: Sequence[float]) -> int:
    """Rows from which on the second is the faster one, by straight lines through the times of two numbers of rows.

    >>> _crossing((1, 128), (1.0, 128.0), (64.0, 65.0))
    65
    """
    behind, ahead = second[0] - first[0], first[1] - second[1]
    return rows[1] if ahead + behind <= 0 else math.ceil(rows[0] + (rows[1] - rows[0]) * behind / (behind + ahead))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, on a GPU until it is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
