import csv
import io
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from pages import can_be_heard, parsed, refers_to_itself, stands_alone

from reports.command import report
from reports.entropy_figures import ORIGIN
from reports.figures import csv_text, svg
from reports.reasoning import chain_verdict, read_reasoning
from reports.reasoning_page import draw_reasoning, render_reasoning
from suite.store import ReasoningRow, Store


def row(step, k, **changes):
    """A row of problems of `k` steps whose steps are right independently with probability `step`."""
    right = step**k
    values = dict(
        model="path/to/made", model_sha256="b" * 64, base_sha256="b" * 64, method=None, recipe=None, bits=None,
        bpw=None, quantized_seed=None, ppl=8.0, ppl_base=None, ppl_se=None, data_sha256="d",
        problems_sha256=f"p{k}", seed=0, steps=k, problems=500, answer=right, answer_se=0.01, answer_base=None,
        answer_change_se=None, right=right, right_se=0.01, right_base=None, right_change_se=None, step=step,
        step_se=0.002, step_base=None, step_change_se=None, value=step, value_se=0.002, independent=right,
        independent_se=0.01, excess=0.0, excess_se=0.004, by_place=str([step] * k), nats=0.01, nats_se=0.001,
        device="cpu", threads=1, fallbacks="[]", code="1.0+abc", env="cpu", command="bitfrontier reasoning <made>",
        started="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return ReasoningRow(**{**values, **changes})


def packed(method, bits, step, k, **changes):
    return row(
        step, k, model=f"{method}-{bits}", model_sha256=f"{method}{bits}".ljust(64, "0"), method=method, bits=bits,
        bpw=bits + 0.25, recipe=f"{method}(bits={bits})", quantized_seed=0, ppl=8.0 + 8.0 * 4.0**-bits, ppl_base=8.0,
        ppl_se=0.1, answer_base=0.999**k, answer_change_se=0.02, **changes,
    )  # fmt: skip


STEPS = {("rtn", 2): 0.5, ("rtn", 4): 0.99, ("gptq", 2): 0.8, ("gptq", 3): 0.985, ("gptq", 4): 0.998}
ROWS = [
    *(row(0.999, k) for k in (1, 3, 6)),
    *(packed(method, bits, step, k) for (method, bits), step in STEPS.items() for k in (1, 3, 6)),
    *(row(0.99, k, model="cache", model_sha256="c" * 64, method="kivi", bits=2, recipe="cache") for k in (1, 6)),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("reasoning") / "s.db"
    older = [row(0.1, 6, started="2025-01-01T00:00:00Z", code="0.9"),
             row(0.2, 6, problems=20, problems_sha256="few", started="2026-02-01T00:00:00Z")]  # fmt: skip
    with Store(path) as store:
        store.put_rows(*[*ROWS, *older])
        store.put_rows(*[row(0.9, 1, seed=1, problems_sha256="q"), row(0.8, 2, base_sha256="o" * 64)])
    return path


@pytest.fixture(scope="module")
def chains(path):
    with Store(path, create=False) as store:
        return read_reasoning(store)


@pytest.fixture(scope="module")
def page(chains):
    return render_reasoning(draw_reasoning(chains), beside_report=True)


def test_models_are_beside_what_they_were_made_of(chains):
    chain, other_seed, other_base = chains
    assert chain.name == "made" and chain.steps == [1, 3, 6]
    assert [(s.label, s.bpw) for s in chain.drawn] == [
        ("gptq 2", 2.25), ("rtn 2", 2.25), ("gptq 3", 3.25), ("gptq 4", 4.25), ("rtn 4", 4.25)
    ]  # fmt: skip
    assert (chain.every[0].label, chain.every[-1].label) == ("unquantized", "kivi 2")
    assert (other_seed.every, other_seed.base.rows[1].seed) == ((other_seed.base,), 1)
    assert other_base.base is None and other_base.name == "o" * 12


def test_models_of_one_recipe_have_lines_of_their_own(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put_rows(*[packed("gptq", 2, 0.8, 1), packed("gptq", 3, 0.9, 1),
                             replace(packed("gptq", 2, 0.9, 1), model="a/mixed", model_sha256="x" * 64)])  # fmt: skip
        (chain,) = read_reasoning(store)
    assert {name: [s.directory for s in solvers] for name, solvers in chain.series.items()} == {
        "gptq": ["gptq-2", "gptq-3"], "gptq (mixed)": ["mixed"]
    }  # fmt: skip
    assert "At the fewest bits measured: gptq 2 (mixed) at 2.25 bits, 90% right" in chain_verdict(chain)
    draw_reasoning([chain])


def test_of_a_models_rows_those_of_most_problems_and_of_these_the_newest_count(chains):
    assert chains[0].base.rows[6].step == 0.999


def test_the_verdict_names_the_fewest_bits_that_keep_most_answers(chains):
    said = chain_verdict(chains[0])
    assert said.startswith("99.4% of the answers of 6 steps are right before anything is quantized.")
    assert (
        "The fewest bits that keep 90% of them: gptq 3 (gptq-3) at 3.25 bits, 91.3% right, 98.5% of single steps"
        in said
    )
    assert (
        "At the fewest bits measured: gptq 2 (gptq-2) at 2.25 bits, 26.2% right, 80% of single steps, perplexity 1.06"
        in said
    )
    assert "for none by over two standard errors." in said
    lone = chain_verdict(chains[2])
    assert "right before" not in lone and "in the median of 1 model;" in lone


def test_errors_that_fall_together_are_named(path, tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put_rows(*[row(0.9, 4, right=0.7, excess=0.7 - 0.9**4, excess_se=0.01)])
        said = chain_verdict(read_reasoning(store)[0])
    assert "All 4 steps are right 4.4 percentage points more often than independent errors would give" in said
    assert said.endswith("by over two standard errors for unquantized.")


def test_the_page_refers_to_itself_stands_alone_and_can_be_heard(page):
    found = parsed(page)
    refers_to_itself(found, others=("report.html",))
    stands_alone(page, found)
    can_be_heard(found, 3)


def test_rows_are_what_the_store_holds(chains):
    (plot,) = draw_reasoning(chains)[0].plots
    assert plot.header[-len(ORIGIN) :] == ORIGIN and all(len(r) == len(plot.header) for r in plot.rows)
    table = list(csv.DictReader(io.StringIO(csv_text(plot))))
    assert len(table) == len(ROWS)
    for method, bits in STEPS:
        (found,) = [r for r in table if (r["method"], r["bits"], r["steps"]) == (method, str(bits), "6")]
        assert float(found["answer %"]) == pytest.approx(100 * STEPS[method, bits] ** 6, abs=0.005)
        assert found["step % by place"].split() == [f"{100 * STEPS[method, bits]:.1f}"] * 6


def test_the_same_rows_give_the_same_bytes(chains):
    first, second = (draw_reasoning(chains)[0].plots[0] for _ in range(2))
    assert svg(first, "a") == svg(second, "a")


def test_the_command_writes_the_page_of_a_store_of_problems_alone(path, tmp_path):
    found = CliRunner().invoke(report, ["--store", str(path), "--out", str(tmp_path), "--figures"])
    assert found.exit_code == 0
    assert {file.name for file in tmp_path.glob("*.html")} == {"reasoning.html", "kernels.html"}
    assert (tmp_path / "figures" / "reasoning-1-chain.csv").is_file()


def test_drawing_imports_no_torch():
    code = "import reports.reasoning_page, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
