import pytest
import tiny
import torch

from suite.calibration import Calibration
from suite.models.checkpoint import Checkpoint, load_model
from suite.models.doses import KINDS as NAMED
from suite.models.doses import Dose, split_dose
from suite.models.outliers import OutlierDial, scale_site, spread_over_heads
from suite.tokens import Tokens

KINDS = [("norm",), ("linear",), ("norm", "linear")]


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def path(request, tmp_path_factory):
    architecture, options = tiny.ARCHITECTURES[request.param]
    return tiny.save(tiny.model_of(architecture, **options), tmp_path_factory.mktemp("model"))


def dialed(path, **dial):
    if dial.get("kinds") == ("linear",) and load_model(str(path)).architecture.name == "bitnet":
        pytest.skip("no layer follows another one")
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
        for site in base.architecture.sites:
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
        for site in base.architecture.sites:
            s = block.get_submodule(site.source).weight / plain.get_submodule(site.source).weight
            s = s if s.ndim == 1 else s[:, 0]
            scale_site(block, site, spread_over_heads(block, site, s), s)
        for name, weight in plain.named_parameters():
            assert torch.equal(weight, block.get_parameter(name)), name


def test_folding_the_gain_into_what_follows_forgets_the_dial(path):
    base, turned = dialed(path), dialed(path, kinds=("norm",), every=8)
    for site in (site for site in base.architecture.sites if site.kind == "norm"):
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


def test_a_dial_that_would_change_nothing_is_refused(tmp_path):
    path = tiny.save(tiny.model_of("bitnet"), tmp_path / "model")
    with pytest.raises(ValueError, match="every layer of bitnet follows a norm"):
        load_model(f"{path}+outliers:linear")


@pytest.mark.parametrize("factor", [0, 3, 65])
def test_a_factor_that_would_round_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor {factor}: expected a power of two"):
        OutlierDial(factor=factor)


@pytest.mark.parametrize(
    ("suffix", "dose"),
    [
        ("", ("both", 64)),
        (":16", ("both", 16)),
        (":norm", ("norm", 64)),
        (":linear:16", ("linear", 16)),
        (":both:256", ("both", 256)),
        (":norm:1", ("norm", 1)),
    ],
)
@pytest.mark.parametrize("base", ["reference", "org/model", "../a dir/with:colon", "x+outliers:norm:4"])
def test_names_say_which_dial_is_on(base, suffix, dose):
    assert split_dose(f"{base}+outliers{suffix}") == (base, Dose(*dose))


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("factor", [1, 2, 256])
def test_a_dose_is_read_back_from_the_name_it_gives(kind, factor):
    assert split_dose(Dose(kind, factor).name("a/b")) == ("a/b", Dose(kind, factor))


@pytest.mark.parametrize("name", ["reference", "a+outliers/model", "a+outliersx", "+outliers", "a+outlier:norm"])
def test_other_names_have_no_dose(name):
    assert split_dose(name) == (name, None)


@pytest.mark.parametrize(
    "suffix",
    [":", ":norm:", ":16:norm", ":norms", ":3", ":0", ":512", ":-2", ":2.0", ":norm:16:", "::16", ":²", ":0064", ": 4"],
)
@pytest.mark.parametrize("base", ["reference", "org/model"])
def test_a_suffix_that_is_no_dose_is_one_line(base, suffix):
    with pytest.raises(ValueError, match=r"expected .*\[:KIND\]\[:FACTOR\], KIND one of norm, linear, both") as e:
        load_model(f"{base}+outliers{suffix}")
    assert str(e.value).startswith(f"{base}+outliers{suffix}: ") and "\n" not in str(e.value)


def test_any_model_takes_a_dose_and_the_least_changes_nothing(path):
    plain = load_model(str(path))
    kind = "norm" if plain.architecture.name == "bitnet" else "linear"
    dosed = load_model(f"{path}+outliers:{kind}:16")
    assert dosed.dial == OutlierDial(factor=16, kinds=(kind,)) and dosed.name == f"{path}+outliers:{kind}:16"
    assert len({plain.sha256, dosed.sha256, load_model(f"{path}+outliers").sha256}) == 3
    assert load_model(f"{path}+outliers:norm:1").sha256 == plain.sha256


def test_the_shipped_dialed_model_is_what_it_was_before_doses_had_names():
    found = load_model("reference+outliers")
    assert found.dial == OutlierDial() and str(found.dial) == (
        "OutlierDial(factor=64, every=64, kinds=('norm', 'linear'), seed=0)"  # in the hash
    )
    assert load_model("reference+outliers:both:64").sha256 == found.sha256


def test_a_directory_of_that_very_name_is_the_model(path, tmp_path):
    (tmp_path / "m+outliers:norm").symlink_to(path)
    assert load_model(str(tmp_path / "m+outliers:norm")).dial is None
