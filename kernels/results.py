"""What a bench found, as values that go to a file and come back: no torch, so that reports can read them.

Times are of one call inside a CUDA graph: the medians and quartiles over replays. Calls at one shape - of a product, or
of another task at one size -, the yardsticks among them, were timed in turns in the same run, so that their ratios are
of one clock and one temperature.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["kernel", "peer", "yardstick"]
COPY, READ, DENSE, CLONE = "copy", "read", "bf16", "clone"  # yardsticks: see `kernels.yardsticks`


class Shape(NamedTuple):
    """Of a product: `rows` of activations times weights (`outputs`, `inputs`)."""

    rows: int
    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.outputs} x {self.inputs}"


class Task(NamedTuple):
    """Anything else that is timed: an `operation`, as rows of `KERNELS` call it, and its `size`, as that prints."""

    operation: str
    size: str

    def __str__(self) -> str:
        return f"{self.operation} {self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A call of a kernel, a peer or a yardstick (`name`), with activations of `dtype`, beside others of its shape.

    `bytes_moved` are what the call must at least read and write, `bytes_written` those of them that are its result (0:
    not told); `error` is the largest error of its result in units of what is allowed; `launch` says which of a kernel's
    launches was the fastest, of how many tried.
    """

    name: str
    kind: Kind
    shape: Shape | Task
    dtype: str
    median_seconds: float
    lower_seconds: float  # quartiles
    upper_seconds: float
    replays: int
    copies: int  # of the weights, or of what else comes from memory, in turns, so that the cache holds none of them
    bytes_moved: int
    error: float
    launch: str = ""
    bytes_written: int = 0

    @property
    def bandwidth(self) -> float:
        """Bytes in a second."""
        return self.bytes_moved / self.median_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What was not timed, and why; `shape` is None where it holds for all."""

    name: str
    reason: str
    shape: Shape | Task | None = None
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A kernel against its reference on several random inputs.

    `excess` is the largest error over what is allowed, None where the kernel failed or gave no number.
    """

    kernel: str
    size: str
    dtype: str
    inputs: int
    excess: float | None
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A run: on what, with what, by which command, and what came out.

    `facts` are what the device and its driver say of themselves, the clocks before and after among them. `when` is in
    UTC.
    """

    device: str
    facts: Mapping[str, str]
    versions: Mapping[str, str]
    command: str
    when: str
    seed: int
    seconds: float
    timings: tuple[Timing, ...] = ()
    absences: tuple[Absence, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    sanitizer: str = "not asked for"

    def to_json(self) -> str:
        """All of it, as text that `from_json` reads back."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Results":
        """The inverse of `to_json`. Raises `ValueError` for text that is none of its."""
        try:
            found = json.loads(text)
            parts: dict[str, Any] = {
                "timings": tuple(Timing(**_shaped(row)) for row in found.pop("timings")),
                "absences": tuple(Absence(**_shaped(row)) for row in found.pop("absences")),
                "agreements": tuple(Agreement(**row) for row in found.pop("agreements")),
            }
            return Results(**found, **parts)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not the results of a bench: {error!r}") from error

    @property
    def shapes(self) -> tuple[Shape | Task, ...]:
        """The shapes with timings, as they were measured."""
        return tuple(dict.fromkeys(timing.shape for timing in self.timings))

    def of(self, shape: Shape | Task) -> tuple[Timing, ...]:
        """The timings of a shape."""
        return tuple(timing for timing in self.timings if timing.shape == shape)

    def find(self, name: str, shape: Shape | Task, dtype: str | None = None) -> Timing | None:
        """The first timing of `name`, with `dtype` if one is asked for."""
        return next((t for t in self.of(shape) if t.name == name and dtype in (None, t.dtype)), None)


def _shaped(row: dict[str, Any]) -> dict[str, Any]:
    shape = row["shape"]
    return row if shape is None else row | {"shape": Shape(*shape) if len(shape) == 3 else Task(*shape)}
