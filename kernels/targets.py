"""What the kernels are meant to reach, as ratios in one run, and what a run says of it. No torch: reports read this.

A ratio of speeds is a time over a time, in the same run and of the same shape; where a target is a limit, "at most 1.2
times the time of a clone", so is its ratio. A ratio of bandwidths is of bytes that must be moved in a second: against a
copy it says how much of what the memory gives is used, against another kernel whether a format costs more than its
bytes. Every target says where it comes from: from what bytes allow, or from what has been published.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kernels.results import CLONE, COPY, DENSE, Results, Shape, Task, Timing
from kernels.target import LARGE, Basis, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run says of a target: `value` is the ratio at `shape`, the worst of the target's; None if not measured."""

    target: Target
    value: float | None
    shape: Shape | Task | None
    reason: str  # why there is no value, or not one of every shape

    @property
    def state(self) -> str:
        """One of "met", "missed", "not measured"."""
        if self.value is None:
            return "not measured"
        return "met" if self.target.met(self.value) else "missed"

    def __str__(self) -> str:
        return self.state if self.value is None else f"{self.state} {self.value:.2f}"


def large(shape: Shape | Task) -> bool:
    """Whether the work counts, and not the launch: `LARGE` weights or more, and whatever a target is about."""
    return targeted(shape) or (isinstance(shape, Shape) and shape.outputs * shape.inputs >= LARGE)


def targeted(shape: Shape | Task) -> bool:
    """Whether a target is about `shape`."""
    return any(target.means(shape) for target in TARGETS)


def verdict(target: Target, results: Results | None) -> Verdict:
    """The worst ratio over the shapes that `target` means."""
    if results is None:
        return Verdict(target=target, value=None, shape=None, reason="no GPU was to be had")
    shapes = [shape for shape in results.shapes if target.means(shape)]
    found = [(value, shape) for shape in shapes if (value := _ratio(target, results, shape)) is not None]
    if not found:
        return Verdict(target=target, value=None, shape=None, reason=_reason(target, results))
    value, shape = (max if target.basis == "time" else min)(found, key=lambda pair: pair[0])
    missing = len(target.shapes) - len(found)
    reason = f"{missing} of {len(target.shapes)} shapes were not timed" if missing > 0 else ""
    return Verdict(target=target, value=value, shape=shape, reason=reason)


def _ratio(target: Target, results: Results, shape: Shape | Task) -> float | None:
    ours, other = results.find(target.kernel, shape, target.dtype), results.find(target.against, shape)
    return None if ours is None or other is None else ratio(ours, other, target.basis)


def ratio(ours: Timing, other: Timing, basis: Basis) -> float:
    """How many times as fast, as long, or as much bandwidth."""
    if basis == "bandwidth":
        return ours.bandwidth / other.bandwidth
    if basis == "written":
        return ours.bytes_written / ours.median_seconds / other.bandwidth
    faster = other.median_seconds / ours.median_seconds
    return 1 / faster if basis == "time" else faster


def _reason(target: Target, results: Results) -> str:
    timed = {timing.name for timing in results.timings if _alike(target, timing.shape)}
    lacking = [name for name in (target.kernel, target.against) if name not in timed]
    reasons = {a.name: a.reason for a in reversed(results.absences) if a.shape is None or _alike(target, a.shape)}
    return "; ".join(f"{name}: {reasons.get(name, 'not asked for')}" for name in lacking) or "not at such shapes"


def _alike(target: Target, shape: Shape | Task) -> bool:
    return target.means(shape) or (not target.shapes and isinstance(shape, Shape) and shape.rows == target.rows)


def _each(
    kernels: Iterable[str], against: str, ratio: float, basis: Basis, source: str, shapes: tuple[str, ...] = ()
) -> tuple[Target, ...]:
    return tuple(
        Target(kernel=k, against=against, ratio=ratio, basis=basis, source=source, shapes=shapes) for k in kernels
    )


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

_CODED = ("bf16-coded-gemv", "fp8-coded-gemv")
_DECODERS = ("bf16-decode", "fp8-decode")
_CODES = ("hadamard-int8", "hadamard-int4", "hadamard-e4m3")
_NORMS = ("norm-int8", "norm-int4", "norm-e4m3", "token-int8", "token-int4", "token-e4m3")
_SUMS = ("sum-norm-int8", "sum-norm-e4m3")


def _transforms(*columns: int) -> tuple[str, ...]:
    return tuple(f"hadamard {(1 << 26) // n} x {n}" for n in columns)


_UP_TO_8192 = _transforms(128, 256, 512, 1024, 2048, 4096, 8192)
_BEYOND = _transforms(11008, 14336, 16384, 32768)
_FUSED = _transforms(4096, 8192, 14336, 32768)
_WIDTHS = ("4096 x 4096", "4096 x 8192", "4096 x 16384")
_LONG = tuple(f"attention {batch} x 32 / 8 x 128 x 32768 tokens" for batch in (1, 8))
_PREFILL = tuple(f"{rows} x 8192 x 8192" for rows in (256, 1024, 4096))
_MATRIX = ("decode 28672 x 8192",)

_PACKED = {  # where they are packed, in groups of what share a scale
    "28672 x 8192 / 128": (
        "pack-int2", "pack-int3", "pack-int4", "pack-int8", "pack-int2-zero", "pack-int3-zero", "pack-int4-zero",
        "pack-int8-zero", "pack-int4-real-zero", "pack-fp8-block",
    ),
    "28672 x 8192 / 64": ("pack-nf4", "pack-nf4-half"),
    "28672 x 8192 / 32": ("pack-mxfp4", "pack-mxfp6-e2m3", "pack-mxfp6-e3m2", "pack-mxfp8"),
    "28672 x 8192 / 16": ("pack-nvfp4",),
    "28672 x 8192 / 8192": ("pack-fp8", "pack-fp8-e5m2", "pack-ternary-2bit", "pack-ternary-base3"),
    "64 x 32768 x 128 / 32": ("pack-keys-4bit", "pack-keys-2bit", "pack-values-4bit", "pack-values-2bit"),
}  # fmt: skip

_FHT = "Dao-AILab's fast-hadamard-transform has 1.0 to 1.2 on an A100 up to 8,192, 1.3 at 16,384 and 1.8 at 32,768"
_READ_ONCE = "it reads what a clone reads, and writes half as much or less"
_READ_TWICE = "who reads the matrix twice, for scales and for codes, has at most 0.56 at 4 bits"
_KV_4 = "4 bits and two numbers of 16 for each group of 32 allow 3.2 times"
_KV_2 = "groups of 32 allow 5.3 times, groups of 64 6.4"
_DECODED = "11.5 bits that are read for 16 that are written allow 0.58, 7.4 for 8 allow 0.52"
_CUBLAS = "cuBLAS, by the makers of the chip"
_DF11 = "DFloat11 (Zhang et al. 2025, arXiv:2504.11651)"

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
    *_each(("hadamard",), CLONE, 1.15, "time", _FHT, _UP_TO_8192),
    *_each(("hadamard",), CLONE, 1.4, "time", _FHT, _BEYOND),
    *_each(_CODES, CLONE, 1.2, "time", _READ_ONCE, _FUSED),
    *_each(("attention-kv4",), "attention-kv16", 2.5, "speed", _KV_4, _LONG),
    *_each(("attention-kv2", "attention-kv2-wide"), "attention-kv16", 3.5, "speed", _KV_2, _LONG),
    *_each(("attention-kv16",), "sdpa", 1.0, "speed", "others are measured against it: it must be a fair one", _LONG),
    *_each(_NORMS, CLONE, 1.2, "time", _READ_ONCE, tuple(f"norm {size}" for size in _WIDTHS)),
    *_each(_SUMS, CLONE, 1.2, "time", "it moves 7 bytes where clones move 8",
           tuple(f"sum-norm {size}" for size in _WIDTHS)),
    *_each(("w8a8-gemm",), "int_mm", 0.7, "speed", _CUBLAS, _PREFILL),
    *_each(("w8a8-e4m3-gemm",), "scaled_mm", 0.7, "speed", _CUBLAS, _PREFILL),
    *_each(_DECODERS, COPY, 0.3, "written", _DECODED, _MATRIX),
    *(
        target
        for size, kernels in _PACKED.items()
        for target in _each(kernels, COPY, 0.6, "bandwidth", _READ_TWICE, (f"pack {size}",))
    ),
    *_each(_CODED, DENSE, 0.9, "speed", "DFloat11's own products take twice the time of bfloat16's with one sequence"),
    *_each(("bf16-coded-gemv",), "dfloat11", 1.0, "speed", _DF11),
    *_each(("bf16-decode",), "dfloat11", 1.0, "speed", _DF11, _MATRIX),
)  # fmt: skip
