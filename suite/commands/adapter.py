"""The subcommand `bitfrontier adapter`: the side branches of a packed model as files of their own."""

import os
from pathlib import Path

import click


@click.command()
@click.argument("packed")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def adapter(packed: str, out: Path) -> None:
    """Write the side branches of PACKED, which `run --save` wrote, into the directory OUT, in the format of `peft`.

    `run PACKED --adapter OUT` measures a packed model with them: this one, or another with the same codes, whatever
    branches it has. For `peft` the base is the dequantized model without branches, not the one that was quantized.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from suite.commands.main import check_writable
    from suite.learning.adapter_files import Adapter, check_adapter_place
    from suite.packed import holds_packed
    from suite.readback import PackedModel

    check_writable(out)
    if not holds_packed(Path(packed)):
        raise ValueError(f"{packed}: expected a directory that `run --save` wrote")
    check_adapter_place(out, packed)
    model = PackedModel.open(packed)
    found = Adapter.of(model)
    found.write(out, model)
    bits = sum(side.n_bits for side in found.branches.values())
    click.echo(f"{len(found.branches)} side branches of rank {found.rank}, {bits / 2**23:.3g} MiB, written to {out}; "
               f"SHA-256 {found.sha256[:12]}, of base {found.base_sha256[:12]}")  # fmt: skip
