"""Contenders whose results are right, as graphs that are replayed in turns."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

from kernels.check import outputs
from kernels.contender import Absent, Contender
from kernels.results import Shape, Task, Timing
from kernels.tuning import Machine

ROUNDS = 60  # the median of so many has a standard error of a sixth of one replay's
WARMING = 5  # rounds before, which are not counted
TURNS = 2  # through the copies in a replay: 1 GB on an H200, 0.2 ms, hundreds of times the resolution of its events


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A contender whose result is right, `error` of what is allowed, and its graph, which makes `calls` calls."""

    contender: Contender
    error: float
    replay: Callable[[], None]
    calls: int


def checked(build: Callable[[], Contender], machine: Machine) -> Ready:
    """Raises `Absent` for a contender whose result is not what its reference says, in a graph or out of one."""
    made = build()
    result, calls = made.calls[0](), made.calls * TURNS
    error = _error(result, made)
    replay = machine.capture(calls)
    if made.kind == "kernel":  # whose launches fill the same tensors every time
        for output in outputs(result):
            found = output.view(torch.uint8)
            found.masked_fill_(found != 0, 255)  # but zeros: where they pad, plans write them and launches do not
        replay()
        error = max(error, _error(result, made))
    return Ready(contender=made, error=error, replay=replay, calls=len(calls))


def _error(result: Any, made: Contender) -> float:
    error = made.excess(result, made.reference, made.tolerance)
    if not error <= 1:
        raise Absent(f"its result is off by {error:.3g} times what is allowed: not timed")
    return error


def timed(shape: Shape | Task, ready: Sequence[Ready], machine: Machine, rounds: int, seed: int) -> list[Timing]:
    """Replay all of them `rounds` times in turns, in an order drawn anew each round, after `WARMING` rounds."""
    draw, order = random.Random(seed), list(range(len(ready)))
    seconds: list[list[float]] = [[] for _ in ready]
    for nth in range(WARMING + rounds if ready else 0):
        draw.shuffle(order)
        for k, taken in zip(order, machine.seconds([ready[k].replay for k in order]), strict=True):
            if nth >= WARMING:
                seconds[k].append(taken / ready[k].calls)
    return [_timing(shape, one, taken) for one, taken in zip(ready, seconds, strict=True)]


def _timing(shape: Shape | Task, ready: Ready, seconds: Sequence[float]) -> Timing:
    made = ready.contender
    lower, _, upper = quantiles(seconds, n=4, method="inclusive")
    return Timing(
        name=made.name, kind=made.kind, shape=shape, dtype=made.dtype, median_seconds=median(seconds),
        lower_seconds=lower, upper_seconds=upper, replays=len(seconds), copies=len(made.calls),
        bytes_moved=made.bytes_moved, bytes_written=made.bytes_written, error=ready.error, launch=made.launch,
    )  # fmt: skip
