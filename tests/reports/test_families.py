"""The names that figures go by are those of the methods."""

from reports.frontier import DATA_FREE, FAMILIES, FEEDBACK
from suite.methods import METHODS
from suite.rounding import Feedback, Qronos


def test_every_method_is_of_one_family():
    listed = [name for family in FAMILIES.values() for name in family]
    assert sorted(listed) == sorted(m.name for m in METHODS)


def test_methods_are_sorted_by_what_they_minimize():
    of_weights = [m for m in METHODS if "weights" in m.targets]
    assert set(DATA_FREE) == {m.name for m in of_weights if m.needs == "nothing"}
    widest = {m.name: m.recipe(bits=m.bits[-1]) for m in of_weights}
    roundings = {name: recipe.weights.rounding for name, recipe in widest.items()}
    fed_back = {name for name, rounding in roundings.items()
                if isinstance(getattr(rounding, "feedback", rounding), Feedback | Qronos)}  # fmt: skip
    assert set(FEEDBACK) == fed_back
