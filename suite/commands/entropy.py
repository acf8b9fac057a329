"""The subcommand `bitfrontier entropy`: what a model's weights take under one coder after the other, into a store."""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from suite.commands.allocate import integers

if TYPE_CHECKING:
    from suite.entropy import Format, Origin
    from suite.store import CodedSize, WeightShape

_METHODS = "rtn,fp4,nf4,lloyd-max,mxfp4,nvfp4,q4_k,mxint8"
_GROUPS = "32,64,128,256,512,1024,row,tensor"
_CODERS = ("fixed", "entropy", "huffman", "ans", "exponents", "zstd", "gzip", "lzma")


def _groups(_: click.Context, __: click.Parameter, value: str) -> list[int | str]:
    found: list[int | str] = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        if part not in ("row", "tensor") and not (part.isdecimal() and int(part) > 0):
            raise click.BadParameter(f"{part!r} is not a positive integer, row or tensor")
        found.append(part if part in ("row", "tensor") else int(part))
    return found


@click.command()
@click.argument("model", default="reference")
@click.option("--methods", default=_METHODS, show_default=True, help="Methods that need nothing but the weights.")
@click.option("--bits", default="4", show_default=True, callback=integers, help="Widths, for methods that take them.")
@click.option("--groups", default=_GROUPS, show_default=True, callback=_groups,
              help="Groups to try beside a method's own, where its format leaves them open.")  # fmt: skip
@click.option("--name", help="What to call the model in the store; as it was given by default.")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=Path("bitfrontier.db"),
              show_default=True)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="Processes; the number of cores by default.")
def entropy(
    model: str, methods: str, bits: tuple[int, ...], groups: list[int | str], name: str | None, store: Path,
    jobs: int | None,
) -> None:  # fmt: skip
    """Code the weights of MODEL's decoder blocks, as they are and quantized, with every coder; nothing is evaluated.

    MODEL is a directory in Hugging Face format, a hub id, `reference`, or `reference+outliers`. `bitfrontier report`
    draws what it finds.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from datetime import UTC, datetime

    from suite.commands import tables
    from suite.entropy import Origin, formats
    from suite.environment import code_version, environment_key
    from suite.models.checkpoint import load_model
    from suite.processes import spread
    from suite.store import Store, holds_store

    chosen = formats([part.strip() for part in methods.split(",") if part.strip()], bits, groups)  # type: ignore[arg-type]
    checkpoint = load_model(model)
    holds_store(store)  # refuses what is none
    origin = Origin(model=name or checkpoint.name, model_sha256=checkpoint.sha256, code=code_version(),
                    env=environment_key(1), command=shlex.join(["bitfrontier", *sys.argv[1:]]),
                    started=datetime.now(UTC).isoformat(timespec="milliseconds"))  # fmt: skip
    sizes: list[CodedSize] = []
    shapes: list[WeightShape] = []
    with tables.ProgressBar() as bar:
        bar.start(checkpoint.n_blocks)
        task = partial(_of_block, model, chosen, origin)
        jobs = jobs or os.cpu_count() or 1
        for done, (found, shaped) in enumerate(spread(task, range(checkpoint.n_blocks), jobs, died=_died), 1):
            sizes += found
            shapes += shaped
            bar.to_block(done)
    with Store(store) as opened:
        opened.put_rows(*sizes)
        opened.put_shapes(shapes)
    print_sizes(sizes)


def _of_block(
    model: str, chosen: "list[Format]", origin: "Origin", i: int
) -> "tuple[list[CodedSize], list[WeightShape]]":
    import torch

    from suite.bench import open_model
    from suite.entropy import coded_sizes, weight_shapes

    torch.set_num_threads(1)
    checkpoint = open_model(model)
    return coded_sizes(checkpoint, i, chosen, origin), weight_shapes(checkpoint, i, origin)


def _died(i: int) -> "tuple[list[CodedSize], list[WeightShape]]":
    raise ValueError(f"the process coding block {i} died")


def print_sizes(sizes: "list[CodedSize]") -> None:
    """Bits per weight of all blocks, a line for each format, a column for each coder."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="bits per weight, everything included")
    for heading in ("format", "bits", "group", *_CODERS):
        table.add_column(heading, justify="left" if heading == "format" else "right", no_wrap=True)
    totals: dict[tuple[str, float, str, str], dict[str, list[float]]] = {}
    for size in sizes:
        row = totals.setdefault((size.format, size.bits, size.group, size.recipe), {})
        pair = row.setdefault(size.coder, [0.0, 0.0])
        pair[0] += size.n_bits
        pair[1] += size.n_weights
    for (form, bits, group, _), row in totals.items():
        cells = (f"{row[coder][0] / row[coder][1]:.3f}" if coder in row else "" for coder in _CODERS)
        table.add_row(form, f"{bits:g}", group, *cells)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
