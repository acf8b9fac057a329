"""The page: everything a store says about its models, in one HTML file that needs nothing else."""

import math
import re
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from reports.figures import Plot, inline_svg, plots
from reports.frontier import KL_LIMIT_NATS, Study, verdict

Drawn = list[tuple[Study, str, list[Plot]]]  # a study, the name that its files and identifiers begin with, its figures


def draw(studies: list[Study]) -> Drawn:
    """The studies with their figures, each under a name of letters, digits and hyphens that no other has."""
    drawn: Drawn = []
    for study in studies:
        plain = re.sub(r"[^a-z0-9]+", "-", study.model.lower()).strip("-") or "model"
        taken = {name for _, name, _ in drawn}
        names = (plain if i == 1 else f"{plain}-{i}" for i in range(1, len(taken) + 2))
        drawn.append((study, next(name for name in names if name not in taken), plots(study)))
    return drawn


def page_template(name: str) -> Template:
    """A page's template; all extend `frame.html`, which has the style sheet and what every page ends with."""
    environment = Environment(loader=PackageLoader("reports", ""), undefined=StrictUndefined, autoescape=True,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters.update(number=number, plus_minus=plus_minus)
    return environment.get_template(name)


def render(drawn: Drawn, *, beside: Mapping[str, str] | None = None) -> str:
    """The HTML of the page, the same bytes for the same studies; with links to the pages `beside` it, text by page."""
    template = page_template("page.html")
    studies = [study for study, _, _ in drawn]
    shown = [r for study in studies for r in (*study.measured, *study.unmeasured, *study.superseded)]
    return template.render(
        limit=KL_LIMIT_NATS,
        beside=beside or {},
        commands={command: i for i, command in enumerate(dict.fromkeys(r.command for r in shown), 1)},
        origins={origin: i for i, origin in enumerate(dict.fromkeys((r.code, r.env) for r in shown), 1)},
        studies=[
            {
                "study": study,
                "name": name,
                "heading": heading(study, studies),
                "verdict": verdict(study),
                "figures": [(p, Markup(inline_svg(p, f"{name}-{p.key}"))) for p in figures],
                "fallen": [r for r in study.measured if r.fallbacks],
            }
            for study, name, figures in drawn
        ],
    )


def heading(study: Study, studies: list[Study]) -> str:
    """The model's name, and what else tells it from its namesakes."""
    namesakes = [s for s in studies if s.model == study.model]
    text = study.model
    if len({s.model_sha256 for s in namesakes}) > 1:
        text += f" {study.model_sha256[:8]}"
    if sum(s.model_sha256 == study.model_sha256 for s in namesakes) > 1:
        text += f", evaluation of perplexity {number(study.ppl_base)}"
    return text


def number(value: float | None, digits: int = 4) -> str:
    """A measurement with `digits` significant digits; a dash where there is none.

    >>> [number(x) for x in (0.0123456, 1234567, None, float("inf"))]
    ['0.01235', '1,234,567', '–', 'infinite']
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def plus_minus(value: float | None, error: float | None) -> str:
    """A measurement and its standard error to two significant digits, both with as many decimals.

    >>> plus_minus(0.123456, 0.00234), plus_minus(7.5, None), plus_minus(123.4, 56.7)
    ('0.1235 ± 0.0023', '7.5', '123 ± 57')
    """
    if value is None or error is None or not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{value:.3g} ± {error:.2g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
