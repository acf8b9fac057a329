"""Claims that are measured on cells of the suite: what their numbers are where the cells' own are known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from suite.recipe import canonical
from theory import cells, studies
from theory.cells import kl_of, recipe_of, worth_bits
from theory.claims import bits, learning, quality
from theory.claims.ledger import CLAIMS
from theory.experiment import Setting


def record(kl=1.0, bpw=4.0, nmse=1.0, ppl=2.0, ppl_base=2.0, bpw_entropy=3.5, status="ok", recipe="", cell="c"):
    return SimpleNamespace(kl=kl, bpw=bpw, nmse=nmse, ppl=ppl, ppl_base=ppl_base, bpw_entropy=bpw_entropy,
                           status=status, reason="no", recipe=recipe, cell=cell, code="", env="")  # fmt: skip


def measured(claim, setting=None):
    return next(one for one in CLAIMS if one.id == claim).measure(setting or Setting())


def every(monkeypatch, module, made):
    """Let `records` of a module give `made(recipe)` for every recipe."""
    monkeypatch.setattr(module, "records", lambda setting, recipes, **options: [made(recipe) for recipe in recipes])


def width(recipe):
    return recipe.weights.grid.bits


# Cells
def test_records_come_in_the_order_asked_for_and_a_failed_one_says_why(monkeypatch, tmp_path):
    asked = [recipe_of("rtn", 3), recipe_of("rtn", 2), recipe_of("gptq", 2)]
    found = [record(recipe=canonical(recipe), kl=k) for k, recipe in enumerate(asked)]
    monkeypatch.setattr("suite.run", lambda *a, **o: found[::-1], raising=False)
    setting = Setting(store=tmp_path / "s.db")
    assert [kl_of(one) for one in cells.records(setting, asked)] == [0, 1, 2]
    found[1].status = "failed"
    with pytest.raises(ValueError, match="failed, no"):
        cells.records(setting, asked)


def test_bits_saved_count_the_true_ones():
    assert worth_bits(record(kl=1.0), record(kl=4.0)) == 1.0
    assert worth_bits(record(kl=1.0, bpw=4.5), record(kl=4.0, bpw=4.0)) == 0.5


def test_a_method_that_there_is_not_is_a_value_error():
    with pytest.raises(ValueError, match="none-such"):
        recipe_of("none-such", 2)


# Quality
def test_a_curve_without_an_elbow_has_none_and_one_at_two_bits_is_found(monkeypatch):
    def made(recipe):
        cliff = 5.0 if width(recipe) == 2 else 1.0
        return record(kl=3.0 * cliff * 4.0 ** -width(recipe), nmse=2.0 * 4.0 ** -width(recipe), ppl=2.02)

    every(monkeypatch, quality, made)
    found = measured("Q1")
    assert found["perplexity at 4 bits over unquantized"] == 1.01
    for b in (4, 3):
        for what in (f"log4 of KL from {b + 1} to {b} bits", f"NMSE over 4^-b, {b} bits", f"KL over NMSE, {b} bits"):
            assert found[what] == pytest.approx(1.0)
    assert found["KL over NMSE, 2 bits"] == pytest.approx(5.0) and found["NMSE over 4^-b, 2 bits"] == pytest.approx(1.0)
    assert found["log4 of KL from 3 to 2 bits"] == pytest.approx(1 + math.log(5, 4))


def test_the_best_of_each_kind_are_compared_at_their_true_bits(monkeypatch):
    kl = {"gptq": 4.0, "awq": 8.0, "hqq": 9.0, "quip-sharp": 1.0, "qtip": 2.0, "vptq": 2.0}
    named = {canonical(recipe_of(name, b)): (name, b) for name in kl for b in (2, 3)}

    def made(recipe):
        name, b = named[canonical(recipe)]
        return record(kl=kl[name] * (4.0 if b == 2 else 1.0), bpw=b + 0.25)

    every(monkeypatch, quality, made)
    found = measured("Q2")
    assert found["log4 of KL a bit, scalars"] == found["log4 of KL a bit, vectors"] == pytest.approx(1.0)
    assert found["bits that vectors are worth at 2"] == pytest.approx(1.0)


def test_effects_that_add_up_are_found_as_they_are(monkeypatch):
    worth = {"feedback": 0.5, "SmoothScale": 0.25, "AwqScale": 0.125}

    def made(recipe):
        text = canonical(recipe)
        bits_ = worth["feedback"] * ("Feedback" in text) + sum(worth[name] for name in worth if name in text)
        return record(kl=4.0**-bits_)

    every(monkeypatch, quality, made)
    found = measured("Q3")
    for name in ("3 bits", "4 bits, inputs too"):
        effects = [found[f"{part}, {name}"] for part in ("GPTQ", "SmoothQuant", "AWQ", "all three")]
        assert effects == pytest.approx([0.5, 0.25, 0.125, 0.875])
        assert found[f"all three less their sum, {name}"] == pytest.approx(0.0, abs=1e-12)


def test_ratios_of_grids_and_of_sparsity_are_of_the_right_cells(monkeypatch):
    kl = {"half-integer": 2.0, "full-range": 4.0, "narrow": 1.0}
    every(monkeypatch, quality, lambda recipe: record(kl=kl[recipe.weights.grid.convention]))
    found = measured("Q9")
    assert found["symmetric over unbalanced, 2 bits"] == 0.5
    assert found["with zero over without, 3 bits, one level fewer"] == 0.5
    every(monkeypatch, quality, lambda recipe: record(kl=1.0, bpw=5.0) if "Sparse" in canonical(recipe)
          else record(kl=4.0 ** (5 - width(recipe)), bpw=width(recipe) + 0.1))  # fmt: skip
    found = measured("Q10")
    assert found["worth against dense 4 bits"] == pytest.approx(1 + 4.1 - 5)
    assert found["worth against dense 5 bits"] == pytest.approx(5.1 - 5)


def test_models_of_equal_bytes_are_compared_along_the_sizes(monkeypatch):
    def rows(setting):
        return [SimpleNamespace(level=level, method="paretoq", bits=b, model_bytes=size * (1 + b), hidden=size,
                                loss_nats=5.0 - math.log(size) + (0.5 if b == 1 else 0.0))
                for level in (0.1, 0.25) for b in (1, 1.58, 2, 4) for size in (64, 128, 256, 512, 1024)]  # fmt: skip

    monkeypatch.setattr(studies, "scaling", rows)
    found = measured("Q8")
    # a model of b bits with the bytes of one of c bits has (1 + c) / (1 + b) times its size
    assert found["2 bits less 4, 0.1 tokens a parameter"] == pytest.approx(-math.log(5 / 3))
    assert found["1 bits less 2, 0.25 tokens a parameter"] == pytest.approx(-math.log(3 / 2) + 0.5)
    assert found["1.58 bits less 2, 0.25 tokens a parameter"] == pytest.approx(-math.log(3 / 2.58))


def test_what_reasoning_keeps_is_set_against_the_unquantized_model(monkeypatch):
    def rows(setting, widths):
        return {b: SimpleNamespace(ppl=2.0 * 1.1 ** (16 - b), ppl_base=2.0, excess=b / 16, right=b / 16, step=1.0)
                for b in (*widths, 16)}  # fmt: skip

    monkeypatch.setattr(studies, "reasoning", rows)
    found = measured("Q7")
    assert found["all steps right over the steps' product, 4 bits over unquantized"] == 0.25
    assert found["perplexity over unquantized, 2 bits"] == pytest.approx(1.1**14)


# Learning
def test_trainings_are_set_against_their_controls_and_gptq(monkeypatch):
    def made(setting, recipes, **options):
        return [(record(), SimpleNamespace(excess_nats=0.1 / width(recipe), turning=0.2,
                                           moved=2.0 ** -width(recipe) + 1, moved_control=1.0))
                for recipe in recipes]  # fmt: skip

    monkeypatch.setattr(learning, "trained", made)
    every(monkeypatch, learning, lambda recipe: record(ppl=2.0 * math.e**0.1))
    found = measured("L1")
    assert found["excess over GPTQ's, 2 bits"] == pytest.approx(0.5) and found["excess, 4 bits"] == 0.025
    found = measured("L2")
    assert found["learned less fixed, 2 bits"] == 0.0 and found["codes that turn back, 4 bits"] == 0.2


def test_movement_is_what_goes_beyond_the_control(monkeypatch):
    far = dict(zip(map(canonical, (recipe_of("paretoq", b) for b in (1, 1.58, 2, 3, 4))), (8.0, 8.0, 8.0, 2.0, 1.0),
                   strict=True))  # fmt: skip
    monkeypatch.setattr(learning, "trained", lambda setting, recipes: [
        (record(), SimpleNamespace(moved=0.5 + far[canonical(recipe)], moved_control=0.5))
        for recipe in recipes])  # fmt: skip
    found = measured("L8")
    assert found["moved at 2 bits over 3"] == 4.0 and found["moved at 3 bits over 4"] == 2.0
    assert found["moved at 2 bits and below over 3 and 4"] == pytest.approx(8.0 / 1.5)


def test_recipes_of_the_claims_are_what_the_suite_can_run():
    fixed = recipe_of("lsq", 2)
    assert fixed.adaptation.learned == "scales" and not fixed.unsupported
    assert not replace(fixed, adaptation=replace(fixed.adaptation, learned="nothing", start="range")).unsupported
    for name, widths in (("loftq", (2, 4)), ("ir-qlora", (2, 4)), ("zeroqat", (2, 4)), ("l4q", (2, 4)),
                         ("sparsegpt-24", (8,)), ("aqlm", (2,))):  # fmt: skip
        assert not any(recipe_of(name, b).unsupported for b in widths)
    assert not recipe_of("bitnet", sub_norm=False).unsupported


# Bits
def test_products_are_timed_against_each_other(monkeypatch):
    monkeypatch.setattr(bits, "_SIDE", 256)
    monkeypatch.setattr(bits, "_ROUNDS", 2)
    found = measured("B1")
    assert set(found) == set(measured("B4")) and all(value > 0 for value in found.values())


def test_layouts_of_the_cache_and_shares_of_bytes():
    found = measured("B2")
    assert found["16-bit cache over weights, 8 of 64 heads"] == pytest.approx(
        80 * 2 * 131072 * 8 * 128 * 2 / 37.4e9, rel=0.02)  # fmt: skip
    assert measured("B3")["linear layers, a 16-bit scale for 128"] == pytest.approx(1 - 4.125 / 32)
