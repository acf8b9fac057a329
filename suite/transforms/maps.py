"""Maps of a linear layer's input channels: what is done to inputs at run time, and its inverse to weights beforehand.

A map is a linear x' = x B with B (n_in, n_out). `to_weights` gives W' with x' W'^T = x W^T, and `from_weights` takes
it back. Where B has orthonormal rows, B B^T = I, these are W B and W' B^T, and `to_weights` is `forward`. `n_bits` is
what it takes to restore the map when its sizes are known; its fields are integers, names and tuples of integers, from
which it is built again. Everything happens in the type of the argument.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad

from kernels.hadamard import hadamard_transform, is_hadamard_size
from suite.grids.stored import from_bits, to_bits
from suite.transforms.greedy import EXCHANGES, rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """x_j / s_j, for s in float16; `halves` are the bit patterns of s (in,)."""

    halves: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (self.scale.isfinite() & (self.scale > 0)).all():
            raise ValueError("a scale of input channels: expected positive finite float16 values")

    @classmethod
    def stored(cls, s: torch.Tensor) -> "Scale":
        """The map for `s` (in,), rounded to float16 and kept inside its normal range."""
        halves = s.detach().cpu().half().clamp(min=2.0**-14, max=65504.0)
        return cls(halves=tuple(to_bits(halves, 16).tolist()))

    @property
    def scale(self) -> torch.Tensor:
        """The scales (in,), float32."""
        return from_bits(torch.tensor(self.halves, dtype=torch.int64), 16)

    @property
    def n_in(self) -> int:
        """How many channels there are."""
        return len(self.halves)

    n_out = n_in

    @property
    def n_bits(self) -> int:
        """Those of the scales."""
        return 16 * len(self.halves)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., n_in) as the layer reads them, (.., n_out)."""
        return x / self.scale.to(x)

    def to_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_out) for such inputs, of weights (out, n_in)."""
        return W * self.scale.to(W)

    def from_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_in) of those for such inputs, (out, n_out)."""
        return W / self.scale.to(W)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permutation:
    """x' = x[order]: the channel that comes j-th is channel `order[j]`."""

    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order of {len(self.order)} channels: expected each of them once")

    @property
    def n_in(self) -> int:
        """How many channels there are."""
        return len(self.order)

    n_out = n_in

    @property
    def n_bits(self) -> int:
        """Those of a channel's number, for each."""
        return self.n_in * _width(self.n_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., n_in) as the layer reads them, (.., n_out)."""
        return x[..., list(self.order)]

    to_weights = forward

    def from_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_in) of those for such inputs, (out, n_out)."""
        return W[..., torch.tensor(self.order).argsort()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard:
    """Zeros appended up to `n_out` channels, then a Hadamard matrix divided by sqrt(n_out)."""

    n_in: int
    n_out: int

    def __post_init__(self) -> None:
        if not 1 <= self.n_in <= self.n_out or not is_hadamard_size(self.n_out):
            raise ValueError(f"n_in {self.n_in!r}, n_out {self.n_out!r}: expected n_out >= n_in and a Hadamard size")

    @property
    def n_bits(self) -> int:
        """None: the sizes say it all."""
        return 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., n_in) as the layer reads them, (.., n_out)."""
        return hadamard_transform(x if self.n_in == self.n_out else pad(x, (0, self.n_out - self.n_in)))

    to_weights = forward

    def from_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_in) of those for such inputs, (out, n_out)."""
        return hadamard_transform(W, inverse=True)[..., : self.n_in]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadHadamard:
    """A Hadamard matrix across heads, divided by sqrt(heads), for every place in a head: (H x I) / sqrt(heads)."""

    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if not is_hadamard_size(self.heads) or self.head_dim < 1:
            raise ValueError(f"heads {self.heads!r}, head_dim {self.head_dim!r}: expected a Hadamard size of heads")

    @property
    def n_in(self) -> int:
        """How many channels there are."""
        return self.heads * self.head_dim

    n_out = n_in

    @property
    def n_bits(self) -> int:
        """None: the sizes say it all."""
        return 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., n_in) as the layer reads them, (.., n_out)."""
        return self._across(x, inverse=False)

    to_weights = forward

    def from_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_in) of those for such inputs, (out, n_out)."""
        return self._across(W, inverse=True)

    def _across(self, x: torch.Tensor, inverse: bool) -> torch.Tensor:
        by_place = x.unflatten(-1, (self.heads, self.head_dim)).transpose(-1, -2)
        return hadamard_transform(by_place, inverse).transpose(-1, -2).flatten(-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyRotation:
    """DuQuant's rotation of every `block` channels by one orthogonal matrix, which its steps multiply up again.

    `exchanges` are the channels of a block that each step exchanges with the first, `exchange` says how they were
    picked and drawn for, and `seed` is that of the draws. What is stored is these.
    """

    n_in: int
    block: int
    seed: int
    exchanges: tuple[int, ...]
    exchange: str = "column"

    def __post_init__(self) -> None:
        if self.n_in < 1 or self.block < 1 or self.n_in % self.block:
            raise ValueError(f"n_in {self.n_in!r}, block {self.block!r}: expected a block that divides n_in")
        if not all(0 <= d < self.block for d in self.exchanges) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed!r}, exchanges: expected 0 to 2^63 - 1, and channels of the block")
        if self.exchange not in EXCHANGES:
            raise ValueError(f"exchange {self.exchange!r}: expected one of {', '.join(EXCHANGES)}")

    @property
    def n_out(self) -> int:
        """How many channels there are."""
        return self.n_in

    @property
    def n_bits(self) -> int:
        """Those of the seed and of the exchanged channels' numbers, or none where nothing is rotated."""
        return 63 + len(self.exchanges) * _width(self.block) if self.exchanges else 0

    @property
    def matrix(self) -> torch.Tensor:
        """The orthogonal matrix (block, block), float64: a constant, not to be written to."""
        return _rotation(self.block, self.seed, self.exchanges, self.exchange)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., n_in) as the layer reads them, (.., n_out)."""
        return (x.unflatten(-1, (-1, self.block)) @ self.matrix.to(x)).flatten(-2) if self.exchanges else x

    to_weights = forward

    def from_weights(self, W: torch.Tensor) -> torch.Tensor:
        """Weights (out, n_in) of those for such inputs, (out, n_out)."""
        return (W.unflatten(-1, (-1, self.block)) @ self.matrix.T.to(W)).flatten(-2) if self.exchanges else W


Map = Scale | Permutation | Hadamard | HeadHadamard | GreedyRotation
MAPS: tuple[type, ...] = Map.__args__  # type: ignore[attr-defined]

_rotation = lru_cache(maxsize=128)(rotation)  # 16 MiB at the published block of 128


def map_header(m: Map) -> dict[str, Any]:
    """What JSON holds of a map: its kind and its fields."""
    return {"kind": type(m).__name__, **asdict(m)}


def map_from(found: dict[str, Any]) -> Map:
    """The map that `map_header` described; `ValueError` for an unknown kind or fields that do not fit."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    kinds = {kind.__name__: kind for kind in MAPS}
    kind = kinds.get(str(fields.pop("kind", None)))
    if kind is None:
        raise ValueError(f"map {found.get('kind')!r}: expected one of {', '.join(kinds)}")
    try:
        m: Map = kind(**fields)
    except TypeError as error:
        raise ValueError(f"map {found.get('kind')}: {error}") from error
    return m


def _width(n: int) -> int:
    """Bits of a number below `n`."""
    return (n - 1).bit_length()
