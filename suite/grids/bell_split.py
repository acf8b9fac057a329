"""BiLLM's grid: salient columns as two binary orders, the others as two bells of one order each.

Huang et al. 2024, arXiv:2402.04291. In every block of `group` columns (short at the end) some columns are salient, and
their weights are read as mu_1 + a_1 b_1 + mu_2 + a_2 b_2, the second order binarizing what the first one leaves. The
other weights are split by size into a concentrated and a sparse part, each read as mu + a b. All mu and a belong to a
row of a block: mu is the mean and a the mean distance from it (mu = 0 with `center=False`).

Which columns are salient: those of the largest sum of scores (see `suite.grids.saliency`), as many, below `most`, as
give the least squared error when both they and the others are read in two orders (the release's criterion). Where the
split is: at the quantile, 10% to 90% in steps of a percent, with the least squared error. `search="weights"` means
errors and sizes of the weights, as the paper writes; the release's way, `search="scores"`, means those of the scores
themselves, squares of weights under the "hessian" score, and its split is then one of scores.

Stored are two bits for every weight: two signs in a salient column; part and sign in another. Codes may only change
their sign with `membership="split"`. With "nearest" a weight goes to the nearest of its row's four levels, at the same
bits: a four-level quantizer, which is what the format is. Halfway the lower level is chosen, or the sparse part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_group, check_matrix
from suite.grids.saliency import Score, check_score, pivots_for
from suite.grids.stored import from_bits, to_bits

Pair = tuple[torch.Tensor, torch.Tensor]  # mu and a, (out, 1)
_QUANTILES = (0.10, 0.90, 81)  # of the release: from, to, how many


@dataclass(frozen=True, slots=True, kw_only=True)
class BellSplit:
    """Salient columns of two orders, and two parts of one order, in blocks of `group` columns.

    `most` bounds the salient columns of a block, from above and exclusively; `damping` is that of the "hessian" score.
    """

    group: int = 128
    score: Score = "hessian"
    search: Literal["weights", "scores"] = "weights"
    membership: Literal["split", "nearest"] = "split"
    center: bool = True
    most: int = 50
    damping: float = 0.01

    block = (1, 1)

    def __post_init__(self) -> None:
        check_group(self.group)
        check_score(self.score, self.damping)
        if self.search not in ("weights", "scores") or self.membership not in ("split", "nearest"):
            raise ValueError(
                f"search {self.search!r}, membership {self.membership!r}: expected weights or scores, split or nearest"
            )
        if not (isinstance(self.group, int) and isinstance(self.most, int) and self.most >= 1):
            raise ValueError(f"group {self.group!r}, most {self.most!r}: expected positive integers")

    @property
    def bits(self) -> int:
        """The width of a code."""
        return 2

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense: none does not."""
        return None

    @property
    def n_parameters(self) -> int:
        """Real numbers of a row of a block."""
        return 8 if self.center else 4

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which values of an (out, in) matrix are of one block's row."""
        return Layout.of(shape, self.group, group_of=group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedBellSplit":
        """Bind the grid to `W` (out, in). `importance` is H (in, in), which the score "hessian" needs.

        Raises `ValueError` without the H that is needed, for NaN or infinite values, and for an empty matrix.
        """
        check_matrix(W)
        check_finite(W)
        layout = self.layout((W.shape[0], W.shape[1]))
        pivots = pivots_for(self.score, importance, W.shape[1], self.damping)
        found = [
            self.split(x, None if pivots is None else pivots[start : start + self.group])
            for start, x in zip(range(0, W.shape[1], self.group), W.split(self.group, dim=1), strict=True)
        ]
        salient, sparse, parameters = zip(*found, strict=True)
        return FittedBellSplit(
            grid=self,
            layout=layout,
            salient=torch.cat(salient),
            parameters=torch.stack(parameters, dim=1),
            sparse=torch.cat(sparse, dim=1).T.contiguous().T,  # error feedback reads it column after column
            pivots=pivots,
        )

    def split(self, x: torch.Tensor, pivots: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For a block `x` (out, k): which columns (k,) are salient, which values (out, k) sparse, and the parameters."""
        scores = x if pivots is None else x.square() * pivots.square().to(x.dtype)
        S = scores if self.search == "scores" else x
        salient = self._salient(S, scores.abs().sum(0))
        sparse = torch.zeros_like(x, dtype=torch.bool)
        sparse[:, ~salient] = self._sparse(S, salient)
        first, second = x[:, ~salient], x[:, salient]
        part = sparse[:, ~salient]
        bells = [self._means(first, ~part), self._means(first, part)]
        orders = self._orders(second, torch.ones_like(second, dtype=torch.bool))[0]
        numbers = torch.cat([number for pair in (*bells, *orders) for number in pair], dim=1)
        numbers = numbers if self.center else numbers[:, 1::2]
        return salient, sparse, numbers.clamp(-65504, 65504).half().to(x.dtype)

    def _salient(self, S: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """Which columns (k,) are salient: those of the largest `totals` (k,), earlier ones first."""
        order = torch.argsort(totals, descending=True, stable=True)
        ranked, n = S[:, order], S.shape[1]
        counts = range(1, min(self.most, n))
        errors = [self._two_orders(ranked[:, :i]) + self._two_orders(ranked[:, i:]) for i in counts]
        best = counts[errors.index(min(errors))] if errors else 0
        return torch.zeros(n, dtype=torch.bool).index_fill_(0, order[:best], True)

    def _two_orders(self, x: torch.Tensor) -> float:
        everything = torch.ones((), dtype=torch.bool).expand_as(x)
        return float(self._orders(x, everything)[1])

    def _sparse(self, S: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
        """Which of the values (out, k') outside salient columns are of the sparse part: those from the split on."""
        size, x = S.abs(), S[:, ~salient]
        if x.shape[1] == 0:
            return torch.zeros_like(x, dtype=torch.bool)
        at = torch.linspace(*_QUANTILES[:2], _QUANTILES[2], dtype=torch.float64)
        ranked = (size * ~salient).flatten().sort().values
        place = at * (len(ranked) - 1)  # the release's quantiles count salient columns as zeros, and so do these
        low = place.floor().long()
        borders = torch.lerp(ranked[low], ranked[(low + 1).clamp(max=len(ranked) - 1)], (place - low).to(x.dtype))
        size = size[:, ~salient]
        errors = [float(self._one_order(x, size < p) + self._one_order(x, size >= p)) for p in borders]
        return size >= borders[errors.index(min(errors))]

    def _means(self, x: torch.Tensor, mask: torch.Tensor) -> Pair:
        """Mu and a (out, 1) of the values of `x` (out, k) in `mask`, row by row; 0 where there are none."""
        count = mask.sum(1, keepdim=True).clamp(min=1)
        mu = (x * mask).sum(1, keepdim=True) / count * self.center
        return mu, ((x - mu).abs() * mask).sum(1, keepdim=True) / count

    def _one_order(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mu, a = self._means(x, mask)
        return (((x - mu).abs() - a).square() * mask).sum()

    def _orders(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[list[Pair], torch.Tensor]:
        """Both pairs of the values of `x` (out, k) in `mask`, and the squared error of their greedy signs."""
        mu, a = self._means(x, mask)
        left = x - mu
        left = left - torch.where(left > 0, a, -a)
        again = self._means(left, mask)
        return [(mu, a), again], (((left - again[0]).abs() - again[1]).square() * mask).sum()

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedBellSplit", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedBellSplit.to_bytes` wrote."""
        *beside, codes = unpack(payload, [*self.beside_widths(header), (math.prod(header["shape"]), 2)])
        fitted = self.restore(beside, header)
        return fitted, fitted.codes_of([codes])

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of marks of salient columns, of means and scales, and of block indices."""
        n_out, n_in = header["shape"]
        columns = self.layout((n_out, n_in)).parameters[1]
        group_of = [(n_in, max(1, (columns - 1).bit_length()))] if header.get("grouped") else []
        return [(n_in, 1), (n_out * columns * self.n_parameters, 16), *group_of]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedBellSplit":
        """The fitted grid from the values of `FittedBellSplit.beside`."""
        n_out, n_in = header["shape"]
        layout = self.layout((n_out, n_in), beside[2] if header.get("grouped") else None)
        parameters = from_bits(beside[1], 16).reshape(*layout.parameters, self.n_parameters)
        return FittedBellSplit(grid=self, layout=layout, salient=beside[0].bool(), parameters=parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedBellSplit:
    """A `BellSplit` bound to a matrix: `salient` (in,), and `parameters` (out, blocks, 8) or, not centered, (.., 4).

    Parameters are mu and a of the concentrated part, the sparse part, the first and the second salient order. `sparse`
    (out, in) and `pivots` (in,) are what fitting leaves behind; the codes say which part a weight is of, so that
    neither is stored, and a grid read back from bytes has none: then nothing can be rounded on it anew by its split.
    """

    grid: BellSplit
    layout: Layout
    salient: torch.Tensor
    parameters: torch.Tensor
    sparse: torch.Tensor | None = None
    pivots: torch.Tensor | None = None

    block = (1, 1)
    mask_size = 0
    n_codes = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.layout.shape

    @property
    def group_size(self) -> int:
        """How many columns a block has."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one block after the other."""
        return self.parameters.shape[1] > 1

    @property
    def published_bits(self) -> float:
        """Bits per weight as the paper counts them: signs, and a mark for every column of a row of a block.

        That is 2 r + (1 - r) + 1 / group with a share r of salient columns (1.08 in the abstract, of LLaMA-2). It
        leaves out which part a weight is of, a bit for all that are not salient, and the means and scales, 128 bits
        for `group` weights of a row: `n_bits` has both, and the marks once for a column.
        """
        return 1 + float(self.salient.double().mean()) + 1 / self.group_size

    def _levels(self, columns: Columns) -> torch.Tensor:
        """The four levels, by code, of the given columns, broadcastable to (out, k, 4)."""
        numbers = self.layout.expand(self.parameters, columns)
        if self.grid.center:
            mu, a = numbers[..., 0::2], numbers[..., 1::2]
        else:
            mu, a = torch.zeros_like(numbers), numbers
        low, high = mu - a, mu + a
        bells = torch.stack([low[..., 0], high[..., 0], low[..., 1], high[..., 1]], dim=-1)
        orders = torch.stack(
            [first + second for first in (low[..., 2], high[..., 2]) for second in (low[..., 3], high[..., 3])], dim=-1
        )
        return torch.where(self.salient[columns][:, None], orders, bells)

    def _allowed(self, x: torch.Tensor, columns: Columns) -> torch.Tensor | None:
        """Which codes (out, k, 4) a weight may have, or None for all."""
        if self.grid.membership == "nearest":
            return None
        if self.sparse is None:
            raise ValueError("a split read back from bytes is in the codes: nothing more can be rounded by it")
        part = torch.arange(4) >= 2
        return self.salient[columns][:, None] | (self.sparse[:, columns][..., None] == part)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, nearest to `x` (out, k) of those a weight may have.

        `cost` (4,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        distance = (x[..., None] - self._levels(columns)).square()
        distance = distance if cost is None else distance + cost
        allowed = self._allowed(x, columns)
        if allowed is not None:
            distance = distance.masked_fill(~allowed, math.inf)
        return distance.argmin(-1).to(torch.uint8)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the two levels around `x`, of those a weight may have; outside the range both are the last level."""
        levels = self._levels(columns).expand(*x.shape, 4)
        allowed = self._allowed(x, columns)
        may = torch.ones_like(levels, dtype=torch.bool) if allowed is None else allowed
        below = torch.where(may & (levels <= x[..., None]), levels, -math.inf)
        above = torch.where(may & (levels >= x[..., None]), levels, math.inf)
        low, high = below.argmax(-1), above.argmin(-1)
        outside_low, outside_high = below.amax(-1) == -math.inf, above.amin(-1) == math.inf
        return (
            torch.where(outside_low, high, low).to(torch.uint8),
            torch.where(outside_high, low, high).to(torch.uint8),
        )

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the parameters' type."""
        levels = self._levels(columns).expand(*codes.shape, 4)
        return levels.gather(-1, codes.long()[..., None])[..., 0]

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the parameters as they are stored, in float32."""
        return replace(self, parameters=self._stored.float()).decode(codes)

    @property
    def _stored(self) -> torch.Tensor:
        return self.parameters.detach().clamp(-65504, 65504).half()

    def tunable(self) -> dict[str, torch.Tensor]:
        """Means and scales."""
        return {"parameters": self.parameters}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedBellSplit":
        """The same with other means and scales; `decode` is differentiable in them."""
        return replace(self, parameters=values["parameters"])

    def in_order(self, perm: torch.Tensor) -> "FittedBellSplit":
        """The grid with blocks made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedBellSplit":
        """The grid with block `group` fitted anew to `x` (out, k), the values its `columns` have now."""
        assert self.sparse is not None
        marks, part, numbers = self.grid.split(x, None if self.pivots is None else self.pivots[columns])
        salient, sparse, parameters = self.salient.clone(), self.sparse.clone(), self.parameters.clone()
        salient[columns], sparse[:, columns], parameters[:, group] = marks, part, numbers
        return replace(self, salient=salient, sparse=sparse, parameters=parameters)

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, marks, means and scales, and block indices."""
        return 2 * math.prod(self.shape) + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of everything but the codes."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Marks of salient columns, means and scales, and which block a column is of where columns were reordered."""
        streams = [(self.salient.long(), 1), (to_bits(self._stored, 16).reshape(-1), 16)]
        if self.layout.group_of is not None:
            streams.append((self.layout.group_of, max(1, (self.parameters.shape[1] - 1).bit_length())))
        return streams

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of salient columns and of the others, two alphabets."""
        return codes[:, self.salient].reshape(-1), codes[:, ~self.salient].reshape(-1)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        if len(streams) == 1:  # all of them, as `to_bytes` has them
            return streams[0].to(torch.uint8).reshape(self.shape)
        codes = torch.empty(self.shape, dtype=torch.uint8)
        for mask, stream in ((self.salient, streams[0]), (~self.salient, streams[1])):
            codes[:, mask] = stream.to(torch.uint8).reshape(self.shape[0], -1)
        return codes

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """What is beside the codes, then `codes` (out, in), two bits each."""
        return pack([*self.beside(), (codes, 2)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their blocks."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.layout.group_of is not None else {})
