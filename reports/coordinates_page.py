"""The page of coordinates: which outliers a model has, what becomes of them, and what they cost."""

import re

from reports.coordinates import Coordinates, Doses, Measured
from reports.coordinates_figures import caches_plot, doses_plot, measured_plots
from reports.coordinates_verdicts import dose_verdicts, outlier_verdict, salience_verdict, smoothing_verdict
from reports.frontier import Study
from reports.page import heading, number
from reports.sections import Section, render_sections

PAGE = "coordinates.html"
LINK = "In which coordinates: outliers, rotations and caches"
_PAGE = "coordinates"


def draw_coordinates(found: Coordinates) -> list[Section]:
    """The page's sections: doses, then models, then caches; for what there is nothing of, the command that makes it."""
    taken: list[str] = []
    sections = [_of_doses(doses, _name(f"doses {doses.base}", taken)) for doses in found.doses]
    sections += [_of_model(m, _name(f"model {m.model.label}", taken)) for m in found.measured]
    sections += [_of_caches(s, _name(f"cache {s.model}", taken), list(found.studies)) for s in found.caches]
    return sections + _missing(found)


def _name(text: str, taken: list[str]) -> str:
    """A name of letters, digits and hyphens that no other section has."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = next(n for i in range(1, len(taken) + 2) if (n := plain if i == 1 else f"{plain}-{i}") not in taken)
    taken.append(name)
    return name


def _of_doses(doses: Doses, name: str) -> Section:
    said = tuple((doses.base, sentence) for sentence in dose_verdicts(doses))
    note = f"Unquantized perplexity {number(doses.ppl_base)} at every dose. The newest records of every recipe."
    if doses.unmeasured:
        reasons = dict.fromkeys(f"{r.method} {r.status}, {r.reason or 'no reason given'}" for r in doses.unmeasured)
        note += f" {len(doses.unmeasured)} without a result: {'; '.join(reasons)}."
    return Section(page=_PAGE, name=name, model=doses.base, heading=f"Doses of outliers, {doses.base}", note=note,
                   plots=(doses_plot(doses),), verdicts={"doses": said})  # fmt: skip


def _of_model(found: Measured, name: str) -> Section:
    label = found.model.label
    sentences = {"layers": outlier_verdict(found), "alpha": smoothing_verdict(found),
                 "salience": salience_verdict(found)}  # fmt: skip
    return Section(
        page=_PAGE, name=name, model=label, heading=f"Inputs and weights of {label}",
        note=f"{found.model.name}, model hash {found.model.sha256[:16]}.", plots=tuple(measured_plots(found)),
        verdicts={key: ((label, sentence),) for key, sentence in sentences.items() if sentence},
    )  # fmt: skip


def _of_caches(study: Study, name: str, studies: list[Study]) -> Section:
    title = heading(study, studies)
    note = f"Model hash {study.model_sha256[:16]}. The newest records of every recipe, averaged over seeds."
    return Section(page=_PAGE, name=name, model=title, heading=f"Caches of {title}", note=note,
                   plots=(caches_plot(study),))  # fmt: skip


def _missing(found: Coordinates) -> list[Section]:
    """A section without figures for each question that the store has no rows on."""
    asked = (
        (found.doses, "doses", "Doses of outliers", "bitfrontier outliers reference --doses"),
        (found.measured, "model", "Inputs and weights", "bitfrontier outliers reference"),
        (found.caches, "cache", "Caches", "bitfrontier run reference --methods kivi,kvquant --bits 2,4"),
    )
    return [Section(page=_PAGE, name=f"no-{name}", model="", heading=title, plots=(), missing=(command,),
                    note="The store has nothing on this. What makes it, with this store as --store:")
            for there, name, title, command in asked if not there]  # fmt: skip


def render_coordinates(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)
