"""Codebooks: vectors of consecutive weights of a matrix, each the sum of one entry of every codebook.

`axis=1` takes vectors along a row, of consecutive inputs, as AQLM does (Egiazarian et al. 2024, arXiv:2401.06118);
`axis=0` down a column, of consecutive outputs, as VPTQ does (Liu et al. 2024, arXiv:2409.17066), so that all values of
a vector weigh alike in the output error. The codebooks belong to one matrix, are fitted to it by k-means, one stage on
what the stages before leave (residual vector quantization), and are stored with it: nothing of a table is free, and for
a small matrix it is a large part of the bits.

A last vector that is short, of the rows or of the columns, is filled up with zeros where codebooks are trained; its
codes are chosen by the values it has, and stored and charged like the others. Codes are chosen stage by stage, each
nearest to what is left, the lowest code of equals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from kernels.packing import pack, unpack
from suite.grids.k_means import k_means, nearest_of
from suite.grids.layout import ALL, Columns, check_finite, check_matrix
from suite.grids.stored import from_bits, stored_type, to_bits

_HALF = torch.finfo(torch.float16)
_SMALLEST = _HALF.smallest_normal * _HALF.eps  # the smallest subnormal
_TOP = 127  # of the integers that entries of 8 bits are


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebooks:
    """`stages` codebooks of 2^`code_bits` vectors of `length` values each.

    `scale="row"` divides every row by its L2 norm before, stored in float16. Entries are stored in float16, or with
    `entry_bits=8` as integers of -127 to 127 times a float16 scale of each stage (ties to even). `weighted` fits them
    with the importance of the columns, the diagonal of H; otherwise all vectors count alike. `iterations` are those
    of k-means at most; `seed` says how it starts.
    """

    code_bits: int = 8
    stages: int = 1
    length: int = 8
    axis: Literal[0, 1] = 1
    scale: Literal["row", "none"] = "none"
    entry_bits: Literal[8, 16] = 16
    weighted: bool = False
    iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.code_bits, int) and 1 <= self.code_bits <= 16):
            raise ValueError(f"code_bits {self.code_bits!r}: a code of a codebook takes 1 to 16")
        if self.stages < 1 or self.length < 1 or self.iterations < 1:
            raise ValueError(f"stages {self.stages!r}, length {self.length!r}, iterations {self.iterations!r}: "
                             "expected at least 1 of each")  # fmt: skip
        if self.axis not in (0, 1) or self.scale not in ("row", "none") or self.entry_bits not in (8, 16):
            raise ValueError(f"axis {self.axis!r}, scale {self.scale!r}, entry_bits {self.entry_bits!r}: "
                             "expected 0 or 1, row or none, and 8 or 16")  # fmt: skip

    @property
    def bits(self) -> float:
        """The nominal width: bits of codes per weight."""
        return self.stages * self.code_bits / self.length

    @property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of values that share a code."""
        return (self.length, 1) if self.axis == 0 else (1, self.length)

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense, or None."""
        if self.axis == 0 and self.scale == "row":
            return "row scales differ within a vector of outputs: the nearest entry would not be the best one"
        return None

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedCodebooks":
        """Fit scales and codebooks to `W` (out, in). `importance` is H (in, in); only `weighted` reads its diagonal.

        Vectors weigh as much as H_jj is on average over them, times the squared scale of the row. Raises `ValueError`
        for NaN or infinite values, an empty matrix, an unsupported combination, and where `weighted` is given no H.
        """
        bound, shape = self.bind(W), (W.shape[1],) * 2
        if self.weighted and (importance is None or importance.shape != shape):
            found = "none" if importance is None else f"shape {tuple(importance.shape)}"
            raise ValueError(f"weighted codebooks need the Gram matrix H of shape {shape}, found {found}")
        weight = importance.diagonal() if self.weighted and importance is not None else None
        return bound.trained(W, self.stages, torch.Generator().manual_seed(self.seed), weight)

    def bind(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedCodebooks":
        """Row scales fitted to `W` (out, in), and no codebook yet. `importance` is not read."""
        if self.unsupported:
            raise ValueError(self.unsupported)
        check_matrix(W)
        check_finite(W)
        scale = self._row_scale(W) if self.scale == "row" else None
        none = W.new_empty(0, 2**self.code_bits, self.length)
        return FittedCodebooks(grid=self, shape=(W.shape[0], W.shape[1]), scale=scale, codebooks=none)

    def stored(self, codebooks: torch.Tensor) -> torch.Tensor:
        """Codebooks (stages, 2^code_bits, length) as they come back from bytes; ties go to even. Idempotent."""
        if self.entry_bits == 16:
            return codebooks.clamp(-_HALF.max, _HALF.max).half().to(codebooks.dtype)
        step = _steps(codebooks)
        return (codebooks / step).round().clamp(-_TOP, _TOP) * step + 0.0  # integers know no -0

    def _row_scale(self, W: torch.Tensor) -> torch.Tensor:
        """The L2 norm of every row (out, 1) in float16; 1 for a row of zeros."""
        norm = torch.linalg.vector_norm(W.double(), dim=1, keepdim=True)
        rounded = norm.clamp(_SMALLEST, _HALF.max).half().to(W.dtype)
        return torch.where(norm == 0, torch.ones_like(rounded), rounded)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedCodebooks", torch.Tensor]:
        """The fitted grid and the codes that `FittedCodebooks.to_bytes` wrote."""
        blank = self._blank(header)
        *beside, codes = unpack(payload, [*self.beside_widths(header), (math.prod(blank.code_shape), self.code_bits)])
        return self.restore(beside, header), codes.to(blank.code_type).reshape(blank.code_shape)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of row scales, steps of entries of 8 bits, and entries."""
        rows = [(header["shape"][0], 16)] if self.scale == "row" else []
        steps = [(self.stages, 16)] if self.entry_bits == 8 else []
        return [*rows, *steps, (self.stages * 2**self.code_bits * self.length, self.entry_bits)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedCodebooks":
        """The fitted grid from the values of `FittedCodebooks.beside`."""
        *before, entries = beside
        shape = (self.stages, 2**self.code_bits, self.length)
        if self.entry_bits == 16:
            books = from_bits(entries, 16).reshape(shape)
        else:
            books = (entries.float() - _TOP).reshape(shape) * from_bits(before.pop(), 16)[:, None, None]
        scale = from_bits(before.pop(), 16)[:, None] if self.scale == "row" else None
        return replace(self._blank(header), codebooks=books, scale=scale)

    def _blank(self, header: dict[str, Any]) -> "FittedCodebooks":
        n_out, n_in = header["shape"]
        return FittedCodebooks(grid=self, shape=(n_out, n_in), scale=None, codebooks=torch.empty(0))


def _steps(codebooks: torch.Tensor) -> torch.Tensor:
    """The float16 step (stages, 1, 1) of entries of 8 bits: the largest is 127 of them; 1 where all are 0."""
    largest = codebooks.detach().abs().amax((1, 2), keepdim=True)
    # a normal number, so that the step of entries that are whole steps is that step again
    step = (largest / _TOP).clamp(_HALF.smallest_normal, _HALF.max).to(stored_type(16)).to(codebooks.dtype)
    return torch.where(largest == 0, torch.ones_like(step), step)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCodebooks:
    """`Codebooks` bound to an (out, in) matrix: `codebooks` (stages, 2^code_bits, length), `scale` (out, 1) or None.

    Codes are (vectors of rows, vectors of columns, stages).
    """

    grid: Codebooks
    shape: tuple[int, int]
    codebooks: torch.Tensor
    scale: torch.Tensor | None

    regroups = False
    mask_size = 0

    @property
    def n_codes(self) -> int:
        """How many entries a codebook has."""
        return 2**self.grid.code_bits

    @property
    def group_size(self) -> int:
        """How many values share a scale: a row, or without scales the matrix."""
        return self.shape[1] if self.grid.scale == "row" else math.prod(self.shape)

    @property
    def code_type(self) -> torch.dtype:
        """uint8 up to 8 bits, else int32."""
        return torch.uint8 if self.grid.code_bits <= 8 else torch.int32

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(vectors of rows, vectors of columns, stages)."""
        rows, columns = self.grid.block
        return -(-self.shape[0] // rows), -(-self.shape[1] // columns), self.grid.stages

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (out, k) as vectors (R, C, length), a short last one filled up with zeros."""
        rows, columns = self.grid.block
        n_out, k = x.shape
        if n_out % rows or k % columns:
            x = F.pad(x, (0, -k % columns, 0, -n_out % rows))
        if self.grid.axis == 1:
            return x.reshape(n_out, -1, columns)
        return x.reshape(-(-n_out // rows), rows, k).transpose(1, 2)

    def joined(self, vectors: torch.Tensor, k: int) -> torch.Tensor:
        """The inverse of `cut`: vectors (R, C, length) as (out, k), the filling dropped."""
        if self.grid.axis == 1:
            return vectors.flatten(1)[:, :k]
        return vectors.transpose(1, 2).flatten(0, 1)[: self.shape[0]]

    def trained(
        self,
        x: torch.Tensor,
        stages: int,
        generator: torch.Generator,
        importance: torch.Tensor | None = None,
        keep: int = 0,
    ) -> "FittedCodebooks":
        """The grid with `stages` codebooks: the first `keep` as they are, the others by k-means on what is left of `x`.

        `x` is (out, in), `importance` (in,) says how much its columns weigh, None that all weigh alike. Codebooks that
        are there already are where k-means starts.
        """
        vectors = self.cut(x if self.scale is None else x / self.scale).reshape(-1, self.grid.length)
        weight = None if importance is None else self._weights(importance)
        books: list[torch.Tensor] = []
        for stage in range(stages):
            before = self.codebooks[stage] if stage < len(self.codebooks) else None
            if before is None or stage >= keep:
                before = k_means(vectors, self.n_codes, generator, weight, self.grid.iterations, start=before)
                before = self.grid.stored(before[None])[0]
            books.append(before)
            if stage + 1 < stages:
                vectors = vectors - before[nearest_of(vectors, before)]
        return replace(self, codebooks=torch.stack(books))

    def _weights(self, importance: torch.Tensor) -> torch.Tensor:
        """The weight (vectors,) of every vector, averaged over what is not filling."""
        weight = importance.expand(self.shape)
        if self.scale is not None:
            weight = weight * self.scale.to(weight.dtype).square()
        members = self.cut(torch.ones(self.shape)).sum(-1)
        return (self.cut(weight).sum(-1) / members).reshape(-1)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (R, C, stages) for `x` (out, k), the values of `columns`: whole vectors, a short one last."""
        return self.snap(x, columns, cost)[0]

    def snap(
        self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and the values they stand for; stage by stage, nearest to what is left, the lowest code of equals."""
        if cost is not None:
            raise ValueError("codebooks take no cost by code: values that share a code have no rate each")
        wanted = self.cut(x if self.scale is None else x / self.scale)
        codes = self._coded(wanted, self.grid.length)
        across = self.grid.axis
        held = x.shape[across] % self.grid.length
        if held:  # the last vector is short: its code is chosen by the values that it has
            codes.narrow(across, -1, 1).copy_(self._coded(wanted.narrow(across, -1, 1), held))
        return codes, self.decode(codes, columns, x.shape[1])

    def _coded(self, wanted: torch.Tensor, held: int) -> torch.Tensor:
        """Codes (R, C, stages) for vectors (R, C, length), of which the first `held` values count."""
        left, found = wanted[..., :held].reshape(-1, held), []
        for book in self.codebooks[..., :held]:
            codes = nearest_of(left, book)
            left = left - book[codes]
            found.append(codes)
        return torch.stack(found, -1).reshape(*wanted.shape[:2], len(found)).to(self.code_type)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """`ValueError`: vectors have none."""
        raise ValueError(f"vectors of {self.grid.length} values have no neighbors")

    def decode(self, codes: torch.Tensor, columns: Columns = ALL, k: int | None = None) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for; `k` where it is known."""
        if k is None:
            k = len(range(self.shape[1])[columns]) if isinstance(columns, slice) else len(columns)
        index = codes.to(torch.int64)
        vectors = self.codebooks[0][index[..., 0]]
        for stage in range(1, len(self.codebooks)):
            vectors = vectors + self.codebooks[stage][index[..., stage]]
        values = self.joined(vectors, k)
        return values if self.scale is None else values * self.scale

    @property
    def entries(self) -> torch.Tensor:
        """All entries (stages, 2^code_bits, length)."""
        return self.codebooks

    def with_entries(self, entries: torch.Tensor) -> "FittedCodebooks":
        """The same with these in their place."""
        return replace(self, codebooks=entries)

    def storable(self) -> "FittedCodebooks":
        """The same with entries as they are stored."""
        return replace(self, codebooks=self.grid.stored(self.codebooks))

    def gathered(self, codes: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """What `gradient` (out, in) of all values adds up to for each entry: the transpose of `decode` in codebooks."""
        vectors = self.cut(gradient if self.scale is None else gradient * self.scale).flatten(0, 1)
        index = codes.to(torch.int64).flatten(0, 1)
        blank = vectors.new_zeros(self.codebooks.shape[1:])
        return torch.stack([blank.index_add(0, stage, vectors) for stage in index.T])

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from scales and codebooks as they are stored, in float32."""
        return self.rounded().decode(codes)

    def rounded(self) -> "FittedCodebooks":
        """The same in float32, as it comes back from bytes."""
        scale = None if self.scale is None else _storable(self.scale).float()
        return replace(self, codebooks=self.grid.stored(self.codebooks.detach().float()), scale=scale)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The codebooks, and the row scales where there are any."""
        return {"codebooks": self.codebooks} | ({} if self.scale is None else {"scale": self.scale})

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedCodebooks":
        """The same with these in their place; rounded only in what is stored."""
        return replace(self, codebooks=values["codebooks"], scale=values.get("scale"))

    def in_order(self, perm: torch.Tensor) -> "FittedCodebooks":
        """Itself: there are no groups of columns."""
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedCodebooks":
        """Itself: there are no groups of columns."""
        return self

    @property
    def n_bits(self) -> int:
        """Exact bits of codes, codebooks and scales."""
        return math.prod(self.code_shape) * self.grid.code_bits + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of codebooks and scales."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Row scales, steps of entries of 8 bits, and entries."""
        there = self.rounded()
        rows = [] if there.scale is None else [(to_bits(there.scale[:, 0], 16), 16)]
        if self.grid.entry_bits == 16:
            return [*rows, (to_bits(there.codebooks.reshape(-1), 16), 16)]
        step = _steps(there.codebooks)
        entries = (there.codebooks / step).round().to(torch.int64).reshape(-1) + _TOP
        return [*rows, (to_bits(step.reshape(-1), 16), 16), (entries, 8)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of each stage, row after row."""
        return tuple(codes[..., stage].reshape(-1) for stage in range(self.grid.stages))

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (R, C, stages) that `streams` took apart."""
        return torch.stack([stream.to(self.code_type) for stream in streams], -1).reshape(self.code_shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Row scales, codebooks, then the codes, those of a vector's stages together."""
        return pack([*self.beside(), (codes, self.grid.code_bits)])

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """Row scales in float16: tuning may move them anywhere that it can say."""
    return scale.detach().clamp(-_HALF.max, _HALF.max).half()
