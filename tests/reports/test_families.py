"""The names that figures go by are those of the methods."""

import pytest

from reports.coordinates import width_of
from reports.frontier import DATA_FREE, FAMILIES, FEEDBACK, Point
from suite.methods import METHODS, method_named
from suite.recipe import with_activations
from suite.rounding import Additive, Descent, Feedback, GroupFeedback, Qronos, VectorFeedback

OUTPUT_ERROR = Feedback | Qronos | Descent | GroupFeedback | VectorFeedback | Additive


def test_every_method_is_of_one_family():
    listed = [name for family in FAMILIES.values() for name in family]
    assert sorted(listed) == sorted(m.name for m in METHODS)


def test_methods_are_sorted_by_what_they_minimize():
    of_weights = [m for m in METHODS if "weights" in m.targets and m.needs != "training"]
    assert set(DATA_FREE) == {m.name for m in of_weights if m.needs == "nothing"}
    widest = {m.name: m.recipe(bits=m.bits[-1]) for m in of_weights}
    roundings = {name: recipe.weights.rounding for name, recipe in widest.items()}
    fed_back = {name for name, rounding in roundings.items()
                if isinstance(getattr(rounding, "feedback", rounding), OUTPUT_ERROR)}  # fmt: skip
    assert set(FEEDBACK) == fed_back


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["rtn", "smoothquant", "quarot", "spinquant", "duquant"])
def test_widths_of_doses_are_read_from_real_recipes(name, bits):
    recipe = str(with_activations(method_named(name).recipe(bits=4), bits))
    assert width_of(Point(name, recipe, 4.0, ())) == f"W4A{bits}"
