"""Uniform steps without end, for codes that are entropy coded: the rate is asked for, the step follows from it.

A value x is stored as the whole number k of steps nearest to x (ties to even k) and read as k steps less a little: the
levels +-1, +-2, .. +-`centers` each have an offset, which puts them where their values are on average, and all beyond
take the last one's. Uniform cells, centroids and an entropy coder lose less than 0.1% of the squared error of the best
entropy-constrained scalar quantizer of a Gaussian: 0.2546 bits to the rate-distortion function at high rates (Gish and
Pierce 1968, Asymptotically efficient quantizing).

`spacing="even"` has one step for the matrix. `spacing="pivots"` has one for each input channel, proportional to
1 / R_jj, where H + lambda I = R R^T with R upper triangular. Error feedback makes the error sum_j R_jj^2 e_j^2, and
equal terms are what reverse water-filling asks for (WaterSIC: Lifar, Savkin, Ordentlich, Polyanskiy 2026,
arXiv:2603.04956). Steps lie on a ladder of quarter octaves above the smallest, at 5 bits a channel: rounding to it
costs ln 2 / (12 * 4^2) = 0.0036 bits of rate, and a step more than 31 rungs up takes the last one. Channels whose steps
are alike form a class, with offsets of its own and a table of its own for its codes; classes follow from the ladder.

`bits` is the rate of all that is stored where the codes are coded by `Ans`: step, ladder, offsets, tables, checksums.
`fit` takes the smallest step at which rounding to nearest keeps it. Where what lies beside the codes would take more
than half, in tiny matrices, codes get half of it nevertheless, at their entropy, and the rate is more than asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from kernels.packing import pack, unpack
from suite.coding import Ans, entropy_bits
from suite.grids.layout import ALL, Columns, check_finite, check_matrix
from suite.grids.stored import from_bits, to_bits

_RUNGS, _RUNG_BITS = 4, 5  # to an octave, and bits to name one
_OFFSET_BITS = 8  # an offset is a whole number of 1/256 steps, from -1/2 up
_WIDEST = 16  # bits of a code
_CLASS = 1 << 13  # least number of codes in a class: its table and checksum cost about 0.02 bits each in it
_SIZES = (2.0**-14, 2.5)  # of the smallest and the largest step in largest values; the largest makes all codes 0
_WORD = 32  # bits that `Ans` writes at a time
_HALVINGS, _ROUNDS = 16, 6  # of the search: steps to 2^(15.3 / 2^16), and looks at what the coder really takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Whole numbers of steps; `bits` is the rate in bits per weight after entropy coding, any number up to 12.

    `centers` is how many levels on each side of 0 have an offset of their own. With `spacing="pivots"` channels form
    at most `classes`, and `damping`, relative to the mean diagonal of H, is lambda: that of the error feedback.
    """

    bits: float
    spacing: Literal["even", "pivots"] = "even"
    centers: int = 3
    classes: int = 8
    damping: float = 0.01

    block = (1, 1)

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int | float) and 0 < self.bits <= 12):
            raise ValueError(f"bits {self.bits!r}: expected a rate above 0 and up to 12 bits per weight")
        object.__setattr__(self, "bits", float(self.bits))  # one text for equal values
        if self.spacing not in ("even", "pivots"):
            raise ValueError(f"spacing {self.spacing!r}: expected even or pivots")
        if not (self.centers >= 1 and self.classes >= 1 and self.damping >= 0):
            raise ValueError(f"centers {self.centers!r}, classes {self.classes!r}, damping {self.damping!r}: expected "
                             f"at least one of each, and a number >= 0")  # fmt: skip

    @property
    def unsupported(self) -> str | None:
        """Nothing is."""
        return None

    def fit(self, W: torch.Tensor, importance: torch.Tensor | None = None) -> "FittedSteps":
        """Bind the grid to `W` (out, in); `importance` is H (in, in), which only `spacing="pivots"` reads.

        Raises `ValueError` for NaN or infinite values, an empty matrix, and for pivots without an H that has them.
        """
        check_matrix(W)
        check_finite(W)
        rung = None if self.spacing == "even" else ladder(importance, self.damping, W.shape[1])
        total, beyond, best = self.bits * W.numel(), 0.0, None
        for _ in range(_ROUNDS):
            fitted, codes = self._at_entropy(W, rung, max(total - beyond, total / 2))
            over = fitted.coded_bits(codes) - total
            if over <= 0:
                best = fitted, codes
            if -max(1e-3 * total, 2 * _WORD) <= over <= 0 or (over > 0 and beyond >= total / 2):
                break
            beyond += over + (_WORD if over > 0 else 0)
        fitted, codes = best or (fitted, codes)
        return fitted.centered(W, codes)

    def bind(self, W: torch.Tensor, step: float, rung: torch.Tensor | None) -> "FittedSteps":
        """The grid with this (smallest) `step`, of no offsets, and codes wide enough for `W` and half as much again."""
        stored = torch.tensor(step, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny).to(W.dtype)
        blank = FittedSteps(grid=self, shape=(W.shape[0], W.shape[1]), step=stored, rung=rung, width=2,
                            offset=torch.zeros(1, self.centers, dtype=W.dtype))  # fmt: skip
        offset = torch.zeros(blank.n_classes, self.centers, dtype=W.dtype)
        farthest = 1.5 * float((W / blank.steps).abs().max())
        return replace(blank, offset=offset, width=min(_WIDEST, 1 + math.ceil(math.log2(max(2.0, farthest + 1)))))

    def _at_entropy(
        self, W: torch.Tensor, rung: torch.Tensor | None, most: float
    ) -> tuple["FittedSteps", torch.Tensor]:
        """The grid with the smallest step at which nearest codes have an entropy of at most `most` bits; the codes."""
        steps = 1.0 if rung is None else _rise(rung, W.dtype)
        largest = float((W / steps).abs().max()) or 1.0
        low, high = (math.log2(size) for size in _SIZES)

        def at(size: float) -> tuple[FittedSteps, torch.Tensor, bool]:
            fitted = self.bind(W, largest * 2.0**size, rung)
            codes = fitted.nearest(W)
            return fitted, codes, sum(map(entropy_bits, fitted.streams(codes))) <= most

        fitted, codes, enough = at(low)
        if enough:
            return fitted, codes
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle)[2] else (middle, high)
        fitted, codes, _ = at(high)
        return fitted, codes

    def from_bytes(self, payload: bytes, header: dict[str, Any]) -> tuple["FittedSteps", torch.Tensor]:
        """The fitted grid and the codes (out, in) that `FittedSteps.to_bytes` wrote."""
        n_out, n_in = header["shape"]
        *beside, codes = unpack(payload, [*self.beside_widths(header), (n_out * n_in, header["width"])])
        fitted = self.restore(beside, header)
        return fitted, codes.to(fitted.code_type).reshape(n_out, n_in)

    def beside_widths(self, header: dict[str, Any]) -> list[tuple[int, int]]:
        """The (count, width) of the step, the ladder and the offsets."""
        rungs = [] if self.spacing == "even" else [(header["shape"][1], _RUNG_BITS)]
        return [(1, 32), *rungs, (header["classes"] * self.centers, _OFFSET_BITS)]

    def restore(self, beside: Sequence[torch.Tensor], header: dict[str, Any]) -> "FittedSteps":
        """The fitted grid from the values of `FittedSteps.beside`."""
        n_out, n_in = header["shape"]
        step, *rung, places = beside
        offset = (places.float() / 2**_OFFSET_BITS - 0.5).reshape(-1, self.centers)
        return FittedSteps(grid=self, shape=(n_out, n_in), step=from_bits(step, 32)[0], rung=rung[0] if rung else None,
                           offset=offset, width=header["width"])  # fmt: skip


def ladder(H: torch.Tensor | None, damping: float, n_in: int) -> torch.Tensor:
    """The rungs (in,), int64, of steps proportional to 1 / R_jj, where H + lambda I = R R^T; ties go to even."""
    if H is None or H.shape != (n_in, n_in):
        found = "none" if H is None else f"shape {tuple(H.shape)}"
        raise ValueError(f"steps by pivots need the Gram matrix H of shape {(n_in, n_in)}, found {found}")
    turned = H.double().flip(0, 1)
    turned.diagonal().add_(damping * (float(H.diagonal().mean()) or 1.0))
    R, failed = torch.linalg.cholesky_ex(turned)
    if failed:
        raise ValueError(f"the Gram matrix has no pivots with damping {damping:g}")
    octaves = -R.diagonal().flip(0).log2()
    rungs = ((octaves - octaves.min()) * _RUNGS).round()
    return rungs.clamp(max=2**_RUNG_BITS - 1).to(torch.int64)


def _rise(rung: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.exp2(rung.double() / _RUNGS).to(dtype)


@dataclass(frozen=True, kw_only=True)  # without slots: what follows from the fields is kept
class FittedSteps:
    """`Steps` bound to an (out, in) matrix: `step` (), `rung` (in,) or None, `offset` (classes, centers) in steps.

    Code c stands for c - 2^(width - 1) steps; `width` is what a code takes where it is not entropy coded.
    """

    grid: Steps
    shape: tuple[int, int]
    step: torch.Tensor
    rung: torch.Tensor | None
    offset: torch.Tensor
    width: int

    mask_size = 0
    regroups = False

    @property
    def n_codes(self) -> int:
        """How many different codes there may be."""
        return 2**self.width

    @property
    def group_size(self) -> int:
        """How many values share a step."""
        return self.shape[0] * (self.shape[1] if self.rung is None else 1)

    @property
    def zero(self) -> int:
        """The code of 0."""
        return 2 ** (self.width - 1)

    @property
    def code_type(self) -> torch.dtype:
        """uint8 up to 8 bits, else int32."""
        return torch.uint8 if self.width <= 8 else torch.int32

    @cached_property
    def steps(self) -> torch.Tensor:
        """The step of every input channel, (in,)."""
        n_in = self.shape[1]
        return self.step.expand(n_in) if self.rung is None else self.step * _rise(self.rung, self.step.dtype)

    @cached_property
    def class_of(self) -> torch.Tensor:
        """The class (in,) of every input channel: about equally many in each, those of one rung together."""
        n_out, n_in = self.shape
        if self.rung is None:
            return torch.zeros(n_in, dtype=torch.int64)
        most = max(1, min(self.grid.classes, n_out * n_in // _CLASS))
        below = (self.rung[None] < self.rung[:, None]).sum(1)  # channels of smaller steps
        same = (self.rung[None] == self.rung[:, None]).sum(1)
        return torch.unique((2 * below + same) * most // (2 * n_in), return_inverse=True)[1]

    @cached_property
    def n_classes(self) -> int:
        """How many classes there are."""
        return int(self.class_of.max()) + 1

    @cached_property
    def levels(self) -> torch.Tensor:
        """What every code of every class stands for, in steps: (classes, codes)."""
        k = torch.arange(self.n_codes) - self.zero
        offset = torch.nn.functional.pad(self.offset, (1, 0))
        return k.to(self.step.dtype) - k.sign() * offset[:, k.abs().clamp(max=self.grid.centers)]

    def snap(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes (out, k) of the whole number of steps nearest to `x`, and the values they stand for."""
        codes = self.nearest(x, columns)
        return codes, self.decode(codes, columns)

    def nearest(self, x: torch.Tensor, columns: Columns = ALL, cost: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (out, k) of the whole number of steps nearest to `x` (out, k), the values of `columns`; ties to even.

        With `cost` (codes,), in squared units of `x`, those of the least squared distance to the level plus cost, the
        lowest of equals. Only codes near x can be: no farther than makes up for the largest difference in cost.
        """
        steps = self.steps[columns]
        ratio = x / steps
        whole = ratio.round().add_(self.zero).clamp_(0, self.n_codes - 1)
        if cost is None:
            return whole.to(self.code_type)
        squares = steps.double().square()
        spread = float(cost.max() - cost.min()) / float(squares.min())
        reach = min(self.n_codes, 1 + math.floor(math.sqrt(1 + spread)))
        near = torch.arange(-reach, reach + 1).reshape(-1, *[1] * x.ndim)
        candidates = (whole.to(torch.int64) + near).clamp_(0, self.n_codes - 1)
        levels = self.levels.reshape(-1)[candidates + self.class_of[columns] * self.n_codes]
        total = (levels - ratio).square_() + cost[candidates] / squares
        return candidates.gather(0, total.argmin(0, keepdim=True))[0].to(self.code_type)

    def neighbors(self, x: torch.Tensor, columns: Columns = ALL) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (out, k) of the two levels around `x`; outside the range both are the last level."""
        codes = self.nearest(x, columns).to(torch.int64)
        above = self.decode(codes, columns) <= x
        low, high = torch.where(above, codes, codes - 1), torch.where(above, codes + 1, codes)
        last = self.n_codes - 1
        return low.clamp(0, last).to(self.code_type), high.clamp(0, last).to(self.code_type)

    def decode(self, codes: torch.Tensor, columns: Columns = ALL) -> torch.Tensor:
        """The values (out, k) that the codes of `columns` stand for, in the step's type."""
        place = codes.to(torch.int64) + self.class_of[columns] * self.n_codes
        return self.levels.reshape(-1)[place] * self.steps[columns]

    def decode32(self, codes: torch.Tensor) -> torch.Tensor:
        """All values (out, in) from the parameters as they are stored, in float32."""
        return replace(self, step=self.step.float(), offset=self.offset.float()).decode(codes)

    def in_order(self, perm: torch.Tensor) -> "FittedSteps":
        """Itself: there are no groups of columns."""
        return self

    def refit(self, x: torch.Tensor, group: int, columns: torch.Tensor, H: torch.Tensor | None) -> "FittedSteps":
        """Itself: there are no groups of columns."""
        return self

    def centered(self, W: torch.Tensor, codes: torch.Tensor, H: torch.Tensor | None = None) -> "FittedSteps":
        """The grid with the offsets that are best for these codes: the least tr (W - Q) H (W - Q)^T, or |W - Q|^2.

        Least squares in all offsets at once, then rounded to 1/256 (ties to even); one without codes is 0.
        """
        k, centers = codes.to(torch.int64) - self.zero, self.grid.centers
        steps = self.steps / self.step  # in units of the smallest, so that no square overflows
        E = W / self.step - k.to(W.dtype) * steps
        pulls = [(k.sign() * (k.abs().clamp(max=centers) == a + 1)) * steps for a in range(centers)]
        mine = torch.nn.functional.one_hot(self.class_of).to(W.dtype)
        normal, wanted = [], []
        for pull in pulls:
            for member in mine.T:
                here = member.nonzero()[:, 0]
                weighted = pull * member if H is None else pull[:, here] @ H[here].to(W.dtype)
                normal.append(torch.cat([(weighted * other).sum(0) @ mine for other in pulls]).double())
                wanted.append(-(weighted * E).sum().double())
        A, b = torch.stack(normal), torch.stack(wanted)
        empty = A.diagonal() <= 0
        A[empty], A[:, empty], b[empty] = 0.0, 0.0, 0.0
        A.diagonal()[empty] = 1.0
        found = torch.linalg.lstsq((A + A.T) / 2, b[:, None]).solution.reshape(centers, -1).T
        rounded = (found * 2**_OFFSET_BITS).round().clamp(-127, 127) / 2**_OFFSET_BITS
        return replace(self, offset=rounded.to(W.dtype).contiguous())

    def with_step(self, step: float) -> "FittedSteps":
        """The grid with another (smallest) step, rounded to float32."""
        return replace(self, step=torch.tensor(step, dtype=torch.float32).to(self.step.dtype))

    def widened(self, codes: torch.Tensor, width: int | None = None) -> tuple["FittedSteps", torch.Tensor]:
        """The grid and its codes in `width` bits each, by default in the fewest that hold these codes."""
        k = codes.to(torch.int64) - self.zero
        if width is None:
            width = 1 + int(torch.maximum(k, -1 - k).max()).bit_length()
        fitted = replace(self, width=min(_WIDEST, width))
        return fitted, (k + fitted.zero).to(fitted.code_type)

    def lengths(self, codes: torch.Tensor) -> torch.Tensor:
        """Bits (classes, codes) that each code takes in an ideal coder made for `codes`, each counted once more."""
        counts = [torch.bincount(stream.to(torch.int64), minlength=self.n_codes) for stream in self.streams(codes)]
        shares = torch.stack(counts).double() + 1
        return (shares.sum(1, keepdim=True) / shares).log2()

    @property
    def n_bits(self) -> int:
        """Exact bits of codes of one width, the step, the ladder and the offsets."""
        return math.prod(self.shape) * self.width + self.beside_bits

    @property
    def beside_bits(self) -> int:
        """Exact bits of the step, the ladder and the offsets."""
        return sum(count * width for count, width in self.grid.beside_widths(self.header()))

    def coded_bits(self, codes: torch.Tensor) -> int:
        """Bits of everything with the codes coded by `Ans`, in whole bytes as they are stored."""
        streams = sum(len(Ans().encode(stream.numpy())) for stream in self.streams(codes))
        return 8 * (-(-self.beside_bits // 8) + streams)

    def beside(self) -> list[tuple[torch.Tensor, int]]:
        """The step in float32, the ladder, and offsets in 1/256 above -1/2."""
        rungs = [] if self.rung is None else [(self.rung, _RUNG_BITS)]
        offsets = ((self.offset.double() + 0.5) * 2**_OFFSET_BITS).to(torch.int64)
        return [(to_bits(self.step[None], 32), 32), *rungs, (offsets, _OFFSET_BITS)]

    def streams(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The codes of each class, row after row."""
        if self.n_classes == 1:
            return (codes.reshape(-1),)
        return tuple(codes[:, self.class_of == c].reshape(-1) for c in range(self.n_classes))

    def codes_of(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes (out, in) that `streams` took apart."""
        codes = torch.empty(self.shape, dtype=self.code_type)
        for c, stream in enumerate(streams):
            codes[:, self.class_of == c] = stream.to(self.code_type).reshape(self.shape[0], -1)
        return codes

    def to_bytes(self, codes: torch.Tensor) -> bytes:
        """The step, the ladder, the offsets, then `codes` (out, in) in `width` bits each."""
        return pack([*self.beside(), (codes, self.width)])

    def header(self) -> dict[str, Any]:
        """What the payload does not say: the shape, how many classes there are, and how wide a code is."""
        return {"shape": list(self.shape), "classes": self.n_classes, "width": self.width}
