"""An experiment of the theory: what is measured beside what mathematics says, as points that the report draws.

One file of this folder holds a result, its derivation, and an `Experiment` that sets it against numbers. Imports no
torch: experiments that need it import it when they run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Tier = Literal["quick", "full", "nightly"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """On what an experiment runs: a `model` as `bitfrontier run` takes it, and random numbers that follow from `seed`.

    `effort` scales how many draws there are: 1 in the quick tier, more in others. Into `store` goes what is found;
    experiments that run cells of the suite keep them there too, and run none that it has.
    """

    model: str = "reference"
    seed: int = 0
    effort: float = 1.0
    store: Path = Path("bitfrontier.db")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`y` at `x` in a series, with the ends of its interval where it has one.

    What is predicted is a series of its own, and `predicted` says so: it is drawn as a line, what is measured as marks.
    """

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    predicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A figure's worth of measurements, and what they say in a sentence.

    `name` is its key in stores and file names; `title` says what the figure shows, `source` where the mathematics is
    from; `x` and `y` are axis labels with units, logarithmic where `log` holds their letter. `interval` says what the
    points' intervals are, `on_model` whether it looks at the setting's model, `tier` how long it takes: seconds,
    minutes, or with models to train first. `sentence` draws the conclusion from the points, with their figures,
    whatever they are.
    """

    name: str
    title: str
    source: str
    x: str
    y: str
    measure: Callable[[Setting], Sequence[Point]]
    sentence: Callable[[Sequence[Point]], str]
    log: Literal["", "x", "y", "xy"] = ""
    interval: str = ""
    on_model: bool = False
    tier: Tier = "quick"
