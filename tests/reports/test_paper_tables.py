"""Tables for papers: what is bold, how many digits, and that every number is the records' own."""

import math
import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from synthetic import records

from reports.frontier import studies
from reports.paper_tables import HIGHER, LOWER, NAMES, Entry, entries, latex, markdown
from suite.commands.main import bitfrontier
from suite.store import Store

numbers = st.floats(1e-6, 1e6)


@pytest.fixture(scope="module")
def study(store_path):
    with Store(store_path, create=False) as store:
        return max(studies(store), key=lambda found: len(found.points))


@given(mean=numbers, error=numbers)
def test_digits_end_with_the_second_one_of_the_error(mean, error):
    value, said = Entry(mean, error).text(" ± ").split(" ± ")
    assert math.isclose(float(said), error, rel_tol=0.051) or (error > 10 and float(said) == round(error))
    assert abs(float(value) - mean) <= max(0.05 * error, 0.5 if error > 10 else 0.0) + 1e-12 * mean
    decimals = [len(text.partition(".")[2]) for text in (value, said)]
    assert decimals[0] == decimals[1]


@pytest.mark.parametrize(("mean", "error", "text"), [
    (6.89188, 0.01316, "6.892 ± 0.013"), (0.0123456, None, "0.01235"), (3.0, None, "3"), (math.nan, None, "–"),
    (math.inf, 1.0, "–"), (2.0, 0.0, "2"), (12345.6, 321.0, "12346 ± 321"),
])  # fmt: skip
def test_a_number_as_text(mean, error, text):
    assert Entry(mean, error).text(" ± ") == text


@pytest.mark.parametrize("per_bits", [False, True])
def test_bold_is_the_best_of_what_it_is_compared_with(study, per_bits):
    columns = (*LOWER, *HIGHER)
    found = entries(study.points, columns, best_per_bits=per_bits)
    for j, name in enumerate(columns):
        for bits in {point.bits for point in study.points} if per_bits else {None}:
            rows = [i for i, point in enumerate(study.points) if not per_bits or point.bits == bits]
            values = [found[i][j].mean for i in rows if math.isfinite(found[i][j].mean)]
            bold = {found[i][j].mean for i in rows if found[i][j].best}
            best = (min if name in LOWER else max)(values, default=None)
            assert bold == ({best} if len(values) > 1 else set())


def test_every_mean_is_of_the_records(study):
    (row,) = entries(study.points[:1], ("bpw", "kl", "seeds"), best_per_bits=False)
    kept = study.points[0].records
    assert row[0].mean == pytest.approx(sum(r.bpw for r in kept) / len(kept), nan_ok=True)
    assert row[2].mean == len(kept)


def test_latex_is_a_whole_tabular_with_nothing_that_it_would_read_as_its_own(study):
    text = latex(study, study.points, ("bits", "kl", "model_bytes"))
    first, begin, *body, end = text.splitlines()
    assert first.startswith("% ") and begin == r"\begin{tabular}{lrrr}" and end == r"\end{tabular}"
    rows = [line for line in body if line.endswith(r"\\")]
    assert len(rows) == len(study.points) + 1 and all(line.count("&") == 3 for line in rows)
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(rows))


def test_markdown_has_a_line_for_each_point_and_says_where_it_is_from(study):
    lines = markdown(study, study.points, ("bits", "kl")).splitlines()
    assert all(line.count("|") == 4 for line in lines[:-2]) and len(lines) == len(study.points) + 4
    assert study.model in lines[-1] and study.points[0].records[0].command in lines[-1]


def run(*arguments):
    return CliRunner().invoke(bitfrontier, ["table", *map(str, arguments)])


def test_the_command_prints_a_selection_in_order(store_path, study):
    method = study.points[0].method
    result = run("--store", store_path, "--model", study.model, "--methods", method, "--sort", "bits",
                 "--columns", "bits,seeds")  # fmt: skip
    assert result.exit_code == 0, result.exception
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith(f"| {method}")]
    widths = [float(row[1]) for row in rows if row[1] != "–"]
    assert len(widths) > 1 and widths == sorted(widths)
    several = run("--store", store_path)
    assert str(several.exception).startswith("expected one model and evaluation")


@pytest.mark.parametrize(("options", "said"), [
    (("--columns", "colour"), "column 'colour': there are bits"), (("--sort", "colour"), "sort 'colour'"),
    (("--methods", "none-such"), "no finished record of these methods"), (("--model", "none"), "expected one model"),
])  # fmt: skip
def test_bad_input_is_one_line(tmp_path, options, said):
    with Store(tmp_path / "s.db") as store:
        first = next(record for record in records() if record.status == "ok")
        store.put(first, (), ())
    result = run("--store", tmp_path / "s.db", *options)
    assert isinstance(result.exception, ValueError) and str(result.exception).startswith(said)


def test_names_of_columns_are_fields_of_records():
    assert set(LOWER + HIGHER) <= set(NAMES)
