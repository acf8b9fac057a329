import csv
import io
from dataclasses import fields, replace

import pytest
import torch
from click.testing import CliRunner
from synthetic import speed_row
from test_kernels_page import BIG, COMPILED, made

from kernels.kernel import Size
from kernels.table import kernel_named
from reports.command import report
from reports.figures import csv_text, png, svg
from reports.kernels import Found, newest
from reports.kernels_ceilings import FORMATS, TOKENS, WIDTHS, formats
from reports.kernels_ceilings_figures import ceiling_plots
from reports.kernels_models import models_plot, name
from suite.store import Store
from theory.roofline import DECODERS, DEVICES

NOTHING = Found(results=(), compiled=())
SPEEDS = (speed_row(), speed_row(product="dequantize", decode=40.0, decode_ratio=0.4))
TABLES = ("table", "octets", "codebooks")  # shared by all weights of a matrix


def drawn(found, key):
    plot, claims = next((plot, claims) for plot, claims in ceiling_plots(found) if plot.key == key)
    return list(csv.DictReader(io.StringIO(csv_text(plot)))), " ".join(claims), plot


def figure(text):
    return float(text.replace(",", ""))


def test_every_ceiling_is_a_bandwidth_over_the_bytes_beside_it():
    rows, _, _ = drawn(replace(NOTHING, speeds=SPEEDS), "rooflines")
    ceilings = [row for row in rows if row["kind"] == "ceiling"]
    assert len(ceilings) == (len(DEVICES) + 1) * len(DECODERS) * len(WIDTHS)
    for row in ceilings:  # to the four digits that are shown
        by_hand = figure(row["GB/s"]) / figure(row["GB a token"])
        assert figure(row["tokens/s"]) == pytest.approx(by_hand, rel=2e-3)
    assert {row["device"]: figure(row["GB/s"]) for row in ceilings}["CPU, 2 threads, measured"] == 10
    unknown = {row["device"] for row in ceilings if row["fits in memory"] == "unknown"}
    assert unknown == {"CPU, 2 threads, measured"}


def test_what_was_measured_is_told_from_what_was_not():
    rows, claim, plot = drawn(replace(NOTHING, speeds=SPEEDS), "rooflines")
    measured = [row for row in rows if row["kind"] == "measured"]
    assert [figure(row["tokens/s"]) for row in measured] == [120, 40]
    assert "On a GPU nothing has been measured." in claim and "0.20 of the roofline" in claim and "to 0.60" in claim
    assert "2 that read less than is shown" in plot.caption
    rows, claim, plot = drawn(NOTHING, "rooflines")
    assert {row["kind"] for row in rows} == {"ceiling"} and "Nor has a model been timed" in claim
    assert {row["device"] for row in rows} == {device.name for device in DEVICES}


def test_a_gpus_measured_bandwidth_stands_beside_its_datasheet():
    rows, _, _ = drawn(Found(results=(made(),), compiled=()), "rooflines")
    there = {figure(row["GB/s"]) for row in rows if row["device"] == "A made-up GPU, measured"}
    assert there == {4474}  # 2^30 bytes read in 240 us
    large = speed_row(device="A made-up GPU", token_bytes=5_000_000_000)
    _, claim, plot = drawn(Found(results=(made(),), compiled=(), speeds=(large,)), "rooflines")
    assert "nothing has been measured" not in claim and "0 that read less" in plot.caption


def test_caches_are_beside_the_weights_they_are_read_with():
    rows, claim, _ = drawn(NOTHING, "caches")
    assert len(rows) == 6 * 4 * len(TOKENS)
    for row in rows:
        cache, weights = figure(row["cache, GB"]), figure(row["4-bit weights, GB"])
        assert figure(row["cache over weights"]) == pytest.approx(cache / weights, rel=1e-2)
        assert figure(row["H200, tokens/s at most"]) == pytest.approx(4800 / (cache + weights), rel=2e-3)
    assert "42.9 GB of a 16-bit cache, 1.15 times" in claim


def test_sizes_are_shares_of_fp32():
    rows, claim, _ = drawn(NOTHING, "sizes")
    assert [row["model"] for row in rows] == list(DECODERS)
    for row in rows:
        shrunk = 1 - figure(row["four bits, GB"]) / figure(row["FP32, GB"])
        assert figure(row["the whole model (%)"]) == pytest.approx(100 * shrunk, abs=0.05)
        assert row["codes alone (%)"] == "87.50" and row["linear layers, 4.125 bits (%)"] == "87.11"
    assert "0.373 saved" in claim


@pytest.mark.parametrize("format_", FORMATS)
def test_a_formats_bits_are_those_that_its_kernel_reads(format_):
    outputs, inputs = 128, 10_240  # nothing is padded, not even five in a byte
    kernel = kernel_named(format_)
    group = min(kernel.bench[0].group, 128)
    made = kernel.inputs(Size(1, outputs, inputs, inputs if format_ == "fp8-gemv" else group), 0, "cpu")
    weights = next(value for value in made if hasattr(value, "__dataclass_fields__"))
    parts = {f.name: getattr(weights, f.name) for f in fields(weights)}
    read = sum(8 * v.nbytes for n, v in parts.items() if isinstance(v, torch.Tensor) and n not in TABLES)
    # beside what is counted a scale for each row at most, of up to 32 bits
    assert FORMATS[format_][1] <= read / (outputs * inputs) <= FORMATS[format_][1] + 32 / inputs


def test_the_lower_roof_is_the_lower_one_and_measurements_stand_beside():
    slow = {**COMPILED[0], "slots_per_weight": "20"}
    for compiled in (COMPILED, (slow,)):
        one = next(f for f in formats(Found(results=(made(),), compiled=compiled)) if f.kernel == "w4a16-gemv")
        assert one.most == min(one.fused, one.instructions) and one.fused == pytest.approx(16 / 4.125)
        assert one.measured == pytest.approx(120 / 40)
    assert one.most == one.instructions < 1
    nothing = formats(NOTHING)
    assert all(one.instructions is one.measured is None and one.most == one.fused for one in nothing)
    assert all(one.unfused < 0.5 < 1 < one.fused for one in nothing)


def test_claims_are_open_where_nothing_was_compiled_or_timed():
    _, claim, plot = drawn(NOTHING, "formats")
    assert "Claim B5 is open: the kernels have not been compiled" in claim and "Measured (" not in claim
    assert "No kernel has been timed on a GPU." in plot.caption
    codebook = {**COMPILED[0], "kernel": "aqlm-2x8-gemv", "slots_per_weight": "1.9"}
    _, claim, plot = drawn(Found(results=(made(),), compiled=(*COMPILED, codebook), speeds=SPEEDS), "formats")
    assert "takes 1.90 instructions a weight" in claim and "INT4, groups of 128 3.00 times on A made-up GPU" in claim
    assert "0.40 times the speed of bfloat16 where weights are dequantized apart, 2.00 as products" in claim
    assert "Crosses are measured" in plot.caption


def test_models_stand_beside_bfloat16_and_the_roofline():
    other = speed_row(base_decode=None, base_prefill=None, base_token_bytes=None, decode_ratio=None, bits=None,
                      prefill_ratio=None, decode_ratio_low=None, decode_ratio_high=None, overhead=None)  # fmt: skip
    plot = models_plot((*SPEEDS, other))
    assert plot.rows[0][plot.header.index("roofline")] == "200" and plot.rows[0][-1] == "bitfrontier speed tiny-packed"
    assert [row[plot.header.index("of the roofline")] for row in plot.rows] == ["0.6", "0.2", "0.6"]
    assert [row[plot.header.index("bfloat16")] for row in plot.rows] == ["60", "60", "–"]
    assert "auto: Int4Pack, Dense from 32 rows on (21 layers)" in plot.rows[0][1]
    assert svg(plot, "x").startswith("<?xml") and png(plot, dpi=20).startswith(b"\x89PNG")
    assert models_plot(()) is None


def test_of_runs_that_differ_in_code_alone_the_newest_is_shown():
    first, other = speed_row(model="some/where/packed"), speed_row(product="dense")
    second = replace(first, code="1.1", decode=130.0, started="2026-02-01T00:00:00Z")
    assert newest([first, other, second]) == newest([second, other, first]) == (second, other)
    assert name(second) == "packed, rtn 4, CPU, 2 threads" and name(other).endswith("dense, CPU, 2 threads")


def test_a_store_of_speeds_alone_has_its_page(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put_speed(SPEEDS[0])
    result = CliRunner().invoke(
        report, ["--store", str(tmp_path / "s.db"), "--out", str(tmp_path / "out"), "--figures"]
    )
    assert result.exit_code == 0, result.exception
    assert {path.name for path in (tmp_path / "out").glob("*.html")} == {"kernels.html"}
    made = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    keys = ["models-speeds", *(f"ceilings-{key}" for key in ("rooflines", "caches", "sizes", "formats"))]
    assert made == {f"kernels-{key}.{kind}" for key in keys for kind in ("svg", "pdf", "csv")}
    html = (tmp_path / "out" / "kernels.html").read_text()
    assert "tiny-packed, rtn 4" in html and "report.html" not in html


def test_shapes_that_are_not_large_say_nothing_of_a_format():
    small = replace(made(), timings=tuple(t for t in made().timings if t.shape != BIG))
    one = next(f for f in formats(Found(results=(small,), compiled=COMPILED)) if f.kernel == "w4a16-gemv")
    assert one.measured is None
