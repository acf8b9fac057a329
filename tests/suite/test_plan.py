"""What a run is made of: cells and their ids, picks and their names."""

from dataclasses import replace

import pytest

from suite.cells import TIERS, Cell, Pick, name_of, picks
from suite.engine import Setting, plan
from suite.grids import Integer
from suite.methods import METHODS, method_named
from suite.recipe import Recipe, parse, with_activations
from suite.store import Store

OF_WEIGHTS = [m for m in METHODS if "weights" in m.targets]
UNIFORM = [m for m in OF_WEIGHTS if 4 in m.bits and not m.fixed and isinstance(m.recipe(bits=4).weights.grid, Integer)]
CELL = Cell(model_sha256="m", recipe="Recipe(weights=Target(Integer(bits=4)))", bits=4, seed=0,
            calibration_sha256="c", evaluation_sha256="e", length=256)  # fmt: skip


def test_the_id_of_a_cell_is_the_same_in_every_version():
    # stores are compared across versions by this id: changing it loses every comparison with the past
    assert CELL.id == "e7dc2e1d95b51c83cb9d2eea3209636b9dce192c7fbd852c9bb3112902295512"
    assert CELL.data_sha256 == "11e1ac46eb644f8c3de16672b23674b71af398996c42af75fd512c0b6104b456"


@pytest.mark.parametrize(
    "changed",
    [{"model_sha256": "n"}, {"recipe": "Recipe()"}, {"bits": 3}, {"bits": None}, {"seed": 1},
     {"calibration_sha256": "d"}, {"evaluation_sha256": "f"}, {"length": 128}],
)  # fmt: skip
def test_the_id_follows_from_every_part_of_the_description(changed):
    assert replace(CELL, **changed).id != CELL.id


def test_picks_are_every_method_at_every_width_once():
    chosen = picks([method_named("rtn"), method_named("gptq")], [4, 2, 4])
    assert [(pick.method, pick.bits) for pick in chosen] == [("rtn", 2), ("rtn", 4), ("gptq", 2), ("gptq", 4)]


def test_a_method_is_there_at_those_widths_that_it_has():
    for strict in (True, False):
        chosen = picks([method_named("rtn"), method_named("wanda-24")], [1, 4], strict=strict)
        assert [(pick.method, pick.bits) for pick in chosen] == [("rtn", 1), ("rtn", 4), ("wanda-24", 4)]


def test_a_method_of_none_of_the_widths_and_a_width_of_no_method_are_errors():
    with pytest.raises(ValueError, match="bits 1: wanda-24 takes 2 to 16"):
        picks([method_named("rtn"), method_named("wanda-24")], [1])
    with pytest.raises(ValueError, match=r"bits 1.58: rtn takes 1 to 8"):
        picks([method_named("rtn"), method_named("wanda-24")], [1.58, 4])
    loose = picks([method_named("rtn"), method_named("wanda-24")], [1], strict=False)
    assert [pick.method for pick in loose] == ["rtn"]


def test_a_fixed_format_is_picked_once_whatever_the_widths():
    chosen = picks([method_named("mxfp4"), method_named("q6_k")], [2, 8], group=64)
    assert [(pick.method, pick.bits) for pick in chosen] == [("mxfp4", 4), ("q6_k", 6)]


def test_a_recipe_that_a_method_already_gives_is_picked_once():
    rtn = method_named("rtn")
    same, other = rtn.recipe(bits=4), rtn.recipe(bits=4, group=64)
    chosen = picks([rtn], [4], [same, other, parse(str(other))])
    assert chosen == [Pick(method="rtn", bits=4, recipe=same), Pick(method="custom", bits=4, recipe=other)]


def test_the_group_is_that_of_every_method_of_uniform_integers_and_minus_one_is_a_whole_row():
    for pick in picks(UNIFORM, [4], group=32):
        assert pick.recipe.weights.grid.group == 32
    for pick in picks(UNIFORM, [4], group=-1):
        assert pick.recipe.weights.grid.group == "row"
    with pytest.raises(ValueError, match="group 0"):
        picks(METHODS, [4], group=0)


def test_a_method_without_groups_refuses_one_only_where_it_was_asked_for_by_name():
    ecsq = method_named("ecsq")
    with pytest.raises(ValueError, match="group 64: ecsq has no groups"):
        picks([ecsq], [4], group=64)
    assert picks([ecsq], [4], group=64, strict=False) == picks([ecsq], [4])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_recipe_is_named_after_the_method_whose_defaults_it_has(method):
    for bits in method.bits:
        assert name_of(method.recipe(bits=bits)) == method.name


@pytest.mark.parametrize("method", UNIFORM, ids=lambda method: method.name)
def test_a_recipe_of_other_groups_is_custom(method):
    assert name_of(method.recipe(bits=4, group=17)) == "custom"


def test_a_recipe_without_weights_is_custom_at_sixteen_bits():
    (pick,) = picks([], [], [Recipe()])
    assert (pick.method, pick.bits) == ("custom", 16)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_activation_bits_reach_every_method(method):
    bits = 4 if 4 in method.bits else method.bits[-1]
    (pick,) = picks([method], [bits], activation_bits=6)
    assert pick.recipe.activations.grid.bits == 6
    plain = method.recipe(bits=bits)
    assert replace(pick.recipe, activations=plain.activations) == plain  # and nothing else changes
    if plain.activations is not None:  # a method's own convention stays
        assert replace(pick.recipe.activations.grid, bits=8) == replace(plain.activations.grid, bits=8)
    assert with_activations(pick.recipe, 6) == pick.recipe


@pytest.mark.parametrize("bits", [0, 9, 17, -1])
def test_a_width_that_a_method_does_not_take_is_an_error(bits):
    with pytest.raises(ValueError, match=f"bits {bits}: rtn takes 1 to 8"):
        picks([method_named("rtn")], [bits])


def test_the_full_tier_has_three_seeds_and_all_tokens():
    assert TIERS["full"].seeds == (0, 1, 2) and TIERS["full"].evaluation_tokens is None
    assert TIERS["smoke"].seeds == TIERS["default"].seeds == (0,)


def test_a_plan_lists_every_pick_for_every_seed_and_writes_nothing(llama, inputs, tmp_path):
    setting = Setting(model=str(llama), **inputs)
    chosen = picks([method_named("rtn")], [2, 4])
    planned = plan(setting, chosen, (0, 1), tmp_path / "s.db")
    assert planned.todo == tuple((seed, pick) for seed in (0, 1) for pick in chosen) and planned.done == ()
    assert not list(tmp_path.iterdir())


def test_a_plan_takes_a_store_whose_making_was_interrupted_for_none(llama, inputs, tmp_path):
    (tmp_path / "s.db").touch()
    planned = plan(Setting(model=str(llama), **inputs), picks([method_named("rtn")], [4]), (0,), tmp_path / "s.db")
    assert len(planned.todo) == 1
    with Store(tmp_path / "s.db") as store:
        assert store.records() == []
