"""Which product a layer takes: the one that is asked for, or the fastest by a measurement that is kept.

Candidates are timed for one row and for many, once for every grid and shape. For one row all products compete. For many
rows products that hold decoded weights compete only where one was chosen for one row, and then alone: else a layer
would hold both. In between, times are taken to grow in proportion with rows, which says from how many on the second
choice is the faster one.
Where inputs are rounded to a few levels, a product that rounds on its own would now and then move one to the next level
and make another model: such recipes have exact products, in float32, unless another is asked for.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from suite.recipe import Target
from suite.runtime.products import PRODUCTS, Core, Pair, Prepared, Unfit, product_named

AUTO = "auto"
FALLBACK = "dequantize"  # which computes everything
MANY_ROWS = 128  # of a prefill that is timed
_REPEATS = 9  # of a candidate, and one to warm up
_OTHER = 1 << 25  # values, 128 MiB: more than the last cache of a CPU or a GPU holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found for one grid and shape: the products taken, the second `since` so many rows.

    With microseconds of every candidate by its name.
    """

    grid: str
    shape: tuple[int, int]
    few: str
    many: str
    since: int
    few_microseconds: dict[str, float]
    many_microseconds: dict[str, float]


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

    def prepare(self, core: Core) -> Pair:
        """The layer as its products read it."""
        key = str(Target(core.fitted.grid)), core.shape
        if self.asked != AUTO:
            prepared = self._one(self.asked, core, key)
            return Pair(prepared, prepared)
        ready: dict[str, Prepared] = {}
        if key not in self.measured:
            ready = self._ready(core)
            self.measured[key] = self._measure(key, ready)
        found = self.measured[key]
        few = ready.get(found.few) or self._one(found.few, core, key)
        if found.many == found.few:
            return Pair(few, few)
        return Pair(few, ready.get(found.many) or self._one(found.many, core, key), found.since)

    def _one(self, name: str, core: Core, key: tuple[str, tuple[int, int]]) -> Prepared:
        try:
            return product_named(name).prepare(core, self.dtype, self.device)
        except Unfit as error:
            self.unfit[key] = f"{name} does not take {key[0]} of shape {key[1]}: {error}"
            return product_named(FALLBACK).prepare(core, self.dtype, self.device)

    def _ready(self, core: Core) -> dict[str, Prepared]:
        found: dict[str, Prepared] = {}
        for product in PRODUCTS:
            if product.device in ("any", self.device.type) and (product.exact or not self.exact):
                try:
                    found[product.name] = product.prepare(core, self.dtype, self.device)
                except Unfit:
                    continue
        return found

    def _measure(self, key: tuple[str, tuple[int, int]], ready: dict[str, Prepared]) -> Measured:
        few = self._times(ready, 1, key[1][1])
        best = min(few, key=few.__getitem__)
        dense = product_named(best).holds_dense
        rivals = {name: prepared for name, prepared in ready.items()
                  if name == best or not (dense or product_named(name).holds_dense)}  # fmt: skip
        many = self._times(rivals, MANY_ROWS, key[1][1])
        second = min(many, key=many.__getitem__)
        return Measured(grid=key[0], shape=key[1], few=best, many=second, few_microseconds=few, many_microseconds=many,
                        since=_crossing((few[best], many[best]), (few[second], many[second])))  # fmt: skip

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


def _crossing(first: tuple[float, float], second: tuple[float, float]) -> int:
    """Rows from which on the second is the faster one, by straight lines through times of 1 and `MANY_ROWS` rows.

    >>> _crossing((1.0, 128.0), (64.0, 65.0))
    65
    """
    behind, ahead = second[0] - first[0], first[1] - second[1]
    return 1 if ahead + behind == 0 else math.ceil(1 + (MANY_ROWS - 1) * behind / (behind + ahead))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, on a GPU until it is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
