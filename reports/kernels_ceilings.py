"""What bandwidth and instructions at most allow, by closed forms of `theory.roofline`.

Nothing here is measured, but for bandwidths of devices that were, and what stands beside ceilings and says so.
"""

from dataclasses import dataclass, replace

from kernels.results import COPY, DENSE, READ, Results, Shape
from kernels.targets import large, ratio
from reports.kernels import Found
from suite.store import SpeedRow
from theory.roofline import (
    BYTE,
    DECODERS,
    DENSE_BITS,
    DEVICES,
    FLOAT32_BITS,
    CacheFormat,
    Decoder,
    Device,
    instruction_ceiling,
    moved_bits,
    stored_bits,
)

GROUP, SCALE_BITS = 128, 16
FOUR = stored_bits(4, GROUP, SCALE_BITS)
WIDTHS = ((16, float(DENSE_BITS)), *((b, stored_bits(b, GROUP, SCALE_BITS)) for b in (8, 4, 2)))  # codes, all stored
CACHE_BITS = (16, 8, 4, 2)
TOKENS = tuple(2**k for k in range(10, 18))  # 1,024 to 131,072
CHIP = "90"  # of the offline compiler's table: an H100 or H200
GPU = next(device for device in DEVICES if device.name == "H200")
LONG = DECODERS["Llama 3.1 70B"]
# the three layouts of claim B2: a key and value head for 8 heads of queries, for each, and for all
LAYOUTS = tuple(
    replace(LONG, name=f"{LONG.name}, {kv_heads} key-value head{'s' * (kv_heads > 1)}", kv_heads=kv_heads)
    for kv_heads in (8, 64, 1)
)

# name of a kernel for one token: its format, and bits per weight, scales of large matrices included
FORMATS = {
    "w8a16-gemv": ("INT8, groups of 128", stored_bits(8, 128, 16)),
    "fp8-gemv": ("FP8, a scale a row", 8.0),
    "mxfp6-e2m3-gemv": ("MXFP6", stored_bits(6, 32, 8)),
    "nvfp4-gemv": ("NVFP4", stored_bits(4, 16, 8)),
    "nf4a16-gemv": ("NF4, groups of 64", stored_bits(4, 64, 32)),
    "mxfp4-gemv": ("MXFP4", stored_bits(4, 32, 8)),
    "w4a16-gemv-zero": ("INT4, groups of 128, zero points", stored_bits(4, 128, 32)),
    "w4a16-gemv": ("INT4, groups of 128", stored_bits(4, 128, 16)),
    "w3a16-gemv": ("INT3, groups of 128", stored_bits(3, 128, 16)),
    "w2a16-gemv": ("INT2, groups of 128", stored_bits(2, 128, 16)),
    "aqlm-2x8-gemv": ("AQLM, two codebooks of 256", 2.0),
    "aqlm-1x16-gemv": ("AQLM, one codebook of 65,536", 2.0),
    "e8p-2-gemv": ("QuIP#, E8P", 2.0),
    "trellis-1mad-gemv": ("QTIP, 1MAD", 2.0),
    "ternary-2bit-gemv": ("ternary, two bits", 2.0),
    "ternary-base3-gemv": ("ternary, five in a byte", 1.6),
}
INTEGERS = "w4a16-gemv"  # what claim B5 compares codebooks with
CODEBOOKS = ("aqlm-2x8-gemv", "aqlm-1x16-gemv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of weights and what it allows, in units of the speed of 16 bits at the same bandwidth.

    `unfused` is where a pass of its own dequantizes, `instructions` what the kernel's code allows on an H200 (None: it
    is not compiled), and `measured` the worst at large shapes of the newest run that timed it.
    """

    kernel: str
    label: str
    bits: float
    per_weight: float | None
    instructions: float | None
    measured: float | None
    on: str

    @property
    def fused(self) -> float:
        """What bytes allow."""
        return DENSE_BITS / moved_bits(self.bits, fused=True)

    @property
    def unfused(self) -> float:
        """What bytes allow where 16 bits are written and read back."""
        return DENSE_BITS / moved_bits(self.bits, fused=False)

    @property
    def most(self) -> float:
        """The lower one of both roofs."""
        return self.fused if self.instructions is None else min(self.fused, self.instructions)


def formats(found: Found) -> list[Format]:
    """Every format of `FORMATS`, with what the offline compiler and the runs say of it."""
    return [_format(found, kernel, *FORMATS[kernel]) for kernel in FORMATS]


def _format(found: Found, kernel: str, label: str, bits: float) -> Format:
    rows = (row for row in found.compiled if (row.get("kernel"), row.get("architecture")) == (kernel, CHIP))
    slots = next((float(row["slots_per_weight"]) for row in rows if row.get("slots_per_weight")), None)
    assert GPU.issue is not None
    dense = BYTE * GPU.bandwidth / DENSE_BITS  # weights of 16 bits in a second
    times = [(value, results.device) for results in found.results if (value := _times_dense(results, kernel))]
    value, on = times[0] if times else (None, "")
    return Format(kernel=kernel, label=label, bits=bits, per_weight=slots, measured=value, on=on,
                  instructions=instruction_ceiling(GPU.issue, slots) / dense if slots else None)  # fmt: skip


def _times_dense(results: Results, kernel: str) -> float | None:
    shapes = [s for s in results.shapes if isinstance(s, Shape) and s.rows == 1 and large(s)]
    pairs = [(results.find(kernel, shape), results.find(DENSE, shape)) for shape in shapes]
    return min((ratio(ours, dense, "speed") for ours, dense in pairs if ours and dense), default=None)


def devices(found: Found) -> list[Device]:
    """Those with a datasheet, then those whose bandwidth was measured, by a bench or by `bitfrontier speed`."""
    measured: dict[str, float] = {}
    for results in found.results:
        rates = [t.bandwidth for t in results.timings if t.name in (COPY, READ)]
        if rates:
            measured[f"{results.device}, measured"] = max(rates)
    for row in found.speeds:
        name = f"{place(row)}, measured"
        measured[name] = max(measured.get(name, 0.0), row.bandwidth)
    source = "the best of the runs on this page"
    return [*DEVICES, *(Device(name=name, bandwidth=rate, memory=None, source=source)
                        for name, rate in measured.items())]  # fmt: skip


def place(row: SpeedRow) -> str:
    """The device of a model that was timed, and its threads: "CPU, 2 threads"."""
    if row.device != "cpu":
        return row.device
    return f"CPU, {row.threads} thread{'s' * (row.threads > 1)}"


def label(row: SpeedRow) -> str:
    """The last part of a packed directory's path."""
    return row.model.rstrip("/").rpartition("/")[2]


def cache_of(bits: int) -> CacheFormat:
    """The layout that figures show at a width."""
    return CacheFormat(bits=bits)


def shrunk(bits: float) -> float:
    """How much smaller than FP32, as a share."""
    return 1 - bits / FLOAT32_BITS


def decoders_of_caches() -> tuple[Decoder, ...]:
    """The panels of the figure of caches."""
    return (DECODERS["Llama 2 7B"], DECODERS["Llama 3.1 8B"], DECODERS["Llama 3.1 405B"], *LAYOUTS)
