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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h: from how many bytes on an allocation is mapped


@dataclass(frozen=True, slots=True)
class Step:
    """How far a training is: `done` of `steps` updates of what `name` says, and the last one's loss in nats."""

    name: str
    done: int
    steps: int
    loss_nats: float


Told = Callable[[Step], None]
_listener: list[Told] = []  # of this process, at most one: in a worker it is the way to the process that started it


def tell(step: Step) -> None:
    """Say how far a training is, to whoever listens in this process or in the one that started it."""
    for told in _listener:
        told(step)


def _listen(told: Told) -> None:
    _listener[:] = [told]


def spread(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    died: Callable[[Item], Result],
    told: Told = lambda step: None,
) -> Iterator[Result]:
    """`task` of every item in `jobs` processes, as they end; `told` hears what they `tell` meanwhile.

    A process that dies (out of memory, say) makes `died` of its own item and of no other. One job or one item needs
    no other process.
    """
    if jobs <= 1 or len(items) <= 1:
        _listen(told)
        try:
            yield from map(task, items)
        finally:
            _listener.clear()
        return
    broken = []
    with _pool(min(jobs, len(items)), told) as pool:
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
        with _pool(1, told) as pool:
            try:
                yield pool.submit(task, item).result()
            except BrokenProcessPool:
                yield died(item)


@contextmanager
def _pool(jobs: int, told: Told) -> Iterator[ProcessPoolExecutor]:
    """Workers, and a thread that passes on what they tell."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)  # short messages are written whole: no lock that a dead worker holds

    def pass_on() -> None:
        with suppress(EOFError):
            while True:
                told(reader.recv())

    listening = threading.Thread(target=pass_on, daemon=True)
    listening.start()
    try:
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(writer,)) as pool:
            yield pool
    finally:
        writer.close()
        listening.join()


def _begin(writer: Connection) -> None:
    """Begin a worker: what it tells goes to `writer`, and it ends when the process that started it is gone."""
    _listen(writer.send)
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
            if libc.mallopt(_MMAP_THRESHOLD, 1 << 30):  # which also ends its dynamic adjustment
                libc.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD: what may stay free at the heap's end
            else:
                libc.mallopt(_MMAP_THRESHOLD, 4 << 20)  # an older glibc takes none above 32 MiB


@contextmanager
def mapped_memory() -> Iterator[None]:
    """Have every tensor of 64 KiB or more take pages of its own, which go when it goes, instead of holes in a heap.

    For work whose point is how little memory it takes: page faults cost time, which `steady_memory` saves.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    glibc = libc is not None and hasattr(libc, "mallopt")
    if libc is not None and glibc:
        libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
    try:
        yield
    finally:
        if glibc:
            steady_memory.cache_clear()
            steady_memory()


def resident_bytes() -> int:
    """Memory of this process that is resident now, where the kernel says so; else the highest there was."""
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    except (OSError, IndexError):
        return int(peak_mib() * 2**20)


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
