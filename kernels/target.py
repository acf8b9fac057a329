"""A target of speed as a value: a ratio in one run, and the shapes that are meant. No torch: reports read this."""

from dataclasses import dataclass
from typing import Literal

from kernels.results import CLONE, COPY, DENSE, Shape, Task

LARGE = 28672 * 8192  # weights: 117 MB at 4 bits, far more than a cache holds
Basis = Literal["speed", "time", "bandwidth", "written"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`kernel` is to reach `ratio` times what `against` reaches, at every shape that is meant: the worst counts.

    Meant are products of `rows` rows and at least `LARGE` weights; or, where there are any, the `shapes` that print so.
    `basis` "time" is a limit, to be kept to; "written" is the bandwidth of results alone, over all of the other's.
    """

    kernel: str
    against: str
    ratio: float
    basis: Basis
    rows: int = 1
    shapes: tuple[str, ...] = ()
    dtype: str | None = None  # of the activations; None: whichever the row of `KERNELS` makes first
    source: str

    def __str__(self) -> str:
        """As in "at least 2.8 times the speed of F.linear in bfloat16".

        >>> str(Target(kernel="k", against="copy", ratio=0.75, basis="bandwidth", source=""))
        'at least 0.75 times the bandwidth of a copy'
        >>> str(Target(kernel="k", against="clone", ratio=1.2, basis="time", source=""))
        'at most 1.2 times the time of a clone of its inputs'
        """
        known = {COPY: "a copy", DENSE: "F.linear in bfloat16", CLONE: "a clone of its inputs"}
        other = known.get(self.against, self.against)
        if self.basis == "written":
            return f"at least {self.ratio:g} times the bandwidth of {other}, in bytes written"
        return f"at {'most' if self.basis == 'time' else 'least'} {self.ratio:g} times the {self.basis} of {other}"

    @property
    def where(self) -> str:
        """The shapes that are meant, in words: "1 row", "4096 x 8192 and 2 more"."""
        if not self.shapes:
            return f"{self.rows} row{'s' if self.rows > 1 else ''}"
        return self.shapes[0] + (f" and {len(self.shapes) - 1} more" if len(self.shapes) > 1 else "")

    def means(self, shape: Shape | Task) -> bool:
        """Whether it is about `shape`."""
        if self.shapes or isinstance(shape, Task):
            return str(shape) in self.shapes
        return shape.rows == self.rows and shape.outputs * shape.inputs >= LARGE

    def met(self, value: float) -> bool:
        """Whether a ratio is what was to be reached, or kept to."""
        return value <= self.ratio if self.basis == "time" else value >= self.ratio
