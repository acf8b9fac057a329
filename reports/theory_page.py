"""The page of the theory: what is measured beside what mathematics says."""

import re
from collections import Counter
from collections.abc import Sequence

from reports.figures import Plot
from reports.page import number
from reports.sections import Section, render_sections
from reports.theory import Measured
from reports.theory_drawing import draw_experiment

PAGE = "theory.html"
LINK = "What mathematics says: bounds, spectra and limits"


def draw_theory(measured: Sequence[Measured]) -> list[Section]:
    """A section for every experiment that was run."""
    several = Counter(found.experiment.name for found in measured)
    return [_section(found, several[found.experiment.name] > 1) for found in measured]


def render_theory(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same findings; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)


def _section(found: Measured, several: bool) -> Section:
    experiment, first = found.experiment, found.rows[0]
    note = f"{experiment.source}. {len(found.rows)} points"
    note += f" of {found.model}" if found.model else ""
    note += f", seed {first.seed}" + (f", {first.effort:g} times the quick tier's draws" if first.effort != 1 else "")
    name = experiment.name + ("-" + re.sub(r"[^a-z0-9]+", "-", found.model.lower()).strip("-") if several else "")
    return Section(page="theory", name=name, model=found.model, heading=experiment.title, note=f"{note}.",
                   plots=(theory_plot(found),),
                   verdicts={"points": ((found.model or "measured", experiment.sentence(found.points)),)})  # fmt: skip


def theory_plot(found: Measured) -> Plot:
    """An experiment's figure, with every point in the table."""
    experiment, points = found.experiment, found.points
    caption = "Lines are predicted, marks measured."
    caption += f" Bars are {experiment.interval}." if experiment.interval else ""
    rows = tuple(
        (row.series, "predicted" if row.predicted else "measured", number(row.x), number(row.y), number(row.low),
         number(row.high), str(row.seed), f"experiment {row.experiment}", row.code, row.env, row.command)
        for row in found.rows
    )  # fmt: skip
    header = ("series", "kind", "x", "y", "low", "high", "seed", "from", "code", "environment", "command")
    return Plot(key="points", title=experiment.title, caption=caption, description=_described(found), header=header,
                rows=rows, curves=(), figure=draw_experiment(experiment, points))  # fmt: skip


def _described(found: Measured) -> str:
    """What a sighted reader sees first, for those who hear the page."""
    words = []
    for name in dict.fromkeys(row.series for row in found.rows):
        own = sorted((row for row in found.rows if row.series == name), key=lambda row: row.x)
        words.append(f"{name}: {number(own[0].y, 3)} at {number(own[0].x, 3)}"
                     + (f" to {number(own[-1].y, 3)} at {number(own[-1].x, 3)}" if len(own) > 1 else ""))  # fmt: skip
    return f"{found.experiment.y} over {found.experiment.x}. {'; '.join(words)}."
