import csv
import io
import re
from html import escape

import numpy as np
import pytest
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from synthetic import coded_size, coded_sizes, fill_entropy, measured, record, records, weight_shapes

from reports import entropy_page
from reports.command import read
from reports.entropy_figures import ORIGIN
from reports.entropy_page import draw_entropy, render_entropy
from reports.figures import csv_text, png, svg
from reports.frontier import LOW_BITS
from reports.page import draw, render
from suite.store import Histogram, Store


@pytest.fixture(scope="module")
def sections(entropy_path):
    found, entropy, *_ = read(entropy_path)
    return draw_entropy(entropy, draw(found))


@pytest.fixture(scope="module")
def html(sections):
    return render_entropy(sections, beside_report=True)


@pytest.fixture(scope="module")
def page(html):
    return parsed(html)


def plot_of(sections, stem, key):
    return next(p for s in sections for p in s.plots if (s.stem, p.key) == (stem, key))


def test_every_question_has_its_figure(sections):
    assert [(s.stem, [p.key for p in s.plots]) for s in sections] == [
        ("entropy", ["coders", "gain", "gap", "efficiency", "parts"]),
        ("entropy-org-larger-1b", ["coded", "histograms"]),
        ("entropy-tiny", ["coded", "distance", "histograms"]),
    ]


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(html, page):
    refers_to_itself(page, others=("report.html",))
    stands_alone(html, page)
    can_be_heard(page, 10)


def test_every_row_names_its_record_or_model_and_its_command(sections, html):
    cells = {f"cell {r.cell[:12]}" for r in records()}
    for plot in (p for s in sections for p in s.plots):
        assert plot.header[-len(ORIGIN) :] == ORIGIN and plot.rows and plot.caption and plot.description
        for row in plot.rows:
            assert len(row) == len(plot.header)
            source, code, env, command = row[-len(ORIGIN) :]
            assert set(source.split(" + ")) <= cells or re.fullmatch("model [0-9a-f]{12}", source)
            assert code == "1.0+abc" and env == "cpu" and command.startswith("bitfrontier ")
            assert all(f"<code>{escape(c)}</code>" in html for c in [command])
        assert csv_text(plot).count("\n") == 1 + len(plot.rows)


def test_rows_are_what_the_store_holds(sections):
    rows = list(csv.DictReader(io.StringIO(csv_text(plot_of(sections, "entropy", "gain")))))
    sizes = [s for s in coded_sizes() if s.model == "tiny/half" and s.bits == 4 and s.group == "row"]
    total = {c: sum(s.n_bits for s in sizes if s.coder == c) for c in ("fixed", "ans")}
    (row,) = [r for r in rows if r["model"] == "half" and r["group"] == "row"]
    assert float(row["gain"]) == pytest.approx(total["fixed"] / total["ans"], abs=1e-4)
    assert int(row["weights"]) == 6 * 4096 and float(row["stored bpw"]) == pytest.approx(
        total["fixed"] / (6 * 4096), abs=1e-4
    )


def test_gaps_are_bits_less_limits(sections):
    rows = list(csv.DictReader(io.StringIO(csv_text(plot_of(sections, "entropy", "gap")))))
    assert {r["format"] for r in rows} == {"fp8", "rtn"}
    for r in rows:
        assert float(r["R(D), Gaussian"]) == pytest.approx(-np.log2(float(r["nmse"])) / 2, abs=1e-3)
        for source in ("Gaussian", "Laplace", "variance mixture"):
            limit = float(r[f"R(D), {source}"])
            assert float(r[f"stored above {source}"]) == pytest.approx(float(r["stored bpw"]) - limit, abs=2e-4)
            assert float(r[f"coded above {source}"]) == pytest.approx(float(r["ANS bpw"]) - limit, abs=2e-4)
            assert limit <= float(r["R(D), Gaussian"]) + 1e-3
        assert float(r["R(D), variances known"]) <= float(r["R(D), variance mixture"]) + 1e-3


def test_distances_are_true_bits_less_the_limit_of_the_mean_error(sections):
    plot = plot_of(sections, "entropy-tiny", "distance")
    rows, of_low = list(csv.DictReader(io.StringIO(csv_text(plot)))), {}
    for r in records():
        if r.model == "tiny" and r.status == "ok" and r.code == "1.0+abc" and r.bpw <= LOW_BITS:
            of_low.setdefault((r.method, f"{r.bits:g}"), []).append(r)
    assert {(r["method"], r["bits"]) for r in rows} == set(of_low)
    for r in rows:
        nmse = np.mean([one.nmse for one in of_low[r["method"], r["bits"]]])
        assert float(r["nmse"]) == pytest.approx(nmse, abs=1e-4)
        assert float(r["R(D), Gaussian"]) == pytest.approx(-np.log2(nmse) / 2, abs=1e-3)
        for source in ("Gaussian", "Laplace", "variance mixture"):
            gap = float(r["bpw"]) - float(r[f"R(D), {source}"])
            assert float(r[f"bpw above {source}"]) == pytest.approx(gap, abs=2e-4)
    below = [r for r in rows if float(r["bpw above variance mixture"]) < 0]
    assert all(f"{r['method']} {r['bits']} by " in plot.caption for r in below)


def test_histograms_have_all_their_counts(sections):
    plot = plot_of(sections, "entropy-tiny", "histograms")
    by_name = {(r[0], r[2], r[4]): r for r in plot.rows}
    counts = by_name["rtn", "3", "0"][plot.header.index("count of each level")].split(", ")
    assert len(counts) == 8 and counts[4] == "0: 1000000"
    assert "rtn 3: " in plot.description


def test_verdicts_stand_at_the_top_and_above_their_figures(html):
    (sentence,) = set(re.findall(r"<strong>initial</strong>: coding 4-bit codes gains from [^<]*", html))
    assert html.count(sentence) == 2 and html.index(sentence) < html.index("<h2")
    assert html.index('id="entropy-gain"') < html.rindex(sentence) < html.index('aria-labelledby="entropy-gain"')


def test_the_pages_name_each_other(entropy_path, html):
    report = render(draw(read(entropy_path)[0]), beside={entropy_page.PAGE: entropy_page.LINK})
    assert 'href="entropy.html"' in report and 'href="report.html"' in html
    assert "report.html" not in render_entropy([], beside_report=False)


def test_a_store_of_sizes_alone_has_an_entropy_page(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put_rows(*coded_sizes()[:40])
        store.put_shapes(weight_shapes()[:1])
    found, entropy, *_ = read(tmp_path / "s.db")
    assert found == [] and [s.stem for s in draw_entropy(entropy, [])] == ["entropy"]


def drawn_of(path, sizes=(), shapes=(), histograms=(), **changes):
    with Store(path) as store:
        store.put(record(**changes), histograms=histograms)
        store.put_rows(*sizes)
        store.put_shapes(shapes)
    found, entropy, *_ = read(path)
    return draw_entropy(entropy, draw(found)) if entropy.anything else []


ODD = {
    "one level": dict(histograms=[Histogram(stream=0, levels=np.zeros(1), counts=np.ones(1, dtype=np.int64))]),
    "no codes": dict(histograms=[Histogram(stream=0, levels=np.zeros(1), counts=np.zeros(1, dtype=np.int64))]),
    "many levels": dict(
        histograms=[Histogram(stream=3, levels=np.arange(4096.0), counts=np.arange(4096, dtype=np.int64))]
    ),
    "no limit": dict(sizes=[coded_size(coder=c) for c in ("fixed", "entropy", "ans")]),
    "no entropy": dict(sizes=[coded_size()]),
    "no coder": dict(sizes=[coded_size(coder=c) for c in ("fixed", "entropy")], shapes=weight_shapes()[:1]),
    "exact": dict(
        sizes=[coded_size(coder=c, nmse=0.0) for c in ("fixed", "entropy", "ans")], shapes=weight_shapes()[:1]
    ),
    "all zero": dict(sizes=[coded_size(coder=c, n_bits=2048.0) for c in ("fixed", "entropy", "huffman")]),
    "parts alone": dict(sizes=[coded_size(format="bf16", coder="sign", layer="head")]),
    "coded without KL": dict(
        kl=None, bpw_coded=3.0, histograms=[Histogram(stream=0, levels=np.arange(2.0), counts=np.array([1, 2]))]
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_do_not_break_figures(name, tmp_path):
    sections = drawn_of(tmp_path / "s.db", **ODD[name])
    for plot in (p for s in sections for p in s.plots):
        assert svg(plot, "x").startswith("<?xml") and png(plot, dpi=20).startswith(b"\x89PNG")
    assert render_entropy(sections, beside_report=True).startswith("<!doctype html>")


def test_models_called_like_figures_share_no_ids(tmp_path):
    path = tmp_path / "s.db"
    fill_entropy(path, [measured(name, "rtn", 3, bpw_coded=2.9) for name in ("coders", "section", "entropy")])
    found, entropy, *_ = read(path)
    html = render_entropy(draw_entropy(entropy, draw(found)), beside_report=True)
    ids = re.findall(r'\bid="(.*?)"', html)
    assert len(set(ids)) == len(ids)
