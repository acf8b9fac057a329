"""A training step through fake quantization beside a plain one, and what the loop itself costs; nothing is asserted.

The shipped model, 16 rows of 256 tokens, two threads. Steps of all kinds take turns in one process, and ratios are
taken within a turn. The loop's own time is what `train` takes beside the same forward pass, backward pass, clipping and
AdamW step written out. `pytest tests/benchmarks/test_training_speed.py --benchmark-only -s` prints it.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from suite.adaptation.training import AdamW, Schedule, train
from suite.learning.objective import next_token_loss
from suite.learning.student import Student, whole_model
from suite.methods import method_named
from suite.models.checkpoint import load_model
from suite.recipe import Recipe
from suite.runtime.speed import Spread

TURNS = 12
METHODS = {"LSQ, 4 bits": ("lsq", 4), "ParetoQ, 4 bits": ("paretoq", 4), "ParetoQ, 2 bits": ("paretoq", 2),
           "BitNet b1.58": ("bitnet-tuned", None)}  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def by_hand(model: nn.Module, loss_of: Callable[[int], torch.Tensor], schedule: Schedule) -> Callable[[], None]:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": schedule.weight_decay},
                                   {"params": others, "weight_decay": 0.0}], lr=1e-5, betas=schedule.betas)  # fmt: skip

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()

    return step


def by_the_loop(model: nn.Module, loss_of: Callable[[int], torch.Tensor], schedule: Schedule) -> Callable[[], None]:
    update = AdamW(model, schedule)
    return lambda: [train(model, loss_of, schedule, update=update), None][1]


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def test_training_steps(benchmark, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    checkpoint, schedule = load_model("reference"), Schedule(steps=1, rate=1e-5)
    rows = torch.randint(0, int(checkpoint.config.vocab_size), (16, 256), generator=torch.Generator().manual_seed(0))
    model = whole_model(checkpoint)
    plain = lambda part: next_token_loss(model, rows)  # noqa: E731
    steps = {"by hand": by_hand(model, plain, schedule), "plain": by_the_loop(model, plain, schedule)}
    for name, (method, bits) in METHODS.items():
        recipe: Recipe = method_named(method).recipe(bits=bits)
        student = Student.of(checkpoint, recipe, 0)
        loss = student.loss(rows, 0)
        steps[name] = by_the_loop(student.model, loss, schedule)
    times: dict[str, list[float]] = {name: [] for name in steps}

    def turn() -> None:
        names = list(steps)  # there and back: what goes first finds other caches than what goes last
        for name in names if len(times["plain"]) % 2 else reversed(names):
            times[name].append(seconds(steps[name]))

    benchmark.pedantic(turn, rounds=TURNS, warmup_rounds=1)
    ratio = {name: Spread.of([a / b for a, b in zip(found[1:], times["plain"][1:], strict=True)])
             for name, found in times.items()}  # fmt: skip
    loop = Spread.of([100 * (a / b - 1) for a, b in zip(times["plain"][1:], times["by hand"][1:], strict=True)])
    benchmark.extra_info |= {name: found.median for name, found in ratio.items()} | {"loop, %": loop.median}
    with capsys.disabled():
        print(f"\nplain step {statistics.median(times['plain'][1:]):.3f} s; the loop's own time {loop} %")
        for name in METHODS:
            print(f"{name}: {ratio[name]} of a plain step")
