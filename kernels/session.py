"""All that is to be known of the kernels on a GPU in one call, which ends in time whatever happens on the way."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kernels.ahead import compile_ahead
from kernels.bench import measure
from kernels.check import Check, checked, variants
from kernels.gpu import SANITIZER, Gpu, sanitized
from kernels.kernel import Kernel
from kernels.launch import Launch
from kernels.results import Agreement, Results

LIMIT_SECONDS = 440.0  # 8 minutes, checks included, less what a peer that tunes itself may overrun
CHECK_SECONDS = 200.0
BATCH = 64  # kernels at a size that are compiled together, a few for each core
SANITIZER_SECONDS = 60.0  # kept for it where there is one


def check_all(
    kernels: Sequence[Kernel],
    seeds: int,
    device: str,
    *,
    seconds: float = CHECK_SECONDS,
    now: Callable[[], float] = time.monotonic,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Every kernel at its check sizes, and the smallest of its bench, on `seeds` random inputs each.

    All are held against one input before any is against a second, and compiled in batches, so that time that ends ends
    for all alike. What cannot be run counts as infinitely far off, is told to `progress`, and is not tried again.
    """
    pairs = [(k, size) for k in kernels for size in (*k.check, min(k.bench, key=lambda size: size.operations))]
    end, found, tried = now() + seconds, [], 0
    for seed in range(seeds):
        failed = []
        for at, (kernel, size) in enumerate(pairs):
            if now() > end:
                progress(f"no time was left for {len(pairs) * (seeds - seed) - at} checks, after {tried}")
                return found
            if seed == 0 and at % BATCH == 0:
                compile_ahead(_launches(pairs[at : at + BATCH], device))
            tried += 1
            try:
                found += checked(kernel, size, seed, device)
            except Exception as error:  # of a compiler or a driver: one kernel's failure is not the others'
                progress(f"{kernel.name} at {size}: {type(error).__name__}: {error}")
                found.append(Check(kernel.name, str(size), "", seed, device, float("inf"), False))
                failed.append(at)
        pairs = [pair for at, pair in enumerate(pairs) if at not in failed]
    return found


def _launches(pairs: Iterable[tuple[Kernel, Any]], device: str) -> Iterable[Launch]:
    for kernel, size in pairs:
        for _, inputs in variants(kernel):
            with suppress(Exception):  # said when it is checked
                yield kernel.plan(*inputs(size, 0, device))


def session(
    kernels: Sequence[Kernel],
    checks: Sequence[Check],
    *,
    started: float,
    command: str,
    seconds: float = LIMIT_SECONDS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Results:
    """Measure, then look for accesses out of bounds, until `seconds` after `started` (of `time.monotonic`).

    Raises `ValueError` where there is no GPU.
    """
    machine, end = Gpu(), started + seconds
    kept = SANITIZER_SECONDS if shutil.which(SANITIZER) else 0.0
    found = measure(
        kernels, machine, budget_seconds=end - kept - time.monotonic(), command=command, seed=seed, progress=progress,
        agreements=agreements(checks),
    )  # fmt: skip
    progress(SANITIZER)
    said = sanitized([kernel.name for kernel in kernels], max(1.0, end - time.monotonic()))
    return replace(found, sanitizer=said, seconds=round(time.monotonic() - started, 1))


def agreements(checks: Iterable[Check]) -> tuple[Agreement, ...]:
    """Checks of one kernel at one size with one type of activations taken together: the worst of all inputs."""

    def of(check: Check) -> tuple[str, str, str]:
        return check.kernel, check.size, check.dtype

    return tuple(
        Agreement(
            kernel=kernel, size=size, dtype=dtype, inputs=len(those), 
            excess=worst if (worst := max(check.excess for check in those)) < float("inf") else None,
            passed=all(check.passed for check in those),
        )
        for (kernel, size, dtype), group in groupby(sorted(checks, key=of), key=of) if (those := list(group))
    )  # fmt: skip


def results_path(folder: Path, device: str) -> Path:
    """Where the results of a device go: `kernels-nvidia-h200.json`."""
    plain = "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())
    return folder / f"kernels-{plain}.json"
