import csv
import io
from dataclasses import replace
from html import escape

import pytest
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from synthetic import speed_row

from kernels.results import CLONE, COPY, DENSE, READ, Absence, Agreement, Results, Shape, Task, Timing
from kernels.targets import TARGETS
from reports.figures import csv_text, png
from reports.kernels import BENCH, COMPILE, Found, read_kernels, shape_tables
from reports.kernels_page import draw_kernels, render_kernels

BIG, SMALL, MANY = Shape(1, 28672, 8192), Shape(1, 2048, 2048), Shape(16, 28672, 8192)
ATTENTION = Task("attention", "1 x 32 / 8 x 128 x 32768 tokens")
COMPILED = (
    {"kernel": "w4a16-gemv", "size": "1 x 28672 x 512 / 128", "dtype": "float16", "triton": "3.9.0",
     "architecture": "90", "registers": "96", "slots_per_weight": "2.4", "something new": "1"},
)  # fmt: skip


def timing(name, kind, microseconds, nbytes, shape=BIG, dtype="float16", launch=""):
    seconds = microseconds / 1e6
    return Timing(name=name, kind=kind, shape=shape, dtype=dtype, median_seconds=seconds, lower_seconds=0.98 * seconds,
                  upper_seconds=1.04 * seconds, replays=100, copies=4, bytes_moved=nbytes, error=0.25,
                  launch=launch)  # fmt: skip


def made(**changes):
    found = Results(
        device="A made-up GPU", facts={"clocks.sm": "1755 MHz", "clocks.sm, after": "1700 MHz"},
        versions={"torch": "2.11", "triton": "3.6"}, command=f"{BENCH} --only 'a<b'", when="2026-11-22T03:00:00+00:00",
        seed=0, seconds=400.0, sanitizer="0 errors",
        timings=(
            timing(COPY, "yardstick", 4.0, 8_000_000, SMALL, "float32"),
            timing(DENSE, "yardstick", 4.0, 8_400_000, SMALL, "bfloat16"),
            timing("w4a16-gemv", "kernel", 4.5, 2_100_000, SMALL),
            timing(COPY, "yardstick", 500, 1 << 31, dtype="float32"),
            timing(READ, "yardstick", 240, 1 << 30, dtype="float32"),
            timing(DENSE, "yardstick", 120, 470_000_000, dtype="bfloat16"),
            timing("w4a16-gemv", "kernel", 40, 121_000_000, launch="BLOCK_N 128"),
            timing("w4a16-gemv", "kernel", 41, 121_000_000, dtype="bfloat16"),
            timing("gemlite", "peer", 38, 121_000_000),
            timing(COPY, "yardstick", 500, 1 << 31, MANY, "float32"),
            timing(DENSE, "yardstick", 125, 470_000_000, MANY, dtype="bfloat16"),
            timing("w4a16-gemv", "kernel", 50, 122_000_000, MANY),
            timing(COPY, "yardstick", 500, 1 << 31, ATTENTION, "float32"),
            timing(CLONE, "yardstick", 40, 80_000_000, ATTENTION),
            timing("attention-kv4", "kernel", 20, 40_000_000, ATTENTION),
        ),
        absences=(Absence(name="humming", reason="cannot import <humming>", shape=BIG),),
        agreements=(Agreement(kernel="w4a16-gemv", size="1", dtype="float16", inputs=10, excess=0.5, passed=True),
                    Agreement(kernel="w2a16-gemv", size="1", dtype="float16", inputs=1, excess=None, passed=False)),
    )  # fmt: skip
    return replace(found, **changes)


SPEEDS = (speed_row(), speed_row(product="dequantize", decode=40.0, decode_ratio=0.4, fallbacks='["a < b"]'))


def page(*results, compiled=COMPILED, beside_report=True, speeds=()):
    found = Found(results=results, compiled=compiled, speeds=speeds)
    return render_kernels(found, draw_kernels(found), beside_report=beside_report)


@pytest.mark.parametrize("speeds", [(), SPEEDS], ids=len)
@pytest.mark.parametrize(
    "results", [(), (made(),), (made(), made(device="Another", timings=(), agreements=()))], ids=len
)
def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(results, speeds):
    html = page(*results, speeds=speeds)
    tags = parsed(html)
    refers_to_itself(tags, others=("report.html",))
    stands_alone(html, tags)
    can_be_heard(tags, 2 * min(len(results), 1) + min(len(speeds), 1) + 4)


def test_without_a_gpu_every_target_is_not_measured_and_the_command_is_there():
    html = page(compiled=())
    assert html.count('<td class="text">not measured</td>') == len(TARGETS)
    assert f"none of {len(TARGETS)} targets is measured" in html
    assert f"<pre><code>{BENCH}</code></pre>" in html and f"<pre><code>{COMPILE}</code></pre>" in html


def test_with_one_verdicts_stand_at_the_top_and_with_their_targets():
    html = page(made())
    assert "<strong>A made-up GPU</strong>: of" in html and html.index("1 met, 2 missed") < html.index("<h2")
    assert "met 3.00 at 1 x 28672 x 8192" in html  # 120 / 40 against the dense product
    assert "missed 0.95 at 1 x 28672 x 8192" in html  # 38 / 40 against gemlite
    assert f"missed {121 / 40 / (2**31 / 5e8):.2f} at" in html  # of the copy's bandwidth
    assert "not measured: aten int4: not asked for" in html
    assert escape("--only 'a<b'", quote=False) in html.replace("&#39;", "'") and "cannot import &lt;humming&gt;" in html
    assert f"Bandwidth at {BIG}<" in html and f"Latency at {SMALL}<" in html
    assert "1700 MHz" in html and "0 errors" in html
    assert (
        "with errors up to 0.5 of what is allowed (w4a16-gemv,\n10 random inputs). Failed: w2a16-gemv at 1 float16."
        in html
    )


def test_tables_compare_with_what_was_timed_at_the_same_shape():
    tables = {table.shape: table for table in shape_tables(made())}
    big, small = tables[BIG], tables[SMALL]
    assert (big.others, tables[MANY].others, small.others) == ((DENSE, "gemlite"), (DENSE,), (DENSE,))
    assert tables[ATTENTION].others == (CLONE,)
    rows = {(row.timing.name, row.timing.dtype): row for row in big.rows}
    ours = rows["w4a16-gemv", "float16"]
    assert ours.times == pytest.approx((3.0, 0.95)) and ours.share == pytest.approx(121e6 / 40e-6 / (2**31 / 500e-6))
    assert rows[COPY, "float32"].times == (None, None) and rows[COPY, "float32"].share == 1
    assert next(r for r in small.rows if r.timing.kind == "kernel").times == pytest.approx((4 / 4.5,))


def test_the_figure_has_the_numbers_of_every_kernel_and_peer():
    (run,) = draw_kernels(Found(results=(made(),), compiled=())).runs
    shares, times = run.plots
    found = {(r["name"], r["activations"], r["shape"]): float(r["median (us)"])
             for r in csv.DictReader(io.StringIO(csv_text(shares)))}  # fmt: skip
    assert found == {
        ("w4a16-gemv", "float16", str(BIG)): 40, ("w4a16-gemv", "bfloat16", str(BIG)): 41,
        ("gemlite", "float16", str(BIG)): 38, ("w4a16-gemv", "float16", str(MANY)): 50,
        ("attention-kv4", "float16", str(ATTENTION)): 20, ("w4a16-gemv", "float16", str(SMALL)): 4.5,
    }  # fmt: skip
    # read at 2^30 bytes in 240 us: 121 MB take 27.05 us; at 16 rows a copy, 2^31 in 500, is all there is
    rows = {(r["name"], r["rows"]): r for r in csv.DictReader(io.StringIO(csv_text(times)))}
    assert set(rows) == {(n, r) for n in ("w4a16-gemv", DENSE) for r in ("1", "16")} | {("gemlite", "1")}
    assert float(rows["w4a16-gemv", "1"]["roofline (us)"]) == pytest.approx(121e6 * 240 / 2**30, rel=1e-3)
    assert float(rows["w4a16-gemv", "16"]["times the roofline"]) == pytest.approx(50 * 2**31 / 500 / 122e6, rel=1e-3)
    for plot in run.plots:
        assert png(plot, dpi=20).startswith(b"\x89PNG")


def test_machine_code_is_shown_as_it_was_counted():
    html = page()
    assert ">instructions a weight<" in html and "<td>2.4</td>" in html and "something new" not in html
    assert "triton 3.9.0" in html


def test_files_are_read_newest_first(tmp_path):
    (tmp_path / "kernels-b.json").write_text(made(device="b", when="2026-01-01").to_json())
    (tmp_path / "kernels-a.json").write_text(made(device="a", when="2025-01-01").to_json())
    (tmp_path / "compiled.csv").write_text("kernel,registers\nk,7\n")
    found = read_kernels(tmp_path, tmp_path / "compiled.csv")
    assert [r.device for r in found.results] == ["b", "a"] and found.compiled == ({"kernel": "k", "registers": "7"},)
    assert read_kernels(tmp_path / "none", tmp_path / "none.csv") == Found(results=(), compiled=())
    (tmp_path / "kernels-c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"kernels-c.json: not the results of a bench"):
        read_kernels(tmp_path)
