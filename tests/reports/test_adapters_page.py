"""The page of adapters says what the store's rows say: series over seeds against LoRA, where they began, memory."""

import csv
import io
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import can_be_heard, parsed, refers_to_itself, stands_alone
from scipy.stats import ttest_rel
from synthetic import fill, measured, record

from reports.adapters import Cell, Series, difference, is_adapted, read_adapters, start_of
from reports.adapters_forgetting import forgetting_verdict, read_forgetting
from reports.adapters_memory import Held, memory_verdict, read_memory
from reports.adapters_page import draw_adapters, render_adapters
from reports.adapters_verdicts import adapter_verdicts, entropy_verdicts, rounding_verdict, start_verdicts
from reports.command import figure_files, read, report
from reports.entropy_figures import ORIGIN
from reports.figures import csv_text
from reports.frontier import studies
from reports.training import read_training
from suite.methods import method_named
from suite.store import Histogram, MemoryRow, RetentionRow, Store, TrainingRow

# method, bits: nats over the control, entropy of codes in bits, what is stored beside the nominal bits
CELLS = {
    ("qlora", 4): (0.012, 3.88, 0.63), ("loftq", 4): (0.010, 3.88, 0.63), ("ir-qlora", 4): (0.011, 3.90, 0.76),
    ("qa-lora", 4): (0.03, 3.5, 1.0), ("l4q", 4): (-0.004, 3.4, 0.26), ("qlora", 2): (0.6, 1.52, 0.63),
    ("loftq", 2): (0.4, 1.5, 0.63), ("ir-qlora", 2): (0.5, 1.59, 0.76), ("qa-lora", 2): (0.7, 1.6, 1.0),
}  # fmt: skip
BEFORE = {("qlora", 4): 0.05, ("loftq", 4): 0.03, ("qlora", 2): 2.4, ("loftq", 2): 1.1}  # nats over as it was
CONTROL, BASE, SEEDS = 20.0, 28.0, (0, 1, 2)
REASON = "DivergedError: the loss of update 7 is <nan>"


def recipe_of(method, bits):
    return str(method_named(method).recipe(bits=bits))


def noise(method, bits, seed):
    return float(np.random.default_rng([bits, seed, *method.encode()]).normal(0, 0.05))


def adapted(method, bits, seed=0, **changes):
    """A record and the row of its training; seeds differ by 5% of the excess."""
    excess, _, beside = CELLS[method, bits]
    excess *= 1 + noise(method, bits, seed)
    r = record(cell=f"{method}/{bits}/{seed}".ljust(16, "."), method=method, bits=bits, bpw=bits + beside, seed=seed,
               recipe=recipe_of(method, bits), ppl_base=BASE, ppl=CONTROL * math.exp(excess), ppl_se=0.2, seconds=60.0,
               command="bitfrontier run tiny --methods adapters", data_sha256=f"data-{seed}")  # fmt: skip
    r = replace(r, **changes)
    row = TrainingRow(
        cell=r.cell, code=r.code, env=r.env, updates=300, tokens=1_228_800, operations=12_000_000_000_000,
        loss_nats=3.0, ppl_control=CONTROL, excess_nats=excess, excess_se=0.002, moved=None, moved_control=0.01,
        rounding=2e-7 if method == "qa-lora" else None, turning=None, disorder=None, window=100,
    )  # fmt: skip
    return r, row


def began(method, bits, seed=0):
    """The record of the model as training begins with it."""
    text, name = start_of(recipe_of(method, bits)), f"nf{bits}" if method == "qlora" else "recipe"
    return record(cell=f"began/{method}/{bits}/{seed}", method=name, bits=bits, recipe=text,
                  ppl=BASE * math.exp(BEFORE[method, bits]), ppl_base=BASE, seed=seed,
                  data_sha256=f"data-{seed}")  # fmt: skip


def with_entropy(bits):
    """Counts of two kinds of codes, and levels, with this entropy: found by halving."""
    n, low, high = 2 ** math.ceil(bits), 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        share = np.array([p + (1 - p) / n] + [(1 - p) / n] * (n - 1))
        low, high = (p, high) if -(share * np.log2(share)).sum() > bits else (low, p)
    counts = np.round(share * 1e9).astype(np.int64)
    return [Histogram(stream=0, levels=np.arange(n, dtype=float), counts=counts)]


def memory_row(method, kind="measured", **changes):
    parts = {"full": (12, 0, 12, 24, 40), "lsq": (12, 1, 13, 26, 70), "qlora": (4, 2, 2, 4, 30),
             "l4q": (12, 2, 2, 4, 44)}[method]  # fmt: skip
    weights, adapters, gradients, states, activations = (n * 2**20 for n in parts)
    peak = int(sum(parts) * 2**20 * (1.1 if kind == "measured" else 1.0))
    values = dict(
        model="tiny", model_sha256="a" * 64, method=method, recipe=f"Recipe({method})",
        bits=None if method == "full" else 4.0, kind=kind, rows=4, length=256, width=4, checkpointing=False,
        paged=False, weights=weights, adapters=adapters, gradients=gradients, states=states, activations=activations,
        peak=peak,
        code="1.0+abc", env="cpu", command="bitfrontier memory tiny", started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return MemoryRow(**{**values, **changes})


MEMORY = [
    *(memory_row(method, kind) for method in ("full", "lsq", "qlora", "l4q") for kind in ("measured", "predicted")),
    memory_row("qlora", paged=True, peak=40 * 2**20), memory_row("qlora", peak=1, started="2025-01-01T00:00:00Z",
                                                                  code="0.9+old"),
    memory_row("qlora", "predicted", model="7b", model_sha256="", width=2, peak=11 * 2**30),
]  # fmt: skip
FORGOTTEN = {("qlora", 4): 0.31, ("qlora", 2): 0.9}  # nats; the controls forget .3


def kept(r, nats):
    gained = math.log(BASE / r.ppl) if math.isfinite(r.ppl) else None
    return RetentionRow(
        cell=r.cell, code=r.code, env=r.env, text="reference", text_sha256="e" * 64, tokens=8192,
        ppl=9 * math.exp(nats), ppl_base=9.0, ppl_control=9 * math.exp(0.3), gained_nats=gained, gained_se=0.01,
        gained_control_nats=math.log(BASE / CONTROL), gained_control_se=0.01, forgotten_nats=nats, forgotten_se=0.02,
        forgotten_control_nats=0.3, forgotten_control_se=0.02, excess_nats=nats - 0.3, excess_se=0.005,
    )  # fmt: skip


NOTHING = dict(status="failed", reason=REASON, bpw=None, ppl=None, ppl_se=None, ppl_base=None, kl=None)


def fill_adapted(path, pairs, others=(), memory=()):
    with Store(path) as store:
        for r, row in pairs:
            key = r.method, r.bits
            store.put(r, histograms=with_entropy(CELLS[key][1]), training=row,
                      retention=kept(r, FORGOTTEN[key]) if key in FORGOTTEN and r.ppl else None)  # fmt: skip
        for r in others:
            store.put(r)
        store.put_rows(*memory)
    return path


def found_in(path):
    with Store(path, create=False) as store:
        found = studies(store)
        return read_adapters(store, found), read_forgetting(store, found), read_memory(store)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pairs = [adapted(*key, seed) for key in CELLS for seed in SEEDS]
    older, row = adapted("qlora", 4, code="0.9+old", started="2025-01-01T00:00:00Z")
    failed, _ = adapted("loftq", 2, cell="failed", seed=3, **NOTHING)
    without, _ = adapted("qlora", 4, cell="without", seed=4)
    starts = [began(*key, seed) for key in BEFORE for seed in SEEDS]
    return fill_adapted(tmp_path_factory.mktemp("adapters") / "s.db", [*pairs, (older, replace(row, excess_nats=9.0))],
                        [failed, without, *starts], MEMORY)  # fmt: skip


@pytest.fixture(scope="module")
def everything(path):
    return found_in(path)


@pytest.fixture(scope="module")
def group(everything):
    return everything[0][0]


@pytest.fixture(scope="module")
def sections(everything):
    return draw_adapters(*everything)


@pytest.mark.parametrize("method", ["qlora", "loftq", "qa-lora", "ir-qlora", "l4q"])
def test_recipes_with_trained_adapters_are_known_by_their_text(method):
    assert is_adapted(recipe_of(method, 4))


@pytest.mark.parametrize("method", ["lsq", "low-rank", "gptq"])
def test_others_are_not(method):
    assert not is_adapted(recipe_of(method, 4))


def test_what_training_begins_with_is_the_recipe_without_it():
    assert start_of(recipe_of("qlora", 4)) == str(method_named("nf4").recipe())
    assert start_of(recipe_of("qlora", 2)) == str(method_named("nf2").recipe())
    assert start_of(recipe_of("loftq", 2)).endswith("adaptation=LowRank(adapters=Adapters(rank=8), rounds=5))")
    assert start_of(recipe_of("ir-qlora", 4)) == "Recipe(weights=Target(Shifted()))"
    assert "Feedback" in start_of(recipe_of("qa-lora", 3)) and "LowRank" not in start_of(recipe_of("qa-lora", 3))
    assert start_of(recipe_of("l4q", 4)) is None and start_of("no recipe (") is None and start_of("x") is None


def test_seeds_are_one_series_and_the_newest_code_counts(group):
    assert {(s.method, s.bits): len(s.cells) for s in group.series} == dict.fromkeys(CELLS, 3)
    (s,) = group.of("qlora", 4)
    values = [0.012 * (1 + noise("qlora", 4, seed)) for seed in SEEDS]
    assert s.excess == pytest.approx(np.mean(values)) and s.bpw == pytest.approx(4.63)
    assert s.excess_error == pytest.approx(math.sqrt(0.002**2 + np.var(values, ddof=1) / 3))
    assert s.mean(lambda c: c.nats) == pytest.approx(math.log(CONTROL / BASE) + np.mean(values))
    assert s.mean(lambda c: c.nats_control) == pytest.approx(math.log(CONTROL / BASE))
    assert s.mean(lambda c: c.entropy) == pytest.approx(3.88, abs=1e-6)


def test_starts_are_found_by_recipe_and_seed(group):
    for (method, bits), nats in BEFORE.items():
        assert group.of(method, bits)[0].mean(lambda c: c.nats_start) == pytest.approx(nats)
    assert math.isnan(group.of("ir-qlora", 4)[0].mean(lambda c: c.nats_start))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=6))
def test_intervals_are_students_of_paired_differences(pairs):
    one, two = (Series("x", tuple(Cell(record(seed=i, ppl=math.exp(x), ppl_base=1.0), None, math.nan, None)
                                  for i, x in enumerate(values))) for values in zip(*pairs, strict=True))  # fmt: skip
    a, b = np.array(pairs).T
    if np.std(a - b) < 1e-6:
        return
    found = difference(one, two, lambda c: c.nats)
    wanted = ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(wanted), rel=1e-6, abs=1e-9)
    assert found.n == len(pairs) and found.mean == pytest.approx(np.mean(a - b), abs=1e-12)
    assert found.sure == (wanted.low > 0 or wanted.high < 0)


def test_loftq_is_held_against_qlora_before_and_after(group):
    two, four = start_verdicts(group)
    assert two.startswith("LoftQ at 2 bits begins −1.3 [−1.3, −1.3] nats and ends −0.")
    assert two.endswith("from QLoRA, 95% intervals over 3 seeds.")
    assert "begins −0.02 [" in four and four.endswith("over 3 seeds, and 0 is within the last.")


def test_entropy_is_held_against_loss(group):
    two, four = entropy_verdicts(group)
    assert two.startswith(
        "IR-QLoRA's codes at 2 bits have +0.07 [0.07, 0.07] bits of entropy against QLoRA's, its loss −"
    )
    assert "with 0.13 true bits more" in two and "at 4 bits have +0.02 [" in four


def test_one_seed_has_no_interval_and_a_merge_says_what_it_rounds(group):
    one = replace(group, series=tuple(Series(s.label, s.cells[:1]) for s in group.series))
    assert all("one seed, no interval" in said and "[" not in said for said in start_verdicts(one))
    assert rounding_verdict(group).endswith("by a share of 2e-07 at 2 bits, 2e-07 at 4 bits.")
    assert rounding_verdict(replace(group, series=tuple(group.of("qlora", 4)))) == ""
    assert len(adapter_verdicts(group)) == 6
    lone = replace(group, series=tuple(group.of("l4q", 4)))
    assert adapter_verdicts(lone)[0].startswith("there is one series of adapters: l4q 4 at 4.26 bits -0.00")


def test_what_failed_is_listed_with_its_reason(group, sections):
    assert {(r.cell, why) for r, why in group.missing} == {
        ("failed", f"failed: {REASON}"), ("without", "finished, with no row of its training")
    }  # fmt: skip
    assert f"loftq 2 of seed 3, failed: {REASON}" in sections[0].note


def test_rows_are_what_the_store_holds(sections):
    plot, _ = sections[0].plots
    assert plot.header[-len(ORIGIN) :] == ORIGIN and all(len(row) == len(plot.header) for row in plot.rows)
    table = list(csv.DictReader(io.StringIO(csv_text(plot))))
    assert len(table) == 3 * len(CELLS) + 2
    (one,) = [r for r in table if (r["method"], r["seed"]) == ("loftq 2", "1")]
    excess = 0.4 * (1 + noise("loftq", 2, 1))
    assert float(one["excess nats"]) == pytest.approx(excess, rel=1e-3) and float(one["entropy of codes"]) == 1.5
    assert float(one["perplexity"]) == pytest.approx(CONTROL * math.exp(excess), rel=1e-4)
    assert float(one["before training"]) == pytest.approx(BASE * math.exp(1.1), rel=1e-4)
    assert float(one["before"]) == pytest.approx(1.1) and float(one["control's perplexity"]) == CONTROL
    assert (one["updates"], one["tokens"], one["rounding"]) == ("300", "1,228,800", "")


def test_markers_stand_where_the_numbers_are(sections, group):
    excess, course, entropy = sections[0].plots[0].figure.axes
    bottom = excess.get_ylim()[0]
    (hollow,) = [line for line in excess.lines if line.get_markerfacecolor() == "none" and line.get_marker() == "v"]
    assert (hollow.get_xdata()[0], hollow.get_ydata()[0]) == (pytest.approx(4.26), bottom)  # l4q is below its control
    filled = {(round(float(line.get_xdata()[0]), 9), round(float(line.get_ydata()[0]), 9)) for line in excess.lines
              if line.get_marker() not in ("None", "") and line.get_markerfacecolor() != "none"}  # fmt: skip
    assert filled == {(round(s.bpw, 9), round(s.excess, 9)) for s in group.series if s.excess > 0}
    starts = sorted(line.get_ydata()[0] for line in course.lines if line.get_markerfacecolor() == "white")
    assert starts == pytest.approx(sorted(BEFORE.values()))
    dashed = [line.get_ydata()[0] for line in course.lines if line.get_linestyle() == "--"
              and line.get_ydata()[0] == line.get_ydata()[1]]  # fmt: skip
    assert dashed == pytest.approx([math.log(CONTROL / BASE)])
    gray = [line for line in entropy.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]]
    assert sorted(tuple(np.round(line.get_xdata(), 4)) for line in gray) == [(0.12, 0.1), (0.48, 0.41)]


def test_memory_is_by_model_and_micro_batch(everything):
    tiny, shape = everything[2]
    assert (shape.any.model, shape.unit[0]) == ("7b", "GiB") and (tiny.any.model, tiny.unit[0]) == ("tiny", "MiB")
    assert [one.label for one in tiny.trainings] == ["lsq 4", "full", "l4q 4", "qlora 4", "qlora 4, paged"]
    assert all(one.predicted for one in tiny.trainings[:-1]) and tiny.trainings[-1].predicted is None
    assert tiny.of("qlora")[0].drawn.peak == int(1.1 * 42 * 2**20)  # the newest
    assert memory_verdict(shape) == ""
    said = memory_verdict(tiny)
    assert said.startswith("qlora 4 peaks at 46.2 MiB, 34.4% of lsq 4's 134.2 MiB; l4q 4 peaks at 70.4 MiB, 52.5% of")
    assert "predicted peaks are off by -9.1% at most" in said
    assert memory_verdict(Held(tuple(tiny.of("qlora")))) == (
        "predicted peaks are off by -9.1% at most (qlora 4).")  # fmt: skip


def test_bars_are_the_parts_and_lines_the_peaks(sections):
    plot = sections[1].plots[0]
    ax = plot.figure.axes[0]
    widths = [patch.get_width() for patch in ax.patches]
    assert widths[:5] == [12, 1, 13, 26, 70] and len(widths) == 5 * 5
    peaks = sorted(line.get_xdata()[0] for line in ax.lines if line.get_linewidth() == 2)
    assert peaks == pytest.approx(sorted([40, *(1.1 * n for n in (88, 122, 42, 64))]))
    diamonds = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "D")
    assert diamonds == pytest.approx([42, 64, 88, 122])
    table = list(csv.DictReader(io.StringIO(csv_text(plot))))
    (one,) = [r for r in table if (r["method"], r["kind"]) == ("full", "predicted")]
    assert one["sum"] == f"{88 * 2**20:,}" and float(one["peak over measured %"]) == pytest.approx(-9.09)


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(sections):
    page = render_adapters(sections, beside_report=True)
    found = parsed(page)
    refers_to_itself(found, others=("report.html",))
    stands_alone(page, found)
    can_be_heard(found, 4)
    assert "&lt;nan&gt;" in page and "Student's 95% interval" in page


def test_the_same_rows_give_the_same_bytes(everything):
    first, again = (render_adapters(draw_adapters(*everything), beside_report=True) for _ in range(2))
    assert first == again


def test_figures_that_are_no_numbers_are_left_out(tmp_path):
    r, row = adapted("qlora", 2)
    odd = replace(row, excess_nats=math.inf, excess_se=math.inf)
    found, *_ = found_in(fill_adapted(tmp_path / "s.db", [(replace(r, ppl=math.inf, ppl_se=None), odd)]))
    assert adapter_verdicts(found[0]) == []
    (section,) = draw_adapters(found, [], [])
    parsed(render_adapters([section], beside_report=False))
    assert dict(zip(section.plots[0].header, section.plots[0].rows[0], strict=True))["excess nats"] == ""


def test_series_of_one_method_and_width_have_names_of_their_own(tmp_path):
    first = adapted("qlora", 4)
    other = adapted("qlora", 4, cell="0123456789", recipe=first[0].recipe.replace("rank=8", "rank=4"))
    (group,), *_ = found_in(fill_adapted(tmp_path / "s.db", [first, other]))
    assert {s.label for s in group.series} == {"qlora 4 (qlora/4/)", "qlora 4 (01234567)"}
    draw_adapters([group], [], [])


def test_a_store_where_all_failed_has_a_section_without_figures(tmp_path):
    failed, _ = adapted("loftq", 2, **NOTHING)
    (section,) = draw_adapters(found_in(fill_adapted(tmp_path / "s.db", [], [failed]))[0], [], [])
    assert section.plots == () and "loftq 2 of seed 0, failed: DivergedError" in section.note
    refers_to_itself(parsed(render_adapters([section], beside_report=False)))


def test_adapters_are_not_among_models_trained_as_a_whole(path):
    with Store(path, create=False) as store:
        assert read_training(store, studies(store)) == []


def test_what_is_forgotten_stands_beside_what_is_gained(everything, sections):
    (forgetting,) = everything[1]
    assert [k.label for k in forgetting.kept] == ["qlora 2", "qlora 4"]
    two = forgetting.kept[0]
    gains = [math.log(BASE / CONTROL) - 0.6 * (1 + noise("qlora", 2, seed)) for seed in SEEDS]
    assert two.mean("gained_nats") == pytest.approx(np.mean(gains)) and two.mean("forgotten_nats") == pytest.approx(0.9)
    assert two.error("gained_nats") == pytest.approx(math.sqrt(0.01**2 + np.var(gains, ddof=1) / 3))
    said = forgetting_verdict(forgetting)
    assert said.startswith(
        "of 2 trained models, from the least beyond its control to the most: qlora 4 forgets 0.31 ± "
    )
    assert "0.01 ± 0.005 more than its control; qlora 2 forgets 0.9 ±" in said
    plot = sections[0].plots[1]
    assert (plot.key, len(plot.rows)) == ("forgetting-1", 6) and all(len(r) == len(plot.header) for r in plot.rows)
    crosses = [line for line in plot.figure.axes[0].lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [
        (pytest.approx(math.log(BASE / CONTROL)), pytest.approx(0.3))] * 2  # fmt: skip


def test_cells_without_training_have_no_control_to_forget_by(tmp_path):
    r = measured("tiny", "gptq", 4)
    nothing = dict.fromkeys(("ppl_control", "gained_control_nats", "gained_control_se", "forgotten_control_nats",
                             "forgotten_control_se", "excess_nats", "excess_se"))  # fmt: skip
    with Store(tmp_path / "s.db") as store:
        store.put(r, retention=replace(kept(r, 0.2), **nothing))
    found = found_in(tmp_path / "s.db")
    assert forgetting_verdict(found[1][0]) == ""
    (section,) = draw_adapters(*found)
    assert section.heading == "Trained cells of tiny" and section.plots[0].rows[0][-len(ORIGIN) - 2] == ""
    refers_to_itself(parsed(render_adapters([section], beside_report=False)))


def test_the_command_writes_the_page_and_links_to_it(tmp_path):
    few = fill_adapted(tmp_path / "s.db", [adapted("qlora", 4)], memory=MEMORY[:2])
    done = CliRunner().invoke(report, ["--store", str(few), "--out", str(tmp_path)])
    assert done.exception is None, done.exception
    assert {"report.html", "adapters.html", "kernels.html"} <= {file.name for file in tmp_path.glob("*.html")}
    assert 'href="adapters.html"' in (tmp_path / "report.html").read_text()


def test_figures_are_files_too(tmp_path):
    few = fill_adapted(tmp_path / "s.db", [adapted("qlora", 4)], memory=MEMORY[:2])
    names = {f"adapters-{stem}.{kind}" for stem in ("1-cells", "1-forgetting-1", "memory-1-memory")
             for kind in ("svg", "pdf", "csv")}  # fmt: skip
    assert set(figure_files([], draw_adapters(*found_in(few)))) == names


def test_a_store_without_adapters_has_no_page(tmp_path):
    assert read(fill(tmp_path / "s.db", [measured("tiny", "rtn", 4)])).branches == ([], [], [])


def test_drawing_imports_no_torch():
    code = "import reports.adapters_page, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
