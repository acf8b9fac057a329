"""The page of scaling studies says what the store's rows say, and of a law only what they bear out."""

import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from synthetic import fill, measured, record

from reports.command import read, report
from reports.entropy_figures import ORIGIN
from reports.figures import csv_text, svg
from reports.scaling import family_of, key_of, predicted_curve
from reports.scaling_page import draw_scaling_sections, law_sentences, render_scaling
from suite.store import ScalingRow, Store, TrainingRow
from theory.kumar_2024_precision import PARAMETERS, Law

LAW = Law(E=1.2, A=60.0, alpha=0.3, B=400.0, beta=0.45, gamma=1.3)
METHODS = (("full-precision", 16), *(("paretoq", b) for b in (1, 1.58, 2, 3, 4)), ("full-precision-sub-norm", 16),
           ("bitnet", 1.58))  # fmt: skip


def row(hidden, level, method, bits, **changes):
    linear = 48 * hidden**2
    parameters = linear + 2057 * hidden
    tokens = round(level * parameters)
    noise = np.random.default_rng([hidden, round(100 * level), *f"{method} {bits}".encode()]).normal(0, 0.003)
    scratch = 0.2 if method == "bitnet" else 0.0
    values = dict(
        cell=f"{method}/{bits}/{hidden}/{level}", code="1.0+abc", env="cpu", method=method, bits=bits, hidden=hidden,
        level=level, parameters=parameters, linear=linear, tokens=tokens, updates=100, batch_rows=4, rate=1e-3,
        loss_nats=float(LAW.loss(linear, tokens, bits)) * math.exp(noise) + scratch, loss_se=0.05,
        model_bytes=round(linear * bits / 8 + 2 * (parameters - linear)), model_sha256=f"{hidden}-{level}",
        data_sha256="d", seed=0, command="bitfrontier scaling out --levels '0.1,0.25'", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return ScalingRow(**{**values, **changes})


def training(of, excess):
    return TrainingRow(cell=of.cell, code=of.code, env=of.env, updates=9, tokens=9, operations=9, loss_nats=3.0,
                       ppl_control=20.0, excess_nats=excess, excess_se=0.004, moved=None, moved_control=None,
                       rounding=None, turning=None, disorder=None, window=0)  # fmt: skip


ROWS = [row(h, level, m, b) for h in (64, 128, 256, 384) for level in (0.1, 0.25) for m, b in METHODS]
TRAININGS = {key_of(r): training(r, 0.123) for r in ROWS}


@pytest.fixture(scope="module")
def family():
    return family_of(ROWS, TRAININGS)


@pytest.fixture(scope="module")
def sections(family):
    return draw_scaling_sections((family,))


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(sections):
    html = render_scaling(sections, beside_report=True)
    page = parsed(html)
    refers_to_itself(page, others=("report.html",))
    stands_alone(html, page)
    can_be_heard(page, 1)
    assert render_scaling(sections, beside_report=True) == html


def test_the_table_is_what_the_store_holds(sections):
    (plot,) = sections[0].plots
    assert plot.header[-len(ORIGIN) :] == ORIGIN
    table = list(csv.DictReader(io.StringIO(csv_text(plot))))
    assert len(table) == len(ROWS) == 64
    by = {(r.method, f"{r.bits:g}", f"{r.level:g}", f"{r.linear:,}"): r for r in ROWS}
    for line in table:
        found = by[line["method"], line["bits"], line["level"], line["linear"]]
        assert line["bytes"] == f"{found.model_bytes:,}" and line["tokens"] == f"{found.tokens:,}"
        assert float(line["loss"].split()[0]) == pytest.approx(found.loss_nats, abs=0.0051)
        assert float(line["law"]) == pytest.approx(found.loss_nats - 0.2 * (found.method == "bitnet"), rel=0.03)
        full = found.method.startswith("full-precision")
        assert line["over the control"] == ("" if full else "0.1230 ± 0.0040")
    assert svg(plot, "x").count("<title") == 1


def test_the_frontier_is_the_running_minimum(family):
    for level in family.levels:
        front = family.front(level)
        assert len(front) > 3
        for one in family.at(level):
            better = [r for r in family.at(level) if r is not one and r.model_bytes <= one.model_bytes
                      and r.loss_nats <= one.loss_nats]  # fmt: skip
            assert (one in front) == (not better)
        assert [r.loss_nats for r in front] == sorted((r.loss_nats for r in front), reverse=True)


def test_the_law_is_said_with_its_intervals_and_its_range(family):
    said = law_sentences(family)
    for name in PARAMETERS:
        low, high = family.law.fit.interval(name)
        assert f"({low:.3g} to {high:.3g})" in said[0]
    assert "from 197 thousand to 7.08 million weights" in said[0] and "1 to 16 bits" in said[0]
    assert "32.8 thousand to 1.97 million tokens" in said[0] and "Beyond these it says nothing" in said[0]
    assert re.search(r"of a size that the fit did not see, .* condition of the fit is", said[1])
    assert "do not cover" in said[2]
    assert "bitnet at 1.58 bits +0.2" in said[3] and "SubLN" in said[3]
    assert set(family.law.left_out) == {64, 128, 256, 384}


def test_curves_go_through_the_predictions_of_their_models(family):
    rows = family.curves(0.25)["paretoq", 2]
    n_bytes, losses = predicted_curve(family.law.fit.law, rows)
    assert n_bytes[0] == pytest.approx(rows[0].model_bytes) and n_bytes[-1] == pytest.approx(rows[-1].model_bytes)
    assert losses[0] == pytest.approx(family.predicted(rows[0]))
    assert losses[-1] == pytest.approx(family.predicted(rows[-1]))


def test_too_few_models_have_no_law_and_it_is_said():
    few = family_of([r for r in ROWS if r.hidden == 64 and r.level == 0.1 and r.bits != 1], {})
    assert few.law is None and "a law of 6 parameters" in law_sentences(few)[0]
    (section,) = draw_scaling_sections((few,))
    assert all(line[10] == "" for line in section.plots[0].rows)


def test_two_families_are_two_sections(family):
    other = family_of([replace(r, data_sha256="e") for r in ROWS if r.bits == 4], {})
    html = render_scaling(draw_scaling_sections((family, other)), beside_report=False)
    refers_to_itself(parsed(html))


def test_the_command_makes_the_page_and_keeps_its_models_off_the_others(tmp_path):
    path = tmp_path / "s.db"
    fill(path, [measured("tiny", "rtn", 4), record(model="out/64", model_sha256="64-0.1", cell="x")])
    with Store(path) as store:
        few = [r for r in ROWS if r.bits == 4]  # with no law to wait for
        for one in few:
            store.put_rows(one)
            store.put_rows(replace(one, env="older", loss_nats=99.0, started="2025-01-01T00:00:00Z"))
        assert [r for r in store.rows(ScalingRow) if r.env == "cpu" and r.cell == few[0].cell] == [few[0]]
    found = read(path)
    assert [study.model for study in found[0]] == ["tiny"]
    (family,) = found[4]
    assert len(family.rows) == 8 and max(r.loss_nats for r in family.rows) < 99
    done = CliRunner().invoke(report, ["--store", str(path), "--out", str(tmp_path / "out")])
    assert done.exception is None, done.exception
    assert {p.name for p in (tmp_path / "out").glob("*.html")} == {"report.html", "kernels.html", "scaling.html"}
    assert 'href="scaling.html"' in (tmp_path / "out" / "report.html").read_text()


def test_a_store_without_such_rows_has_no_page(tmp_path):
    path = tmp_path / "s.db"
    fill(path, [measured("tiny", "rtn", 4)])
    assert read(path)[4] == ()
