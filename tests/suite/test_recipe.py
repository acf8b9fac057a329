from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.grids import ClipRatio, Integer, OutputSearch, ShrinkSearch
from suite.grids.integer import CONVENTIONS
from suite.methods import METHODS, method_named
from suite.recipe import Recipe, Target, parse, with_activations
from suite.rounding import Feedback, HalfQuadratic, Nearest, Qronos, Stochastic
from suite.transforms import AwqScale, SmoothScale

positive = st.floats(1e-6, 1e6)
shares = st.floats(0, 1)
sources = st.lists(st.sampled_from(["norm", "linear"]), max_size=2).map(tuple)
searches = st.one_of(
    st.none(),
    st.builds(ShrinkSearch, norm=positive, steps=st.integers(1, 200), most=shares),
    st.builds(OutputSearch, steps=st.integers(1, 200), most=shares),
    st.builds(ClipRatio, st.sampled_from([1, 1.0, 0.9, 1e-6])),
)
grids = st.builds(
    Integer,
    bits=st.integers(1, 8),
    group=st.one_of(st.integers(1, 10**6), st.sampled_from(["row", "tensor"])),
    convention=st.sampled_from(CONVENTIONS),
    clip=searches,
    axis=st.sampled_from([0, 1]),
    scale_bits=st.sampled_from([16, 32]),
)
picks = st.one_of(st.builds(Nearest), st.builds(Stochastic))
roundings = st.one_of(
    picks,
    st.builds(
        Feedback,
        order=st.sampled_from(["given", "decreasing", "pivot"]),
        groups=st.sampled_from(["static", "dynamic", "stale"]),
        damping=st.floats(0, 1e6),
        block=st.integers(1, 10**6),
        pick=picks,
    ),
    st.builds(
        HalfQuadratic,
        norm=positive,
        beta=positive,
        growth=positive,
        iterations=st.integers(0, 99),
        keep=st.sampled_from(["best", "last"]),
        round_zero=st.booleans(),
    ),
    st.builds(
        Qronos,
        order=st.sampled_from(["given", "decreasing", "pivot"]),
        groups=st.sampled_from(["static", "dynamic", "stale"]),
        damping=st.floats(0, 1e6),
        relative_to=st.sampled_from(["largest", "mean"]),
        block=st.integers(1, 10**6),
        pick=picks,
    ),
)
targets = st.builds(Target, grids, roundings)
transforms = st.one_of(
    st.builds(SmoothScale, alpha=st.one_of(shares, st.just("search")), sources=sources),
    st.builds(AwqScale, steps=st.integers(1, 100), sources=sources),
)
recipes = st.builds(
    Recipe,
    transforms=st.lists(transforms, max_size=2).map(tuple),
    weights=st.none() | targets,
    layers=st.lists(st.tuples(st.text(max_size=9), targets), max_size=2).map(tuple),
    activations=st.none() | targets,
    inputs=st.sampled_from(["original", "quantized"]),
)


@given(recipes)
def test_the_text_of_a_recipe_stands_for_it(recipe):
    assert parse(str(recipe)) == recipe
    assert str(parse(str(recipe))) == str(recipe)


@given(recipes, recipes)
def test_equal_recipes_have_equal_texts_and_others_do_not(a, b):
    assert (str(a) == str(b)) == (a == b)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_what_its_text_says(method):
    for bits in method.bits:
        recipe = method.recipe(bits=bits)
        assert parse(str(recipe)) == recipe
        width = recipe.cache.bits if recipe.weights is None else recipe.weights.grid.bits
        assert width == (2 if bits == 1.58 else {"billm": 2}.get(method.name, bits))


def test_defaults_are_left_out():
    assert str(Recipe()) == "Recipe()"
    assert str(Target(Integer(bits=4), Nearest())) == "Target(Integer(bits=4))"
    full = Recipe(
        transforms=(AwqScale(steps=20, sources=("norm", "linear")),),
        weights=Target(Integer(bits=3, group=128, convention="asymmetric", clip=None), Feedback(damping=0.01)),
        inputs="original",
    )
    assert str(full) == "Recipe(transforms=(AwqScale(),), weights=Target(Integer(bits=3), Feedback()))"


def test_a_whole_number_and_the_same_float_have_one_text():
    one, same = (Recipe(weights=Target(Integer(bits=4), Feedback(damping=x))) for x in (1, 1.0))
    assert one == same and str(one) == str(same)


def test_space_order_and_spelled_out_defaults_do_not_matter():
    text = ' Target( Integer(group = 128, bits=4),\n Feedback(pick=Nearest(), order="given") ) '
    assert str(parse(text)) == "Recipe(weights=Target(Integer(bits=4), Feedback()))"


@pytest.mark.parametrize(
    "text, named",
    [
        ("__import__('os')", "unknown name __import__"),
        ("eval('1')", "unknown name eval"),
        ("Target(Integer(bits=open('x')))", "unknown name open"),
        ("Target(INT(bits=4))", "unknown name INT"),
        ("Target(Integer(bits=four))", "four is neither"),
        ("Target(Integer.fit)", "Integer.fit is neither"),
        ("Target(Integer(bits=4)).grid", "Target(Integer(bits=4)).grid is neither"),
        ("Integer.__class__()", "Integer.__class__() is neither"),
        ("(lambda: 4)()", "(lambda: 4)() is neither"),
        ("Target(Integer(bits=2**2))", "2 ** 2 is neither"),
        ("Target(Integer(bits=2+2))", "2 + 2 is neither"),
        ("Target(Integer(bits=[b for b in (4,)]))", "[b for b in (4,)] is neither"),
        ("Target(Integer(bits=4 if 1 else 2))", "4 if 1 else 2 is neither"),
        ("Target(Integer(bits=f'{4}'))", "f'{4}' is neither"),
        ("Target(Integer(**{'bits': 4}))", "** is not allowed"),
        ("Target(Integer(*(4,)))", "*(4,) is neither"),
        ("Target(Integer(bits=4, bits=3))", "same keyword"),
        ("Target(Integer(bits=-'a'))", "-'a' is neither"),
        ("Target(Integer(bits=(b := 4)))", "(b := 4) is neither"),
    ],
)
def test_nothing_is_evaluated(text, named):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "does not parse"),
        ("Target(", "does not parse"),
        ("import os", "does not parse"),
        ("Target\0", "null bytes"),
        ("-" * 3000 + "4", "nested too deeply"),
        ("4", "is not a Recipe or a Target"),
        ("Integer(bits=4)", "is not a Recipe or a Target"),
        ("Integer()", "bits"),
        ("Target(Integer(4))", "Integer(4)"),
        ("Target(Integer(bits=0))", "bits 0"),
        ("Target(Integer(bits=9))", "bits 9"),
        ("Target(Integer(bits=-4))", "bits -4"),
        ("Target(Integer(bits='4'))", "bits '4'"),
        ("Target(Integer(bits=True))", "bits True"),
        ("Target(Integer(bits=4.0))", "bits 4.0"),
        ("Target(Integer(bits=4, group=0))", "group 0"),
        ("Target(Integer(bits=4, group=1.5))", "group 1.5"),
        ("Target(Integer(bits=4, group=True))", "group True"),
        ("Target(Integer(bits=4, group='col'))", "group 'col'"),
        ("Target(Integer(bits=4, axis=2))", "axis 2"),
        ("Target(Integer(bits=4, scale_bits=8))", "scale_bits 8"),
        ("Target(Integer(bits=4, convention='odd'))", "convention 'odd'"),
        ("Target(Integer(bits=4, clip=5))", "clip 5"),
        ("Target(Integer(bits=4, clip=ShrinkSearch(steps='a')))", "steps='a'"),
        ("Target(Integer(bits=4, clip=ShrinkSearch(most=2)))", "most 2"),
        ("Target(Integer(bits=4, clip=OutputSearch(steps=0)))", "steps 0"),
        ("Target(4)", "found 4"),
        ("Target(Integer(bits=4), Integer(bits=4))", "a grid and a rounding"),
        ("Target(Integer(bits=4), Feedback(order='random'))", "order 'random'"),
        ("Target(Integer(bits=4), Feedback(groups=None))", "groups None"),
        ("Target(Integer(bits=4), Feedback(damping=-1))", "damping -1"),
        ("Target(Integer(bits=4), Feedback(damping='x'))", "damping='x'"),
        ("Target(Integer(bits=4), Feedback(damping=1e999))", "damping inf"),
        ("Target(Integer(bits=4), Feedback(block=0))", "block 0"),
        ("Target(Integer(bits=4), Feedback(block=2.5))", "block 2.5"),
        ("Target(Integer(bits=4), Feedback(pick=3))", "pick 3"),
        ("Target(Integer(bits=4), HalfQuadratic(norm=0))", "norm=0"),
        ("Target(Integer(bits=4), HalfQuadratic(keep='all'))", "keep 'all'"),
        ("Recipe(transforms=AwqScale())", "transforms AwqScale"),
        ("Recipe(transforms=(Nearest(),))", "transforms (Nearest(),)"),
        ("Recipe(transforms=(AwqScale(steps=0),))", "steps 0"),
        ("Recipe(transforms=(SmoothScale(alpha=2),))", "alpha 2"),
        ("Recipe(transforms=(SmoothScale(sources=('attention',)),))", "sources ('attention',)"),
        ("Recipe(weights=Integer(bits=4))", "weights Integer"),
        ("Recipe(layers=5)", "layers 5"),
        ("Recipe(layers=((3, Target(Integer(bits=4))),))", "layers ((3,"),
        ("Recipe(layers=(('*',),))", "layers (('*',),)"),
        ("Recipe(inputs='both')", "inputs 'both'"),
        ("Recipe(coding='huffman')", "coding 'huffman'"),
        ("Recipe(colour='red')", "colour"),
    ],
)
def test_bad_recipes_are_errors_that_name_what_is_wrong(text, named):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_pattern_that_matches_decides():
    narrow, wide, rest = (Target(Integer(bits=bits)) for bits in (2, 8, 4))
    recipe = Recipe(weights=rest, layers=(("*.q_proj", narrow), ("model.layers.0.*", wide)))
    assert recipe.target_of("model.layers.0.self_attn.q_proj") is narrow
    assert recipe.target_of("model.layers.0.mlp.up_proj") is wide
    assert recipe.target_of("model.layers.1.mlp.up_proj") is rest


def test_what_cannot_be_combined_says_why():
    def why(weights=None, activations=None, layers=()):
        return Recipe(weights=weights, activations=activations, layers=layers).unsupported

    per_token = Integer(bits=8, group="row", convention="full-range")
    assert why(Target(Integer(bits=4))) is None
    assert "half-integer" in why(Target(Integer(bits=1)))
    assert "real zero points" in why(Target(Integer(bits=4), HalfQuadratic()))
    assert "real zero points" in why(layers=(("*", Target(Integer(bits=4), HalfQuadratic())),))
    assert why(activations=Target(per_token)) is None
    assert "rounded to nearest" in why(activations=Target(per_token, Stochastic()))
    assert "not searched" in why(activations=Target(replace(per_token, clip=ShrinkSearch())))
    static = replace(per_token, group="tensor")
    assert why(activations=Target(static)) is None
    assert "symmetric" in why(activations=Target(replace(static, convention="asymmetric")))


def test_activations_can_be_added_and_keep_their_own_convention():
    plain = method_named("rtn").recipe(bits=4)
    added = with_activations(plain, 8)
    assert added.activations.grid == Integer(bits=8, group="row", convention="full-range", scale_bits=32)
    assert replace(added, activations=None) == plain
    static = method_named("smoothquant").recipe(bits=8, activation_group="tensor")
    assert with_activations(static, 6).activations.grid == replace(static.activations.grid, bits=6)
