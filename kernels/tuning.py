"""A kernel on copies of its inputs, and which of its launches is the fastest on a machine."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

from kernels.check import excess_of_kernel
from kernels.contender import PRODUCT, Contender, copied, n_bytes, n_copies
from kernels.kernel import Kernel, Size
from kernels.launch import Launch
from kernels.product.triton import candidates
from kernels.results import Shape, Task

TRIED = 8  # launches: the best of 8 random ones is among the best quarter nine times of ten (1 - 0.75^8)
RECENT = (PRODUCT, "attention")  # operations whose first argument a model has just computed: it may lie in a cache
ROUNDS = 5  # for a first look; what is chosen is timed anew, so that luck here is not reported


class Machine(Protocol):
    """What times are taken on: `kernels.gpu.Gpu`, where each of these is explained, or a test's own."""

    device: str

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def rotated_bytes(self) -> int: ...  # noqa: D102
    def now(self) -> float: ...  # noqa: D102
    def prepare(self, launches: Iterable[Launch]) -> None: ...  # noqa: D102
    def capture(self, calls: Sequence[Callable[[], object]]) -> Callable[[], None]: ...  # noqa: D102
    def seconds(self, replays: Sequence[Callable[[], None]]) -> list[float]: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102
    def facts(self) -> dict[str, str]: ...  # noqa: D102
    def versions(self) -> dict[str, str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A kernel at a size, with activations of one type."""

    kernel: Kernel
    size: Any
    dtype: str
    inputs: Callable[[Any, int, str], tuple[Any, ...]]

    @property
    def operation(self) -> str:
        """What it does: products by their sizes, the others as their rows say."""
        return PRODUCT if isinstance(self.size, Size) else self.kernel.operation or self.kernel.name

    @property
    def shape(self) -> Shape | Task:
        """What it shares with what it is timed beside; of products, all but the group."""
        if isinstance(self.size, Size):
            return Shape(self.size.rows, self.size.outputs, self.size.inputs)
        return Task(self.operation, str(self.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """An entry with its default launch on each copy of its inputs; `arguments` are those of the first."""

    entry: Entry
    arguments: tuple[Any, ...]
    launches: tuple[Launch, ...]


def rotated(entry: Entry, seed: int, device: str, rotated_bytes: int) -> Rotated:
    """Make the inputs and as many copies as the cache cannot hold: of all arguments but those that are `RECENT`."""
    arguments = entry.inputs(entry.size, seed, device)
    kept = 1 if entry.operation in RECENT else 0
    nbytes = sum(map(n_bytes, arguments[kept:]))
    others = (map(copied, arguments[kept:]) for _ in range(n_copies(nbytes, rotated_bytes) - 1))
    launches = tuple(entry.kernel.plan(*arguments[:kept], *copy) for copy in (arguments[kept:], *others))
    return Rotated(entry=entry, arguments=arguments, launches=launches)


def contender(made: Rotated, machine: Machine, seed: int, until: float) -> Contender:
    """The kernel with the fastest launch that was found before `until`, ready to be timed beside others."""
    kernel = made.entry.kernel
    launches, said = tuned(made.launches, machine, seed, until)
    return Contender(
        name=kernel.name, kind="kernel", dtype=made.entry.dtype or _dtype(made.arguments[0]),
        calls=tuple(launch.run for launch in launches), bytes_moved=kernel.bytes_moved(*made.arguments),
        bytes_written=sum(output.nbytes for output in launches[0].outputs),
        reference=kernel.reference(*made.arguments), tolerance=kernel.tolerance, excess=partial(_excess, kernel),
        launch=said,
    )  # fmt: skip


def _excess(kernel: Kernel, result: Any, reference: Any, tolerance: float) -> float:
    return excess_of_kernel(kernel, result, reference)


def _dtype(first: Any) -> str:
    """The type of a tensor, or of the numbers that packed tensors stand for; nothing where they do not say."""
    found = getattr(first, "dtype", None)
    return str(found).removeprefix("torch.") if isinstance(found, torch.dtype) else ""


def tuned(launches: Sequence[Launch], machine: Machine, seed: int, until: float) -> tuple[Sequence[Launch], str]:
    """The fastest of `TRIED` alternatives of the same calls, the default among them, and which that is.

    Alternatives are drawn at random, as neighbors are alike. One that fails, as they do for want of shared memory or
    registers, drops out and is told; if the default fails, its error is raised.
    """
    options = candidates(launches[0])
    chosen = [0, *random.Random(seed).sample(range(1, len(options)), min(TRIED, len(options)) - 1)]
    if len(chosen) == 1 or machine.now() >= until:
        return launches, f"default of {len(options)}, not tuned"
    machine.prepare(options[k] for k in chosen)
    best, tried, failed = (_first_look(launches, machine), launches), 1, 0
    for k in chosen[1:]:
        if machine.now() >= until:
            break
        calls = [candidates(launch)[k] for launch in launches]
        tried += 1
        try:
            best = min(best, (_first_look(calls, machine), calls), key=lambda look: look[0])
        except Exception:  # Triton's errors of resources have no base of their own
            failed += 1
    said = f"{described(best[1][0], options)}; best of {tried} of {len(options)}"
    return best[1], f"{said}, {failed} of which failed" if failed else said


def _first_look(calls: Sequence[Launch], machine: Machine) -> float:
    replay = machine.capture([call.run for call in calls])
    return median(machine.seconds([replay] * (2 * ROUNDS))[ROUNDS:])  # the first ones warm up


def described(launch: Launch, among: Sequence[Launch]) -> str:
    """The constants and options in which `launch` can differ from others: `BLOCK_N 128, SPLITS 4, num_warps 8`."""
    said = {**launch.constants, **launch.options}
    others = [{**other.constants, **other.options} for other in among]
    return ", ".join(f"{name} {said[name]}" for name in said if len({str(other[name]) for other in others}) > 1)
