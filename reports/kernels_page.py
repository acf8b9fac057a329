"""The page of kernels: what they are meant to reach and do reach on a GPU, and what they compile to without one.

Beside what is measured, of kernels and of whole models, stand ceilings: closed forms, in a section of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from kernels.results import Agreement, Results
from kernels.targets import TARGETS, Verdict
from reports.entropy_figures import ORIGIN
from reports.figures import Plot, inline_svg
from reports.kernels import BENCH, COMPILE, Found, ShapeTable, compiled_rows, shape_tables, summary, verdicts
from reports.kernels_ceilings_figures import ceiling_plots
from reports.kernels_drawing import shares_plot
from reports.kernels_models import SPEED, models_plot
from reports.kernels_times import times_plot
from reports.page import page_template

PAGE = "kernels.html"
LINK = "How fast: kernels, whole models and their ceilings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A device's results as they are shown; `stem` begins the names of its files and identifiers."""

    stem: str
    results: Results
    verdicts: tuple[Verdict, ...]
    tables: tuple[ShapeTable, ...]
    plots: tuple[Plot, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The kernels that did not agree with their references somewhere, as sizes and types of activations."""
        return tuple(f"{a.kernel} at {a.size} {a.dtype}".strip() for a in self.results.agreements if not a.passed)

    @property
    def worst(self) -> Agreement | None:
        """The check that passed with the largest error."""
        passed = (a for a in self.results.agreements if a.passed)
        return max(passed, key=lambda a: a.excess or 0.0, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All figures of the page: the runs', that of whole models if any was timed, ceilings with sentences on claims."""

    runs: tuple[Run, ...]
    models: Plot | None
    ceilings: tuple[tuple[Plot, tuple[str, ...]], ...]

    @property
    def plots(self) -> Iterator[tuple[str, Plot]]:
        """Every figure, after what its files' names and identifiers begin with."""
        for run in self.runs:
            yield from ((run.stem, plot) for plot in run.plots)
        if self.models is not None:
            yield "kernels-models", self.models
        yield from (("kernels-ceilings", plot) for plot, _ in self.ceilings)


def draw_kernels(found: Found) -> Shown:
    """All figures."""
    runs = []
    for k, results in enumerate(found.results, 1):
        tables = shape_tables(results)
        plots = (shares_plot(tables, results.device), times_plot(tables, results.device))
        runs.append(Run(stem=f"kernels-{k}", results=results, verdicts=tuple(verdicts(results)), tables=tuple(tables),
                        plots=tuple(plot for plot in plots if plot)))  # fmt: skip
    return Shown(runs=tuple(runs), models=models_plot(found.speeds), ceilings=tuple(ceiling_plots(found)))


def render_kernels(found: Found, shown: Shown, *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same results; with a link to the report if there is one."""
    header, compiled = compiled_rows(found.compiled)
    runs, timed = shown.runs, found.speeds
    asked = [*(run.results.command for run in runs), *([] if runs else [BENCH]), COMPILE,
             *(row.command for row in timed), *([] if timed else [SPEED])]  # fmt: skip
    return page_template(PAGE).render(
        shown=shown,
        pictures={(stem, plot.key): Markup(inline_svg(plot, f"{stem}-{plot.key}")) for stem, plot in shown.plots},
        targets=list(enumerate(TARGETS)),
        said=[(run.results.device, summary(run.results)) for run in runs] or [("", summary(None))],
        compiled_header=header,
        compiled=compiled,
        commands={command: i for i, command in enumerate(dict.fromkeys(asked), 1)},
        origins={origin: i for i, origin in enumerate(dict.fromkeys(_origins(found, runs)), 1)},
        n_origin=len(ORIGIN),
        bench=BENCH,
        compile=COMPILE,
        speed=SPEED,
        beside_report=beside_report,
    )


def _origins(found: Found, runs: tuple[Run, ...]) -> list[tuple[str, str]]:
    """Code and environment of the runs, then of whole models, then of the offline compiler."""
    of_runs = [
        (", ".join(f"{name} {version}" for name, version in sorted(run.results.versions.items())),
         f"{run.results.device}, {run.results.when}")
        for run in runs
    ]  # fmt: skip
    compilers = sorted({row["triton"] for row in found.compiled if "triton" in row})
    of_models = [(row.code, row.env) for row in found.speeds]
    return [*of_runs, *of_models, *((f"triton {version}", "offline, without a GPU") for version in compilers)]
