"""Residual binarization: x is read as s_1 b_1 + .. + s_K b_K, signs b_k of K bits, scales s_k of a group.

Greedily (Guo, Yao, Zhao, Chen 2017, "Network Sketching", arXiv:1706.02021, Alg. 1; BiLLM's salient columns are K = 2),
every order binarizes what the orders before it left: b_k = sign(r), s_k = mean |r|, r <- r - s_k b_k, and each takes
exactly s_k^2 off the mean square. Refitted (Xu et al. 2018, "Alternating Multi-bit Quantization for Recurrent Neural
Networks", arXiv:1802.00150), scales are those of least squares for the signs and codes the nearest for the scales, in
turn, until no code moves: never worse, in any group, than greedy ones.
At K = 2 that is the symmetric four-level quantizer of Lloyd and Max.

Codes are the nearest of the 2^K sums, bit k - 1 of a code for b_k > 0; greedy signs are the same wherever no scale is
below the sum of those behind it. Halfway the lower level is chosen, so that a zero is negative in the first order.
Equal levels count as one, of the lowest code. A group of zeros has zero scales and decodes to zeros.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.grids.layout import ALL, Columns, Groups, Layout, check_group, check_matrix, in_chunks
from suite.grids.stored import from_bits, stored_type, to_bits

_MOST_SWEEPS = 200  # of the alternation, which ends by itself: there are finitely many codes and the error only falls
_RIDGE = 2.0**-20  # relative, where signs of a small group depend on each other; it slows a step and moves no optimum


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualBinary:
    """`orders` pairs of scale and sign. `group` consecutive inputs of a row share scales, or a "row", or the "tensor".

    A last group may be short. `scale_bits` is what a scale is stored in: float16 or float32.
    """

    orders: int
    group: int | Literal["row", "tensor"] = 128
    scales: Literal["greedy", "refitted"] = "refitted"
    scale_bits: Literal[16, 32] = 16

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.orders, int) and 1 <= self.orders <= 8):
            raise ValueError(f"orders {self.orders!r}: residual binarization takes 1 to 8")
        check_group(self.group)
        if self.scales not in ("greedy", "refitted") or self.scale_bits not in (16, 32):
            raise ValueError(
                f"scales {self.scales!r}, scale_bits {self.scale_bits!r}: expected greedy or refitted, and 16 or 32"
            )

    @property
    def bits(self) -> int:
        """The width of a code: a sign for each order."""
        return self.orders

    @property
    def unsupported(self) -> str | None:
        """Why this combination makes no sense: none does not."""
        return None

    def layout(self, shape: tuple[int, int], group_of: torch.Tensor | None = None) -> Layout:
        """Which values of an (out, in) matrix share scales."""
        return Layout.of(shape, self.group, group_of=group_of)

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedResidualBinary":
        """Bind the grid to `W` (out, in); `ValueError` for NaN or infinite values and an empty matrix."""
        check_matrix(W)
        layout = self.layout((W.shape[0], W.shape[1]))
        groups = Groups.of(W, layout)
        rows, columns = layout.parameters
        values = groups.values.reshape(rows * columns, -1)
        members = groups.members.expand(rows, columns).reshape(-1, 1).to(W.dtype)
        parts, start = [], 0
        for part in in_chunks(values):
            parts.append(self._scales(part, members[start : start + len(part)]))
            start += len(part)
        return self._bind(layout, torch.cat(parts).reshape(rows, columns, self.orders))

    def _scales(self, x: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Scales (n, K) of groups `x` (n, width), of which the first `members` (n, 1) values count."""
        inside = torch.arange(x.shape[1]) < members
        greedy = self._greedy(x, inside, members)
        if self.scales == "greedy" or self.orders == 1:  # one order's mean is its least squares
            return greedy
        refitted = self._stored(_alternate(x, inside, greedy))
        errors = [_error(x, inside, scales) for scales in (greedy, refitted)]
        return torch.where(errors[1] < errors[0], refitted, greedy)

    def _greedy(self, x: torch.Tensor, inside: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        scales, left = [], x
        for _ in range(self.orders):
            scale = self._stored((left.abs() * inside).sum(1, keepdim=True) / members)
            left = left - torch.where(left > 0, scale, -scale)
            scales.append(scale)
        return torch.cat(scales, dim=1)

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        kind = stored_type(self.scale_bits)
        largest = torch.finfo(kind).max
        return scale.clamp(-largest, largest).to(kind).to(scale.dtype)

    def _bind(self, layout: Layout, scale: torch.Tensor) -> "FittedResidualBinary":
        levels = _sums(scale)
        ascending, order = levels.sort(dim=-1, stable=True)
        order = _first(ascending, order)
        return FittedResidualBinary(grid=self, layout=layout, scale=scale, ascending=ascending, order=order)

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedResidualBinary", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedResidualBinary.to_bytes` wrote."""
        *beside, codes = unpack(payload, [*self.beside_widths(header), (math.prod(header["shape"]), self.orders)])
        fitted = self.restore(beside, header)
        return fitted, fitted.codes_of([codes])

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of scales and group indices."""
        n_out, n_in = header["shape"]
        rows, columns = self.layout((n_out, n_in)).parameters
        group_of = [(n_in, max(1, (columns - 1).bit_length()))] if header.get("grouped") else []
        return [(rows * columns * self.orders, self.scale_bits), *group_of]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedResidualBinary":
        """The fitted grid from the values of `FittedResidualBinary.beside`."""
        n_out, n_in = header["shape"]
        layout = self.layout((n_out, n_in), beside[1] if header.get("grouped") else None)
        return self._bind(layout, from_bits(beside[0], self.scale_bits).reshape(*layout.parameters, self.orders))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedResidualBinary:
    """A `ResidualBinary` bound to a matrix: `scale` (R, C, K), its levels in ascending order, and their codes."""

    grid: ResidualBinary
    layout: Layout
    scale: torch.Tensor
    ascending: torch.Tensor  # (R, C, 2^K)
    order: torch.Tensor  # (R, C, 2^K), int64: the code of each

    block = (1, 1)
    mask_size = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.layout.shape

    @property
    def n_codes(self) -> int:
        """How many different codes there are."""
        return 2**self.grid.orders

    @property
    def group_size(self) -> int:
        """How many values really share scales."""
        return self.layout.group_size

    @property
    def regroups(self) -> bool:
        """Whether error feedback may fit one group after the other."""
        return self.scale.shape[1] > 1

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k), uint8, of the levels nearest to `x` (out, k), the values of `columns`.

        `cost` (2^K,), in squared units of `x`, is added to the squared distance to each level: the rate term.
        """
        if cost is not None:
            levels = _sums(self.layout.expand(self.scale, columns))
            return ((x[..., None] - levels).square() + cost).argmin(-1).to(torch.uint8)
        if columns is ALL and self.layout.group_of is None:
            groups = self.layout.grouped(x, 0.0)
            tables = (t.reshape(-1, self.n_codes) for t in (self.ascending, self.order))
            codes = _nearest(groups.reshape(-1, groups.shape[-1]), *tables)
            return self.layout.ungrouped(codes.reshape(groups.shape)).contiguous().to(torch.uint8)
        tables = (self.layout.expand(t, columns).expand(*x.shape, -1).reshape(-1, self.n_codes)
                  for t in (self.ascending, self.order))  # fmt: skip
        return _nearest(x.reshape(-1, 1), *tables).reshape(x.shape).to(torch.uint8)

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        levels, order = (self.layout.expand(t, columns).expand(*x.shape, -1).contiguous()
                         for t in (self.ascending, self.order))  # fmt: skip
        last = self.n_codes - 1
        below = (torch.searchsorted(levels, x[..., None], right=True) - 1).clamp(0, last)
        above = torch.searchsorted(levels, x[..., None]).clamp(0, last)
        low, high = (order.gather(-1, i)[..., 0].to(torch.uint8) for i in (below, above))
        return low, high

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the scales' type."""
        values = torch.zeros((), dtype=self.scale.dtype)
        for k in range(self.grid.orders):
            values = values + self.layout.expand(self.scale[..., k], columns) * _signs(codes, k, self.scale.dtype)
        return values

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the scales as they are stored, in float32."""
        return replace(self, scale=self.grid._stored(self.scale.detach().float())).decode(codes)

    def tunable(self) -> dict[str, torch.Tensor]:
        """The scales."""
        return {"scale": self.scale}

    def tuned(self, values: Mapping[str, torch.Tensor]) -> "FittedResidualBinary":
        """The same with other scales; `decode` is differentiable in them."""
        return self.grid._bind(self.layout, values["scale"])

    def in_order(self, perm: torch.Tensor) -> "FittedResidualBinary":
        """The grid with groups made of consecutive columns in the order `perm` (in,)."""
        group_of = torch.empty_like(perm)
        group_of[perm] = torch.arange(len(perm)) // self.group_size
        return replace(self, layout=replace(self.layout, group_of=group_of))

    def refit(
        self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None
    ) -> "FittedResidualBinary":
        """The grid with `group`'s scales fitted anew to `x` (out, k), the values its `columns` have now."""
        fresh = replace(self.grid, group="row").fit(x)
        fields = {}
        for name in ("scale", "ascending", "order"):
            fields[name] = getattr(self, name).clone()
            fields[name][:, group] = getattr(fresh, name)[:, 0]
        return replace(self, **fields)

    @property
    def n_bits(self) -> int:
        """Exact bits of signs, scales and group indices."""
        return math.prod(self.shape) * self.grid.orders + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of scales and group indices."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """Scales, and which group an input is of where columns were reordered."""
        bits: int = self.grid.scale_bits
        streams = [(to_bits(self.grid._stored(self.scale.detach()), bits).reshape(-1), bits)]
        if self.layout.group_of is not None:
            streams.append((self.layout.group_of, max(1, (self.scale.shape[1] - 1).bit_length())))
        return streams

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All codes, row after row."""
        return (codes.reshape(-1),)

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in), uint8."""
        return streams[0].to(torch.uint8).reshape(self.shape)

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """Scales and group indices, then `codes` (out, in)."""
        return pack([*self.beside(), (codes, self.grid.orders)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, and whether columns name their groups."""
        return {"shape": list(self.shape)} | ({"grouped": True} if self.layout.group_of is not None else {})


def _signs(codes: torch.Tensor, k: int, dtype: torch.dtype) -> torch.Tensor:
    """-1 or 1, by bit k."""
    return ((codes >> k) & 1).to(dtype) * 2 - 1


def _sums(scale: torch.Tensor) -> torch.Tensor:
    """The levels (.., 2^K) of scales (.., K), by code, added in the order in which `decode` adds."""
    codes, levels = torch.arange(2 ** scale.shape[-1]), torch.zeros((), dtype=scale.dtype)
    for k in range(scale.shape[-1]):
        levels = levels + scale[..., k, None] * _signs(codes, k, scale.dtype)
    return levels


def _first(ascending: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`order` with the codes of equal levels replaced by the first one of them."""
    place = torch.arange(ascending.shape[-1]).expand_as(order)
    new = torch.ones_like(order, dtype=torch.bool)
    new[..., 1:] = ascending.diff(dim=-1) > 0
    return order.gather(-1, torch.where(new, place, 0).cummax(-1).values)


def _nearest(x: torch.Tensor, ascending: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Codes (n, width) of the levels (n, 2^K) nearest to `x` (n, width); the lower one halfway."""
    between = (ascending[:, 1:] + ascending[:, :-1]) / 2
    return order.gather(1, torch.searchsorted(between.contiguous(), x.contiguous()))


def _read(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The signs (n, width, K) of the levels nearest to `x` (n, width) under `scales` (n, K)."""
    ascending, order = _sums(scales).sort(dim=-1, stable=True)
    codes = _nearest(x, ascending, order)
    return torch.stack([_signs(codes, k, x.dtype) for k in range(scales.shape[1])], dim=-1)


def _error(x: torch.Tensor, inside: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The squared error (n, 1) of groups `x` (n, width) under `scales` (n, K)."""
    gap = x - (_read(x, scales) @ scales[..., None])[..., 0]
    return (gap.square() * inside).sum(1, keepdim=True)


def _alternate(x: torch.Tensor, inside: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Scales (n, K) of least squares for the codes that are nearest under them, unrounded; from `scales` on."""
    scales, moving = scales.clone(), torch.arange(len(x))
    ridge = _RIDGE * inside.sum(1).to(x.dtype)[:, None, None] * torch.eye(scales.shape[1], dtype=x.dtype)
    B = _read(x, scales) * inside[..., None]
    for _ in range(_MOST_SWEEPS):
        now = scales[moving]
        gap = x[moving] - (B @ now[..., None])[..., 0]
        step = torch.linalg.solve(B.transpose(1, 2) @ B + ridge[moving], B.transpose(1, 2) @ gap[..., None])
        scales[moving] = now = now + step[..., 0]
        after = _read(x[moving], now) * inside[moving][..., None]
        changed = (after != B).flatten(1).any(1)
        moving, B = moving[changed], after[changed]
        if not len(moving):
            break
    return scales
