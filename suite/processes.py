"""Processes: tasks spread over worker processes that do not outlive the run, and what memory a task took."""

import ctypes
import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    task: Callable[[Item], Result], items: Sequence[Item], jobs: int, died: Callable[[Item], Result]
) -> Iterator[Result]:
    """`task` of every item in `jobs` processes, as they end.

    A process that dies (out of memory, say) makes `died` of its own item and of no other. One job or one item needs
    no other process.
    """
    if jobs <= 1 or len(items) <= 1:
        yield from map(task, items)
        return
    broken = []
    with _pool(min(jobs, len(items))) as pool:
        waiting: dict[Future[Result], Item] = {pool.submit(task, item): item for item in items}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                item = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    broken.append(item)
    for item in broken:
        with _pool(1) as pool:
            try:
                yield pool.submit(task, item).result()
            except BrokenProcessPool:
                yield died(item)


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_die_with_parent)


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def steady_memory() -> None:
    """Make glibc take tensors of all sizes from one heap: left alone, it maps and unmaps them, and moves that border.

    Its moving border leaves holes, which add up over a model's depth; a fixed one at 4 MiB keeps the peak as flat, but
    page faults then cost a third of the time.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            if libc.mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD, which also ends its dynamic adjustment
                libc.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD: what may stay free at the heap's end
            else:
                libc.mallopt(-3, 4 << 20)  # an older glibc takes none above 32 MiB


def reset_peak() -> None:
    """Make the kernel forget this process's highest memory use, where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is that of the process so far


def peak_mib() -> float:
    """Highest resident memory since `reset_peak`, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        per_mib = 2**20 if sys.platform == "darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib, 1)
