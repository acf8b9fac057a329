"""Trainings that claims of the nightly tier stand on, kept where the store is: a claim asked again trains nothing.

Their directories are named after the store and the seed: `bitfrontier.db` has `bitfrontier.trained/`.
"""

from pathlib import Path

from suite.rows import ReasoningRow, ScalingRow
from theory.experiment import Setting

STEPS = 6  # of the longest problems
_PROBLEMS = 500
_UPDATES, _RATE, _SHARE = 200, 1e-3, 0.5  # of the variant that learns to reason


def place(setting: Setting, name: str) -> Path:
    """Where the training `name` of this setting's store and seed is."""
    return setting.store.with_suffix(".trained") / f"{name}-{setting.seed}"


def reasoning(setting: Setting, widths: tuple[int, ...]) -> dict[int, ReasoningRow]:
    """Rows at problems of six steps of a variant of the reference model that learned them, rounded by GPTQ.

    By width; 16 is the variant itself. Half of each of its batches were problems, the other half text.
    """
    from suite.adaptation.training import Schedule
    from suite.reasoning.record import Task, measure_reasoning
    from suite.reference.training import ROWS, Plan, train_reference
    from theory.cells import recipe_of, records

    variant = place(setting, "reasoning")
    plan = Plan(seed=setting.seed, reasoning=_SHARE, start="reference",
                schedule=Schedule(steps=_UPDATES, rate=_RATE))  # fmt: skip
    train_reference(variant, plan)
    task = Task(problems=_PROBLEMS, steps=(STEPS,), seed=setting.seed, command="bitfrontier claims --run")
    found: dict[int, ReasoningRow] = {}
    for bits in widths:
        packed = place(setting, f"reasoning-gptq-{bits}")
        if not packed.is_dir():
            on_variant = Setting(model=str(variant), seed=setting.seed, store=setting.store)
            records(on_variant, [recipe_of("gptq", bits)], calibration=str(variant / ROWS), save=packed, jobs=1)
        for (row,) in measure_reasoning([str(packed)], task, base=str(variant)):
            found[16 if row.bits is None else bits] = row
    return found


def scaling(setting: Setting) -> list[ScalingRow]:
    """Rows of the scaling study as `bitfrontier scaling` runs it by default, at the setting's seed."""
    from suite.scaling.family import checked_bits, family
    from suite.scaling.study import Study
    from suite.store import Store

    study = Study(out=place(setting, "scaling"), store=setting.store, seed=setting.seed,
                  command="bitfrontier claims --run")  # fmt: skip
    records = study.run(family((64, 128, 256, 384), (0.1, 0.25)), checked_bits((1, 1.58, 2, 3, 4)))
    for record in records:
        if record.status != "ok":
            raise ValueError(f"{record.recipe}: {record.status}, {record.reason}")
    cells = {(record.cell, record.code, record.env) for record in records}
    with Store(setting.store, create=False) as opened:
        return [row for row in opened.rows(ScalingRow) if (row.cell, row.code, row.env) in cells]


def adaptation(setting: Setting) -> dict[str, str]:
    """Options of `suite.run` that adapt to another package's source: rows of numpy to train and to evaluate on."""
    import json

    from suite.models.checkpoint import load_model
    from suite.texts import Wanted, collect
    from suite.tokens import save_tokens

    checkpoint, found = load_model(setting.model), dict[str, str]()
    length = min(256, checkpoint.context)
    for part, rows in (("training", 1024), ("evaluation", 256)):
        out = setting.store.with_suffix(".trained") / f"numpy-{part}-{checkpoint.sha256[:12]}.npz"
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            rows_of, _ = collect(["numpy"], Wanted(part=part, length=length, rows=rows), checkpoint, None)  # type: ignore[arg-type]
            save_tokens(out, rows_of, checkpoint, json.dumps({"package": "numpy", "part": part}))
        found[part] = str(out)
    return found
