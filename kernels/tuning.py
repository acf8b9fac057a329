"""A kernel on copies of its weights, and which of its launches is the fastest on a machine."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from kernels.contender import Contender, copied, n_bytes, n_copies
from kernels.kernel import Kernel, Size
from kernels.launch import Launch
from kernels.product.triton import candidates
from kernels.results import Shape

TRIED = 8  # launches: the best of 8 random ones is among the best quarter nine times of ten (1 - 0.75^8)
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
    size: Size
    dtype: str
    inputs: Callable[[Any, int, str], tuple[Any, ...]]

    @property
    def shape(self) -> Shape:
        """What it shares with its peers: all but the group."""
        return Shape(self.size.rows, self.size.outputs, self.size.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """An entry with its default launch on each copy of the weights; `arguments` are those of the first."""

    entry: Entry
    arguments: tuple[Any, ...]
    launches: tuple[Launch, ...]


def rotated(entry: Entry, seed: int, device: str, rotated_bytes: int) -> Rotated:
    """Make the inputs and as many copies as the cache cannot hold: of all arguments but the first, the activations."""
    x, *weights = entry.inputs(entry.size, seed, device)
    nbytes = sum(map(n_bytes, weights))
    others = (map(copied, weights) for _ in range(n_copies(nbytes, rotated_bytes) - 1))
    launches = tuple(entry.kernel.plan(x, *copy) for copy in (weights, *others))
    return Rotated(entry=entry, arguments=(x, *weights), launches=launches)


def contender(made: Rotated, machine: Machine, seed: int, until: float) -> Contender:
    """The kernel with the fastest launch that was found before `until`, ready to be timed beside others."""
    kernel, entry = made.entry.kernel, made.entry
    launches, said = tuned(made.launches, machine, seed, until)
    return Contender(
        name=kernel.name, kind="kernel", shape=entry.shape,
        dtype=entry.dtype or str(made.arguments[0].dtype).removeprefix("torch."),
        calls=tuple(launch.run for launch in launches),
        bytes_moved=kernel.bytes_moved(*made.arguments), reference=kernel.reference(*made.arguments),
        tolerance=kernel.tolerance, launch=said,
    )  # fmt: skip


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
