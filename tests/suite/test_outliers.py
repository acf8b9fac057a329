import pytest
import tiny
import torch

from suite.calibration import Calibration
from suite.models.architecture import architecture_of
from suite.models.checkpoint import Checkpoint
from suite.models.outliers import OutlierDial, scale_site, spread_over_heads
from suite.tokens import Tokens

KINDS = [("norm",), ("linear",), ("norm", "linear")]
SITES = architecture_of("llama").sites


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def path(request, tmp_path_factory):
    architecture, options = tiny.ARCHITECTURES[request.param]
    return tiny.save(tiny.model_of(architecture, **options), tmp_path_factory.mktemp("model"))


def dialed(path, **dial):
    return Checkpoint.open(path, name=str(path), dial=OutlierDial(**dial) if dial else None)


def tokens():
    rows = torch.randint(0, tiny.VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(11))
    return Tokens(rows.numpy(), torch.arange(6).numpy())


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_the_dial_leaves_the_logits_as_they_were_bit_for_bit(kinds, path):
    rows = tokens().tensor()
    base, turned = dialed(path), dialed(path, kinds=kinds, every=8)
    assert torch.equal(tiny.logits_of(turned, rows), tiny.logits_of(base, rows))
    assert turned.sha256 != base.sha256


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_the_statistics_show_outliers_of_the_size_and_number_asked_for(kinds, path):
    base, turned = dialed(path), dialed(path, kinds=kinds, factor=64, every=8)
    before, after = (Calibration.of(model, tokens(), 1) for model in (base, turned))
    for i in range(base.n_blocks):
        block = base.block(i)
        for site in SITES:
            layer = site.layers[0]
            ratio = after.statistics(i)[layer].max_abs / before.statistics(i)[layer].max_abs
            up = int((ratio == 64).sum())
            assert up + int((ratio == 1).sum()) == len(ratio)
            source_rows = block.get_submodule(site.source).weight.shape[0]
            heads = len(ratio) // source_rows  # how many query heads read a value channel
            assert up == (source_rows // 8 * heads if site.kind in kinds else 0)


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_folding_undoes_the_dial_bit_for_bit(kinds, path):
    base, turned = dialed(path), dialed(path, kinds=kinds, every=8)
    for i in range(base.n_blocks):
        plain, block = base.block(i), turned.block(i)
        differs = {
            name for name, weight in plain.named_parameters() if not torch.equal(weight, block.get_parameter(name))
        }
        assert differs
        for site in SITES:
            s = block.get_submodule(site.source).weight / plain.get_submodule(site.source).weight
            s = s if s.ndim == 1 else s[:, 0]
            scale_site(block, site, spread_over_heads(block, site, s), s)
        for name, weight in plain.named_parameters():
            assert torch.equal(weight, block.get_parameter(name)), name


def test_folding_the_gain_into_what_follows_forgets_the_dial(path):
    base, turned = dialed(path), dialed(path, kinds=("norm",), every=8)
    for site in (site for site in SITES if site.kind == "norm"):
        plain, block = base.block(1), turned.block(1)
        for layer in site.layers:
            folded = [b.get_submodule(layer).weight * b.get_submodule(site.source).weight for b in (plain, block)]
            assert torch.equal(*folded)


def test_the_seed_and_the_block_choose_the_channels(path):
    def gains(seed, i):
        return dialed(path, kinds=("norm",), every=8, seed=seed).block(i).input_layernorm.weight

    def chosen(seed, i):
        ratio = gains(seed, i) / dialed(path).block(i).input_layernorm.weight
        return tuple((ratio == 64).nonzero().flatten().tolist())

    assert chosen(0, 0) == chosen(0, 0)
    assert len({chosen(0, 0), chosen(1, 0), chosen(0, 1)}) == 3


@pytest.mark.parametrize("factor", [0, 3, 65])
def test_a_factor_that_would_round_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor {factor}: expected a power of two"):
        OutlierDial(factor=factor)
