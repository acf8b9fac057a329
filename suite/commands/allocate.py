"""The subcommand `bitfrontier allocate`: a recipe on standard output, what it is made of on standard error."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from suite.allocation.mixed_width import Allocation

_KINDS = ("output", "linearity", "fisher", "uniform")  # `suite.allocation.mixed_width.KINDS`, which would import torch


def integers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    """A list of integers like 2,3,4; none where the option is not given."""
    try:
        return () if value is None else tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of integers like 2,3,4") from error


@click.command()
@click.argument("model", default="reference")
@click.option("--budget", type=float, required=True, help="Bits per weight that all layers together may take.")
@click.option("--method", default="gptq", show_default=True, help="The method whose widths are chosen from.")
@click.option("--by", type=click.Choice(_KINDS), default="output", show_default=True, help="What to go by.")
@click.option("--bits", default="2,3,4,5,6,8", show_default=True, callback=integers, help="Widths to choose from.")
@click.option("--group", "groups", default="32,64,128", show_default=True, callback=integers,
              help="Groups to choose from; -1 is a whole row.")  # fmt: skip
@click.option("--embedding", "ends", metavar="BITS", callback=integers,
              help="Make embedding and head part of it, at one of these widths.")  # fmt: skip
@click.option("--calibration", metavar="TOKENS", help="A .txt, .npy or .npz file; the reference text by default.")
@click.option("--length", type=int, help="Tokens in a row; min(2048, the model's context) by default.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Recipe, layers and predictions, as a JSON object.")
def allocate(
    model: str, calibration: str | None, length: int | None, groups: tuple[int, ...], threads: int, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Choose every layer's width and group within a budget; print the recipe, for `bitfrontier run --recipe`.

    MODEL is a directory in Hugging Face format, a hub id, `reference`, or `reference+outliers`.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from suite.allocation import mixed_width
    from suite.cells import TIERS
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    torch.set_num_threads(threads)
    checkpoint = load_model(model)
    length = length or min(2048, checkpoint.context)
    if not 2 <= length <= checkpoint.context:
        raise ValueError(f"length {length}: {checkpoint.name} takes rows of 2 to {checkpoint.context} tokens")
    tokens = load_tokens(calibration, "calibration", checkpoint, length)
    tokens = tokens.draw(TIERS["default"].calibration_tokens, options["seed"])  # those of `bitfrontier run`
    layouts = ["row" if group == -1 else group for group in groups]
    found = mixed_width.allocate(checkpoint, tokens, groups=layouts, threads=threads, **options)
    if as_json:
        click.echo(json.dumps(as_dict(found), indent=1))
    else:
        _print_table(found)
        click.echo(str(found.recipe))


def as_dict(found: "Allocation") -> dict[str, Any]:
    """The allocation as JSON values."""
    layers = [asdict(x) | {"target": str(x.target)} for x in found.layers]
    return {"recipe": str(found.recipe), "by": found.by, "budget": found.budget, "bpw": found.bpw,
            "n_bytes": found.n_bytes, "predicted_nats": found.predicted_nats, "layers": layers}  # fmt: skip


def _print_table(found: "Allocation") -> None:
    """One line for each layer on standard error."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from suite.commands.tables import number

    table = Table(box=box.SIMPLE_HEAD)
    headings = ("layer", "shape", "bits", "group", "stored bits", "nmse", "slope (nats)", "±", "predicted (nats)")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for x in found.layers:
        slope = (None, None) if x.slope is None else (x.slope.nats, x.slope.se)
        table.add_row(x.layer, f"{x.shape[0]} x {x.shape[1]}", f"{x.target.grid.bits:g}", str(x.group_size),
                      str(x.n_bits), number(x.nmse), number(slope[0], 3), number(slope[1], 2),
                      number(x.predicted_nats, 3))  # fmt: skip
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=140)
    console.print(table)
    predicted = "" if found.predicted_nats is None else f", predicted KL {number(found.predicted_nats, 3)} nats"
    console.print(f"{found.by}: {found.bpw:.4f} of {found.budget:g} bits per weight, {found.n_bytes} bytes{predicted}")
