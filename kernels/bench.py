"""How fast the kernels are, beside yardsticks and peers in the same run.

Everything of one shape is made ready, checked against its reference, captured in a CUDA graph that calls it on one copy
of its data after another - so many that no cache holds them -, and then replayed in turns, in another order every
round. What is reported is the median of a call and its quartiles. So all see the same clocks and temperatures, launches
cost what they cost in a served model, and weights, caches and whatever else is transformed come from memory.

A budget of seconds is kept: shapes that decide targets come first, tuning ends when a shape has used half of its share,
and what is left undone at the end is said to be so.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from kernels.check import variants
from kernels.contender import Absent, Contender, Rival
from kernels.kernel import Kernel
from kernels.peers import PEERS
from kernels.replays import ROUNDS, Ready, checked, timed
from kernels.results import Absence, Agreement, Results, Shape, Task
from kernels.targets import TARGETS, large, targeted
from kernels.tuning import Entry, Machine, contender, rotated
from kernels.yardsticks import YARDSTICKS

WEIGHT = 4  # of a large shape in the budget, beside 1 of others
SLOW_SECONDS = 60  # that must be left for a peer that tunes or compiles itself
Progress = Callable[[str], None]
Builds = list[tuple[str, str, Callable[[], Contender]]]  # name, type of activations, and what makes it
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Run:
    machine: Machine
    seed: int
    end: float  # on the machine's clock
    absences: list[Absence] = field(default_factory=list)

    def attempt(
        self, name: str, shape: Shape | Task, dtype: str, build: Callable[[], T], *, late: bool = False
    ) -> T | None:
        """What `build` makes; where it cannot, or there is no time left and it is not to be done `late`, an absence."""
        try:
            if self.machine.now() >= self.end and not late:
                raise Absent("no time was left")
            return build()
        except Absent as absent:
            reason = str(absent)
        except Exception as error:  # of drivers, compilers and other people's packages: recorded, not hidden
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.absences.append(Absence(name=name, shape=shape, dtype=dtype, reason=reason))
        return None


def measure(
    kernels: Sequence[Kernel],
    machine: Machine,
    *,
    budget_seconds: float,
    command: str,
    seed: int = 0,
    agreements: Iterable[Agreement] = (),
    peers: Sequence[Rival] = PEERS,
    yardsticks: Sequence[Rival] = YARDSTICKS,
    rounds: int = ROUNDS,
    progress: Progress = lambda text: None,
) -> Results:
    """Time `kernels` at their bench sizes beside yardsticks and `peers`, for `budget_seconds`.

    Activations of the first type that a row makes are timed at every size, others where there are targets. No step is
    begun after the budget; the longest, a peer that compiles itself, needs `SLOW_SECONDS` of it to be left.
    """
    started, facts = machine.now(), machine.facts()
    run = _Run(machine=machine, seed=seed, end=started + budget_seconds)
    plan, timings = planned(kernels), []
    for at, (shape, entries) in enumerate(plan):
        progress(f"{shape}: {len(entries)} kernels")
        share = _weight(*plan[at]) / sum(_weight(*item) for item in plan[at:])
        now = machine.now()
        tune_until = now + (run.end - now) * share / 2
        ready = _ready(run, shape, entries, yardsticks, peers, tune_until)
        replays = partial(timed, shape, ready, machine, rounds, seed)
        timings += run.attempt("replays", shape, "", replays, late=True) or []
        del ready
        run.attempt("memory", shape, "", machine.release, late=True)
    after = {f"{name}, after": value for name, value in machine.facts().items() if facts.get(name) != value}
    return Results(
        device=machine.name, facts=facts | after, versions=machine.versions(), command=command,
        when=datetime.now(UTC).isoformat(timespec="seconds"), seed=seed, seconds=round(machine.now() - started, 1),
        timings=tuple(timings), absences=tuple(run.absences), agreements=tuple(agreements),
    )  # fmt: skip


def planned(kernels: Sequence[Kernel]) -> list[tuple[Shape | Task, list[Entry]]]:
    """The shapes with what is timed at each: those first that decide most targets for what is timed there.

    Where there is no target, they are in the order of the rows; and at a shape, the first types of activations precede
    the others.
    """
    found: dict[Shape | Task, list[tuple[int, Entry]]] = {}
    for kernel in kernels:
        for size in kernel.bench:
            for nth, (dtype, inputs) in enumerate(variants(kernel)):
                entry = Entry(kernel=kernel, size=size, dtype=dtype, inputs=inputs)
                if nth == 0 or targeted(entry.shape):
                    found.setdefault(entry.shape, []).append((nth, entry))
    plan = [(shape, [entry for _, entry in sorted(those, key=lambda one: one[0])]) for shape, those in found.items()]
    return sorted(plan, key=lambda item: -_decided(*item))


def _decided(shape: Shape | Task, entries: Sequence[Entry]) -> float:
    """Targets that are decided at a shape, for each entry there."""
    names = {entry.kernel.name for entry in entries}
    return sum(target.kernel in names and target.means(shape) for target in TARGETS) / len(entries)


def _weight(shape: Shape | Task, entries: Sequence[Entry]) -> int:
    return (WEIGHT if large(shape) else 1) * len(entries)


def _ready(
    run: _Run,
    shape: Shape | Task,
    entries: Sequence[Entry],
    yardsticks: Sequence[Rival],
    peers: Sequence[Rival],
    tune_until: float,
) -> list[Ready]:
    """Everything that is timed at a shape: its graph is there and its result right. For the rest there are absences."""
    machine, where = run.machine, (run.seed, run.machine.device, run.machine.rotated_bytes)
    made = [run.attempt(entry.kernel.name, shape, entry.dtype, partial(rotated, entry, *where)) for entry in entries]
    there = [one for one in made if one is not None]
    machine.prepare(one.launches[0] for one in there)
    builds: Builds = [
        (one.entry.kernel.name, one.entry.dtype, partial(contender, one, machine, run.seed, tune_until))
        for one in there
    ]
    names = {name for entry in entries for name in (entry.operation, entry.kernel.name)}
    yards, others = (  # of the first entry's size: all of a shape are alike to them
        [(rival.name, "", partial(_built, rival, run, shape, entries[0].size))
         for rival in rivals if rival.stands_beside(names)]
        for rivals in (yardsticks, peers)
    )  # fmt: skip
    ready = [run.attempt(name, shape, dtype, partial(checked, build, machine))
             for name, dtype, build in (*yards, *builds, *others)]  # fmt: skip
    return [one for one in ready if one is not None]


def _built(rival: Rival, run: _Run, shape: Shape | Task, size: Any) -> Contender:
    if rival.slow:
        if not targeted(shape):
            raise Absent("it tunes or compiles itself for long: only at shapes of targets")
        if run.end - run.machine.now() < SLOW_SECONDS:
            raise Absent(f"it tunes or compiles itself for long, and less than {SLOW_SECONDS} s were left")
    return rival.build(size, run.seed, run.machine.device, run.machine.rotated_bytes)
