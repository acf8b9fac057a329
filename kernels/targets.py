"""What the kernels are meant to reach, as ratios in one run, and what a run says of it. No torch: reports read this.

A ratio of speeds is a time over a time, in the same run and of the same shape. A ratio of bandwidths is of bytes that
must be moved in a second: against a copy it says how much of what the memory gives is used, against another kernel
whether a format costs more than its bytes. Every target says where it comes from: from what bytes allow, or from what
has been published.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kernels.results import COPY, DENSE, Results, Shape, Timing

LARGE = 28672 * 8192  # weights: 117 MB at 4 bits, far more than a cache holds
Basis = Literal["speed", "bandwidth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`kernel` is to reach `ratio` times what `against` reaches, at `rows` rows and every shape of `LARGE` weights."""

    kernel: str
    against: str
    ratio: float
    basis: Basis
    rows: int = 1
    dtype: str | None = None  # of the activations; None: whichever the row of `KERNELS` makes first
    source: str

    def __str__(self) -> str:
        """As in "at least 2.8 times the speed of F.linear in bfloat16".

        >>> str(Target(kernel="k", against="copy", ratio=0.75, basis="bandwidth", source=""))
        'at least 0.75 times the bandwidth of a copy'
        """
        other = {COPY: "a copy", DENSE: "F.linear in bfloat16"}.get(self.against, self.against)
        return f"at least {self.ratio:g} times the {self.basis} of {other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run says of a target: `value` is the ratio at `shape`, the worst of the target's; None if not measured."""

    target: Target
    value: float | None
    shape: Shape | None
    reason: str  # why there is no value

    @property
    def state(self) -> str:
        """One of "met", "missed", "not measured"."""
        if self.value is None:
            return "not measured"
        return "met" if self.value >= self.target.ratio else "missed"

    def __str__(self) -> str:
        return self.state if self.value is None else f"{self.state} {self.value:.2f}"


def verdict(target: Target, results: Results | None) -> Verdict:
    """The worst ratio over the shapes with `target.rows` rows and at least `LARGE` weights."""
    if results is None:
        return Verdict(target=target, value=None, shape=None, reason="no GPU was to be had")
    shapes = [s for s in results.shapes if s.rows == target.rows and s.outputs * s.inputs >= LARGE]
    found = [(value, shape) for shape in shapes if (value := _ratio(target, results, shape)) is not None]
    if found:
        value, shape = min(found)
        return Verdict(target=target, value=value, shape=shape, reason="")
    return Verdict(target=target, value=None, shape=None, reason=_reason(target, results))


def _ratio(target: Target, results: Results, shape: Shape) -> float | None:
    ours, other = results.find(target.kernel, shape, target.dtype), results.find(target.against, shape)
    return None if ours is None or other is None else ratio(ours, other, target.basis)


def ratio(ours: Timing, other: Timing, basis: Basis) -> float:
    """How many times as fast, or as much bandwidth."""
    if basis == "bandwidth":
        return ours.bandwidth / other.bandwidth
    return other.median_seconds / ours.median_seconds


def _reason(target: Target, results: Results) -> str:
    timed = {timing.name for timing in results.timings if timing.shape.rows == target.rows}
    lacking = [name for name in (target.kernel, target.against) if name not in timed]
    reasons = {a.name: a.reason for a in reversed(results.absences) if a.shape is None or a.shape.rows == target.rows}
    return "; ".join(f"{name}: {reasons.get(name, 'not asked for')}" for name in lacking) or "not at such shapes"


def _each(kernels: Iterable[str], against: str, ratio: float, basis: Basis, source: str) -> tuple[Target, ...]:
    return tuple(Target(kernel=k, against=against, ratio=ratio, basis=basis, source=source) for k in kernels)


_BYTES_4 = "4.125 bits allow 3.88 times at equal bandwidth, and three quarters of that are 2.9"
_MARLIN = "Marlin, a kernel for one chip in CUDA, keeps 3.2 at M = 16, 2.3 at 32, 1.5 at 64 (vllm-project/vllm#2497)"
_GEMLITE = "GemLite, which is in Triton too"
_FOUR = ("w4a16-gemv", "w4a16-gemv-zero")
_TERNARY = ("ternary-2bit-gemv", "ternary-base3-gemv")
_TABLES = ("nf4a16-gemv", "nf4a16-gemv-double")
_FLOATS = (
    "mxfp4-gemv", "nvfp4-gemv", "mxfp6-e2m3-gemv", "mxfp6-e3m2-gemv", "fp8-gemv", "fp8-e5m2-gemv",
)  # fmt: skip
_VECTORS = (
    "e8p-2-gemv", "aqlm-2x8-gemv", "aqlm-1x16-gemv", "trellis-1mad-gemv", "trellis-3inst-gemv", "trellis-hyb-gemv",
)  # fmt: skip

TARGETS: tuple[Target, ...] = (
    *_each(_FOUR, COPY, 0.75, "bandwidth", "gpt-fast's dense bfloat16 reaches 0.69 of an A100's"),
    *_each(_FOUR, DENSE, 2.8, "speed", _BYTES_4),
    *_each(_FOUR, "gemlite", 1.0, "speed", _GEMLITE),
    *(
        Target(kernel=k, against="aten int4", ratio=1.2, basis="speed", dtype="bfloat16",
               source="gpt-fast reaches 0.54 of an A100's bandwidth with it")
        for k in _FOUR
    ),
    *(
        Target(kernel="w4a16-gemm", against=DENSE, ratio=ratio, basis="speed", rows=rows, source=_MARLIN)
        for rows, ratio in ((16, 2.5), (32, 1.5), (64, 1.0))
    ),
    *(
        Target(kernel="w4a16-gemm", against="gemlite", ratio=1.0, basis="speed", rows=rows, source=_GEMLITE)
        for rows in (16, 32, 64)
    ),
    *_each(_TERNARY, DENSE, 4.5, "speed", "2 bits allow 8; Microsoft's BitNet kernel has 1.3 to 3.6 on an A100"),
    *_each(_TABLES, "bitsandbytes nf4", 1.2, "speed", "bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314)"),
    *_each(_FLOATS, "w4a16-gemv", 0.9, "bandwidth", "decoding them is to cost no more than decoding integers"),
    *_each(_VECTORS, DENSE, 3.0, "speed", "QTIP's own: 3.4 on a whole model (Tseng et al. 2024, arXiv:2406.11235)"),
)  # fmt: skip
