"""What a cell has forgotten: its losses on another text than it is evaluated on, over those of the model it began as.

Adapting a model to one text costs it some of another. Gain and cost are told in the same way: the cell, and its
control, against the unquantized model before any training, paired by token on the same tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from suite.bench import Bench, PackedBench
from suite.calibration import last_hidden
from suite.evaluation import Comparison, Ended, clustered_se, compare
from suite.models.checkpoint import Checkpoint
from suite.store import Record, RetentionRow
from suite.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Losses:
    """Negative log-likelihoods of one text's tokens, (rows, length - 1), in nats; `clusters` (rows,).

    Those of a cell, of the unquantized model before any training, and of the cell's control, where there are these.
    """

    cell: np.ndarray
    base: np.ndarray | None
    control: np.ndarray | None
    clusters: np.ndarray

    def rise(self, of: np.ndarray | None, over: np.ndarray | None) -> tuple[float | None, float | None]:
        """The mean of one loss over another and its standard error, paired by token; None where one is not there."""
        if of is None or over is None:
            return None, None
        return float((of - over).mean()), clustered_se(of - over, self.clusters)


def retention_row(
    bench: Bench | PackedBench, record: Record, compared: Comparison, ended: Ended, control: Checkpoint | None
) -> RetentionRow:
    """What the cell of `record` has gained on the text it is evaluated on, and forgotten of the bench's other text.

    `compared` are its losses on the first, and `ended` is where its model left the second.
    """
    assert bench.retention is not None
    base = bench.base if isinstance(bench, PackedBench) else bench.checkpoint
    threads, text = bench.setting.threads, bench.retention
    gained = Losses(compared.nll, None if compared.paired is None else compared.paired.nll,
                    _losses(control, bench.evaluation, threads), bench.evaluation.clusters)  # fmt: skip
    kept = Losses(compare(ended, None, text.tensor()).nll, _losses(base, text, threads),
                  _losses(control, text, threads), text.clusters)  # fmt: skip
    return row_of(record, str(bench.setting.retention), text.sha256, gained, kept)


def row_of(record: Record, text: str, text_sha256: str, gained: Losses, kept: Losses) -> RetentionRow:
    """The row of a cell's losses on the text it was evaluated on, `gained`, and on the other, `kept`."""
    gains, gains_control = gained.rise(gained.base, gained.cell), gained.rise(gained.base, gained.control)
    forgets, forgets_control = kept.rise(kept.cell, kept.base), kept.rise(kept.control, kept.base)
    excess = kept.rise(kept.cell, kept.control)
    return RetentionRow(
        cell=record.cell, code=record.code, env=record.env, text=text, text_sha256=text_sha256, tokens=kept.cell.size,
        ppl=float(np.exp(kept.cell.mean())), ppl_base=_perplexity(kept.base), ppl_control=_perplexity(kept.control),
        gained_nats=gains[0], gained_se=gains[1],
        gained_control_nats=gains_control[0], gained_control_se=gains_control[1],
        forgotten_nats=forgets[0], forgotten_se=forgets[1],
        forgotten_control_nats=forgets_control[0], forgotten_control_se=forgets_control[1],
        excess_nats=excess[0], excess_se=excess[1],
    )  # fmt: skip


def _perplexity(nll: np.ndarray | None) -> float | None:
    return None if nll is None else float(np.exp(nll.mean()))


def _losses(checkpoint: Checkpoint | None, tokens: Tokens, threads: int) -> np.ndarray | None:
    """Of a model that is not quantized, as (rows, length - 1); None without one."""
    if checkpoint is None:
        return None
    hidden = torch.from_numpy(last_hidden(checkpoint, tokens, threads))
    return compare(Ended(checkpoint, hidden), None, tokens.tensor()).nll
