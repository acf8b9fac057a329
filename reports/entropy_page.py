"""The entropy page: where the bits of weights and codes are, in one HTML file that needs nothing but itself."""

from reports.entropy import GAIN_BITS, Entropy, coding_verdict, gain_verdict, swept
from reports.entropy_figures import model_plots, study_plots
from reports.figures import Plot
from reports.frontier import Study
from reports.page import Drawn, heading
from reports.sections import Section, render_sections

PAGE = "entropy.html"
LINK = "Where the bits are: entropy and coding"


def draw_entropy(found: Entropy, drawn: Drawn) -> list[Section]:
    """The page's sections: all models of the entropy rows side by side, then the records of one study after another."""
    sections = []
    if plots := model_plots(found):
        gains = swept(found.totals)
        verdicts = tuple((m.label, gain_verdict([t for t in gains if t.model == m]))
                         for m in found.models if any(t.model == m and t.bits == GAIN_BITS for t in gains))  # fmt: skip
        note = "All linear layers of the decoder blocks together: " + "; ".join(
            f"{m.label} is {m.name}, model hash {m.sha256[:16]}" for m in found.models
        )
        sections.append(Section(page="entropy", name="", model="", heading="Weights and grids", note=f"{note}.",
                                plots=tuple(plots), verdicts={"gain": verdicts}))  # fmt: skip
    names = {id(study): name for study, name, _ in drawn}
    for study, shown in found.studies:
        if plots := study_plots(found, study, shown):
            sections.append(_of_study(study, names[id(study)], plots, [s for s, _ in found.studies]))
    return sections


def _of_study(study: Study, name: str, plots: list[Plot], studies: list[Study]) -> Section:
    note = f"Model hash {study.model_sha256[:16]}. The newest records of every recipe, averaged over seeds."
    title = heading(study, studies)
    return Section(page="entropy", name=name, model=title, heading=f"Records of {title}", note=note, plots=tuple(plots),
                   verdicts={"coded": ((title, coding_verdict(study)),)})  # fmt: skip


def render_entropy(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)
