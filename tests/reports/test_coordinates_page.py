import csv
import io
import re
from dataclasses import replace
from html import escape
from itertools import chain

import numpy as np
import pytest
from click.testing import CliRunner
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from synthetic import cached_records, coordinate_rows, dosed_records, fill, outlier_row, record

from reports.command import read, report
from reports.coordinates_page import draw_coordinates, render_coordinates
from reports.entropy_figures import ORIGIN
from reports.figures import csv_text, png, svg
from reports.page import render
from suite.rows import OutlierRow
from suite.store import Store


def sections_of(path):
    coordinates = read(path)[2]
    return draw_coordinates(coordinates) if coordinates.anything else []


def test_models_of_doses_are_on_no_other_page(coordinates_path):
    assert [study.model for study in read(coordinates_path)[0]] == ["tiny"]


@pytest.fixture(scope="module")
def sections(coordinates_path):
    return sections_of(coordinates_path)


@pytest.fixture(scope="module")
def html(sections):
    return render_coordinates(sections, beside_report=True)


def table(sections, stem, key):
    plot = next(p for s in sections for p in s.plots if (s.stem, p.key) == (stem, key))
    return list(csv.DictReader(io.StringIO(csv_text(plot))))


def test_every_question_has_its_figure(sections):
    assert [(s.stem, [p.key for p in s.plots]) for s in sections] == [
        ("coordinates-doses-tiny", ["doses"]),
        ("coordinates-model-tiny", ["layers", "alpha", "salience"]),
        ("coordinates-model-tiny-outliers", ["layers", "alpha", "salience"]),
        ("coordinates-cache-tiny", ["caches"]),
    ]


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(html):
    page = parsed(html)
    refers_to_itself(page, others=("report.html",))
    stands_alone(html, page)
    can_be_heard(page, 8)


def test_every_row_names_its_record_or_model_and_its_command(sections, html):
    for plot in (p for s in sections for p in s.plots):
        assert plot.header[-len(ORIGIN) :] == ORIGIN and plot.rows and plot.caption and plot.description
        for row in plot.rows:
            assert len(row) == len(plot.header)
            source, code, env, command = row[-len(ORIGIN) :]
            assert re.fullmatch("(model|cell) .*", source) and (code, env) == ("1.0+abc", "cpu")
            assert f"<code>{escape(command)}</code>" in html


def test_rows_are_what_the_store_holds(sections, coordinates_path):
    with Store(coordinates_path, create=False) as store:
        rows = {(r.coordinates, r.tensor, r.layer): r for r in store.rows(OutlierRow) if r.model == "tiny"}
        records = {r.cell[:12]: r for r in store.records()}
    found = table(sections, "coordinates-model-tiny", "layers")
    assert len(found) == len(rows)
    for r in found:
        assert float(r["excess kurtosis"]) == pytest.approx(
            rows[r["coordinates"], r["tensor"], r["layer"]].kurtosis, rel=1e-4
        )
    for r in table(sections, "coordinates-cache-tiny", "caches"):
        record = records[r["from"].removeprefix("cell ")]
        assert float(r["cache KiB"]) * 1024 == pytest.approx(record.cache_bytes, rel=1e-5)
        assert float(r["KL"]) == pytest.approx(record.kl, rel=1e-5)
    doses = table(sections, "coordinates-doses-tiny", "doses")
    assert len(doses) == 2 * 5 * 7 and {r["factor"] for r in doses} == {"1", "8", "64"}


def test_verdicts_stand_at_the_top_and_above_their_figures(html):
    sentence = "it leaves quarot, spinquant and duquant at the very same KL at every dose."
    assert html.count(sentence) == 4  # two widths
    assert html.index(sentence) < html.index("<h2")


def test_the_command_writes_pages_that_name_each_other_and_figures(tmp_path):
    fill(tmp_path / "s.db", cached_records()[:1])
    with Store(tmp_path / "s.db") as store:
        store.put_rows(*(rows[0] for rows in coordinate_rows()))
    arguments = ["--store", str(tmp_path / "s.db"), "--out", str(tmp_path / "out"), "--figures"]
    assert CliRunner().invoke(report, arguments, catch_exceptions=False).exit_code == 0
    texts = {p.name: p.read_text() for p in (tmp_path / "out").glob("*.html")}
    assert set(texts) == {"report.html", "coordinates.html", "kernels.html"}
    assert 'href="kernels.html"' in texts["report.html"] and 'href="report.html"' in texts["kernels.html"]
    assert 'href="coordinates.html"' in texts["report.html"] and 'href="report.html"' in texts["coordinates.html"]
    for ending in ("svg", "pdf", "csv"):
        for figure in ("model-tiny-layers", "model-tiny-alpha", "model-tiny-salience", "cache-tiny-caches"):
            assert (tmp_path / "out" / "figures" / f"coordinates-{figure}.{ending}").stat().st_size


def test_a_report_without_such_a_page_does_not_name_it():
    assert "coordinates.html" not in render([])


def test_a_store_without_outliers_has_no_such_page(store_path):
    assert not read(store_path)[2].anything


def drawn_of(path, found=(), rows=((), (), ())):
    fill(path, found)
    with Store(path) as store:
        store.put_rows(*chain(*rows))
    return sections_of(path)


def test_what_is_missing_has_the_command_that_makes_it(tmp_path):
    sections = drawn_of(tmp_path / "a.db", cached_records()[:1])
    html = render_coordinates(sections, beside_report=True)
    assert "<pre><code>bitfrontier outliers reference --doses</code></pre>" in html
    assert "<pre><code>bitfrontier outliers reference</code></pre>" in html and "kivi,kvquant" not in html
    page = parsed(html)
    refers_to_itself(page, others=("report.html",))
    can_be_heard(page, 1)
    sections = drawn_of(tmp_path / "b.db", rows=[rows[:1] for rows in coordinate_rows()])
    assert [s.stem for s in sections] == ["coordinates-model-tiny", "coordinates-no-doses", "coordinates-no-cache"]


OUTLIERS, SMOOTHING, SALIENCE = coordinate_rows()
ODD = {
    "not a number": ([outlier_row(kurtosis=None, incoherence=None, max_to_median=float("inf"))], [], []),
    "all even": ([outlier_row(kurtosis=-3.0, max_to_median=1.0, dynamic_range=1.0)], [], []),
    "unknown coordinates": ([outlier_row(coordinates=f"c{k}") for k in range(14)], [], []),
    "odd names": ([outlier_row(layer=name, tensor="weights") for name in ("head", "a.b")], [], []),
    "no error": ([], [replace(SMOOTHING[0], error=None, inputs=None)], []),
    "one alpha": ([], SMOOTHING[:1], []),
    "no share": ([], [], [replace(SALIENCE[0], share=None)]),
    "other coordinates": ([], [], [replace(SALIENCE[0], coordinates="orthogonal", share=-0.1)]),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_do_not_break_figures(name, tmp_path):
    sections = drawn_of(tmp_path / "s.db", rows=ODD[name])
    assert any(s.plots for s in sections)
    for plot in (p for s in sections for p in s.plots):
        assert svg(plot, "x").startswith("<?xml") and png(plot, dpi=20).startswith(b"\x89PNG")
    assert render_coordinates(sections, beside_report=True).startswith("<!doctype html>")


RECIPE = "Recipe(weights=Target(Integer(bits=4)), activations=Target(Integer(bits=4)))"


@pytest.mark.parametrize(
    "changes",
    [{"kl": 0.0, "kl_se": 0.0}, {"kl": np.inf}, {"kl_se": None}, {"method": "of no family"}, {"method": "spinquant"}],
    ids=str,
)
def test_odd_doses_do_not_break_figures(changes, tmp_path):
    doses = [record(cell=name, model=name, model_sha256=name, bits=4, recipe=RECIPE, **changes)
             for name in ("m", "m+outliers:norm:16", "m+outliers:linear")]  # fmt: skip
    doses.append(record(cell="plain", model="m+outliers:linear", model_sha256="m+outliers:linear", bits=4,
                        recipe=RECIPE.replace("bits=4)))", "bits=8)))")))  # fmt: skip
    for plot in (p for s in drawn_of(tmp_path / "s.db", doses) for p in s.plots):
        assert png(plot, dpi=20).startswith(b"\x89PNG")


def test_cells_of_doses_without_a_result_are_named(tmp_path):
    doses = [*dosed_records(), record(cell="x", model="tiny+outliers:norm:2", model_sha256="x", method="spinquant",
                                      status="failed", reason="ValueError: 7 <b>", kl=None)]  # fmt: skip
    html = render_coordinates(drawn_of(tmp_path / "s.db", doses), beside_report=True)
    assert "1 without a result: spinquant failed, ValueError: 7 &lt;b&gt;." in html


def test_one_cache_of_no_divergence_is_drawn(tmp_path):
    sections = drawn_of(tmp_path / "s.db", [replace(cached_records()[0], kl=0.0, kl_se=None)])
    (plot,) = (p for s in sections for p in s.plots)
    assert png(plot, dpi=20).startswith(b"\x89PNG") and plot.rows[0][plot.header.index("KL")] == "0"
