"""Folding a channel scale moves numbers about and leaves what the model computes as it was."""

import numpy as np
import pytest
import tiny
import torch
from float64 import kept_in_float64

from suite.calibration import Calibration
from suite.models.checkpoint import load_model
from suite.models.outliers import scale_site, spread_over_heads
from suite.quantize import output_error
from suite.recipe import parse
from suite.tokens import Tokens
from suite.transforms import AwqScale, SmoothScale

COARSE = parse("Target(Integer(bits=3))")  # searches look for what suits this
TRANSFORMS = {
    "smooth": SmoothScale(alpha=0.5, sources=("norm", "linear")),
    "smooth, searched": SmoothScale(alpha="search", sources=("norm", "linear")),
    "awq": AwqScale(),
}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def path(request, tmp_path_factory):
    architecture, options = tiny.ARCHITECTURES[request.param]
    return tiny.save(tiny.model_of(architecture, **options), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows():
    return torch.randint(0, tiny.VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(5))


def fold_random(checkpoint):
    """Scales over four orders of magnitude in every site of every block."""
    generator = torch.Generator().manual_seed(7)

    def change(i, block):
        for site in checkpoint.architecture.sites:
            n_rows = block.get_submodule(site.source).weight.shape[0]
            s = 10 ** (4 * torch.rand(n_rows, generator=generator, dtype=torch.float64) - 2)
            scale_site(block, site, spread_over_heads(block, site, s.to(checkpoint.dtype)), s.to(checkpoint.dtype))

    return change


def fit(checkpoint, transform, rows):
    """The transform's own scales for the sources it takes, by block and site, as fitted on the model in float32."""
    kept = Calibration.of(checkpoint, Tokens(rows.numpy(), np.arange(len(rows))), 1)
    found = {}
    for i in range(checkpoint.n_blocks):
        block, statistics = checkpoint.block(i), kept.statistics(i)
        for site in checkpoint.architecture.sites:
            weights = {layer: block.get_submodule(layer).weight for layer in site.layers}
            now = statistics[site.layers[0]]
            if site.kind in transform.sources:
                found[i, site] = transform.fit(list(weights.values()), now, output_error(weights, now, COARSE))
    return found


def fold(scales):
    def change(i, block):
        for site in (site for number, site in scales if number == i):
            source = block.get_submodule(site.source).weight
            s = scales[i, site].to(source.dtype)[: len(source)]  # where value heads are shared, the first of each
            scale_site(block, site, spread_over_heads(block, site, s), s)

    return change


def worst(logits, base):
    """The largest difference relative to the largest logit."""
    return float((logits - base).abs().max() / base.abs().max())


def test_any_scale_in_float64_changes_nothing_to_1e_10(path, rows):
    checkpoint = load_model(str(path), dtype=torch.float64)
    with kept_in_float64():
        base = tiny.logits_of(checkpoint, rows)
        folded = tiny.logits_of(checkpoint, rows, fold_random(checkpoint))
    assert base.dtype == torch.float64
    assert 0 < worst(folded, base) < 1e-10


def test_any_scale_in_float32_changes_nothing_to_1e_4(path, rows):
    checkpoint = load_model(str(path))
    base = tiny.logits_of(checkpoint, rows)
    assert 0 < worst(tiny.logits_of(checkpoint, rows, fold_random(checkpoint)), base) < 1e-4


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_fitted_scales_change_nothing(transform, architecture, rows, tmp_path):
    tiny.save(tiny.model_of(architecture, num_hidden_layers=2, head_dim=12), tmp_path)
    plain = load_model(str(tmp_path))
    change = fold(fit(plain, transform, rows))
    base = tiny.logits_of(plain, rows)
    assert 0 < worst(tiny.logits_of(plain, rows, change), base) < 1e-4
    wide = load_model(str(tmp_path), dtype=torch.float64)
    with kept_in_float64():
        base = tiny.logits_of(wide, rows)
        assert 0 < worst(tiny.logits_of(wide, rows, change), base) < 1e-10


def test_a_scale_folded_on_one_side_only_does_change_the_logits(path, rows):
    checkpoint = load_model(str(path))
    base = tiny.logits_of(checkpoint, rows)

    def forget_the_source(i, block):
        for site in checkpoint.architecture.sites:
            block.get_submodule(site.layers[0]).weight.mul_(1.1)

    assert worst(tiny.logits_of(checkpoint, rows, forget_the_source), base) > 1e-2


def test_outside_the_context_a_module_rounds_to_float32_and_inside_it_does_not():
    norm = tiny.model_of("llama").model.norm.double().requires_grad_(False)
    x = torch.randn(3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    with kept_in_float64():
        inside = norm(x)
    eps = torch.finfo(torch.float64).eps
    assert worst(inside, exact) < 8 * eps  # a handful of roundings
    assert worst(norm(x), exact) > 1e5 * eps  # float32 has 2^29 times the epsilon


def test_the_context_leaves_other_casts_alone():
    with kept_in_float64():
        assert torch.ones(1, dtype=torch.float64).half().dtype == torch.float16
        assert torch.ones(1, dtype=torch.int64).float().dtype == torch.float32
        assert torch.ones(1, dtype=torch.float32).double().dtype == torch.float64
