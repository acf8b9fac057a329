"""Every transform, and any two of them, leave what the model computes as it was."""

import re

import pytest
import tiny
import torch
from float64 import kept_in_float64
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import run
from suite.blockwise import transform_block
from suite.calibration import Calibration
from suite.methods import method_named
from suite.models.checkpoint import SHIPPED, load_model
from suite.outside import UnsupportedError
from suite.recipe import Recipe, parse
from suite.tokens import Tokens
from suite.transforms import (
    AwqScale,
    DualRotation,
    LearnedRotations,
    RotateHeads,
    RotateInputs,
    RotateKeys,
    RotateResidual,
    RotateValues,
    SmoothScale,
    Zigzag,
)
from suite.turning import turned_for

COARSE = parse("Target(Integer(bits=4, group='row'))").weights  # searches look for what suits this
EVERYWHERE = ("q_proj", "o_proj", "gate_proj", "down_proj")
LOCAL = {
    "scale": SmoothScale(alpha=0.5, sources=("norm", "linear")),
    "searched scale": AwqScale(),
    "values by Hadamard": RotateValues(),
    "values by orthogonal": RotateValues(kind="orthogonal"),
    "heads": RotateHeads(),
    "down": RotateInputs(),
    "everywhere": RotateInputs(sites=EVERYWHERE),
    "expanded": RotateInputs(sites=("down_proj", "o_proj"), steps=1),
    "expanded thrice": RotateInputs(steps=3),
    "keys": RotateKeys(),
    "zigzag": Zigzag(sites=EVERYWHERE, block=16),
    "dual": DualRotation(sites=EVERYWHERE, block=16, steps=8),
}
RESIDUAL = {
    "residual": RotateResidual(),
    "residual by orthogonal": RotateResidual(kind="orthogonal"),
    "learned": LearnedRotations(steps=2),
}
MODELS = ["llama", "llama tied", "llama biased", "mistral", "qwen2", "qwen3", "qwen3 tied"]


def open_both(path):
    """The model in float64 and float32, some rows, and the statistics of either."""
    wide, plain = load_model(str(path), dtype=torch.float64), load_model(str(path))
    rows = torch.randint(0, int(plain.config.vocab_size), (3, 21), generator=torch.Generator().manual_seed(5))
    return wide, plain, Tokens(rows.numpy(), rows[:, 0].numpy())


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    architecture, options = tiny.ARCHITECTURES[request.param]
    path = tiny.save(tiny.model_of(architecture, **{**options, "num_hidden_layers": 2}), tmp_path_factory.mktemp("m"))
    return open_both(path)


def change(checkpoint, transforms, tokens):
    """The largest change of a logit relative to the largest logit, when the model is in other coordinates."""
    recipe = Recipe(transforms=transforms, weights=COARSE)
    base = tiny.logits_of(checkpoint, tokens.tensor())
    turned = turned_for(checkpoint, recipe, tokens, seed=3, threads=1, exact=True)
    kept = Calibration.of(turned, tokens, 1)

    def transform(i, block):
        transform_block(turned, i, block, recipe, kept.statistics(i), seed=3)

    after = tiny.logits_of(turned, tokens.tensor(), transform)
    return float((after - base).abs().max() / base.abs().max())


def check(model, *transforms):
    wide, plain, tokens = model
    with kept_in_float64():
        assert 0 < change(wide, transforms, tokens) < 1e-9
    assert 0 < change(plain, transforms, tokens) < 1e-4


@pytest.mark.parametrize("transform", [*LOCAL.values(), *RESIDUAL.values()], ids=[*LOCAL, *RESIDUAL])
def test_every_transform_leaves_the_logits_as_they_were(transform, model):
    check(model, transform)


@settings(max_examples=12)
@given(first=st.sampled_from([*LOCAL, *RESIDUAL]), second=st.sampled_from([*LOCAL, *RESIDUAL]))
def test_any_two_transforms_leave_the_logits_as_they_were(first, second, model):
    transforms = tuple({**LOCAL, **RESIDUAL}[name] for name in (first, second))
    recipe = Recipe(transforms=transforms, weights=COARSE)
    if recipe.unsupported:
        assert second in RESIDUAL and (first in LOCAL or "learned" in (first, second))
        return
    try:
        check(model, *transforms)
    except UnsupportedError:
        assert second.startswith("values") or (first, second) == ("expanded", "heads")  # too late: see the reasons


@pytest.fixture(scope="module")
def real(stories):
    return {"stories": open_both(stories.path), **{name: open_both(name) for name in SHIPPED}}


@pytest.mark.parametrize("transform", [*LOCAL.values(), *RESIDUAL.values()], ids=[*LOCAL, *RESIDUAL])
@pytest.mark.parametrize("name", ["stories", *SHIPPED])
def test_every_transform_leaves_real_models_as_they_were(name, transform, real):
    check(real[name], transform)


@pytest.mark.slow
@pytest.mark.parametrize("second", [*LOCAL, *RESIDUAL])
@pytest.mark.parametrize("first", [*LOCAL, *RESIDUAL])
@pytest.mark.parametrize("name", ["stories", *SHIPPED])
def test_any_two_transforms_leave_real_models_as_they_were(name, first, second, real):
    test_any_two_transforms_leave_the_logits_as_they_were.hypothesis.inner_test(first, second, real[name])


@pytest.mark.parametrize("method", ["quarot", "expansion", "spinquant"])
def test_outliers_in_norm_gains_leave_a_rotated_model_exactly_where_it_was(method, llama, inputs, tmp_path):
    options = {"steps": 5} if method == "spinquant" else {}
    recipe = method_named(method).recipe(bits=4, **options)
    options = {"recipes": [recipe], "store": tmp_path / "store.db", "jobs": 1, "seed": 0, **inputs}
    (plain,), (dialed,) = (run(name, **options) for name in (str(llama), f"{llama}+outliers:norm:64"))
    assert plain.status == dialed.status == "ok"
    assert plain.model_sha256 != dialed.model_sha256
    for figure in ("ppl", "kl", "kl_p99", "top1", "bpw"):
        assert getattr(plain, figure) == getattr(dialed, figure)


@pytest.mark.parametrize("recipe, reason", [
    ("Recipe(transforms=(RotateResidual(),), weights=Target(Integer(bits=4)))", "order 30 .* the residual stream"),
    ("Recipe(transforms=(LearnedRotations(steps=1),), weights=Target(Integer(bits=4)))", "order 30"),
    ("Recipe(transforms=(RotateValues(),), weights=Target(Integer(bits=4)))", "order 6 .* a head"),
    ("Recipe(transforms=(RotateHeads(),), weights=Target(Integer(bits=4)))", "order 6 .* the heads"),
    ("Recipe(transforms=(RotateInputs(),), weights=Target(Integer(bits=4)))", "order 50 .* the inputs of down_proj"),
])  # fmt: skip
def test_a_model_without_hadamard_sizes_is_skipped_with_the_reason(recipe, reason, inputs, tmp_path):
    odd = {
        "hidden_size": 30,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 6,
        "intermediate_size": 50,
    }
    path = tiny.save(tiny.model_of("llama", **odd, num_hidden_layers=1), tmp_path / "odd")
    (record,) = run(str(path), recipes=[recipe], store=tmp_path / "store.db", jobs=1, seed=0, **inputs)
    assert record.status == "skipped" and re.search(reason, record.reason)
