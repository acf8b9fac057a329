"""The page of kernels: what they are meant to reach and do reach on a GPU, and what they compile to without one."""

from dataclasses import dataclass

from markupsafe import Markup

from kernels.results import Agreement, Results
from kernels.targets import TARGETS, Verdict
from reports.figures import Plot, inline_svg
from reports.kernels import BENCH, COMPILE, Found, ShapeTable, compiled_rows, shape_tables, summary, verdicts
from reports.kernels_drawing import shares_plot
from reports.page import page_template

PAGE = "kernels.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A device's results as they are shown; `stem` begins the names of its files and identifiers."""

    stem: str
    results: Results
    verdicts: tuple[Verdict, ...]
    tables: tuple[ShapeTable, ...]
    plot: Plot | None

    @property
    def failed(self) -> tuple[str, ...]:
        """The kernels that did not agree with their references somewhere, as sizes and types of activations."""
        return tuple(f"{a.kernel} at {a.size} {a.dtype}".strip() for a in self.results.agreements if not a.passed)

    @property
    def worst(self) -> Agreement | None:
        """The check that passed with the largest error."""
        passed = (a for a in self.results.agreements if a.passed)
        return max(passed, key=lambda a: a.excess or 0.0, default=None)


def draw_kernels(found: Found) -> list[Run]:
    """The runs with their figures."""
    runs = []
    for k, results in enumerate(found.results, 1):
        tables = shape_tables(results)
        plot = shares_plot(tables, results.device)
        runs.append(Run(stem=f"kernels-{k}", results=results, verdicts=tuple(verdicts(results)), tables=tuple(tables),
                        plot=plot))  # fmt: skip
    return runs


def render_kernels(found: Found, runs: list[Run], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same results; with a link to the report if there is one."""
    header, compiled = compiled_rows(found.compiled)
    commands = dict.fromkeys([*(run.results.command for run in runs), *([] if runs else [BENCH]), COMPILE])
    return page_template(PAGE).render(
        runs=runs,
        pictures={run.stem: Markup(inline_svg(run.plot, run.stem)) for run in runs if run.plot},
        targets=list(enumerate(TARGETS)),
        said=[(run.results.device, summary(run.results)) for run in runs] or [("", summary(None))],
        compiled_header=header,
        compiled=compiled,
        commands={command: i for i, command in enumerate(commands, 1)},
        origins={origin: i for i, origin in enumerate(_origins(found, runs), 1)},
        bench=BENCH,
        compile=COMPILE,
        beside_report=beside_report,
    )


def _origins(found: Found, runs: list[Run]) -> list[tuple[str, str]]:
    """Code and environment of the runs, then of the offline compiler."""
    of_runs = [
        (", ".join(f"{name} {version}" for name, version in sorted(run.results.versions.items())),
         f"{run.results.device}, {run.results.when}")
        for run in runs
    ]  # fmt: skip
    compilers = sorted({row["triton"] for row in found.compiled if "triton" in row})
    return [*of_runs, *((f"triton {version}", "offline, without a GPU") for version in compilers)]
