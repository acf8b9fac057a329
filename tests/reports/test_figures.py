import csv
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from synthetic import measured, record, study_of

from reports.drawing import _looks, plain_number
from reports.figures import csv_text, kl_plot, pdf, plots, png, svg
from reports.frontier import LOW_BITS, studies
from suite.store import Store


@pytest.fixture(scope="module")
def tiny(store_path):
    with Store(store_path, create=False) as store:
        return next(s for s in studies(store) if s.model == "tiny")


def test_every_point_is_in_the_table_and_the_csv(tiny):
    for plot in plots(tiny):
        kept = {"nmse": lambda p: p.method in ("rtn", "hqq"), "low": lambda p: p.mean("bpw") <= LOW_BITS}
        expected = [p for p in tiny.points if plot.key not in kept or kept[plot.key](p)]
        field = "kl" if plot.key == "low" else plot.key
        lines = list(csv.DictReader(io.StringIO(csv_text(plot))))
        points = [line for line in lines if line["recipe"]]
        assert [(r["method"], r["recipe"]) for r in points] == [(p.method, p.recipe) for p in expected]
        assert [r[:2] for r in plot.rows] == [(p.method, p.recipe) for p in expected]
        for line, point in zip(points, expected, strict=True):
            assert float(line[field]) == pytest.approx(point.mean(field), rel=1e-5)
        assert len(lines) == len(points) + len(plot.curves)


def test_the_gap_to_the_limit_is_in_bits(tiny):
    nmse = next(p for p in plots(tiny) if p.key == "nmse")
    for row in csv.DictReader(io.StringIO(csv_text(nmse))):
        if row["recipe"]:
            gap = float(row["bpw"]) + np.log(float(row["nmse"])) / np.log(4)
            assert float(row["bits above the limit"]) == pytest.approx(gap, abs=1e-3)


def test_a_point_below_the_limit_is_reported_as_a_finding():
    below, above = measured("tiny", "rtn", 3, nmse=4.0**-3.5), measured("tiny", "rtn", 4)
    (plot,) = [p for p in plots(study_of(below, above)) if p.key == "nmse"]
    assert "a finding; here: rtn 3 (3.25 bits)." in plot.caption
    (plot,) = [p for p in plots(study_of(above)) if p.key == "nmse"]
    assert "here there is none" in plot.caption


def test_quantized_activations_are_pointed_out():
    recipe = "Recipe(weights=Target(Integer(bits=3)), activations=Target(Integer(bits=8)))"
    warned, plain = (kl_plot(study_of(record(method="smoothquant", recipe=r))).caption for r in (recipe, "Recipe()"))
    assert "quantized too by smoothquant" in warned and "quantized too" not in plain


def test_svg_is_titled_described_and_local(tiny):
    for plot in plots(tiny):
        root = ET.fromstring(svg(plot, "x"))
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert root.get("role") == "img"
        assert all(i.startswith("x-") for i in ids) and len(set(ids)) == len(ids)
        assert root[0].text == plot.title and root[1].text == plot.description
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert links and all(link[1:] in ids for link in links)
        assert "Pareto front:" in plot.description or plot.key in ("nmse", "hnmse")


def test_the_unquantized_perplexity_is_a_line(tiny):
    ppl = next(p for p in plots(tiny) if p.key == "ppl")
    assert {y for name, _, y in ppl.curves} == {"7.5"} and "unquantized, 7.5" in svg(ppl, "x")


@pytest.mark.parametrize(
    "records",
    [
        [record()],
        [record(kl=0.0, kl_se=0.0)],
        [record(bits=None, kl_se=None)],
        [record(ppl=1e30, ppl_se=1e29), record(recipe="b", kl=1e-12, kl_se=1.0)],
        [record(kl=0.1, ppl=7.5), record(recipe="b", kl=0.1, ppl=7.5)],
        [record(method=f"method-{i}", bpw=2 + i / 9, kl=4.0**-i) for i in range(45)],
        [record(ppl=np.inf), record(recipe="b", kl=np.inf, nmse=np.nan)],
        [record(bpw_entropy=None, ppl_base=None)],
    ],
)
def test_odd_measurements_do_not_break_figures(records):
    for plot in plots(study_of(*records)):
        assert svg(plot, "x").startswith("<?xml")
        assert png(plot, dpi=20).startswith(b"\x89PNG")
    assert pdf(plot).startswith(b"%PDF")


def test_nothing_to_draw_is_no_figure():
    nothing = record(kl=None, ppl=np.inf, nmse=None, hnmse=np.nan)
    assert plots(study_of(nothing)) == []
    assert kl_plot(study_of()) is None


def test_methods_keep_their_looks_and_share_none():
    names = [f"m{i}" for i in range(40)]
    looks = _looks(names)
    assert len(set(looks.values())) == len(looks)
    assert looks["gptq"] == _looks([])["gptq"]


@pytest.mark.parametrize("y, text", [(0.01, "0.01"), (1e-4, "10⁻⁴"), (2e-5, "2·10⁻⁵"), (500, "500"), (1e6, "10⁶")])
def test_ticks_are_plain_numbers(y, text):
    assert plain_number(y) == text
