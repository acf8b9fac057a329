"""The subcommand `bitfrontier table`: records as a table for a paper or a page."""

import sqlite3
from pathlib import Path

import click

from reports.frontier import Point, Study, studies
from reports.paper_tables import COLUMNS, NAMES, latex, markdown
from suite.store import Store


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(","))


@click.command()
@click.option("--store", type=click.Path(path_type=Path), default=Path("bitfrontier.db"), show_default=True)
@click.option("--model", help="Whose records; needed where the store has several models or evaluations.")
@click.option("--methods", callback=_names, help="Names, separated by commas; all by default.")
@click.option("--bits", callback=_names, help="Nominal widths, separated by commas; all by default.")
@click.option(
    "--columns", callback=_names, default=",".join(COLUMNS), show_default=True, help=f"Of {', '.join(NAMES)}."
)
@click.option("--sort", default="bpw", show_default=True, help="The column that rows are sorted by.")
@click.option("--best-per-bits", is_flag=True, help="Bold is the best of each width, not of the table.")
@click.option("--format", "kind", type=click.Choice(["markdown", "latex"]), default="markdown", show_default=True)
def table(
    store: Path, model: str | None, methods: tuple[str, ...] | None, bits: tuple[str, ...] | None,
    columns: tuple[str, ...], sort: str, best_per_bits: bool, kind: str,
) -> None:  # fmt: skip
    """Print a selection of a store's records as a table: best in bold, standard errors, digits as these allow."""
    study = _study(store, model)
    if sort not in NAMES:
        raise ValueError(f"sort {sort!r}: there are {', '.join(NAMES)}")
    widths = None if bits is None else {float(width) for width in bits}
    points = [point for point in study.points if (methods is None or point.method in methods)
              and (widths is None or point.bits in widths)]  # fmt: skip
    if not points:
        known = ", ".join(sorted({point.method for point in study.points}))
        raise ValueError(f"no finished record of these methods and widths; {study.model} has {known}")
    points.sort(key=lambda point: (_place(point, sort), point.method, point.recipe))
    click.echo((latex if kind == "latex" else markdown)(study, points, columns, best_per_bits=best_per_bits), nl=False)


def _place(point: Point, sort: str) -> float:
    value = float(len(point.records)) if sort == "seeds" else point.mean(sort)
    return value if value == value else float("inf")  # what was not measured comes last


def _study(path: Path, model: str | None) -> Study:
    """The one set of comparable records that is asked for; `ValueError` where there is none, or several."""
    with Store(path, create=False) as opened:
        try:
            found = [study for study in studies(opened) if model in (None, study.model)]
        except sqlite3.Error as error:
            raise ValueError(f"cannot read the store at {path}: {error}") from error
    if len(found) != 1:
        named = ", ".join(f"{s.model} (perplexity unquantized {s.ppl_base})" for s in found) or "nothing of it"
        raise ValueError(f"expected one model and evaluation, {path} has {named}")
    return found[0]
