import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import fill, measured, record, study_of

from reports.frontier import Point, feedback_floor, marks, newest, pareto_front, studies, verdict
from suite.store import Spectrum, Store

coordinate = st.one_of(st.integers(0, 5).map(float), st.sampled_from([np.nan, np.inf]))


def read(path):
    with Store(path, create=False) as store:
        return studies(store)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=30))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front([x for x, _ in points], [y for _, y in points])
    finite = [p for p in points if np.isfinite(p).all()]
    for (x, y), on_front in zip(points, front, strict=True):
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in finite)
        assert on_front == (bool(np.isfinite([x, y]).all()) and not beaten)


def test_models_are_told_apart_and_seeds_are_not(store_path):
    larger, tiny = read(store_path)
    assert (larger.model, tiny.model) == ("org/Larger-1B", "tiny")
    seeds = {(p.method, p.bits): len(p.records) for p in tiny.points}
    assert seeds["gptq", 3] == 3 and seeds["rtn", 3] == 1
    assert len(larger.points) == 20 and len(tiny.points) == 22
    assert [r.cell for r in tiny.unmeasured] == ["skip", "fail"]
    assert [r.code for r in tiny.superseded] == ["0.9+old"]


def test_evaluations_of_other_tokens_are_not_mixed(tmp_path):
    found = [
        measured("tiny", "rtn", 3, data_sha256="short", cell="1", ppl_base=9.0),
        measured("tiny", "rtn", 3, data_sha256="long", cell="2", ppl_base=8.0),
        measured("tiny", "gptq", 3, data_sha256="long, other calibration", cell="3", ppl_base=8.0 * (1 + 1e-7)),
        measured("tiny", "awq", 3, data_sha256="nothing measured", cell="4", ppl_base=None, status="skipped"),
    ]
    long, short = read(fill(tmp_path / "s.db", found))
    assert sorted(r.cell for r in (*long.measured, *long.unmeasured)) == ["2", "3", "4"]
    assert [r.cell for r in short.measured] == ["1"]


def test_the_last_finished_record_of_a_cell_is_shown():
    old, new = record(code="1", started="2026-01-01"), record(code="2", started="2026-01-02")
    failed = record(code="3", started="2026-01-03", status="failed")
    other = record(cell="other", code="1", started="2020-01-01")
    assert newest([old, failed, new, other]) == [new, other]
    assert newest([failed]) == [failed]


def test_the_error_of_a_mean_has_both_its_parts():
    point = Point("gptq", "r", 3, tuple(record(kl=kl, kl_se=0.3) for kl in (1.0, 2.0, 3.0)))
    assert point.mean("kl") == pytest.approx(2)
    assert point.error("kl", "kl_se") == pytest.approx(np.sqrt(0.3**2 + 1 / 3))
    assert Point("rtn", "r", 3, (record(kl=1.0, kl_se=None),)).error("kl", "kl_se") == 0


@pytest.mark.parametrize(
    "changes, note",
    [
        ({"kl": np.inf}, "not drawn: not finite"),
        ({"kl": np.nan}, "not drawn: not finite"),
        ({"kl": None}, "not drawn: not measured"),
        ({"bpw": None}, "not drawn: no bit count"),
        ({"kl": 0.0}, "drawn at the lower edge of the logarithmic axis"),
        ({}, ""),
    ],
)
def test_what_cannot_be_drawn_is_said(changes, note):
    (mark,) = marks(study_of(record(**changes)).points, "kl", "kl_se")
    assert mark.note == note
    assert mark.drawn == mark.front == (not note.startswith("not drawn"))


def test_the_floor_of_white_inputs_is_the_gaussian_one():
    rng = np.random.default_rng(0)
    layers = []
    for n_out, n_in in ((8, 12), (20, 6)):
        W = rng.normal(size=(n_out, n_in))
        variance = float((W**2).mean())
        layers.append(Spectrum(layer=f"{n_out}", n_out=n_out, variance=variance, energy=float((W**2).sum()),
                               eigenvalues=np.ones(n_in)))  # fmt: skip
    same = tuple(dataclasses.replace(s, variance=1.0, energy=float(s.n_out * len(s.eigenvalues))) for s in layers)
    rates = np.array([0.0, 1.0, 3.0])
    assert feedback_floor(study_of(spectra=(same,)), rates) == pytest.approx(4.0**-rates, rel=1e-12)
    joint = feedback_floor(study_of(spectra=(tuple(layers),)), rates)
    assert joint[0] == pytest.approx(1, rel=1e-12)
    assert (joint <= 4.0**-rates * (1 + 1e-12)).all()  # unequal layers are only easier
    assert feedback_floor(study_of(), rates) is None


def test_a_singular_gram_matrix_has_a_floor():
    s = Spectrum(layer="l", n_out=2, variance=1.0, energy=2.0, eigenvalues=np.array([-1e-18, 1.0]))
    assert feedback_floor(study_of(spectra=((s,),)), 1.0) == pytest.approx(4.0**-2)  # both bits on one component


def test_the_verdict_names_the_fewest_bits():
    cheap = record(method="gptq", bpw=3.1, kl=0.04, kl_se=0.001)
    assert "below 0.05 nats: gptq at 3.10 bits per weight, with KL 0.04 ± 0.001 nats." in verdict(
        study_of(record(method="hqq", bpw=4.5, kl=0.01), cheap, record(bpw=2.0, kl=0.06))
    )
    assert "less than two standard errors" in verdict(study_of(dataclasses.replace(cheap, kl_se=0.02)))
    far = verdict(study_of(record(bpw=2.0, kl=0.5), record(method="hqq", bpw=3.0, kl=0.2)))
    assert far.startswith("no method keeps KL below 0.05 nats; the closest is hqq at 3.00 bits")
    assert verdict(study_of(record(kl=None))).startswith("no method has a finite KL")
