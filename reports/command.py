"""The subcommand `bitfrontier report`: checks its input, makes everything in memory, and only then writes."""

import os
import sqlite3
from pathlib import Path

import click

from reports.figures import csv_text, pdf, svg
from reports.frontier import Study, studies
from reports.page import Drawn, draw, render
from suite.store import Store


@click.command()
@click.option("--store", "store", type=click.Path(path_type=Path), default=Path("bitfrontier.db"), show_default=True,
              help="The result store to read.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("report"), show_default=True,
              help="The folder to write to, made if there is none.")  # fmt: skip
@click.option("--figures", is_flag=True, help="Write every figure as SVG and PDF too, and the CSV behind it.")
def report(store: Path, out: Path, figures: bool) -> None:
    """Make a self-contained HTML page of the results in a store."""
    check_folder(out, ["report.html"])
    if figures:
        check_folder(out / "figures")
    drawn = draw(read(store))
    made = {out / "report.html": render(drawn).encode()}
    if figures:
        made |= {out / "figures" / name: content for name, content in figure_files(drawn).items()}
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        click.echo(path)


def read(path: Path) -> list[Study]:
    """The studies of the store at `path`; `ValueError` if there is no store or nothing in it."""
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty, expected a store with records")
    with Store(path, create=False) as store:
        try:
            found = studies(store)
        except sqlite3.Error as error:
            raise ValueError(f"cannot read the store at {path}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no records, expected at least one: `bitfrontier run` makes them")
    return found


def check_folder(folder: Path, names: tuple[str, ...] | list[str] = ()) -> None:
    """`ValueError` unless files of these names could be written in `folder`, made if need be."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
    if not existing.is_dir():
        raise ValueError(f"cannot write to the folder {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to the folder {folder}: no permission to write in {existing}")
    for name in names:
        if (folder / name).is_dir():
            raise ValueError(f"cannot write the file {folder / name}: it is a folder")


def figure_files(drawn: Drawn) -> dict[str, bytes]:
    """Name and content of the files of all figures."""
    made: dict[str, bytes] = {}
    for _, name, plots in drawn:
        for plot in plots:
            stem = f"{name}-{plot.key}"
            made[f"{stem}.svg"] = svg(plot, stem).encode()
            made[f"{stem}.pdf"] = pdf(plot)
            made[f"{stem}.csv"] = csv_text(plot).encode()
    return made
