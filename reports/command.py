"""The subcommand `bitfrontier report`: checks its input, makes everything in memory, and only then writes."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from reports import (
    adapters_page,
    claims_page,
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
from reports.claims import Ledger, read_claims
from reports.claims_page import draw_claims, render_claims
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
from reports.theory import Measured, read_theory
from reports.theory_page import draw_theory, render_theory
from reports.training import Trained, read_training
from reports.training_page import draw_training, render_training
from suite.rows import ScalingRow
from suite.store import SpeedRow, Store

MODULES = (entropy_page, coordinates_page, scaling_page, reasoning_page, training_page, adapters_page, theory_page,
           claims_page, kernels_page)  # fmt: skip
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
    what follows from theorems beside what was measured; claims.html the field's claims with their verdicts;
    kernels.html what has been measured of the kernels, how fast the store's models generate, and what bandwidth allows.
    """
    check_folder(out, ["report.html", *(module.PAGE for module in MODULES)])
    if figures:
        check_folder(out / "figures")
    found = read(store)
    drawn, timed = draw(found.studies), replace(read_kernels(), speeds=found.speeds)
    kernels = draw_kernels(timed)
    parts = {page: part for page, part in sections(found, drawn).items() if part.sections}
    links = {module.PAGE: module.LINK for module in MODULES if module.PAGE in parts or module is kernels_page}
    made = {out / "report.html": render(drawn, beside=links).encode()} if drawn else {}
    for page, part in parts.items():
        made[out / page] = part.render(part.sections, beside_report=bool(drawn)).encode()
    made[out / kernels_page.PAGE] = render_kernels(timed, kernels, beside_report=bool(drawn)).encode()
    if figures:
        every = [section for part in parts.values() for section in part.sections]
        made |= {out / "figures" / name: content for name, content in figure_files(drawn, every, kernels).items()}
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        click.echo(path)


class Part(NamedTuple):
    """A page's sections, and what makes its HTML of them."""

    sections: list[Section]
    render: Callable[..., str]


def sections(found: "Contents", drawn: Drawn) -> dict[str, Part]:
    """What every page of figures holds, by its name; a page without sections is not made."""
    return {
        entropy_page.PAGE: Part(draw_entropy(found.entropy, drawn) if found.entropy.anything else [], render_entropy),
        coordinates_page.PAGE: Part(draw_coordinates(found.coordinates) if found.coordinates.anything else [],
                                    render_coordinates),
        scaling_page.PAGE: Part(draw_scaling_sections(found.families), render_scaling),
        reasoning_page.PAGE: Part(draw_reasoning(found.chains), render_reasoning),
        training_page.PAGE: Part(draw_training(found.trained), render_training),
        adapters_page.PAGE: Part(draw_adapters(*found.branches), render_adapters),
        theory_page.PAGE: Part(draw_theory(found.measured), render_theory),
        claims_page.PAGE: Part(draw_claims(found.ledger), partial(render_claims, ledger=found.ledger)),
    }  # fmt: skip


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
    measured: list[Measured]
    ledger: Ledger


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
                trained=read_training(store, found), measured=read_theory(store), ledger=read_claims(store),
            )  # fmt: skip
        except sqlite3.Error as error:
            raise ValueError(f"cannot read the store at {path}: {error}") from error
    if not any((found, contents.entropy.anything, contents.coordinates.anything, contents.speeds, contents.families,
                contents.chains, contents.branches[2], contents.measured, contents.ledger.judged)):  # fmt: skip
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
