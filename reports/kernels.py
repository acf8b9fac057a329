"""From a bench's results and the offline compiler's table to the rows that the page of kernels shows. All pure."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.machine_code import KEPT
from kernels.results import CLONE, COPY, DENSE, READ, Results, Shape, Task, Timing
from kernels.targets import TARGETS, Verdict, large, ratio, verdict
from suite.store import SpeedRow

MEASURED = Path(__file__).with_name("measured")
BENCH = "bitfrontier kernels --check --bench --json"
COMPILE = "bitfrontier kernels --compile --keep"
_COLUMNS = {  # of the offline compiler's table, as the page calls them
    "kernel": "kernel", "size": "size", "dtype": "activations", "architecture": "chip",
    "slots_per_weight": "instructions a weight", "registers": "registers", "shared_bytes": "shared memory (bytes)",
    "loop_instructions": "instructions in the loop", "loop_wide_loads": "16-byte loads",
    "loop_narrow_loads": "loads of 1 or 2 bytes", "loop_matrix": "matrix instructions", "matrix": "of kind",
    "loop_conversions": "conversions", "local_accesses": "spills",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is to show: results by device, the newest run of each first, and rows of `compiled.csv` as text.

    `speeds` are those of whole models, from a store.
    """

    results: tuple[Results, ...]
    compiled: tuple[dict[str, str], ...]
    speeds: tuple[SpeedRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A timing beside others of its shape: `share` of a copy's bandwidth, `times` as fast as the table's `others`.

    `least_seconds` is its roofline: its bytes at the best bandwidth of the shape's copies and reads.
    """

    timing: Timing
    share: float | None
    least_seconds: float | None
    times: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeTable:
    """The timings of a shape; `others` are what each is compared with: the dense product, a clone, and the peers."""

    shape: Shape | Task
    others: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def large(self) -> bool:
        """Whether bandwidth counts, and not the launch."""
        return large(self.shape)


def read_kernels(measured: Path = MEASURED, compiled: Path = KEPT) -> Found:
    """The results files in a folder and the table of the offline compiler, where there are any.

    Raises `ValueError` for a file that is not a bench's.
    """
    results = []
    for path in sorted(measured.glob("*.json")):
        try:
            results.append(Results.from_json(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    rows: list[dict[str, str]] = []
    if compiled.exists():
        with compiled.open(newline="") as file:
            rows = list(csv.DictReader(file))
    newest = sorted(results, key=lambda r: r.when, reverse=True)
    return Found(results=tuple(newest), compiled=tuple(rows))


def newest(rows: Iterable[SpeedRow]) -> tuple[SpeedRow, ...]:
    """Of runs that differ in code, environment or time alone the newest, in the order of the first of each."""
    found: dict[tuple[object, ...], SpeedRow] = {}
    for row in rows:
        key = (row.model_sha256, row.device, row.threads, row.product, row.prompt, row.tokens)
        if key not in found or row.started > found[key].started:
            found[key] = row
    return tuple(found.values())


def verdicts(results: Results | None) -> list[Verdict]:
    """What a run, or none, says of every target."""
    return [verdict(target, results) for target in TARGETS]


def summary(results: Results | None) -> str:
    """One sentence: how many targets are met."""
    if results is None:
        return f"No GPU was to be had for these kernels: none of {len(TARGETS)} targets is measured"
    states = [v.state for v in verdicts(results)]
    said = [f"{states.count(state)} {state}" for state in ("met", "missed", "not measured") if state in states]
    return f"of {len(states)} targets {', '.join(said)}"


def shape_tables(results: Results) -> list[ShapeTable]:
    """A table for each shape, the large ones first, otherwise in the order of the run."""
    return sorted((_table(results, shape) for shape in results.shapes), key=lambda table: not table.large)


def _table(results: Results, shape: Shape | Task) -> ShapeTable:
    timings = results.of(shape)
    others = tuple(dict.fromkeys(t.name for t in timings if t.kind == "peer" or t.name in (DENSE, CLONE)))
    copy = results.find(COPY, shape)
    best = max((t.bandwidth for t in timings if t.name in (COPY, READ)), default=None)
    rows = [
        Row(timing=t, share=None if copy is None else ratio(t, copy, "bandwidth"),
            least_seconds=None if best is None else t.bytes_moved / best,
            times=tuple(_times(t, results.find(name, shape)) for name in others))
        for t in timings
    ]  # fmt: skip
    return ShapeTable(shape=shape, others=others, rows=tuple(rows))


def _times(timing: Timing, other: Timing | None) -> float | None:
    if other is None or timing.name in (COPY, READ):
        return None
    return ratio(timing, other, "speed")


def compiled_rows(rows: Iterable[dict[str, str]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the offline compiler's table; of its columns those that there are."""
    known: Sequence[dict[str, str]] = list(rows)
    names = [name for name in _COLUMNS if known and name in known[0]]
    return tuple(_COLUMNS[name] for name in names), [tuple(row[name] for name in names) for row in known]
