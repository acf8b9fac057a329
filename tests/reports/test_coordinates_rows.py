"""What is made of a store's rows of outliers and its records of dosed models."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import ROTATED, coordinate_rows, dosed_records, fill, hash_of, outlier_row, record

from reports.coordinates import Coordinates, kind_of, optimum, place, read_coordinates, shares, width_of
from reports.coordinates_verdicts import dose_verdicts, outlier_verdict, ratio, salience_verdict, smoothing_verdict
from reports.frontier import Point, listed, studies
from suite.store import Store


def coordinates_of(path):
    with Store(path, create=False) as store:
        return read_coordinates(store, studies(store))


def dosed(path, records):
    return coordinates_of(fill(path, records)).doses


def measured(outliers=(), smoothing=(), salience=()):
    return Coordinates(outliers=tuple(outliers), smoothing=tuple(smoothing), salience=tuple(salience),
                       studies=()).measured  # fmt: skip


def test_records_whose_models_differ_by_the_dial_are_one_curve(tmp_path):
    (doses,) = dosed(tmp_path / "s.db", dosed_records())
    assert (doses.base, doses.widths, doses.kinds) == ("tiny", ("W4A4", "W4A8"), ("norm", "linear", "both"))
    assert {(c.method, c.width) for c in doses.curves} == {
        (m, w) for m in ("rtn", "smoothquant", *ROTATED) for w in ("W4A4", "W4A8")
    }
    for curve in doses.curves:
        assert [d.factor for d in curve.of("linear")] == [1, 8, 64]
        assert curve.at("linear", 1) == curve.at("norm", 1) and curve.at("both", 2) is None


def test_names_at_their_defaults_are_doses_too(tmp_path):
    records = [replace(r, model=r.model.replace(":both:64", "")) for r in dosed_records()]
    (doses,) = dosed(tmp_path / "s.db", records)
    assert doses.curves[0].at("both", 64).point.records[0].model == "tiny+outliers"


def test_a_name_at_dose_one_stands_for_the_model(tmp_path):
    records = [replace(r, model="tiny+outliers:norm:1") if r.model == "tiny" else r for r in dosed_records()]
    (doses,) = dosed(tmp_path / "s.db", records)
    assert [d.factor for d in doses.curves[0].of("linear")] == [1, 8, 64]


def test_other_models_evaluations_and_recipes_are_apart(tmp_path):
    elsewhere = [replace(r, cell=f"{r.cell}/long", data_sha256="e", ppl_base=5.0) for r in dosed_records()]
    another = dosed_records("another")
    weights_alone = [replace(r, cell=f"{r.cell}/w", recipe="Recipe(weights=Target(Integer(bits=4)))")
                     for r in dosed_records()]  # fmt: skip
    found = dosed(tmp_path / "s.db", [*dosed_records(), *elsewhere, *another, *weights_alone])
    assert [(d.base, d.ppl_base) for d in found] == [("another", 7.5), ("tiny", 5.0), ("tiny", 7.5)]
    assert all(len(d.curves) == 10 for d in found)


def test_seeds_are_averaged(tmp_path):
    records = [replace(r, cell=f"{r.cell}/{seed}", seed=seed, kl=r.kl * (1 + 0.1 * seed)) for r in dosed_records()
               for seed in (0, 1)]  # fmt: skip
    (doses,) = dosed(tmp_path / "s.db", records)
    single = next(r for r in dosed_records() if (r.method, r.model) == ("rtn", "tiny") and "bits=4)))" in r.recipe)
    curve = next(c for c in doses.curves if (c.method, c.width) == ("rtn", "W4A4"))
    assert curve.at("norm", 1).kl == pytest.approx(1.05 * single.kl)


def test_a_model_without_doses_has_no_curve(tmp_path):
    assert dosed(tmp_path / "s.db", [r for r in dosed_records() if r.model == "tiny"]) == ()
    assert dosed(tmp_path / "t.db", [record(model="dir+outliers:nonsense")]) == ()


@pytest.mark.parametrize(
    ("recipe", "width"),
    [
        ("Recipe(weights=Target(Integer(bits=4)), activations=Target(Integer(bits=8, group='row')))", "W4A8"),
        ("Recipe(activations=Target(Integer(bits=4)), cache=CacheTarget(keys=Integer(bits=2)))", "W4A4 and the cache"),
        ("Recipe(activations=Target(NVFP4), cache=CacheTarget(keys=Integer(bits=2)))", ""),
        ("Recipe(weights=Target(Integer(bits=4)))", ""),
        ("Recipe(weights=Target(Integer(bits=4)), cache=CacheTarget(keys=Integer(bits=2)))", ""),
    ],
)
def test_widths_are_read_from_recipes(recipe, width):
    assert width_of(Point("rtn", recipe, 4.0, (record(),))) == width


def test_verdicts_say_what_the_curves_do(tmp_path):
    (doses,) = dosed(tmp_path / "s.db", dosed_records())
    said = dose_verdicts(doses)
    assert len(said) == 8
    linear, norm, rise, learned = said[:4]
    plain, quarot = (next(c for c in doses.curves if (c.method, c.width) == (m, "W4A4")).at("linear", 64)
                     for m in ("rtn", "quarot"))  # fmt: skip
    assert f"plain rounding's KL is {plain.kl:.3g}" in linear and linear.endswith("less than half.")
    assert f"quarot's is {quarot.kl / plain.kl:.2g} ± " in linear
    assert "leaves quarot, spinquant and duquant at the very same KL" in norm and "moves" not in norm
    assert f"{plain.kl / 0.2:.3g}-fold at 64-fold linear" in rise
    assert "spinquant's KL is below quarot's at 4 of 7 doses" in learned


def test_verdicts_say_where_claims_do_not_hold(tmp_path):
    records = [replace(r, kl=5 * r.kl) if r.method == "duquant" and ":linear:64" in r.model else
               replace(r, kl=1.25 * r.kl) if r.method == "spinquant" and ":norm:64" in r.model else r
               for r in dosed_records()]  # fmt: skip
    linear, norm, *_ = dose_verdicts(dosed(tmp_path / "s.db", records)[0])
    assert "less than half; duquant's is" in linear and ", not below half. A rotation deals" in linear
    assert "leaves quarot and duquant" in norm
    assert "moves the KL of spinquant by up to 25% (2.7 standard errors)." in norm  # 0.25 * 15 / sqrt(2)


def test_the_error_of_a_ratio_is_that_of_independent_parts(tmp_path):
    (doses,) = dosed(tmp_path / "s.db", dosed_records())
    a, b = doses.curves[0].of("linear")[:2]
    value, error = ratio(a, b)
    assert value == a.kl / b.kl and error == pytest.approx(value * np.sqrt(2) / 15)


def test_models_are_shown_on_the_tokens_they_were_measured_on_last():
    old = outlier_row(data_sha256="old", kurtosis=1.0, started="2025")
    (found,) = measured([old, outlier_row(kurtosis=2.0)])
    assert found.figures("none", "inputs", "kurtosis").tolist() == [2.0]


def test_namesakes_are_told_apart_by_their_hash():
    found = measured([outlier_row(), outlier_row(model="other/tiny", model_sha256="b" * 64)])
    assert sorted(m.model.label for m in found) == [f"tiny {h[:8]}" for h in (hash_of("tiny"), "b" * 64)]


def test_layers_are_in_the_order_in_which_they_are_evaluated():
    found = measured(coordinate_rows()[0])[0]
    assert [layer.removeprefix("model.layers.") for layer in found.layers("inputs")[:5]] == [
        "0.self_attn.q_proj", "0.self_attn.o_proj", "0.mlp.gate_proj", "0.mlp.down_proj", "1.self_attn.q_proj",
    ]  # fmt: skip
    assert found.layers("inputs")[-1] == "model.layers.10.mlp.down_proj" and kind_of("a.b.c") == "c"
    assert sorted(["x.2.new", "x.10.q_proj", "x.2.down_proj"], key=place) == ["x.2.down_proj", "x.2.new", "x.10.q_proj"]


def test_the_models_own_coordinates_come_first_and_what_is_no_number_is_left_out():
    rows = [outlier_row(coordinates=c, kurtosis=k, massive=2) for c, k in (("a", None), ("quarot", 0.5), ("none", 3.0))]
    (found,) = measured(rows)
    assert found.coordinates == ("none", "quarot", "a")
    assert np.isnan(found.figures("a", "inputs", "kurtosis")).all() and found.channels("none", "massive") == 2
    sentence = outlier_verdict(found)
    assert sentence == ("of 64 input channels 1 hold normal outliers and 2 massive ones; the median over layers of the "
                        "inputs' excess kurtosis is 3, and becomes 0.5 by quarot and nan by a.")  # fmt: skip
    assert outlier_verdict(measured(rows[:2])[0]) == ""


def test_optima_are_interior_or_not():
    _, smoothing, _ = coordinate_rows()
    (found,) = measured(smoothing=smoothing)
    rows = found.sites["model.layers.0.mlp.down_proj"]
    assert optimum(rows, lambda r: r.inputs) == (1.0, False)
    assert optimum(rows, lambda r: r.error) == (pytest.approx(0.4), True)
    assert optimum(rows, lambda r: None) is None and optimum([], lambda r: r.error) is None
    assert "inside the interval in 12 of 12 sites, at a median alpha of 0.4" in smoothing_verdict(found)


def test_shares_are_averaged_over_layers():
    _, _, salience = coordinate_rows()
    own = [r for r in salience if r.criterion == "worst weights"]
    found = shares([replace(own[0], share=0.5), replace(own[0], share=0.1), replace(own[1], share=None)])
    assert found == {own[0].fraction: pytest.approx(0.3)}
    (all_of,) = measured(salience=salience)
    assert f"{100 * 0.01**0.5:.3g}% by worst weights" in salience_verdict(all_of)


def test_words_in_a_row():
    assert [listed(w) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
