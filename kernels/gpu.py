"""The clock, the graphs and the facts of a CUDA device: everything of the bench that needs one."""

import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from kernels.ahead import compile_ahead
from kernels.contender import rotated_bytes
from kernels.launch import Launch, interpreted

_SMI = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw",
    "power.limit",
)  # fmt: skip
SANITIZER = "compute-sanitizer"
_PACKAGES = ("torch", "triton", "gemlite", "bitsandbytes", "humming-kernels")


class Gpu:
    """The machine that `kernels.bench.measure` times on: the current CUDA device."""

    device = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device: speed is measured on one, and an interpreter's times are not speeds")
        if interpreted():
            raise ValueError("TRITON_INTERPRET is set: kernels would be interpreted, and their times are not speeds")
        self._properties = torch.cuda.get_device_properties(torch.cuda.current_device())

    @property
    def name(self) -> str:
        """What the device is called."""
        return self._properties.name

    @property
    def rotated_bytes(self) -> int:
        """How many bytes of weights are called in turns."""
        return rotated_bytes(self._properties.L2_cache_size)

    def now(self) -> float:
        """Seconds on a clock that only runs forward."""
        return time.monotonic()

    def prepare(self, launches: Iterable[Launch]) -> None:
        """Compile, in all cores."""
        compile_ahead(launches)

    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
        """A CUDA graph of the calls one after another, as a function that replays it."""
        for call in calls:  # whatever compiles, tunes or allocates for good does so now
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def seconds(self, replays: Sequence[Callable[[], None]]) -> list[float]:
        """How long each takes, run in this order with nothing between, by events of the device."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * len(replays))]
        for k, replay in enumerate(replays):
            marks[2 * k].record()
            replay()
            marks[2 * k + 1].record()
        torch.cuda.synchronize()
        return [marks[2 * k].elapsed_time(marks[2 * k + 1]) / 1e3 for k in range(len(replays))]

    def release(self) -> None:
        """Give back the memory of what is not used any more."""
        gc.collect()
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, str]:
        """What the device is and how it is just now."""
        known = self._properties
        return {
            "capability": f"{known.major}.{known.minor}",
            "multiprocessors": str(known.multi_processor_count),
            "cache bytes": str(known.L2_cache_size),
            "memory bytes": str(known.total_memory),
        } | _nvidia_smi()

    def versions(self) -> dict[str, str]:
        """Of everything that takes part, peers included."""
        found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
        for package in _PACKAGES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found


def _nvidia_smi() -> dict[str, str]:
    """Driver, clocks, temperature and power of the current device; nothing where the tool is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    command = [tool, f"--id={uuid}", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    values = [value.strip() for value in said.stdout.strip().split(",")]
    return dict(zip(_SMI, values, strict=True)) if said.returncode == 0 and len(values) == len(_SMI) else {}


_CHECK = """
import sys
from kernels.check import checked
from kernels.table import kernel_named
for name in sys.argv[1:]:
    kernel = kernel_named(name)
    checked(kernel, kernel.check[-1], 0, "cuda")
"""


def sanitized(kernels: Sequence[str], seconds: float) -> str:
    """What compute-sanitizer says of reads and writes out of bounds in the last check size of each kernel.

    Every tensor gets an allocation of its own, so that the bounds are those of tensors and not of torch's pool.
    """
    tool = shutil.which(SANITIZER)
    if tool is None:
        return f"{SANITIZER} is not installed"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", _CHECK, *kernels]
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=alone)
    except subprocess.TimeoutExpired:
        return f"{SANITIZER} was not done after {seconds:.0f} s"
    summary = [line for line in said.stdout.splitlines() if "ERROR SUMMARY" in line]
    last = (summary or said.stderr.strip().splitlines() or ["no output"])[-1].strip("= ")
    return f"{SANITIZER}, {len(kernels)} kernels, exit {said.returncode}: {last}"
