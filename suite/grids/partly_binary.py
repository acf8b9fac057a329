"""PB-LLM's grid: a share of the weights at 8 bits, wherever they lie, and the others binary.

Shang, Yuan, Wu, Dong 2023, arXiv:2310.00034. In every group of columns, over all rows, the `salient` share of the
weights with the largest scores (`suite.grids.saliency`) is kept on integers of its own, `high`, fitted to all weights
of a row; of equal scores the earlier one in the matrix. The others are read as m + s or m - s, with m the mean of the
binary weights of a row of the group and s their mean distance from it, both in float16. `average="all"` is the
release's way, which counts salient weights as zeros in both means. What is salient is chosen once, before error
feedback moves any weight, as in the paper; groups of columns may have m and s fitted when their turn comes.

A binary weight takes one bit, a salient one those of `high`. Which is which is stored too, by the cheaper of two ways,
which the shape decides: a bit for every weight, or for every row how many are salient and in which columns. Halfway a
binary weight goes to the lower level. A row without binary weights has m = s = 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.integer import FittedInteger, Integer
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_group, check_matrix
from suite.grids.saliency import Score, check_score, pivots_for
from suite.grids.stored import from_bits, to_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class PartlyBinary:
    """The `salient` share of the weights on `high`, the others binary, with m and s for `group` inputs of a row.

    A last group may be short. `damping` is that of the "hessian" score.
    """

    salient: float = 0.1
    group: int | Literal["row"] = "row"
    score: Score = "hessian"
    average: Literal["binary", "all"] = "binary"
    high: Integer = field(default_factory=lambda: Integer(bits=8, group="row"))
    damping: float = 0.01

    block = (1, 1)

    def __post_init__(self) -> None:
        check_group(self.group)
        check_score(self.score, self.damping)
        if not 0 <= self.salient <= 1 or self.group == "tensor":
            raise ValueError(
                f'salient {self.salient!r}, group {self.group!r}: expected a share from 0 to 1, and an integer or "row"'
            )
        if self.average not in ("binary", "all"):
            raise ValueError(f"average {self.average!r}: expected binary or all")

    @property
    def bits(self) -> float:
        """Bits per weight as the paper counts them: the codes alone, 1.7 at 10% of 8 bits."""
        return round(1 + self.salient * (self.high.bits - 1), 9)

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        return self.high.unsupported

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which binary weights of an (out, in) matrix share m and s."""
        return Layout.of(shape, self.group, group_of=group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedPartlyBinary":
        """Bind the grid to `W` (out, in). `importance` is H (in, in), which the score "hessian" needs.

        Raises `ValueError` without the H that is needed, for NaN or infinite values, and for an empty matrix.
        """
        check_matrix(W)
        check_finite(W)
        n_out, n_in = W.shape
        pivots = pivots_for(self.score, importance, n_in, self.damping)
        scores = W.abs().double() if pivots is None else W.abs().double() * pivots
        width = self.layout((n_out, n_in)).width
        mask = torch.cat([self._largest(part) for part in scores.split(width, dim=1)], dim=1)
        low = [self.binary(x, part) for x, part in zip(W.split(width, 1), mask.split(width, 1), strict=True)]
        return FittedPartlyBinary(
            grid=self,
            layout=self.layout((n_out, n_in)),
            inner=self.high.fit(W, importance),
            mask=mask.T.contiguous().T,  # error feedback reads it column after column
            low=torch.stack(low, dim=1),
        )

    def _largest(self, scores: torch.Tensor) -> torch.Tensor:
        """Where the largest of `scores` (out, k) are, as many as are salient."""
        order = torch.argsort(scores.flatten(), descending=True, stable=True)[: self._count(*scores.shape)]
        chosen = torch.zeros(scores.numel(), dtype=torch.bool)
        return chosen.index_fill_(0, order, True).reshape(scores.shape)

    def _count(self, n_out: int, width: int) -> int:
        return int(n_out * width * self.salient)

    def binary(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """M and s (out, 2), as they are stored, of `x` (out, k) outside of `mask` (out, k)."""
        here = ~mask if self.average == "binary" else torch.ones_like(mask)
        x, count = x.masked_fill(mask, 0.0), here.sum(1, keepdim=True).clamp(min=1)
        mean = x.sum(1, keepdim=True) / count
        distance = ((x - mean).abs() * here).sum(1, keepdim=True) / count
        return torch.cat([mean, distance], dim=1).clamp(-65504, 65504).half().to(x.dtype)

    def n_salient(self, shape: tuple[int, int]) -> int:
        """How many weights of an (out, in) matrix are salient: a whole number for each group of columns."""
        width = self.layout(shape).width
        return sum(self._count(shape[0], min(width, shape[1] - start)) for start in range(0, shape[1], width))

    def mask_widths(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """The (count, width) of what says where the salient weights are: a bitmap, or counts by row and columns."""
        n_out, n_in = shape
        columns = [(n_out, n_in.bit_length()), (self.n_salient(shape), max(1, (n_in - 1).bit_length()))]
        return columns if sum(count * width for count, width in columns) < n_out * n_in else [(n_out * n_in, 1)]

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedPartlyBinary", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedPartlyBinary.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        n_high = self.n_salient((n_out, n_in))
        widths = [*self.beside_widths(header), (n_out * n_in - n_high, 1), (n_high, self.high.bits)]
        *beside, low, high = unpack(payload, widths)
        fitted = self.restore(beside, header)
        return fitted, fitted.codes_of([low, high])

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of the mask, of m and s, of group indices, and of the parameters of `high`."""
        n_out, n_in = header["shape"]
        columns = self.layout((n_out, n_in)).parameters[1]
        group_of = [(n_in, max(1, (columns - 1).bit_length()))] if header.get("grouped") else []
        high = self.high.beside_widths({"shape": header["shape"]})
        return [*self.mask_widths((n_out, n_in)), (n_out * columns * 2, 16), *group_of, *high]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedPartlyBinary":
        """The fitted grid from the values of `FittedPartlyBinary.beside`; `ValueError` where they name no mask."""
        n_out, n_in = header["shape"]
        left = list(beside)
        mask = self._mask([left.pop(0) for _ in self.mask_widths((n_out, n_in))], n_out, n_in)
        low = left.pop(0)
        layout = self.layout((n_out, n_in), left.pop(0) if header.get("grouped") else None)
        low = from_bits(low, 16).reshape(*layout.parameters, 2)
        inner = self.high.restore(left, {"shape": header["shape"]})
        return FittedPartlyBinary(grid=self, layout=layout, inner=inner, mask=mask.T.contiguous().T, low=low)

    def _mask(self, stored: list[torch.Tensor], n_out: int, n_in: int) -> torch.Tensor:
        n_high = self.n_salient((n_out, n_in))
        mask = torch.zeros(n_out, n_in, dtype=torch.bool)
        if len(stored) == 1:
            mask = stored[0].bool().reshape(n_out, n_in)
        elif int(stored[0].sum()) == n_high and not bool((stored[1] >= n_in).any()):
            mask[torch.arange(n_out).repeat_interleave(stored[0]), stored[1]] = True
        if int(mask.sum()) != n_high:
            raise ValueError(f"the mask does not name {n_high} weights of {(n_out, n_in)}")
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPartlyBinary:
    """A `PartlyBinary` bound to a matrix: where the salient weights are, `mask` (out, in), and both of its grids.

    `low` (out, groups, 2) has m and s. Codes are those of `inner` where salient, else 0 or 1.
    """

    grid: PartlyBinary
    layout: Layout
    inner: FittedInteger
    mask: torch.Tensor
    low: torch.Tensor

    block = (1, 1)
    mask_size = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.layout.shape

    @property
    def n_codes(self) -> int:
        """How many codes a salient weight has."""
        return self.inner.n_codes

    @property
    def group_size(self) -> int:
        """How many inputs share m and s, salient or not."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.low.shape[1] > 1

    def _binary(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.layout.expand(self.low, columns)
        return low[..., 0], low[..., 1]

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, of the levels nearest to `x` (out, k); `cost`, by code, joins the squared error."""
        mean, distance = self._binary(columns)
        if cost is None:
            low = x > mean
        else:
            low = (x - mean - distance).square() + cost[1] < (x - mean + distance).square() + cost[0]
        return torch.where(
            self.mask[:, columns], self.inner.nearest(x, columns, cost), low.to(torch.uint8)
        ).contiguous()

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        mean, distance = self._binary(columns)
        below, above = self.inner.neighbors(x, columns)
        mask = self.mask[:, columns]
        least, most = x > mean + distance, x > mean - distance
        return (
            torch.where(mask, below, least.to(torch.uint8)).contiguous(),
            torch.where(mask, above, most.to(torch.uint8)).contiguous(),
        )

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the parameters' type."""
        mean, distance = self._binary(columns)
        binary = mean + torch.where(codes > 0, distance, -distance)
        return torch.where(self.mask[:, columns], self.inner.decode(codes, columns), binary).contiguous()

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) in float32, from the parameters as they are stored."""
        mean, distance = replace(self, low=self._stored.float())._binary(ALL)
        binary = mean + torch.where(codes > 0, distance, -distance)
        return torch.where(self.mask, self.inner.decode32(codes), binary).contiguous()

    @property
    def _stored(self) -> torch.Tensor:
        return self.low.detach().clamp(-65504, 65504).half()

    def tunable(self) -> dict[str, torch.Tensor]:
        """M and s of the binary weights."""
        return {"low": self.low}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedPartlyBinary":
        """The same with other m and s; `decode` is differentiable in them."""
        return replace(self, low=values["low"])

    def in_order(self, perm: torch.Tensor) -> "FittedPartlyBinary":
        """The grid with groups made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedPartlyBinary":
        """`group`'s m and s fitted anew to `x` (out, k), the values its `columns` have now; what is salient stays."""
        low = self.low.clone()
        low[:, group] = self.grid.binary(x, self.mask[:, columns])
        return replace(self, low=low)

    @property
    def n_bits(self) -> int:
        """Exact bits of the codes of both kinds, and of what is beside them."""
        n_high = self.grid.n_salient(self.shape)
        return math.prod(self.shape) - n_high + n_high * self.grid.high.bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of the mask and of the parameters of both kinds."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The mask, m and s, which group an input is of where columns were reordered, and the parameters of `high`."""
        widths = [width for _, width in self.grid.mask_widths(self.shape)]
        if len(widths) == 1:
            where = [(self.mask.reshape(-1).long(), 1)]
        else:
            where = [(self.mask.sum(1), widths[0]), (self.mask.nonzero()[:, 1], widths[1])]
        groups = [] if self.layout.group_of is None else [
            (self.layout.group_of, max(1, (self.low.shape[1] - 1).bit_length()))]  # fmt: skip
        return [*where, (to_bits(self._stored, 16).reshape(-1), 16), *groups, *self.inner.beside()]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of binary weights and of salient ones, row after row."""
        return codes[~self.mask], codes[self.mask]

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        codes = torch.empty(self.shape, dtype=torch.uint8)
        codes[~self.mask], codes[self.mask] = (stream.to(torch.uint8) for stream in streams)
        return codes

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """What is beside the codes, then those of binary weights, then those of salient ones."""
        low, high = self.streams(codes)
        return pack([*self.beside(), (low, 1), (high, self.grid.high.bits)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their groups."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.layout.group_of is not None else {})
