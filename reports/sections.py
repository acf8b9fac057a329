"""Pages of figures under headings, each figure with its numbers and where every one of them comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from reports.entropy_figures import ORIGIN
from reports.figures import Plot, inline_svg
from reports.page import page_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Figures under one heading; `verdicts` has, by a figure's key, the models and the sentences on them above it.

    `model` is the one that all figures are of, empty where they show several. `missing` are the commands that make what
    a section without figures lacks.
    """

    page: str
    name: str
    model: str
    heading: str
    note: str
    plots: tuple[Plot, ...]
    verdicts: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the names of its files and identifiers begin with."""
        return f"{self.page}-{self.name}" if self.name else self.page


def render_sections(template: str, sections: Sequence[Section], *, beside_report: bool, **shown: Any) -> str:
    """The HTML of a page, the same bytes for the same sections; with a link to the report if there is one.

    `shown` is what only this page's template knows of.
    """
    rows = [row for section in sections for plot in section.plots for row in plot.rows]
    commands = {command: i for i, command in enumerate(dict.fromkeys(row[-1] for row in rows), 1)}
    origins = {origin: i for i, origin in enumerate(dict.fromkeys(row[-3:-1] for row in rows), 1)}
    return page_template(template).render(
        commands=commands,
        origins=origins,
        n_origin=len(ORIGIN),
        beside_report=beside_report,
        **shown,
        sections=[(s, [(p, Markup(inline_svg(p, f"{s.stem}-{p.key}"))) for p in s.plots]) for s in sections],
    )
