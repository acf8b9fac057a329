"""The subcommand `bitfrontier tokens`: rows of tokens to adapt models to, and to measure them on, as a file."""

import json
import os
from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--part", type=click.Choice(["training", "calibration", "validation", "evaluation"]), default="training",
              show_default=True, help="Which files of a package; problems are trained on, or held out.")  # fmt: skip
@click.option("--model", default="reference", show_default=True, help="Whose tokens.")
@click.option("--length", type=int, help="Tokens in a row; min(2048, the model's context) by default.")
@click.option("--rows", type=click.IntRange(1),
              help="Of each source at most, spread evenly; of problems so many, 1024 by default.")  # fmt: skip
@click.option("--heading", metavar="REGEX", help="In .txt files a document begins at every line that this matches.")
@click.option("--against", metavar="TOKENS", help="Drop rows that share a run of 32 tokens with these.")
@click.option("--written", metavar="TOKENS", type=click.IntRange(1), help="Keep so many tokens of every row, and have "
              "the model write the rest.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Problems are drawn by it, and what "
              "is written.")  # fmt: skip
def tokens(
    out: Path, sources: tuple[str, ...], part: str, model: str, length: int | None, against: str | None,
    rows: int | None, heading: str | None, written: int | None, seed: int,
) -> None:  # fmt: skip
    """Write rows of tokens of every SOURCE into OUT, a .npz file that `run` takes wherever it takes tokens.

    SOURCE is a .txt file, which is whole in every part; the import name of an installed package, whose Python source is
    split by file, as the reference text is; or `reasoning`, problems with their steps written out. Rows of a file stay
    together in what `run` computes errors by. Evaluation rows that share a run of 32 tokens with the training part of
    the same packages are dropped; of .txt files say with --against what training is. With --written a model of few bits
    can learn from what the unquantized one writes, token by token drawn from its own distribution.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from dataclasses import asdict
    from typing import cast, get_args

    from suite.commands.main import check_writable
    from suite.models.checkpoint import load_model
    from suite.reference.text import Part
    from suite.texts import Wanted, collect, said
    from suite.tokens import load_tokens, save_tokens

    if out.suffix != ".npz":
        raise ValueError(f"{out}: expected a name that ends in .npz")
    check_writable(out)
    assert part in get_args(Part)
    checkpoint = load_model(model)
    length = length or min(2048, checkpoint.context)
    if not 2 <= length <= checkpoint.context:
        raise ValueError(f"length {length}: {checkpoint.name} takes rows of 2 to {checkpoint.context} tokens")
    wanted = Wanted(part=cast(Part, part), length=length, rows=rows, seed=seed, heading=heading)
    other = None if against is None else load_tokens(against, "training", checkpoint, length)
    found, texts = collect(list(sources), wanted, checkpoint, other)
    if written is not None:
        from suite.learning import teacher

        found = teacher.written(checkpoint, found, written, seed)
    about = {"wanted": asdict(wanted), "texts": [asdict(t) for t in texts], "written": written}
    save_tokens(out, found, checkpoint, json.dumps(about))
    for text in texts:
        click.echo(said(text, length))
    click.echo(f"{len(found.rows):,} rows written to {out}, SHA-256 {found.sha256}")
