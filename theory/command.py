"""The subcommands `bitfrontier theory`, `claims` and `spectra`: experiments and verdicts into a store, and spectra."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from suite.findings import VerdictRow
    from theory.claims.frame import Claim
    from theory.experiment import Tier

_STORE = click.option("--store", type=click.Path(path_type=Path, dir_okay=False), default=Path("bitfrontier.db"),
                      show_default=True)  # fmt: skip
_MODEL = click.option("--model", default="reference", show_default=True, help="What those are measured on that look at "
                      "a model: as `bitfrontier run` takes it.")  # fmt: skip
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first one.")
_TIER = click.option("--tier", type=click.Choice(["quick", "full", "nightly"]), default="quick", show_default=True,
                     help="Also those that take minutes, or that have models to train.")  # fmt: skip
_EFFORT = click.option("--effort", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
                       help="How many draws, as a multiple of the quick tier's.")  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listing", is_flag=True, help="Name the experiments, and run none.")
@_TIER
@_MODEL
@_SEED
@_EFFORT
@_STORE
def theory(names: tuple[str, ...], listing: bool, tier: "Tier", store: Path, **options: Any) -> None:
    """Run the theory's experiments, all of a tier or those of these names, and say what each has found.

    Their figures are on the page that `bitfrontier report` makes of the store. What the store has of this code is not
    run again.
    """
    from rich.console import Console
    from rich.progress import track

    from theory.experiment import TIERS, Setting
    from theory.experiments import EXPERIMENTS

    chosen = _chosen(names, {experiment.name: experiment for experiment in EXPERIMENTS}, "experiment")
    if listing:
        for experiment in chosen:
            click.echo(f"{experiment.name}: {experiment.title} ({experiment.source})")
        return
    within = TIERS[: TIERS.index(tier) + 1]
    chosen = [experiment for experiment in chosen if names or experiment.tier in within]
    _prepare(store)
    from theory.running import as_point, points_of

    console, setting = Console(stderr=True), Setting(store=store, **options)
    for experiment in track(chosen, "experiments", console=console, transient=True,
                            disable=not console.is_interactive):  # fmt: skip
        rows = points_of(experiment, setting, _command())
        click.echo(f"{experiment.name} ({rows[0].seconds:.1f} s): {experiment.sentence([*map(as_point, rows)])}")


@click.command()
@click.argument("model", default="reference")
@click.option("--run", "running", is_flag=True, help="Measure those that the store has no verdict on.")
@click.option("--only", multiple=True, metavar="ID", help="O1, E7 ..; repeatable, all by default.")
@_TIER
@click.option("--json", "as_json", is_flag=True)
@_SEED
@_EFFORT
@_STORE
def claims(
    running: bool, only: tuple[str, ...], tier: "Tier", as_json: bool, store: Path, **options: Any
) -> None:  # fmt: skip
    """The ledger: the field's claims, the rules that decide them, and the verdicts in the store.

    A rule compares means over seeds, by intervals that are wide enough for all claims at once. MODEL is what those are
    measured on that look at a model, as `bitfrontier run` takes it. What `--only` names is run whatever its tier.
    """
    from suite.store import Store, holds_store
    from theory.claims.ledger import CLAIMS

    chosen = _chosen(only, {claim.id: claim for claim in CLAIMS}, "claim")
    verdicts: dict[str, VerdictRow] = {}
    if running:
        _prepare(store)
        from theory.experiment import TIERS, Setting
        from theory.running import verdict_of

        setting = Setting(store=store, **options)
        within = TIERS[: TIERS.index(tier) + 1]
        for claim in (claim for claim in chosen if only or claim.tier in within):
            verdicts[claim.id] = verdict_of(claim, setting, _command())
            if not as_json:
                click.echo(f"{claim.id}: {verdicts[claim.id].verdict}, {verdicts[claim.id].seconds:.1f} s", err=True)
    elif holds_store(store):
        from suite.findings import VerdictRow as Row

        with Store(store, create=False) as opened:
            for row in sorted(opened.rows(Row), key=lambda row: row.started):
                verdicts[row.claim] = row
    found = [_said(claim, verdicts.get(claim.id)) for claim in chosen]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _print(found, {claim.id: {part.quantity for part in claim.rule} for claim in chosen})


@click.command()
@click.argument("model", default="reference")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Of 256 tokens, or of the context.")
@click.option("--starts", type=click.IntRange(1), default=2, show_default=True, help="Random starts of a trace.")
@click.option("--steps", type=click.IntRange(1), default=7, show_default=True, help="Products for each start.")
@click.option("--extremes", type=click.Choice(["none", "blocks", "all"]), default="blocks", show_default=True,
              help="Of which matrices the largest and smallest eigenvalues are looked for.")  # fmt: skip
@click.option("--blocks", help="Numbers from 0, separated by commas; all by default.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="Those of single layers too.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each matrix, as they come.")
@_SEED
def spectra(
    model: str, rows: int, blocks: str | None, layers: bool, threads: int, as_json: bool, **how: Any
) -> None:  # fmt: skip
    """Spectra of MODEL, layer by layer and block by block: of inputs, Gauss-Newton matrix and Hessian of the loss.

    Traces of the two that are products alone have standard errors over random starts. Eigenvalues that were not looked
    for are the outermost nodes of a quadrature, and lie within the spectrum.
    """
    import torch

    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens
    from theory.spectra.model import How, spectra_of

    torch.set_num_threads(threads)
    checkpoint = load_model(model)
    length = min(256, checkpoint.context)
    tokens = load_tokens(None, "calibration", checkpoint, length).draw(rows * length, how["seed"])
    found = spectra_of(checkpoint, tokens, How(**how), blocks=_blocks(blocks, checkpoint.n_blocks), layers=layers)
    for spectrum in found:
        trace = spectrum.trace
        row = {"name": spectrum.name, "kind": spectrum.kind, "n": spectrum.density.n, "trace": trace.value,
               "trace_se": trace.se, "smallest": spectrum.smallest, "largest": spectrum.largest}  # fmt: skip
        said = f"{spectrum.name}, {spectrum.kind}: trace {trace.value:.4g} ± {trace.se:.2g}, eigenvalues from "
        click.echo(json.dumps(row) if as_json else f"{said}{spectrum.smallest:.4g} to {spectrum.largest:.4g}")


def _blocks(text: str | None, of: int) -> tuple[int, ...] | None:
    """Numbers of blocks in the order of the model; `ValueError` for what is none."""
    if text is None:
        return None
    found = sorted({int(part) for part in text.split(",") if part.strip().isdigit()})
    if not found or found[-1] >= of or len(found) != len(set(text.split(","))):
        raise ValueError(f"blocks {text!r}: expected numbers from 0 to {of - 1}, separated by commas")
    return tuple(found)


def _chosen(names: Sequence[str], known: dict[str, Any], what: str) -> list[Any]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what} {unknown[0]!r} is not known; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else [*known.values()]


def _prepare(store: Path) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from suite.commands.main import check_writable
    from suite.store import holds_store

    check_writable(store)
    holds_store(store)  # refuses what is none before anything is measured
    torch.set_num_threads(1)


def _command() -> str:
    return shlex.join(["bitfrontier", *sys.argv[1:]])


def _said(claim: "Claim", row: "VerdictRow | None") -> dict[str, Any]:
    """What `--json` says of a claim; of one that the store has no verdict on, that it was not run."""
    found = {"id": claim.id, "group": claim.group, "kind": claim.kind, "claim": claim.sentence, "rule": claim.rule_text}
    if row is None:
        return found | {"verdict": "not-run", "condition": "", "evidence": {}, "seeds": [], "seconds": None}
    return found | {"verdict": row.verdict, "condition": row.condition, "evidence": json.loads(row.evidence),
                    "seeds": json.loads(row.seeds), "confidence": row.confidence, "model": row.model,
                    "effort": row.effort, "seconds": row.seconds}  # fmt: skip


def _print(found: Sequence[dict[str, Any]], ruling: dict[str, set[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "claim", "verdict", "because"):
        table.add_column(name, no_wrap=name in ("id", "verdict"))
    for one in found:
        evidence = (f"{name} {e['mean']:.3g} ({e['low']:.3g} to {e['high']:.3g})" for name, e in
                    one["evidence"].items() if name in ruling[one["id"]])  # fmt: skip
        table.add_row(one["id"], one["claim"], one["verdict"], "; ".join(filter(None, (*evidence, one["condition"]))))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
