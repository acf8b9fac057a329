"""The clock, the graphs and the facts of a CUDA device: everything of the bench that needs one."""

import gc
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
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
_PACKAGES = (
    "torch", "triton", "gemlite", "bitsandbytes", "humming-kernels", "dfloat11", "fast-hadamard-transform",
    "flashinfer-python",
)  # fmt: skip


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
        """How many bytes of data are called in turns."""
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
    """Driver, clocks, temperature and power of the current device, or why they are not known."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"nvidia-smi": "not installed"}
    command = [tool, f"--query-gpu={','.join(('uuid', *_SMI))}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return smi_facts(said.stdout, str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))


def smi_facts(said: str, uuid: str) -> dict[str, str]:
    """The line of nvidia-smi's table (without header) that is about the device of that uuid, or the only one."""
    lines = [[value.strip() for value in line.split(",")] for line in said.strip().splitlines()]
    own = [line for line in lines if uuid in line[0]] or lines
    if len(own) != 1 or len(own[0]) != 1 + len(_SMI):
        return {"nvidia-smi": f"said nothing of {uuid}: {said.strip()[:100]}"}
    return dict(zip(_SMI, own[0][1:], strict=True))


_CHECK = """
import sys
from kernels.check import checked
from kernels.table import kernel_named
for name in sys.argv[1:]:
    kernel = kernel_named(name)
    checked(kernel, kernel.check[-1], 0, "cuda")
    print("done", name, flush=True)
"""


def sanitized(kernels: Sequence[str], seconds: float) -> str:
    """What compute-sanitizer says of reads and writes out of bounds in the last check size of each kernel.

    Every tensor gets an allocation of its own, so that the bounds are those of tensors and not of torch's pool.
    """
    tool = shutil.which(SANITIZER)
    if tool is None:
        return f"{SANITIZER} is not installed"
    command = [tool, "--tool", "memcheck", sys.executable, "-c", _CHECK, *kernels]
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=alone, start_new_session=True)
        try:
            end = f"ended with status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the tool and what it watches
            process.wait()
            end = f"stopped after {seconds:.0f} s"
        output.seek(0)
        return f"{sanitizer_summary(output.read(), len(kernels))}, {end}"


def sanitizer_summary(said: str, kernels: int) -> str:
    """How many kernels were gone through, and how many accesses were found: those that the tool begins with Invalid."""
    done = sum(line.startswith("done ") for line in said.splitlines())
    errors = sum(line.startswith("========= Invalid") for line in said.splitlines())
    return f"{SANITIZER} found {errors} in {done} of {kernels} kernels"
