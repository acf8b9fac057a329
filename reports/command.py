"""The subcommand `bitfrontier report`: checks its input, makes everything in memory, and only then writes."""

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click

from reports import (
    adapters_page,
    coordinates_page,
    entropy_page,
    kernels_page,
    reasoning_page,
    scaling_page,
    theory_page,
    training_page,
)
from reports.adapters import Adapted, read_adapters
from reports.adapters_forgetting import Forgetting, read_forgetting
from reports.adapters_memory import Held, read_memory
from reports.adapters_page import draw_adapters, render_adapters
from reports.coordinates import Coordinates, is_dose, read_coordinates
from reports.coordinates_page import draw_coordinates, render_coordinates
from reports.entropy import Entropy, read_entropy
from reports.entropy_page import draw_entropy, render_entropy
from reports.figures import csv_text, pdf, svg
from reports.frontier import Study, studies
from reports.kernels import newest, read_kernels
from reports.kernels_page import Shown, draw_kernels, render_kernels
from reports.page import Drawn, draw, render
from reports.reasoning import Chain, read_reasoning
from reports.reasoning_page import draw_reasoning, render_reasoning
from reports.scaling import Family, read_scaling
from reports.scaling_page import draw_scaling_sections, render_scaling
from reports.sections import Section
from reports.theory import Theory, read_theory
from reports.theory_page import draw_theory, render_theory
from reports.training import Trained, read_training
from reports.training_page import draw_training, render_training
from suite.rows import ScalingRow
from suite.store import SpeedRow, Store

Branches = tuple[list[Adapted], list[Forgetting], list[Held]]  # what the page of adapters is of


@click.command()
@click.option("--store", "store", type=click.Path(path_type=Path), default=Path("bitfrontier.db"), show_default=True,
              help="The result store to read.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("report"), show_default=True,
              help="The folder to write to, made if there is none.")  # fmt: skip
@click.option("--figures", is_flag=True, help="Write every figure as SVG and PDF too, and the CSV behind it.")
def report(store: Path, out: Path, figures: bool) -> None:
    """Make self-contained HTML pages of the results in a store.

    report.html has its records, entropy.html its codes if there are any, coordinates.html outliers and what they cost,
    scaling.html a family of models in several sizes and the law of their losses, reasoning.html what models make of
    problems of several steps, training.html what quantization costs models that were trained with it, over their
    controls, adapters.html the same of adapters on quantized weights, and what trainings hold in memory; theory.html
    what follows from theorems beside what was measured, and the ledger of claims; kernels.html what has been measured
    of the kernels, how fast the store's models generate, and what bandwidth allows.
    """
    check_folder(out, ["report.html", entropy_page.PAGE, coordinates_page.PAGE, kernels_page.PAGE,
                       scaling_page.PAGE, reasoning_page.PAGE, training_page.PAGE, adapters_page.PAGE,
                       theory_page.PAGE])  # fmt: skip
    if figures:
        check_folder(out / "figures")
    found = read(store)
    drawn = draw(found.studies)
    coded = draw_entropy(found.entropy, drawn) if found.entropy.anything else []
    turned = draw_coordinates(found.coordinates) if found.coordinates.anything else []
    scaled = draw_scaling_sections(found.families)
    reasoned = draw_reasoning(found.chains)
    trained = draw_training(found.trained)
    branched = draw_adapters(*found.branches)
    proved = draw_theory(found.theory)
    timed = replace(read_kernels(), speeds=found.speeds)
    kernels = draw_kernels(timed)
    there = {entropy_page.PAGE: coded, coordinates_page.PAGE: turned, kernels_page.PAGE: True,
             scaling_page.PAGE: scaled, reasoning_page.PAGE: reasoned,
             training_page.PAGE: trained, adapters_page.PAGE: branched, theory_page.PAGE: proved}  # fmt: skip
    beside = [page for page, shown in there.items() if shown]
    made = {out / "report.html": render(drawn, beside=beside).encode()} if drawn else {}
    if coded:
        made[out / entropy_page.PAGE] = render_entropy(coded, beside_report=bool(drawn)).encode()
    if turned:
        made[out / coordinates_page.PAGE] = render_coordinates(turned, beside_report=bool(drawn)).encode()
    if scaled:
        made[out / scaling_page.PAGE] = render_scaling(scaled, beside_report=bool(drawn)).encode()
    if reasoned:
        made[out / reasoning_page.PAGE] = render_reasoning(reasoned, beside_report=bool(drawn)).encode()
    if trained:
        made[out / training_page.PAGE] = render_training(trained, beside_report=bool(drawn)).encode()
    if branched:
        made[out / adapters_page.PAGE] = render_adapters(branched, beside_report=bool(drawn)).encode()
    if proved:
        made[out / theory_page.PAGE] = render_theory(proved, found.theory, beside_report=bool(drawn)).encode()
    made[out / kernels_page.PAGE] = render_kernels(timed, kernels, beside_report=bool(drawn)).encode()
    if figures:
        files = figure_files(drawn, coded + turned + scaled + reasoned + trained + branched + proved, kernels)
        made |= {out / "figures" / name: content for name, content in files.items()}
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        click.echo(path)


class Contents(NamedTuple):
    """What a store has for each of the pages."""

    studies: list[Study]
    entropy: Entropy
    coordinates: Coordinates
    speeds: tuple[SpeedRow, ...]
    families: tuple[Family, ...]
    chains: list[Chain]
    branches: Branches
    trained: list[Trained]
    theory: Theory


def read(path: Path) -> Contents:
    """What the store at `path` has.

    Models that are there for curves of doses are seen there alone, on the page of coordinates, and those of a scaling
    study on its own page. Raises `ValueError` if there is no store, or nothing in it.
    """
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty, expected a store with records")
    with Store(path, create=False) as store:
        try:
            every = studies(store)
            scaled = {row.model_sha256 for row in store.rows(ScalingRow)}
            found = [s for s in every if not is_dose(s.model) and s.model_sha256 not in scaled]
            contents = Contents(
                studies=found, entropy=read_entropy(store, found), coordinates=read_coordinates(store, every),
                speeds=newest(store.rows(SpeedRow)), families=read_scaling(store), chains=read_reasoning(store),
                branches=(read_adapters(store, found), read_forgetting(store, found), read_memory(store)),
                trained=read_training(store, found), theory=read_theory(store),
            )  # fmt: skip
        except sqlite3.Error as error:
            raise ValueError(f"cannot read the store at {path}: {error}") from error
    if not any((found, contents.entropy.anything, contents.coordinates.anything, contents.speeds, contents.families,
                contents.chains, contents.branches[2], contents.theory.anything)):  # fmt: skip
        raise ValueError(f"{path} has no records, expected at least one: `bitfrontier run` makes them")
    return contents


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


def figure_files(drawn: Drawn, sections: Sequence[Section], kernels: Shown | None = None) -> dict[str, bytes]:
    """Name and content of the files of all figures."""
    made: dict[str, bytes] = {}
    named = [(name, plots) for _, name, plots in drawn] + [(s.stem, s.plots) for s in sections]
    named += [] if kernels is None else [(stem, [plot]) for stem, plot in kernels.plots]
    for name, plots in named:
        for plot in plots:
            stem = f"{name}-{plot.key}"
            made[f"{stem}.svg"] = svg(plot, stem).encode()
            made[f"{stem}.pdf"] = pdf(plot)
            made[f"{stem}.csv"] = csv_text(plot).encode()
    return made
