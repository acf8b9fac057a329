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
Salient weights go to the nearest of their four sums; with `signs="successive"`, the release's way, each order takes the
sign of what is left to it, which is not the nearest where the second order's mean is not 0 or its distance is larger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.bell_search import one_order, salient_columns, sparse_part, two_orders
from suite.grids.layout import ALL, Columns, Layout, check_finite, check_group, check_matrix
from suite.grids.saliency import Score, check_score, pivots_for
from suite.grids.stored import from_bits, stored_type, to_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class BellSplit:
    """Salient columns of two orders, and two parts of one order, in blocks of `group` columns.

    `most` bounds the salient columns of a block, from above and exclusively; `damping` is that of the "hessian" score.
    """

    group: int = 128
    score: Score = "hessian"
    search: Literal["weights", "scores"] = "weights"
    membership: Literal["split", "nearest"] = "split"
    signs: Literal["nearest", "successive"] = "nearest"
    center: bool = True
    most: int = 50
    damping: float = 0.01
    scale_bits: Literal[16, 32] = 16

    block = (1, 1)

    def __post_init__(self) -> None:
        check_group(self.group)
        check_score(self.score, self.damping)
        if self.search not in ("weights", "scores") or self.membership not in ("split", "nearest"):
            raise ValueError(
                f"search {self.search!r}, membership {self.membership!r}: expected weights or scores, split or nearest"
            )
        if self.signs not in ("nearest", "successive") or self.scale_bits not in (16, 32):
            raise ValueError(
                f"signs {self.signs!r}, scale_bits {self.scale_bits!r}: expected nearest or successive, and 16 or 32"
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
        numbers = torch.stack(parameters, dim=1)
        return FittedBellSplit(
            grid=self,
            layout=layout,
            salient=torch.cat(salient),
            parameters=numbers,
            levels=_levels(numbers, self.center),
            sparse=torch.cat(sparse, dim=1).T.contiguous().T,  # error feedback reads it column after column
            pivots=pivots,
        )

    def split(self, x: torch.Tensor, pivots: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a block `x` (out, k): which columns (k,) are salient, which values (out, k) sparse, and the parameters."""
        scores = x if pivots is None else x.square() * pivots.square().to(x.dtype)
        S = scores if self.search == "scores" else x
        salient = salient_columns(S, scores.abs().sum(0), self.most, self.center)
        sparse = torch.zeros_like(x, dtype=torch.bool)
        sparse[:, ~salient] = part = sparse_part(S, salient, self.center)
        bells, two = x[:, ~salient], x[:, salient]
        first = one_order(bells, ~part, self.center)[0], one_order(bells, part, self.center)[0]
        orders = two_orders(two, torch.ones_like(two, dtype=torch.bool), self.center)[0]
        numbers = torch.cat([number for pair in (*first, *orders) for number in pair], dim=1)
        numbers = numbers if self.center else numbers[:, 1::2]
        return salient, sparse, self._stored(numbers)

    def _stored(self, numbers: torch.Tensor) -> torch.Tensor:
        kind = stored_type(self.scale_bits)
        largest = torch.finfo(kind).max
        return numbers.clamp(-largest, largest).to(kind).to(numbers.dtype)

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
        return [(n_in, 1), (n_out * columns * self.n_parameters, self.scale_bits), *group_of]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedBellSplit":
        """The fitted grid from the values of `FittedBellSplit.beside`."""
        n_out, n_in = header["shape"]
        layout = self.layout((n_out, n_in), beside[2] if header.get("grouped") else None)
        parameters = from_bits(beside[1], self.scale_bits).reshape(*layout.parameters, self.n_parameters)
        levels = _levels(parameters, self.center)
        return FittedBellSplit(grid=self, layout=layout, salient=beside[0].bool(), parameters=parameters, levels=levels)


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
    levels: torch.Tensor  # (out, blocks, 8), of parameters: by code, of other columns and of salient ones
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

    def _row(self, columns: Columns) -> torch.Tensor:
        """Where in a row of `levels`, flattened, the four of each of `columns` begin, (k,) int64."""
        if self.layout.group_of is None:
            block = torch.arange(self.shape[1])[columns] // self.group_size
        else:
            block = self.layout.group_of[columns]
        return 8 * block + 4 * self.salient[columns]

    def _candidates(self, x: torch.Tensor, columns: Columns) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The four values (out, k) of every weight, by code, and which weights may not have them, or None."""
        flat, first = self.levels.reshape(self.shape[0], -1), self._row(columns)
        values = [flat[:, first + code] for code in range(4)]
        if self.grid.membership == "nearest":
            return [(value, None) for value in values]
        if self.sparse is None:
            raise ValueError("a split read back from bytes is in the codes: nothing more can be rounded by it")
        sparse, salient = self.sparse[:, columns], self.salient[columns]
        never = [sparse & ~salient, ~sparse & ~salient]
        return [(value, never[code // 2]) for code, value in enumerate(values)]

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, nearest to `x` (out, k) of those a weight may have.

        `cost` (4,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        codes, least = torch.zeros(x.shape, dtype=torch.uint8), torch.full_like(x, math.inf)
        for code, (value, never) in enumerate(self._candidates(x, columns)):
            distance = (x - value).square()
            distance = distance if cost is None else distance + cost[code]
            distance = distance if never is None else distance.masked_fill(never, math.inf)
            better = distance < least
            codes[better] = code
            least = torch.where(better, distance, least)
        if self.grid.signs == "successive" and cost is None and bool(self.salient[columns].any()):
            codes = torch.where(self.salient[columns], self._successive(x, columns), codes)
        return codes

    def _successive(self, x: torch.Tensor, columns: Columns) -> torch.Tensor:
        """The codes (out, k) of both signs of salient weights, one after the other."""
        numbers = self.layout.expand(self.parameters, columns)[..., 4 if self.grid.center else 2 :]
        means = numbers[..., 0::2] if self.grid.center else torch.zeros_like(numbers)
        first = x > means[..., 0]
        distance = numbers[..., 1 if self.grid.center else 0]
        left = x - means[..., 0] - torch.where(first, distance, -distance)
        return 2 * first.to(torch.uint8) + (left > means[..., 1]).to(torch.uint8)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the two levels around `x`, of those a weight may have; outside the range both are the last level."""
        found = self._candidates(x, columns)
        levels = torch.stack([value for value, _ in found], dim=-1)
        may = torch.stack([torch.ones_like(x, dtype=torch.bool) if never is None else ~never for _, never in found], -1)
        below = torch.where(may & (levels <= x[..., None]), levels, -math.inf)
        above = torch.where(may & (levels >= x[..., None]), levels, math.inf)
        low, high = below.argmax(-1), above.argmin(-1)
        under, over = below.amax(-1) == -math.inf, above.amin(-1) == math.inf
        return torch.where(under, high, low).to(torch.uint8), torch.where(over, low, high).to(torch.uint8)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the parameters' type."""
        return self.levels.reshape(self.shape[0], -1).gather(1, self._row(columns) + codes)

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the parameters as they are stored, in float32."""
        return self.tuned({"parameters": self._stored}).decode(codes)

    @property
    def _stored(self) -> torch.Tensor:
        return self.grid._stored(self.parameters.detach().float())

    def tunable(self) -> dict[str, torch.Tensor]:
        """Means and scales."""
        return {"parameters": self.parameters}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedBellSplit":
        """The same with other means and scales; `decode` is differentiable in them."""
        parameters = values["parameters"]
        return replace(self, parameters=parameters, levels=_levels(parameters, self.grid.center))

    def in_order(self, perm: torch.Tensor) -> "FittedBellSplit":
        """The grid with blocks made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedBellSplit":
        """The grid with block `group` fitted anew to `x` (out, k), the values its `columns` have now."""
        assert self.sparse is not None
        marks, part, numbers = self.grid.split(x, None if self.pivots is None else self.pivots[columns])
        salient, sparse, parameters, levels = (
            t.clone() for t in (self.salient, self.sparse, self.parameters, self.levels)
        )
        salient[columns], sparse[:, columns], parameters[:, group] = marks, part, numbers
        levels[:, group] = _levels(numbers, self.grid.center)
        return replace(self, salient=salient, sparse=sparse, parameters=parameters, levels=levels)

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
        bits: int = self.grid.scale_bits
        streams = [(self.salient.long(), 1), (to_bits(self._stored, bits).reshape(-1), bits)]
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


def _levels(parameters: torch.Tensor, center: bool) -> torch.Tensor:
    """The levels (out, blocks, 8) of parameters (out, blocks, 8) or (.., 4): of the bells, and of both orders."""
    mu, a = (parameters[..., 0::2], parameters[..., 1::2]) if center else (torch.zeros_like(parameters), parameters)
    low, high = mu - a, mu + a
    bells = [end[..., part] for part in (0, 1) for end in (low, high)]
    orders = [first[..., 2] + second[..., 3] for first in (low, high) for second in (low, high)]
    return torch.stack([*bells, *orders], dim=-1)
