"""Cells of the suite as experiments ask for them: what the store has is taken, and what it lacks is run and kept there.

They are cells that `bitfrontier run` makes, of the default tier unless another is asked for. Torch is imported when
cells are asked for.
"""

from collections.abc import Sequence
from math import log2
from typing import TYPE_CHECKING, Any

from suite.rows import Record, TrainingRow
from theory.experiment import Setting

if TYPE_CHECKING:
    from suite.recipe import Recipe


def recipe_of(method: str, bits: float | None = None, **options: Any) -> "Recipe":
    """The recipe of a published method at a width."""
    from suite.methods import method_named

    return method_named(method).recipe(bits=bits, **options)


def records(setting: Setting, recipes: "Sequence[Recipe]", **options: Any) -> list[Record]:
    """Records of `recipes`, in their order, at the setting's seed; `options` are those of `suite.run`.

    Raises `ValueError` for a cell that was skipped or has failed, with its reason.
    """
    from suite import run
    from suite.recipe import canonical

    found = run(setting.model, recipes=recipes, store=setting.store, seed=setting.seed,
                command="bitfrontier claims --run", **options)  # fmt: skip
    for record in found:
        if record.status != "ok":
            raise ValueError(f"{record.recipe}: {record.status}, {record.reason}")
    by_recipe = {record.recipe: record for record in found}
    return [by_recipe[canonical(recipe)] for recipe in recipes]


def trained(setting: Setting, recipes: "Sequence[Recipe]", **options: Any) -> list[tuple[Record, TrainingRow]]:
    """The same of recipes that train, each with how its model was trained against its control."""
    from suite.store import Store

    found = records(setting, recipes, **options)
    with Store(setting.store, create=False) as opened:
        rows = {(row.cell, row.code, row.env): row for row in opened.rows(TrainingRow)}
    return [(record, rows[record.cell, record.code, record.env]) for record in found]


def kl_of(record: Record) -> float:
    """KL in nats per token of a finished cell."""
    assert record.kl is not None
    return record.kl


def bpw_of(record: Record) -> float:
    """True bits per weight of a finished cell."""
    assert record.bpw is not None
    return record.bpw


def worth_bits(record: Record, other: Record) -> float:
    """How many bits per weight `record` saves against `other` at equal KL, where KL is as 4^-bits.

    Its own true bits count: log2 of the ratio of KLs over 2, and the difference of the bits.
    """
    return log2(kl_of(other) / kl_of(record)) / 2 + bpw_of(other) - bpw_of(record)
