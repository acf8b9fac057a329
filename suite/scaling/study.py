"""A scaling study: models of one form in several sizes, in full precision and trained at few bits on equal tokens.

A family is LLaMA-architecture models of four blocks, with the tokenizer and the text of the reference checkpoint, that
differ in width. At every *level*, a fixed number of tokens for each parameter, a size is trained

- in full precision on 90% of the tokens, and from there by ParetoQ at each width on the last 10%, which is the split
  that it found best (Liu et al. 2025, arXiv:2502.02631, section 2);
- its control, in full precision on the same 10%: the full-precision model of the level;
- from scratch on all of the tokens as BitNet b1.58, and as its control, in full precision in BitNet's architecture.

All of them are cells of the engine, whose models are stored with 16 bits for what is not quantized, and evaluated as
they are stored. Everything is taken up again where it was: a size's training in its directory, a quantized one's in the
cache, a finished cell in the store. Training rows are drawn anew for each training: what follows the full-precision
one sees some rows again.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from suite.bench import Bench, Setting, forget, open_bench
from suite.cells import TIERS, Pick, TierName
from suite.engine import Plan as Cells
from suite.engine import execute
from suite.environment import code_version
from suite.evaluation import Ended, clustered_se, compare
from suite.models.checkpoint import REFERENCE
from suite.processes import Step, Told
from suite.readback import PackedModel
from suite.reference.training import train_reference
from suite.scaling.family import Budget, ScalingCell, cells_of
from suite.store import Record, ScalingRow, Store
from suite.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Where a study is written, and what all of its cells share."""

    out: Path
    store: Path
    seed: int = 0
    threads: int = 2
    tier: TierName = "default"
    command: str = "python"

    def run(
        self,
        budgets: Sequence[Budget],
        bits: Sequence[float],
        on_step: Told = lambda step: None,
        on_done: Callable[[Record], None] = lambda record: None,
    ) -> list[Record]:
        """Train and measure every cell that has no row yet; the records of all, failed ones among them.

        `on_step` hears of every update.
        """
        torch.set_num_threads(self.threads)
        records = []
        for budget in budgets:
            model = self.base(budget, on_step)
            for cell in cells_of(budget, bits):
                record = self.measured(cell, model, on_step)
                records.append(record)
                on_done(record)
        return records

    def base(self, budget: Budget, on_step: Told = lambda step: None) -> Path:
        """The full-precision model of a size after nine tenths of its tokens, its weights stored in bfloat16.

        Raises `ValueError` where another plan has been there: another seed, or other rates of another version.
        """
        place = self.out / budget.name
        model, trained, plan = place / "model", place / "training", budget.plan(self.seed)
        if model.is_dir():
            if (trained / "plan.json").read_text() != json.dumps(asdict(plan), indent=1) + "\n":
                raise ValueError(f"{place}: there is a model of another plan, see {trained / 'plan.json'}")
            return model
        trained.mkdir(parents=True, exist_ok=True)
        if not (trained / "tokenizer.json").exists():
            shutil.copyfile(REFERENCE / "tokenizer.json", trained / "tokenizer.json")
        steps = plan.schedule.steps
        train_reference(trained, plan, lambda step, loss: on_step(Step(budget.name, step, steps, loss)))
        beside = place / "model-unfinished"
        AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16).save_pretrained(beside)
        for file in trained.glob("tokenizer*"):
            shutil.copyfile(file, beside / file.name)
        beside.rename(model)
        (trained / "training.pt").unlink()  # three times the weights, to go on from
        return model

    def measured(self, cell: ScalingCell, model: Path, on_step: Told = lambda step: None) -> Record:
        """The record of a cell, which is trained unless the store has its row."""
        limits = TIERS[self.tier]
        packed = self.out / cell.budget.name / cell.name
        setting = Setting(model=str(model), threads=self.threads, command=self.command, save=packed, alone=True,
                          calibration_tokens=limits.calibration_tokens,
                          evaluation_tokens=limits.evaluation_tokens)  # fmt: skip
        forget()
        bench = open_bench(setting, self.seed)
        assert isinstance(bench, Bench)
        pick = Pick(method=cell.method, bits=cell.bits, recipe=cell.recipe)
        with Store(self.store) as opened:
            key = bench.cell(pick).id, code_version(), setting.env
            done = opened.finished(*key)
            if done is not None and key in {(row.cell, row.code, row.env) for row in opened.rows(ScalingRow)}:
                return done
        (record,) = execute(Cells(setting, ((self.seed, pick),), ()), self.store, 1, on_step=on_step)
        if record.status == "ok":
            row = _row(cell, record, PackedModel.open(str(packed)), bench.evaluation)
            with Store(self.store) as opened:
                opened.put_rows(row)
        return record


def _row(cell: ScalingCell, record: Record, packed: PackedModel, tokens: Tokens) -> ScalingRow:
    nll = losses_of(packed, tokens)
    shape = cell.budget.shape
    assert record.model_bytes is not None
    return ScalingRow(
        cell=record.cell, code=record.code, env=record.env, method=cell.method, bits=cell.bits, hidden=shape.hidden,
        level=cell.budget.level, parameters=sum(p.numel() for p in packed.checkpoint.skeleton.parameters()),
        linear=shape.linear, tokens=cell.tokens, updates=cell.phase.updates, batch_rows=cell.phase.rows,
        rate=cell.phase.rate, loss_nats=float(nll.mean()), loss_se=clustered_se(nll, tokens.clusters),
        model_bytes=record.model_bytes, model_sha256=record.model_sha256, data_sha256=record.data_sha256,
        seed=record.seed, command=record.command, started=record.started,
    )  # fmt: skip


@torch.no_grad()
def losses_of(packed: PackedModel, tokens: Tokens) -> np.ndarray:
    """Negative log-likelihoods (rows, length - 1) in nats of a packed model, as it is stored."""
    checkpoint, rows = packed.checkpoint, tokens.tensor()
    hidden = checkpoint.embed(rows)
    for i in range(checkpoint.n_blocks):
        hidden = checkpoint.run(i, packed.block(i)[0], hidden)
    return compare(Ended(checkpoint, hidden), None, rows).nll
