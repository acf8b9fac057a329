"""How a key-value cache is quantized, as part of a recipe: grids for keys and values, and which tokens stay exact.

Everything is seen from decoding token by token. A token enters; its query attends to the cache; then tokens may leave
the window of those held exactly. The first `sinks` tokens never leave. Of the others, with a `window` of w tokens:

- `along="channels"`, w > 0: at the end of every step all but the newest w are rounded, so that the query of step t sees
  tokens t - w to t exactly (KIVI's values);
- `along="tokens"`: tokens collect until there are w of them, and at the end of that step all w are rounded (KIVI's
  keys, whose groups run over tokens and so have to wait until they are full);
- w = 0: nothing waits. A token is rounded as it enters, and its own query sees it rounded (QuaRot, KVQuant).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from suite.grids import ClipRatio, Integer, KMeansTable, Scaled

NEVER = 2**62  # a step that does not come


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedTable:
    """2^bits levels learned from calibration for a layer's keys or values, and outliers kept in float16 (KVQuant).

    Values are normalized to [-1, 1]: by channel with an offset and a reach from calibration (`ranges="static"`), or by
    token with its own (`"dynamic"`, stored with it). `outliers` is the share, both tails together, that the thresholds
    leave outside; of a token's own values at least the largest and the smallest, as in the release.
    """

    bits: int
    outliers: float = 0.01
    ranges: Literal["static", "dynamic"] = "dynamic"

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise ValueError(f"bits {self.bits!r}: tables take 1 to 8")
        if not (isinstance(self.outliers, int | float) and 0 <= self.outliers < 1):
            raise ValueError(f"outliers {self.outliers!r}: expected a share, 0 or more and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGrid:
    """Keys or values of a token on a grid, whose groups lie within a head: along its channels, or along tokens.

    Groups of more channels than a head has are as long as the head. `rotate` rounds in coordinates turned by the
    Hadamard matrix of the head's size, and turns back what is read.
    """

    grid: Integer | Scaled | LearnedTable
    along: Literal["channels", "tokens"] = "channels"
    rotate: bool = False

    @property
    def group(self) -> int:
        """Tokens that are rounded together."""
        return int(self.grid.group) if self.along == "tokens" and not isinstance(self.grid, LearnedTable) else 1

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        grid = self.grid
        if isinstance(grid, LearnedTable):
            if self.along == "tokens" or self.rotate:
                return "learned tables are for single tokens in the model's own coordinates"
            return None
        if self.along == "tokens" and not isinstance(grid.group, int):
            return f"groups along tokens have a size, not {grid.group!r}"
        return grid.unsupported or _dependent(grid)


def _dependent(grid: Integer | Scaled) -> str | None:
    """Why one token could not be rounded without looking at others, or None."""
    if grid.axis != 1 or grid.group == "tensor":
        return "a cache's groups lie within a head of a token, or within a channel"
    if isinstance(grid, Integer):
        return None if grid.clip is None or isinstance(grid.clip, ClipRatio) else "ranges of a cache are not searched"
    if isinstance(grid.element, KMeansTable) or not grid.scale.separate or grid.scale.clip is not None:
        return "a cache's groups are scaled one by one, without a search, a fitted table or a scale of them all"
    if grid.pad or grid.first != "low":
        return "a cache does not fill groups up, and packs the low half of a byte first"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTarget:
    """Keys and values, and what is kept exactly: the first `sinks` tokens and a `window` of the newest.

    "Exactly" is in `exact_bits`, float16 or float32; all that waits or stays is first rounded to that. Keys are rounded
    as attention sees them, or `rotary="before"` the rotary embedding was applied.
    """

    keys: CacheGrid
    values: CacheGrid
    window: int = 0
    sinks: int = 0
    rotary: Literal["after", "before"] = "after"
    exact_bits: Literal[16, 32] = 16

    @property
    def bits(self) -> float:
        """The nominal width: of keys and values, or the mean of two."""
        mean = (self.keys.grid.bits + self.values.grid.bits) / 2
        return int(mean) if mean == int(mean) else mean

    @property
    def learned(self) -> bool:
        """Whether it takes tables from calibration."""
        return isinstance(self.keys.grid, LearnedTable) or isinstance(self.values.grid, LearnedTable)

    @property
    def unsupported(self) -> str | None:
        """Why this combination cannot be had, or None."""
        if self.window < 0 or self.sinks < 0:
            return f"a cache keeps no negative number of tokens: window {self.window}, sinks {self.sinks}"
        for name, side in (("keys", self.keys), ("values", self.values)):
            if side.unsupported:
                return f"{name} of the cache: {side.unsupported}"
            if side.along == "tokens" and (self.window == 0 or self.window % side.group):
                return (
                    f"{name} in groups of {side.group} tokens wait in a window of a multiple of that, not {self.window}"
                )
        return None

    def rounded(self, side: CacheGrid, tokens: int) -> int:
        """How many tokens, from the first after the sinks, are held rounded once `tokens` are in."""
        beyond = max(0, tokens - self.sinks)
        return beyond // self.window * self.window if side.along == "tokens" else max(0, beyond - self.window)

    def since(self, side: CacheGrid, places: torch.Tensor) -> torch.Tensor:
        """The first step whose query sees the tokens at `places` rounded, int64; `NEVER` for sinks."""
        if side.along == "tokens":
            step = self.sinks + (torch.div(places - self.sinks, self.window, rounding_mode="floor") + 1) * self.window
        else:
            step = places + (self.window + 1 if self.window else 0)
        return torch.where(places < self.sinks, NEVER, step)


def with_bits(target: CacheTarget, bits: int) -> CacheTarget:
    """The same at another width; `ValueError` for grids of one width."""
    sides = []
    for side in (target.keys, target.values):
        if isinstance(side.grid, Scaled):
            raise ValueError(
                f"cache bits {bits}: the recipe's cache is of {side.grid.element}, not integers or a table"
            )
        sides.append(replace(side, grid=replace(side.grid, bits=bits)))
    return replace(target, keys=sides[0], values=sides[1])


CACHE_PARTS: tuple[type[Any], ...] = (CacheTarget, CacheGrid, LearnedTable)  # names in a recipe's text
