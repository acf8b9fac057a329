"""`bitfrontier speed`: how fast a packed model generates."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from suite.store import SpeedRow


@click.command()
@click.argument("model", metavar="PACKED")
@click.option("--product", default="auto", show_default=True, help="What multiplies: auto measures; see below.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="The number of cores by default.")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the prompt.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens that follow it.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="How often models take turns.")
@click.option("--base", metavar="MODEL", help="The unquantized model, if it is not where it was.")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default="bitfrontier.db", show_default=True)
def speed(model: str, **options: Any) -> int:
    """Time a model that `run --save` wrote, generating text from its packed weights.

    The unquantized model, in bfloat16, takes turns with it. Products are int4pack (integers to 8 bits, in groups of
    32 or more), int8pack (8 bits, one scale a row), int4decoded and int8decoded (the same words, decoded for many
    tokens), kernel (on a GPU), dense, which holds all weights decoded and is not among what auto tries, and dequantize,
    which takes everything; where the one asked for cannot compute a layer, that layer is dequantized, and it says so.
    """
    from suite.runtime.record import measure_speed
    from suite.store import Store, holds_store

    options["threads"] = options["threads"] or os.cpu_count() or 1
    path = options.pop("store")
    holds_store(path)  # refuses what is none before anything is timed
    row = measure_speed(model, command=shlex.join(["bitfrontier", *sys.argv[1:]]), **options)
    with Store(path) as opened:
        opened.put_speed(row)
    click.echo(report(row))
    return 0


def report(row: "SpeedRow") -> str:
    """The figures in a few lines."""
    lines = [
        f"{row.method}, {row.device}, {row.threads} threads, {row.rounds} rounds, medians (quartiles)",
        f"decode   {row.decode:.4g} tokens/s ({row.decode_low:.4g} to {row.decode_high:.4g})",
        f"prefill  {row.prefill:.4g} tokens/s ({row.prefill_low:.4g} to {row.prefill_high:.4g}), {row.prompt} tokens",
    ]
    if row.base_decode is not None:
        lines.append(
            f"bfloat16 {row.base_decode:.4g} and {row.base_prefill:.4g} tokens/s: decode {row.decode_ratio:.3g} times "
            f"as fast ({row.decode_ratio_low:.3g} to {row.decode_ratio_high:.3g}), prefill {row.prefill_ratio:.3g}"
        )
    lines.append(
        f"roofline {row.roofline:.4g} tokens/s: {row.token_bytes / 1e6:.4g} MB a token at {row.bandwidth / 1e9:.3g} "
        f"GB/s, of which {row.decode / row.roofline:.2f} is reached"
    )
    found = json.loads(row.products)
    lines += [f"products {one['layers']} layers: {one['products']}"
              for one in found["taken"]]  # fmt: skip
    if row.overhead is not None:
        lines.append(f"overhead of packed layers beside their products: {100 * row.overhead:.1f}%")
    lines += [f"note     {note}" for note in json.loads(row.fallbacks)]
    return "\n".join(lines)
