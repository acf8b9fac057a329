"""Outlier columns: the input channels that weigh the most have codebooks of their own (VPTQ).

Liu et al. 2024, arXiv:2409.17066, section 3.3: "the first N percent" of the columns by H_jj, which may take more bits
than the rest. Vectors of both are equally long here, so that one column is coded like another; bits and codebooks of
the two differ as one likes. Which columns they are is stored, in ceil(log2 in) bits each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kernels.packing import pack, unpack
from suite.grids.codebooks import Codebooks, FittedCodebooks
from suite.grids.layout import ALL, Columns, check_finite, check_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierColumns:
    """`share` of the columns, rounded up and at least one left over, on `outliers`, and all others on `rest`."""

    share: float
    outliers: Codebooks = field(default_factory=lambda: Codebooks(axis=0))
    rest: Codebooks = field(default_factory=lambda: Codebooks(axis=0))

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share {self.share!r}: expected above 0 and below 1")

    @property
    def bits(self) -> float:
        """The nominal width of a code, that of the rest."""
        return self.rest.bits

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of values that share a code."""
        return self.rest.block

    @property
    def length(self) -> int:
        """Outputs in a vector."""
        return self.rest.length

    @property
    def stages(self) -> int:
        """Codes of a vector, at most."""
        return max(self.rest.stages, self.outliers.stages)

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.outliers.axis != 0 or self.rest.axis != 0 or self.outliers.length != self.rest.length:
            return "outlier columns take codebooks of consecutive outputs, vectors of both equally long"
        return self.outliers.unsupported or self.rest.unsupported

    def count(self, n_in: int) -> int:
        """How many of `n_in` columns are outliers."""
        return min(n_in - 1, math.ceil(self.share * n_in))

    def bind(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedOutlierColumns":
        """Say which columns of `W` (out, in) are outliers: those of the largest H_jj, the first of equals.

        Raises `ValueError` for NaN or infinite values, an empty matrix, an unsupported combination, and without H.
        """
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        n_in = W.shape[1]
        if importance is None or importance.shape != (n_in, n_in):
            found = "none" if importance is None else f"shape {tuple(importance.shape)}"
            raise ValueError(f"outlier columns need the Gram matrix H of shape {(n_in, n_in)}, found {found}")
        order = torch.argsort(importance.diagonal(), descending=True, stable=True)
        return self._split((W.shape[0], n_in), order[: self.count(n_in)].sort().values, W.dtype)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedOutlierColumns":
        """Fit both to `W` (out, in); `importance` is H (in, in), and says which columns are which."""
        bound = self.bind(W, importance)
        return bound.trained(W, self.stages, torch.Generator().manual_seed(self.rest.seed))

    def _split(self, shape: tuple[int, int], places: torch.Tensor, dtype: torch.dtype) -> "FittedOutlierColumns":
        n_out, n_in = shape
        marked = torch.zeros(n_in, dtype=torch.bool)
        marked[places] = True
        outliers, rest = (FittedCodebooks(grid=grid, shape=(n_out, n), scale=None,
                                          codebooks=torch.empty(0, 2**grid.code_bits, grid.length, dtype=dtype))
                          for grid, n in ((self.outliers, len(places)), (self.rest, n_in - len(places))))  # fmt: skip
        return FittedOutlierColumns(grid=self, shape=shape, marked=marked, outliers=outliers, rest=rest)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedOutlierColumns", torch.Tensor]:
        """The fitted grid and the codes that `FittedOutlierColumns.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        count = self.count(n_in)
        sizes = [math.ceil(n_out / self.length) * n * grid.stages
                 for grid, n in ((self.outliers, count), (self.rest, n_in - count))]  # fmt: skip
        widths = [(sizes[0], self.outliers.code_bits), (sizes[1], self.rest.code_bits)]
        *beside, first, second = unpack(payload, [*self.beside_widths(header), *widths])
        fitted = self.restore(beside, header)
        parts = [codes.reshape(part.code_shape) for part, codes in zip(fitted.parts, (first, second), strict=True)]
        return fitted, fitted.merged(parts)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of the outliers' places, and of both codebooks."""
        n_out, n_in = header["shape"]
        count = self.count(n_in)
        places = [(count, max(1, (n_in - 1).bit_length()))] if count else []
        return [*places, *self.outliers.beside_widths({"shape": (n_out, count)}),
                *self.rest.beside_widths({"shape": (n_out, n_in - count)})]  # fmt: skip

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedOutlierColumns":
        """The fitted grid from the values of `FittedOutlierColumns.beside`."""
        n_out, n_in = header["shape"]
        count = self.count(n_in)
        places, beside = (beside[0], beside[1:]) if count else (torch.empty(0, dtype=torch.int64), beside)
        if count and (int(places.max()) >= n_in or len(places.unique()) < count):
            raise ValueError(f"outlier columns {places.tolist()}: expected different ones of {n_in}")
        mine = len(self.outliers.beside_widths({"shape": (n_out, count)}))
        outliers = self.outliers.restore(beside[:mine], {"shape": (n_out, count)})
        rest = self.rest.restore(beside[mine:], {"shape": (n_out, n_in - count)})
        return replace(self._split((n_out, n_in), places, torch.float32), outliers=outliers, rest=rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedOutlierColumns:
    """`OutlierColumns` bound to an (out, in) matrix: `marked` (in,) columns on `outliers`, the others on `rest`.

    Codes are (vectors of rows, in, stages); those that a column does not have are 0, and not stored.
    """

    grid: OutlierColumns
    shape: tuple[int, int]
    marked: torch.Tensor
    outliers: FittedCodebooks
    rest: FittedCodebooks

    regroups = False
    mask_size = 0

    @property
    def parts(self) -> tuple[FittedCodebooks, FittedCodebooks]:
        """Outliers and the rest."""
        return self.outliers, self.rest

    @property
    def n_codes(self) -> int:
        """How many entries the larger codebook has."""
        return max(part.n_codes for part in self.parts)

    @property
    def group_size(self) -> int:
        """How many values share a scale: there is none, so the matrix."""
        return math.prod(self.shape)

    @property
    def code_type(self) -> torch.dtype:
        """uint8 up to 8 bits, else int32."""
        return torch.uint8 if self.n_codes <= 256 else torch.int32

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (out, k) as vectors (R, k, length), a short last one filled up with zeros."""
        return self.rest.cut(x)

    def _sides(self, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of `columns` are outliers, and which the rest: indices among them."""
        marked = self.marked[columns]
        return marked.nonzero()[:, 0], (~marked).nonzero()[:, 0]

    def merged(self, codes: Sequence[torch.Tensor], columns: Columns = ALL) -> torch.Tensor:
        """Codes (R, k, stages) of `columns` from those of outliers and of the rest."""
        sides = self._sides(columns)
        stages = max(part.shape[2] for part in codes)
        found = torch.zeros(len(codes[0]), sum(map(len, sides)), stages, dtype=self.code_type)
        for side, part in zip(sides, codes, strict=True):
            found[:, side, : part.shape[2]] = part.to(self.code_type)
        return found

    def parted(self, codes: torch.Tensor, columns: Columns = ALL) -> list[torch.Tensor]:
        """The inverse of `merged`."""
        return [
            codes[:, side, : len(part.codebooks)] for side, part in zip(self._sides(columns), self.parts, strict=True)
        ]

    def trained(
        self,
        x: torch.Tensor,
        stages: int,
        generator: torch.Generator,
        importance: torch.Tensor | None = None,
        keep: int = 0,
    ) -> "FittedOutlierColumns":
        """Both with `stages` codebooks, as far as they have them, trained on their columns of `x` (out, in)."""
        trained = []
        for side, part in zip(self._sides(), self.parts, strict=True):
            own, weight = min(stages, part.grid.stages), None if importance is None else importance[side]
            if len(side):
                part = part.trained(x[:, side], own, generator, weight, min(keep, own))
            else:  # a matrix of one column has no outliers, and still a codebook for them
                part = replace(part, codebooks=x.new_zeros(own, part.n_codes, part.grid.length))
            trained.append(part)
        return replace(self, outliers=trained[0], rest=trained[1])

    @property
    def entries(self) -> torch.Tensor:
        """All entries (n, length) of both."""
        return torch.cat([part.codebooks.flatten(0, 1) for part in self.parts])

    def with_entries(self, entries: torch.Tensor) -> "FittedOutlierColumns":
        """The same with these in their place."""
        sizes = [part.codebooks.shape[:2].numel() for part in self.parts]
        outliers, rest = (part.with_entries(mine.reshape(part.codebooks.shape))
                          for part, mine in zip(self.parts, entries.split(sizes), strict=True))  # fmt: skip
        return replace(self, outliers=outliers, rest=rest)

    def gathered(self, codes: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """What `gradient` (out, in) of all values adds up to for each entry (n, length)."""
        return torch.cat([
            part.gathered(mine, gradient[:, side]).flatten(0, 1)
            for part, mine, side in zip(self.parts, self.parted(codes), self._sides(), strict=True)])  # fmt: skip

    def storable(self) -> "FittedOutlierColumns":
        """The same with entries as they are stored."""
        return replace(self, outliers=self.outliers.storable(), rest=self.rest.storable())

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (R, k, stages) for `x` (out, k), the values of `columns`."""
        return self.snap(x, columns, cost)[0]

    def snap(
        self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and the values they stand for; stage by stage, nearest to what is left, the lowest code of equals."""
        sides = zip(self.parts, self._sides(columns), strict=True)
        codes = self.merged([part.nearest(x[:, side], cost=cost) for part, side in sides], columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """`ValueError`: vectors have none."""
        return self.rest.neighbors(x, columns)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for."""
        sides = self._sides(columns)
        values = [part.decode(mine, k=len(side))
                  for part, mine, side in zip(self.parts, self.parted(codes, columns), sides, strict=True)]  # fmt: skip
        return torch.cat(values, 1)[:, torch.argsort(torch.cat(sides))]

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from codebooks as they are stored, in float32."""
        return replace(self, outliers=self.outliers.rounded(), rest=self.rest.rounded()).decode(codes)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The codebooks of both."""
        return {"outliers": self.outliers.codebooks, "codebooks": self.rest.codebooks}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedOutlierColumns":
        """The same with these in their place; rounded only in what is stored."""
        outliers, rest = self.outliers.with_entries(values["outliers"]), self.rest.with_entries(values["codebooks"])
        return replace(self, outliers=outliers, rest=rest)

    def in_order(self, perm: torch.Tensor) -> "FittedOutlierColumns":
        """Itself: there are no groups of columns."""
        return self

    def refit(
        self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None
    ) -> "FittedOutlierColumns":
        """Itself: there are no groups of columns."""
        return self

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, codebooks and the outliers' places."""
        return self.beside_bits + sum(math.prod(part.code_shape) * part.grid.code_bits for part in self.parts)

    @property
    def beside_bits(self) -> int:
        """Exact bits of codebooks and the outliers' places."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The outliers' places, and both codebooks."""
        places = self.marked.nonzero()[:, 0]
        width = max(1, (self.shape[1] - 1).bit_length())
        return [*([(places, width)] if len(places) else []), *self.outliers.beside(), *self.rest.beside()]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of each codebook, row after row: outliers first."""
        outliers, rest = self.parted(codes)
        return (*self.outliers.streams(outliers), *self.rest.streams(rest))

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (R, in, stages) that `streams` took apart."""
        first = self.grid.outliers.stages
        return self.merged([self.outliers.codes_of(streams[:first]), self.rest.codes_of(streams[first:])])

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """The outliers' places, both codebooks, then the outliers' codes and those of the rest."""
        streams = [(mine, part.grid.code_bits) for mine, part in zip(self.parted(codes), self.parts, strict=True)]
        return pack([*self.beside(), *streams])

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}
